//! What several experiments have in common.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::frame::{Axis, Kind, Machine, Metric, Metrics, Unit, metrics};
use crate::subject::DIR;
use crate::times::Times;

const SIZES: &[&str] = &["huge", "4k"];

pub(super) const PAGES: Axis = Axis {
    name: "pages",
    about: "its pages",
    kind: Kind::Word(SIZES),
    quick: SIZES,
    full: SIZES,
};

pub(super) const DUMP: Metric = ms("dump_ms", "dump, the whole command");
pub(super) const RESTORE: Metric = ms("restore_ms", "restore, the whole command");
pub(super) const MEMORY_DUMP: Metric = ms("memory_dump_ms", "dump, the memory step");
pub(super) const MEMORY_RESTORE: Metric = ms("memory_restore_ms", "restore, the memory step");
pub(super) const FROZEN: Metric = ms("frozen_ms", "time frozen");
pub(super) const AGAIN: Metric = ms("again_ms", "the same touch again: full speed");

const fn ms(name: &'static str, about: &'static str) -> Metric {
    Metric {
        name,
        about,
        unit: Unit::Ms,
    }
}

/// For a process of at most 1 GiB, and its snapshot.
pub(super) const MACHINE: Machine = Machine {
    mem: "4G",
    cpus: 1,
    image: None,
};

/// [`DUMP`], [`RESTORE`], [`MEMORY_DUMP`], [`MEMORY_RESTORE`] and [`FROZEN`] of these times.
pub(super) fn dump_and_restore(times: &Times) -> Metrics {
    metrics([
        ("dump_ms", times.dump_ms),
        ("restore_ms", times.restore_ms),
        ("memory_dump_ms", times.memory_dump_ms),
        ("memory_restore_ms", times.memory_restore_ms),
        ("frozen_ms", times.frozen_ms),
    ])
}

/// Does `once` if it is the first of this name since the guest booted: then its programs are in
/// the page cache.
pub(super) fn warm_up(name: &str, once: impl FnOnce() -> Result<()>) -> Result<()> {
    let is_warm = Path::new(DIR).join(format!("{name}-is-warm"));
    if !is_warm.exists() {
        once().context("warm-up")?;
        fs::write(&is_warm, "")?;
    }
    Ok(())
}
