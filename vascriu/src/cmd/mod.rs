// SPDX-License-Identifier: GPL-2.0-only
//! The commands, one file each.

use std::time::Instant;

use serde::Serialize;

use crate::snapshot::id::SnapshotId;
use crate::snapshot::name::Name;
use crate::snapshot::registry::Registry;

pub mod check;
pub mod clone;
pub mod drain;
pub mod dump;
pub mod enable;
pub mod evict;
pub mod fork;
pub mod gc;
pub mod ls;
pub mod prune;
pub mod rename;
pub mod restore;
pub mod rm;
pub mod rollback;
pub mod serve;
pub mod show;

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}

/// Microseconds as milliseconds.
fn ms(us: u64) -> f64 {
    #[allow(clippy::cast_precision_loss)] // exact up to 285 years
    let us = us as f64;
    us / 1000.0
}

/// Time since `start` in milliseconds.
fn ms_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}

/// A snapshot, as people call it.
fn called(name: Option<&Name>, id: SnapshotId) -> String {
    name.map_or_else(|| id.short(), ToString::to_string)
}

/// Removes a snapshot that was a step of something else. If that fails it is left, not more.
fn forget(id: SnapshotId) {
    let gone = || anyhow::Ok(Registry::open()?.remove(id, false)?);
    if let Err(e) = gone() {
        eprintln!("vascriu: the snapshot {id} is left: {e:#} (`vascriu rm {id}`)");
    }
}
