// SPDX-License-Identifier: GPL-2.0-only
//! Memory, huge pages, and what confines monitors.

use std::fmt;
use std::fs;

use mvasvm::sandbox;
use serde::Serialize;

/// Bytes of memory that new programs can have without swapping.
pub(crate) fn mem_available() -> Option<u64> {
    meminfo("MemAvailable")
}

fn meminfo(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    field(&text, name).map(|kib| kib << 10)
}

/// The number behind `name:` in the text of `/proc/meminfo`.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    rest.split_whitespace().next()?.parse().ok()
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The choice that the kernel marks with brackets: `always [madvise] never`.
fn chosen(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0)
}

/// What decides how much memory guests can have, and how fast it is.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Memory {
    pub total_bytes: Option<u64>,
    pub available_bytes: Option<u64>,
    /// 0: heuristic, 1: always, 2: never more than there is.
    pub overcommit: Option<u64>,
    pub max_map_count: Option<u64>,
    /// Transparent huge pages for anonymous memory.
    pub thp: Option<String>,
    /// For memory files, which guest RAM is.
    pub thp_shmem: Option<String>,
    /// Reserved huge pages of 2 MiB.
    pub hugetlb_pages: Option<u64>,
}

impl Memory {
    pub fn look() -> Self {
        let thp = |file: &str| {
            let path = format!("/sys/kernel/mm/transparent_hugepage/{file}");
            let text = fs::read_to_string(path).ok()?;
            Some(chosen(&text)?.to_owned())
        };
        Self {
            total_bytes: meminfo("MemTotal"),
            available_bytes: mem_available(),
            overcommit: number("/proc/sys/vm/overcommit_memory"),
            max_map_count: number("/proc/sys/vm/max_map_count"),
            thp: thp("enabled"),
            thp_shmem: thp("shmem_enabled"),
            hugetlb_pages: number("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"),
        }
    }
}

/// What the kernel offers to confine monitors.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Confinement {
    /// Filters of system calls.
    pub seccomp: bool,
    /// Version of Landlock; 0: none.
    pub landlock: u32,
}

impl Confinement {
    pub fn look() -> Self {
        Self {
            seccomp: sandbox::has_seccomp(),
            landlock: sandbox::landlock_version(),
        }
    }
}

impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.seccomp {
            "seccomp, "
        } else {
            "no seccomp, "
        })?;
        match self.landlock {
            0 => f.write_str("no Landlock"),
            version => write!(f, "Landlock {version}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_read_as_the_kernel_writes_them() {
        let text = "MemTotal:       24669948 kB\nMemAvailable:   22 kB\nHugePages_Total:       0\n";
        assert_eq!(field(text, "MemAvailable"), Some(22));
        assert_eq!(field(text, "HugePages_Total"), Some(0));
        assert_eq!(field(text, "Mem"), None);
        assert_eq!(
            chosen("always within_size [advise] never\n"),
            Some("advise")
        );
        assert_eq!(chosen("none"), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text: String, name: String) {
            let _ = (field(&text, &name), chosen(&text));
        }
    }
}
