//! What `/proc` tells.

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
}
