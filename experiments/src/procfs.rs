// SPDX-License-Identifier: GPL-2.0-only
//! What `/proc` tells.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// The number in the line of `/proc/PID/status` and its like that begins with `key`.
///
/// ```
/// use mvas_exp::procfs::kib_of;
/// assert_eq!(kib_of("RssFile:\t  10 kB\nRssAnon:\t 4524 kB\n", "RssAnon:"), Some(4524));
/// ```
#[must_use]
pub fn kib_of(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// From a `/proc/PID/status`: the PID here of a process that is `pid` in a PID namespace below.
///
/// ```
/// use mvas_exp::procfs::outer_pid;
/// assert_eq!(outer_pid("NSpid:\t412\t10000\n", 10000), Some(412));
/// assert_eq!(outer_pid("NSpid:\t10000\n", 10000), None);
/// ```
#[must_use]
pub fn outer_pid(status: &str, pid: i32) -> Option<i32> {
    let line = status.lines().find_map(|l| l.strip_prefix("NSpid:"))?;
    let pids: Vec<i32> = line
        .split_whitespace()
        .map(|pid| pid.parse().ok())
        .collect::<Option<_>>()?;
    match pids.as_slice() {
        [outer, .., inner] if *inner == pid => Some(*outer),
        _ => None,
    }
}

/// PIDs, here, of all processes that are `pid` in a PID namespace below this one.
///
/// # Errors
/// When there is no `/proc`.
pub fn inside(pid: i32) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        // What is no process, or has ended meanwhile, has no status.
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        found.extend(outer_pid(&status, pid));
    }
    Ok(found)
}

/// The children of a process.
///
/// # Errors
/// When it is gone.
pub fn children(pid: i32) -> Result<Vec<i32>> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let pids = text.split_whitespace().map(str::parse);
    pids.collect::<Result<_, _>>().with_context(|| path.clone())
}

/// What the kernel could give to new programs, with what each CPU has in stock for them: that
/// is many MiB where huge pages come and go, and the kernel takes it for used.
///
/// # Errors
/// When it does not tell.
pub fn available_bytes() -> Result<u64> {
    // Its counters are a little behind otherwise.
    fs::write("/proc/sys/vm/stat_refresh", "1").context("/proc/sys/vm/stat_refresh")?;
    let zones = fs::read_to_string("/proc/zoneinfo")?;
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let kib = kib_of(&meminfo, "MemAvailable:").context("/proc/meminfo has no MemAvailable")?;
    Ok((kib << 10) + (pages_in_stock(&zones) << 12))
}

/// From `/proc/zoneinfo`: free pages in the lists of CPUs.
fn pages_in_stock(zones: &str) -> u64 {
    let counts = zones
        .lines()
        .filter_map(|l| l.trim().strip_prefix("count:"));
    counts.filter_map(|n| n.trim().parse::<u64>().ok()).sum()
}

/// CPU time of the kernel's unbound workers, which drain.
///
/// # Errors
/// When the kernel does not tell.
pub fn cpu_of_kernel_workers() -> Result<Duration> {
    let mut nanos = 0;
    for entry in fs::read_dir("/proc")?.flatten() {
        let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if comm.starts_with("kworker/u") {
            let path = entry.path().join("schedstat");
            // One that has ended meanwhile did nothing for us.
            let Ok(text) = fs::read_to_string(&path) else {
                continue;
            };
            nanos += first_number(&text).with_context(|| format!("{}: {text}", path.display()))?;
        }
    }
    Ok(Duration::from_nanos(nanos))
}

fn first_number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_status_is_found_by_its_key() {
        assert_eq!(kib_of("RssFile:\t10 kB\n", "RssAnon:"), None);
        assert_eq!(kib_of("RssAnon: many", "RssAnon:"), None);
    }

    #[test]
    fn a_process_is_known_by_its_pid_in_its_namespace() {
        let status = |pids: &str| format!("Name:\tx\nNSpid:\t{pids}\nNSpgid:\t1\n");
        assert_eq!(outer_pid(&status("412\t7\t10000"), 10000), Some(412));
        assert_eq!(outer_pid(&status("412\t10000"), 412), None);
        assert_eq!(outer_pid("", 1), None);
    }

    #[test]
    fn the_stock_of_all_cpus_and_zones_counts() {
        let zone = "  pagesets\n    cpu: 0\n              count:    5\n              high:     9\n";
        assert_eq!(pages_in_stock(&zone.repeat(3)), 15);
        assert_eq!(pages_in_stock(""), 0);
    }

    #[test]
    fn the_cpu_time_is_the_first_number_of_schedstat() {
        assert_eq!(first_number("123456 7 8\n"), Some(123_456));
        assert_eq!(first_number(""), None);
    }
}
