// SPDX-License-Identifier: GPL-2.0-only
//! Whether there is room for that many copies: asked before the first is begun, for all of
//! them, and before each, for that one.

use std::fs;

/// Memory that is never given to copies: CRIU needs some while it restores, and so does
/// everybody else.
const RESERVE: u64 = 64 << 20;
/// What a copy takes at least, whatever it is: its namespaces, and who looks after it.
const PER_COPY: u64 = 512 << 10;
/// What each of its tasks takes at least: stacks, the kernel's share, file mappings.
const PER_TASK: u64 = 256 << 10;
/// A page table, and how many pages it maps.
const TABLE: u64 = 4096;
const PAGES_PER_TABLE: u64 = 512;

/// There is not enough of something.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Memory.
    #[error(
        "{count} copies take at least {} of memory, {} each; there is room for {fit} ({} available)",
        mib(.each * .count), mib(*.each), mib(*.available)
    )]
    Memory {
        /// How many are wanted.
        count: u64,
        /// How many there is room for.
        fit: u64,
        /// Bytes that each takes.
        each: u64,
        /// Bytes that are available.
        available: u64,
    },
    /// Process identifiers.
    #[error(
        "{count} copies take {} PIDs, {each} each; there is room for {fit} (kernel.pid_max and kernel.threads-max)",
        .each * .count
    )]
    Pids {
        /// How many are wanted.
        count: u64,
        /// How many there is room for.
        fit: u64,
        /// How many each takes.
        each: u64,
    },
    /// What is left, in the middle of it.
    #[error("only {} of memory are available, a copy takes at least {}", mib(*.0), mib(*.1))]
    Short(u64, u64),
}

fn mib(bytes: u64) -> String {
    match bytes >> 20 {
        0 => format!("{} KiB", bytes >> 10),
        m if m < 10 << 10 => format!("{m} MiB"),
        m => format!("{} GiB", m >> 10),
    }
}

/// What one copy takes.
#[derive(Debug, Clone, Copy)]
pub struct Need {
    bytes: u64,
    pids: u64,
}

/// What there is, or as much as anybody could want where the kernel does not say.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    bytes: u64,
    pids: u64,
}

impl Need {
    /// Of a snapshot of that many tasks and shared 4 KiB pages.
    #[must_use]
    pub fn of(tasks: usize, pages: u64) -> Self {
        let tasks = tasks as u64;
        Self {
            bytes: PER_COPY + tasks * PER_TASK + pages / PAGES_PER_TABLE * TABLE,
            pids: tasks + 1,
        }
    }
}

impl Room {
    /// As it is now.
    #[must_use]
    pub fn now() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let limit = |path| read(path).trim().parse().unwrap_or(u64::MAX);
        let most = limit("/proc/sys/kernel/pid_max").min(limit("/proc/sys/kernel/threads-max"));
        Self {
            bytes: available(&read("/proc/meminfo"))
                .unwrap_or(u64::MAX)
                .saturating_sub(RESERVE),
            pids: most.saturating_sub(tasks(&read("/proc/loadavg")).unwrap_or(0)),
        }
    }

    /// Whether `count` copies have room in it.
    ///
    /// # Errors
    /// They have not.
    pub fn holds(self, count: u64, need: Need) -> Result<(), Error> {
        let (each, fit) = (need.pids, self.pids / need.pids);
        if count > fit {
            return Err(Error::Pids { count, fit, each });
        }
        let (each, fit) = (need.bytes, self.bytes / need.bytes);
        let available = self.bytes;
        if count > fit {
            return Err(Error::Memory {
                count,
                fit,
                each,
                available,
            });
        }
        Ok(())
    }

    /// Whether one more has.
    ///
    /// # Errors
    /// It has not.
    pub fn holds_one(self, need: Need) -> Result<(), Error> {
        if self.bytes < need.bytes {
            return Err(Error::Short(self.bytes, need.bytes));
        }
        Ok(())
    }
}

/// Bytes of `MemAvailable`.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}

/// Tasks that there are: the second number of `/proc/loadavg`'s fourth field.
fn tasks(loadavg: &str) -> Option<u64> {
    loadavg
        .split_whitespace()
        .nth(3)?
        .split_once('/')?
        .1
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Room = Room {
        bytes: 1 << 30,
        pids: 30_000,
    };

    #[test]
    fn the_kernels_files_are_understood() {
        assert_eq!(
            available("MemFree: 1 kB\nMemAvailable:   2048 kB\n"),
            Some(2 << 20)
        );
        assert_eq!(tasks("0.10 0.20 0.30 1/123 4567\n"), Some(123));
        assert_eq!((available(""), tasks("")), (None, None));
    }

    #[test]
    fn too_many_copies_are_told_how_many_have_room() {
        let need = Need::of(1, 65536);
        assert_eq!(ROOM.holds(100, need), Ok(()));
        let e = ROOM.holds(10_000, need).expect_err("too many").to_string();
        assert!(
            e.contains("10000 copies") && e.contains("room for 8"),
            "{e}"
        );
        let e = ROOM.holds(100_000, need).expect_err("too many").to_string();
        assert!(
            e.contains("200000 PIDs") && e.contains("room for 15000"),
            "{e}"
        );
    }

    #[test]
    fn numbers_that_do_not_fit_do_not_wrap() {
        let room = Room {
            bytes: u64::MAX,
            pids: u64::MAX,
        };
        assert_eq!(room.holds(u64::from(u32::MAX), Need::of(1, 0)), Ok(()));
        assert!(Room { bytes: 0, pids: 0 }.holds(1, Need::of(1, 0)).is_err());
    }
}
