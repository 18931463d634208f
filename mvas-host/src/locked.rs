// SPDX-License-Identifier: GPL-2.0-only
//! Files whose lock says that their owner lives.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::libc::O_NOFOLLOW;

/// A file of ours, for reading and writing, links not followed.
pub(crate) fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(O_NOFOLLOW);
    options
}

/// Opens or creates the file and locks it (`flock`), sure that the name still means this
/// file. `None`: somebody else has it locked.
pub(crate) fn open_locked(path: &Path) -> io::Result<Option<File>> {
    loop {
        let file = options().create(true).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(e),
        }
        // Its last owner may have removed the name between our open and our lock.
        let ours = file.metadata()?;
        match fs::symlink_metadata(path) {
            Ok(named) if (named.dev(), named.ino()) == (ours.dev(), ours.ino()) => {
                return Ok(Some(file));
            }
            _ => {}
        }
    }
}

/// Locks a file, and waits for that no longer than `patience`. `false`: it is locked still.
pub(crate) fn lock_within(file: &File, patience: Duration) -> io::Result<bool> {
    const LONGEST_PAUSE: Duration = Duration::from_millis(2);
    let begun = Instant::now();
    let mut pause = Duration::from_micros(20);
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) if begun.elapsed() >= patience => return Ok(false),
            Err(TryLockError::WouldBlock) => thread::sleep(pause),
            Err(TryLockError::Error(e)) => return Err(e),
        }
        pause = LONGEST_PAUSE.min(pause * 2);
    }
}
