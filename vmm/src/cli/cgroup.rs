// SPDX-License-Identifier: GPL-2.0-only
//! The cgroup that a monitor joins.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

/// A cgroup (version 2) that exists, and that this process may join.
#[derive(Debug)]
pub(super) struct Cgroup(File);

impl Cgroup {
    /// Finds one by its directory.
    ///
    /// # Errors
    /// It is none, or not this user's.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("cgroup.procs");
        let file = OpenOptions::new().write(true).open(&path);
        file.map(Self).with_context(|| {
            let dir = dir.display();
            format!("{dir} is no cgroup that this user may add processes to (see its cgroup.procs)")
        })
    }

    /// Moves this process there, and what it starts from now on.
    ///
    /// # Errors
    /// The kernel refuses that.
    pub fn join(mut self) -> Result<()> {
        // 0 is whoever writes.
        self.0.write_all(b"0").context(
            "cannot join the cgroup: only one without controllers for its children takes \
             processes, and who moves one needs the right to do so in both groups' parent",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_cgroup_is_refused_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let error = Cgroup::open(dir.path()).unwrap_err();
        let dir = dir.path().to_str().unwrap();
        assert!(error.to_string().contains(dir), "{error}");
    }
}
