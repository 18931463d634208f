// SPDX-License-Identifier: GPL-2.0-only
//! A file system of a test's own.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Runs `test` with a tmpfs of its own, in a thread with a mount namespace of its own.
pub fn in_tmpfs(options: &str, test: impl FnOnce(&Path) + Send) {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    thread::scope(|scope| {
        let body = move || {
            let none: Option<&str> = None;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            let made = unshare(CloneFlags::CLONE_NEWNS)
                .and_then(|()| mount(none, "/", none, private, none))
                .and_then(|()| {
                    mount(
                        Some("tmpfs"),
                        dir,
                        Some("tmpfs"),
                        MsFlags::empty(),
                        Some(options),
                    )
                });
            match made {
                Ok(()) => test(dir),
                Err(error) => println!("SKIPPED: cannot mount a tmpfs ({error}); run as root"),
            }
        };
        scope.spawn(body).join().unwrap();
    });
}

/// Takes all room that the file system of `dir` has left, until it is dropped.
pub struct Ballast(PathBuf);

impl Ballast {
    pub fn fill(dir: &Path) -> Self {
        let ballast = Self(dir.join("ballast"));
        let mut file = File::create(&ballast.0).unwrap();
        loop {
            match file.write(&[1; 4096]) {
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::StorageFull => return ballast,
                Err(e) => panic!("{e}"),
            }
        }
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        // Emptied first: a process that another test begins may have it open until its `exec`.
        File::create(&self.0).unwrap();
        std::fs::remove_file(&self.0).unwrap();
    }
}
