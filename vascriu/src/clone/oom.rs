// SPDX-License-Identifier: GPL-2.0-only
//! Where memory runs out: what runs stays, what does not run yet is ended.

use std::fs;
use std::path::Path;

/// The badness of a copy that does not run yet. One less than the most, so that a task that
/// was dumped with that is known.
const FIRST: &str = "999";
const ADJUST: &str = "oom_score_adj";

/// How often the kernel has killed for want of memory.
#[must_use]
pub fn kills() -> u64 {
    let vmstat = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let count = vmstat.lines().find_map(|l| l.strip_prefix("oom_kill "));
    count.and_then(|c| c.trim().parse().ok()).unwrap_or(0)
}

/// What this process was before it was to be killed first.
#[derive(Debug)]
pub struct First(String);

impl First {
    /// From now on the kernel kills this process and its children before any other.
    #[must_use]
    pub fn from_now_on() -> Self {
        let path = Path::new("/proc/self").join(ADJUST);
        let before = fs::read_to_string(&path).unwrap_or_default();
        let _ = fs::write(&path, FIRST);
        Self(before)
    }

    /// No longer: all processes of this PID namespace are what this one was before. CRIU
    /// has done it for those only that were dumped with something else than 0.
    pub fn no_more(&self) {
        for process in Path::new("/proc")
            .read_dir()
            .into_iter()
            .flatten()
            .flatten()
        {
            let path = process.path().join(ADJUST);
            if fs::read_to_string(&path).is_ok_and(|now| now.trim() == FIRST) {
                let _ = fs::write(&path, self.0.trim());
            }
        }
    }
}
