// SPDX-License-Identifier: GPL-2.0-only
//! Where snapshots go by default, and whether that has huge pages.

use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::{User, geteuid};
use serde::Serialize;

use super::logout;
use crate::cli::store::default_dir;

/// The default store's file system.
#[derive(Debug, Serialize)]
pub(super) struct StorePlace {
    pub path: PathBuf,
    /// Its type, as the kernel calls it.
    pub file_system: Option<String>,
    /// What a tmpfs was mounted with (`huge=`); `never` if with nothing.
    pub huge: Option<String>,
    /// What deletes it at its user's last logout, and what to do about it.
    #[serde(skip)]
    pub deleted_at_logout: Option<(String, String)>,
}

impl StorePlace {
    pub fn look() -> Self {
        let path = default_dir();
        // Not made yet: it will be in the file system above.
        let there = path.ancestors().find_map(|dir| dir.canonicalize().ok());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mount = there.and_then(|there| mount_of(&mounts, &there));
        let (file_system, huge) = mount.unzip();
        let user = User::from_uid(geteuid()).ok().flatten();
        let deleted_at_logout = user.and_then(|user| {
            let owner = logout::Owner {
                uid: user.uid.as_raw(),
                name: &user.name,
            };
            logout::deletes(Path::new("/"), &path, owner)
        });
        Self {
            path,
            file_system,
            huge: huge.flatten(),
            deleted_at_logout,
        }
    }

    /// Guest memory in it cannot have huge pages.
    pub fn lacks_huge_pages(&self) -> bool {
        let good = |huge: &str| matches!(huge, "advise" | "within_size" | "always");
        self.file_system.as_deref() == Some("tmpfs") && !self.huge.as_deref().is_some_and(good)
    }
}

/// Type of the file system that `path` is in, and its `huge=` if it is a tmpfs, from the text of
/// `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).
fn mount_of(mountinfo: &str, path: &Path) -> Option<(String, Option<String>)> {
    let mut found = None;
    for line in mountinfo.lines() {
        let (mount, file_system) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?.replace("\\040", " ");
        let mut words = file_system.split(' ');
        let (kind, options) = (words.next()?, words.nth(1)?);
        let depth = Path::new(&point).components().count();
        // Of two on the same point the later one is seen.
        if path.starts_with(&point) && found.as_ref().is_none_or(|(_, _, d)| depth >= *d) {
            let huge = options.split(',').find_map(|o| o.strip_prefix("huge="));
            let huge = (kind == "tmpfs").then(|| huge.unwrap_or("never").to_owned());
            found = Some((kind.to_owned(), huge, depth));
        }
    }
    found.map(|(kind, huge, _)| (kind, huge))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MOUNTS: &str = "\
21 1 254:0 / / rw,relatime - ext4 /dev/vda rw
25 21 0:22 / /dev rw,nosuid shared:2 - devtmpfs dev rw,size=4k
26 25 0:23 / /dev/shm rw,nosuid - tmpfs tmpfs rw,size=24G
90 26 0:50 / /dev/shm/mvas-0 rw - tmpfs mvas rw,size=0k,mode=700,huge=advise
91 21 0:51 / /my\\040store rw - tmpfs mvas rw,huge=always
92 91 0:52 / /my\\040store rw - ramfs mvas rw
";

    fn place(path: &str) -> (Option<String>, Option<String>) {
        let (kind, huge) = mount_of(MOUNTS, Path::new(path)).unzip();
        (kind, huge.flatten())
    }

    #[test]
    fn the_deepest_and_latest_mount_counts() {
        for (path, kind, huge) in [
            ("/var/tmp", "ext4", None),
            ("/dev/shm", "tmpfs", Some("never")),
            ("/dev/shm/mvas-0", "tmpfs", Some("advise")),
            ("/dev/shm/mvas-01", "tmpfs", Some("never")),
            ("/my store", "ramfs", None),
        ] {
            let expected = (Some(kind.to_owned()), huge.map(str::to_owned));
            assert_eq!(place(path), expected, "{path}");
        }
    }

    #[test]
    fn only_a_tmpfs_lacks_huge_pages() {
        let lacks = |path: &str| {
            let (file_system, huge) = place(path);
            let path = path.into();
            StorePlace {
                path,
                file_system,
                huge,
                deleted_at_logout: None,
            }
            .lacks_huge_pages()
        };
        assert!(lacks("/dev/shm") && !lacks("/dev/shm/mvas-0") && !lacks("/var"));
    }

    #[test]
    fn this_hosts_root_is_found() {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(mount_of(&mounts, Path::new("/")).is_some());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text: String, path: String) {
            let _ = mount_of(&text, Path::new(&path));
        }
    }
}
