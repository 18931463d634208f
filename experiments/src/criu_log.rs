// SPDX-License-Identifier: GPL-2.0-only
//! How long a stock restore spends on memory, from the time stamps of CRIU's log.
//!
//! CRIU's restore statistics do not tell. With `-v4` its log does: a task first
//! reads the pages of the VMAs it maps early (from its last `premap` line, or the
//! opening of the page image, to `nr_restored_pages`), then, switched to the
//! restorer, reads all others (from the first `Preadv` to the last `returned`).
//! See `restore_priv_vma_content` in CRIU's `mem.c` and `pie/restorer.c`.

use std::collections::BTreeMap;
use std::time::Duration;

/// What is wrong with a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It shows no task whose pages were restored.
    #[error("the log of the restore shows no restored pages (is it of `criu restore -v4`?)")]
    NoPages,
}

/// The memory steps of one task, as far as the log was read.
#[derive(Debug, Default, Clone, Copy)]
struct Task {
    early_begin: Option<Duration>,
    early: Option<Duration>,
    late_begin: Option<Duration>,
    late_end: Option<Duration>,
}

/// The time spent on reading pages into memory, the sum over all tasks.
///
/// # Errors
/// When the log shows no restored pages at all.
pub fn memory_restore(log: &str) -> Result<Duration, Error> {
    let mut tasks: BTreeMap<&str, Task> = BTreeMap::new();
    for line in log.lines() {
        let Some((time, pid, message)) = split(line) else {
            continue;
        };
        let task = tasks.entry(pid).or_default();
        if task.early.is_none()
            && (message.starts_with("premap ") || message.starts_with("Opened local page read"))
        {
            task.early_begin = Some(time);
        } else if message.starts_with("nr_restored_pages") {
            task.early = task.early_begin.map(|begin| time.saturating_sub(begin));
        } else if message.starts_with("Preadv ") {
            task.late_begin.get_or_insert(time);
        } else if message.starts_with("`- returned") {
            task.late_end = Some(time);
        }
    }
    let times: Vec<Duration> = tasks
        .values()
        .filter_map(|task| {
            let late = task
                .late_begin
                .zip(task.late_end)
                .map(|(begin, end)| end.saturating_sub(begin));
            Some(task.early? + late.unwrap_or_default())
        })
        .collect();
    if times.is_empty() {
        return Err(Error::NoPages);
    }
    Ok(times.iter().sum())
}

/// Splits `(00.012345)   1234: message` and `(00.012345) pie: 1234: message`.
fn split(line: &str) -> Option<(Duration, &str, &str)> {
    let (time, rest) = line.strip_prefix('(')?.split_once(')')?;
    let (seconds, fraction) = time.split_once('.')?;
    // After 100 s CRIU drops the last digit of the fraction.
    let digits = u32::try_from(fraction.len())
        .ok()
        .filter(|d| (1..=6).contains(d))?;
    let micros = fraction.parse::<u64>().ok()? * 10u64.pow(6 - digits);
    let time = Duration::from_secs(seconds.parse().ok()?) + Duration::from_micros(micros);
    let rest = rest.trim_start();
    let rest = rest.strip_prefix("pie:").unwrap_or(rest).trim_start();
    let (pid, message) = rest.split_once(": ")?;
    pid.bytes()
        .all(|b| b.is_ascii_digit())
        .then_some((time, pid, message.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LOG: &str = "\
(00.001000) Version: 4.1.1
(00.010000)     77: Opened local page read 1 (parent 0)
(00.011000)     77: \tpremap 0x00000000400000-0x00000000401000 -> 00007f0000000000
(00.012000)     77: \tpremap 0x00000000600000-0x00000000601000 -> 00007f0000001000
(00.012100)     77: \tpr77-1 Read page from self 0/0
(00.015000)     77: nr_restored_pages: 2
(00.016000)     77: premap area shrunk
(00.020000) pie: 77: Preadv 7f0000000000:4096... (2 iovs)
(00.050000) pie: 77: `- returned 8192
(00.051000) pie: 77: Preadv 7f0000100000:4096... (2 iovs)
(00.070500) pie: 77: `- returned 8192
(00.080000) pie: 77: Restored
";

    #[test]
    fn both_steps_of_a_task_count_from_their_first_to_their_last_line() {
        assert_eq!(
            memory_restore(LOG),
            Ok(Duration::from_micros(3_000 + 50_500))
        );
    }

    #[test]
    fn a_task_without_late_pages_counts_its_early_ones() {
        let early: String = LOG.lines().take(6).map(|l| format!("{l}\n")).collect();
        assert_eq!(memory_restore(&early), Ok(Duration::from_millis(3)));
    }

    #[test]
    fn the_steps_of_several_tasks_add_up() {
        let both = format!("{LOG}{}", LOG.replace("77:", "78:"));
        assert_eq!(memory_restore(&both), Ok(Duration::from_micros(2 * 53_500)));
    }

    #[test]
    fn past_100_seconds_a_missing_digit_is_not_a_tenth() {
        let line = "(100.01230) pie: 77: Preadv";
        assert_eq!(split(line).unwrap().0, Duration::from_micros(100_012_300));
    }

    #[test]
    fn a_log_of_something_else_is_an_error() {
        assert_eq!(memory_restore(""), Err(Error::NoPages));
        assert_eq!(
            memory_restore("(00.1) Error (criu/x.c:1): no\n"),
            Err(Error::NoPages)
        );
    }

    proptest! {
        #[test]
        fn no_log_panics(log in "([(]?[0-9]{0,25}[.]?[0-9]{0,8}[)]? ?(pie: )?[0-9]{0,4}:? ?[a-zP`]{0,9}\n?){0,6}") {
            let _any = memory_restore(&log);
        }
    }
}
