// SPDX-License-Identifier: GPL-2.0-only
//! A file system whose files hang: whoever writes to one waits, and no signal helps.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::Pid;

/// Of linux/fs.h: `_IOWR('X', 119, int)` and `_IOWR('X', 120, int)`.
const FIFREEZE: libc::c_ulong = 0xc004_5877;
const FITHAW: libc::c_ulong = 0xc004_5878;

/// Runs `test` with an ext4 of its own, in a thread with a mount namespace of its own.
pub fn in_ext4(test: impl FnOnce(&Path) + Send) {
    in_mounted(make_ext4, test);
}

/// Likewise with a ramfs, whose files have no holes to make.
#[allow(dead_code)] // what other tests need
pub fn in_ramfs(test: impl FnOnce(&Path) + Send) {
    let none: Option<&str> = None;
    in_mounted(
        |_, mounted| Ok(mount(none, mounted, Some("ramfs"), MsFlags::empty(), none)?),
        test,
    );
}

fn in_mounted(
    make: impl FnOnce(&Path, &Path) -> io::Result<()> + Send,
    test: impl FnOnce(&Path) + Send,
) {
    let folder = tempfile::tempdir().expect("a folder");
    let (dir, mounted) = (folder.path(), folder.path().join("mounted"));
    fs::create_dir(&mounted).expect("a folder");
    thread::scope(|scope| {
        let body = || match own_mounts().and_then(|()| make(dir, &mounted)) {
            Ok(()) => test(&mounted),
            Err(error) => println!("SKIPPED: cannot mount a file system ({error}); run as root"),
        };
        scope.spawn(body).join().expect("the test should pass");
    });
}

fn own_mounts() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none: Option<&str> = None;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    Ok(mount(none, "/", none, private, none)?)
}

fn make_ext4(dir: &Path, mounted: &Path) -> io::Result<()> {
    let image = dir.join("image");
    File::create(&image)?.set_len(64 << 20)?;
    succeed(Command::new("mkfs.ext4").arg("-q").arg(&image))?;
    succeed(
        Command::new("mount")
            .args(["-o", "loop"])
            .arg(&image)
            .arg(mounted),
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
pub struct Frozen {
    dir: File,
    mounted: PathBuf,
}

impl Frozen {
    pub fn new(mounted: &Path) -> Self {
        let dir = File::open(mounted).expect("a folder");
        // SAFETY: freezes the file system; it reads and writes no memory.
        let result = unsafe { libc::ioctl(dir.as_raw_fd(), FIFREEZE, 0) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        let mounted = mounted.to_owned();
        Self { dir, mounted }
    }

    /// Whether a thread of process `pid` is in a system call on one of its files. What it was
    /// asked to do is under way then, and not just about to be.
    pub fn hangs(&self, pid: Pid) -> bool {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
        tasks.flatten().any(|task| {
            let call = fs::read_to_string(task.path().join("syscall")).unwrap_or_default();
            // Its number and its arguments, or that it runs.
            let first = call
                .split_once(" 0x")
                .and_then(|(_, rest)| rest.split(' ').next());
            let Some(Ok(fd)) = first.map(|fd| u32::from_str_radix(fd, 16)) else {
                return false;
            };
            let file = fs::read_link(format!("/proc/{pid}/fd/{fd}"));
            file.is_ok_and(|file| file.starts_with(&self.mounted))
        })
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { libc::ioctl(self.dir.as_raw_fd(), FITHAW, 0) };
    }
}
