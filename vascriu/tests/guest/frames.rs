// SPDX-License-Identifier: GPL-2.0-only
//! What of the guest's memory is in use.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::harness::PATIENCE;

/// Counts in pages, but for the VMAs.
#[derive(Debug, Clone, Copy)]
pub struct Frames {
    free: u64,
    /// Mapped anonymous pages.
    anonymous: u64,
    page_tables: u64,
    /// 0 where the kernel does not tell.
    vmas: u64,
}

/// The least that a churn's workload has is 4 MiB: one VAS or one mm that is left behind is
/// four times this, which leaves room for the heaps of this process and of the agent.
const ANONYMOUS: u64 = 256;
/// A few operations that each leave some behind are more; other processes come and go.
const PAGE_TABLES: u64 = 32;
const VMAS: u64 = 50;
/// Pages without an owner show in nothing else. Of slabs more remain at one time than at
/// another; a huge page that is lost in each operation is more.
const FREE: u64 = 2048;

impl Frames {
    /// As it is now, without caches.
    fn now() -> Self {
        // Twice: what the first lets go, the second finds unused.
        for _ in 0..2 {
            fs::write("/proc/sys/vm/drop_caches", "3").expect("drop_caches");
        }
        // Those of each CPU are added up, too.
        fs::read("/proc/sys/vm/stat_refresh").expect("stat_refresh");
        let vmstat = fs::read_to_string("/proc/vmstat").expect("vmstat");
        let pages = |name: &str| {
            let value = vmstat.lines().find_map(|l| l.strip_prefix(name));
            let value = value.unwrap_or_else(|| panic!("no {name} in vmstat"));
            value.trim().parse().expect("a number")
        };
        Self {
            free: pages("nr_free_pages ") + free_of_cpus(),
            anonymous: pages("nr_anon_pages "),
            page_tables: pages("nr_page_table_pages "),
            vmas: objects("vm_area_struct").unwrap_or(0),
        }
    }

    /// As it is now and then: pages that are being reported to the host as free are not
    /// counted as such at that moment.
    pub fn settled() -> Self {
        let samples = (0..20).map(|_| {
            sleep(Duration::from_millis(100));
            Self::now()
        });
        samples.max_by_key(|f| f.free).expect("twenty")
    }

    /// Panics where more stays in use than `before`: what leaks does not come back.
    #[track_caller]
    pub fn are_no_more_than(before: &Self) {
        let begun = Instant::now();
        loop {
            let now = Self::settled();
            match now.more_than(before) {
                None => return,
                Some(what) if begun.elapsed() > PATIENCE => {
                    panic!("{what} leak: {before:?}, then {now:?}")
                }
                Some(_) => {}
            }
        }
    }

    fn more_than(&self, before: &Self) -> Option<&'static str> {
        let leaks = [
            ("free pages", self.free + FREE < before.free),
            (
                "anonymous pages",
                self.anonymous > before.anonymous + ANONYMOUS,
            ),
            (
                "page tables",
                self.page_tables > before.page_tables + PAGE_TABLES,
            ),
            ("VMAs", self.vmas > before.vmas + VMAS),
        ];
        leaks
            .iter()
            .find(|(_, leaks)| *leaks)
            .map(|(what, _)| *what)
    }
}

/// Free pages that CPUs keep for themselves, which are not counted as free: after much was
/// freed, dozens of MiB.
fn free_of_cpus() -> u64 {
    let zones = fs::read_to_string("/proc/zoneinfo").expect("zoneinfo");
    let counts = zones
        .lines()
        .filter_map(|l| l.trim_start().strip_prefix("count:"));
    counts
        .map(|n| n.trim().parse::<u64>().expect("a count"))
        .sum()
}

/// Objects of a slab cache; what CPUs have for themselves is put back first.
fn objects(cache: &str) -> Option<u64> {
    let dir = format!("/sys/kernel/slab/{cache}");
    fs::write(format!("{dir}/shrink"), "1").ok()?;
    let objects = fs::read_to_string(format!("{dir}/objects")).ok()?;
    objects.split_whitespace().next()?.parse().ok()
}
