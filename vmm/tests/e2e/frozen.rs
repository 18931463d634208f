// SPDX-License-Identifier: GPL-2.0-only
//! A file system whose files hang: whoever writes to one waits, and no signal helps.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Of linux/fs.h: `_IOWR('X', 119, int)` and `_IOWR('X', 120, int)`.
const FIFREEZE: libc::c_ulong = 0xc004_5877;
const FITHAW: libc::c_ulong = 0xc004_5878;

/// Runs `test` with an ext4 of its own, in a thread with a mount namespace of its own.
pub fn in_ext4(test: impl FnOnce(&Path) + Send) {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path();
    thread::scope(|scope| {
        let body = move || match make(dir) {
            Ok(()) => test(&dir.join("mounted")),
            Err(error) => println!("SKIPPED: cannot mount an ext4 ({error}); run as root"),
        };
        scope.spawn(body).join().expect("the test should pass");
    });
}

fn make(dir: &Path) -> io::Result<()> {
    let (image, mounted) = (dir.join("image"), dir.join("mounted"));
    File::create(&image)?.set_len(64 << 20)?;
    std::fs::create_dir(&mounted)?;
    succeed(Command::new("mkfs.ext4").arg("-q").arg(&image))?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    succeed(
        Command::new("mount")
            .args(["-o", "loop"])
            .arg(&image)
            .arg(&mounted),
    )
}

fn succeed(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("{command:?}: {output:?}"))),
    }
}

/// While it lives, whoever writes to this file system hangs.
pub struct Frozen(File);

impl Frozen {
    pub fn new(mounted: &Path) -> Self {
        let dir = File::open(mounted).expect("a folder");
        // SAFETY: freezes the file system; it reads and writes no memory.
        let result = unsafe { libc::ioctl(dir.as_raw_fd(), FIFREEZE, 0) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        Self(dir)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { libc::ioctl(self.0.as_raw_fd(), FITHAW, 0) };
    }
}
