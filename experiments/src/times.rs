// SPDX-License-Identifier: GPL-2.0-only
//! The times of a dump and a restore.

use serde::{Deserialize, Serialize};

use crate::system::{Dump, Restore, ms};
use crate::table;

/// Of one dump and one restore, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// The whole dump.
    pub dump_ms: f64,
    /// CPU time of the dump.
    pub dump_cpu_ms: f64,
    /// The whole restore.
    pub restore_ms: f64,
    /// How long the process was frozen in the dump.
    pub frozen_ms: f64,
    /// The memory step of the dump.
    pub memory_dump_ms: f64,
    /// The memory step of the restore.
    pub memory_restore_ms: f64,
}

impl Times {
    /// What these took.
    #[must_use]
    pub fn new(dump: &Dump, restore: &Restore) -> Self {
        Self {
            dump_ms: ms(dump.wall),
            dump_cpu_ms: ms(dump.cpu),
            restore_ms: ms(restore.wall),
            frozen_ms: ms(dump.frozen),
            memory_dump_ms: ms(dump.memory),
            memory_restore_ms: ms(restore.memory),
        }
    }

    /// How many times faster than `stock`, if there is one, for a table.
    #[must_use]
    pub fn faster_than(&self, stock: Option<&Self>, of: fn(&Self) -> f64) -> String {
        stock.map_or(String::new(), |stock| table::times(of(stock), of(self)))
    }
}
