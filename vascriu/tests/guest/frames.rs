//! What of the guest's memory is in use.

use std::fs;

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
/// a multiple of each of these, which leave room for the heaps of this process and of the
/// agent (anonymous memory), and for what other processes map meanwhile.
const ANONYMOUS: u64 = 256;
const PAGE_TABLES: u64 = 64;
const VMAS: u64 = 100;
/// Pages without an owner show in nothing else. Of slabs and of the allocator's lists for
/// each CPU more remain at one time than at another; a huge page that is lost in each
/// operation is more.
const FREE: u64 = 4096;

impl Frames {
    /// As it is now, without caches.
    pub fn now() -> Self {
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
            free: pages("nr_free_pages "),
            anonymous: pages("nr_anon_pages "),
            page_tables: pages("nr_page_table_pages "),
            vmas: objects("vm_area_struct").unwrap_or(0),
        }
    }

    /// Panics where more is in use than `before`.
    #[track_caller]
    pub fn no_more_than(&self, before: &Self) {
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
        for (what, leaks) in leaks {
            assert!(!leaks, "{what} leak: {before:?}, then {self:?}");
        }
    }
}

/// Objects of a slab cache; what CPUs have for themselves is put back first.
fn objects(cache: &str) -> Option<u64> {
    let dir = format!("/sys/kernel/slab/{cache}");
    fs::write(format!("{dir}/shrink"), "1").ok()?;
    let objects = fs::read_to_string(format!("{dir}/objects")).ok()?;
    objects.split_whitespace().next()?.parse().ok()
}
