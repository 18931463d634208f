//! What several experiments have in common.

use crate::frame::{Axis, Kind, Machine, Metric, Unit};

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
pub(super) const MEMORY_RESTORE: Metric = ms("memory_restore_ms", "restore, the memory step");
pub(super) const MEMORY_DUMP: Metric = ms("memory_dump_ms", "dump, the memory step");
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
