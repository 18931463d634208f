// SPDX-License-Identifier: GPL-2.0-only
//! What several experiments have in common.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::copies::Made;
use crate::frame::{Axis, Figure, Kind, Machine, Metric, Metrics, Unit, metrics};
use crate::subject::DIR;
use crate::system::ms as ms_of;
use crate::times::Times;

/// Where a process is not dumped as such, but what is done with its snapshot counts.
pub(super) const SIZE: Axis = Axis {
    name: "size",
    about: "memory of the process",
    kind: Kind::Size,
    quick: &["32M"],
    full: &["64M", "256M", "1G"],
};

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

/// Of copies that are made, and asked, one after the other.
pub(super) const ALL: Metric = ms(
    "all_ms",
    "from the beginning until the last copy has answered its first request",
);
pub(super) const EACH: Metric = ms("each_ms", "the same by the number of copies");
pub(super) const LAST: Metric = ms(
    "last_ms",
    "the last copy alone, from its beginning to its answer",
);

/// [`ALL`], [`EACH`] and [`LAST`] of these copies.
pub(super) fn times_of(made: &Made) -> Metrics {
    let all = ms_of(made.all);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let each = all / made.answers.len() as f64;
    metrics([
        ("all_ms", all),
        ("each_ms", each),
        ("last_ms", ms_of(made.last)),
    ])
}

/// A metric over size; a panel for each kind of pages.
pub(super) const fn by_size(title: &'static str, metric: &'static str) -> Figure {
    Figure {
        title,
        metric,
        x: "size",
        panels: Some("pages"),
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
