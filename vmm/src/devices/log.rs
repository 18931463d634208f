// SPDX-License-Identifier: GPL-2.0-only
//! A log file that does not grow for ever.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// A file that keeps the newest of what is written: when it reaches its limit, the older
/// half goes. Others may append to the file, too; what they write while the older half goes may
/// be lost.
#[derive(Debug)]
pub struct BoundedLog {
    file: File,
    limit: u64,
}

impl BoundedLog {
    /// Creates or empties `path`, readable by its owner only; it holds at most `limit`
    /// bytes.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn create(path: &Path, limit: u64) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        Ok(Self {
            file,
            limit: limit.max(2),
        })
    }
}

/// Cuts a file down to its newest `limit` bytes.
///
/// # Errors
/// It does not exist, or cannot be written to.
pub fn keep_newest(path: &Path, limit: u64) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    match file.metadata()?.len() {
        len if len > limit => move_to_front(&file, len - limit).map(drop),
        _ => Ok(()),
    }
}

/// Moves what is in a file from `from` on to its front, and cuts off the rest. Returns how much
/// that is.
fn move_to_front(file: &File, from: u64) -> io::Result<u64> {
    let mut buffer = [0; 8192];
    let (mut read_at, mut write_at) = (from, 0);
    loop {
        match file.read_at(&mut buffer, read_at)? {
            0 => break,
            n => {
                file.write_all_at(&buffer[..n], write_at)?;
                read_at += n as u64;
                write_at += n as u64;
            }
        }
    }
    file.set_len(write_at)?;
    Ok(write_at)
}

impl Write for BoundedLog {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut len = self.file.metadata()?.len();
        if len >= self.limit {
            len = move_to_front(&self.file, len.saturating_sub(self.limit / 2))?;
        }
        let room = usize::try_from(self.limit.saturating_sub(len)).unwrap_or(usize::MAX);
        self.file.write_at(&data[..data.len().min(room)], len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    proptest! {
        #[test]
        fn the_file_holds_the_newest_bytes_within_its_limit(
            limit in 2..200u64,
            writes in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..100), 0..20),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("console.log");
            let mut log = BoundedLog::create(&path, limit).unwrap();
            for data in &writes {
                log.write_all(data).unwrap();
            }
            let all = writes.concat();
            let kept = fs::read(&path).unwrap();
            prop_assert!(all.ends_with(&kept));
            prop_assert!(kept.len() as u64 <= limit);
            prop_assert!(kept.len() as u64 >= (all.len() as u64).min(limit / 2));
        }
    }

    #[test]
    fn what_others_append_stays_in_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("monitor.log");
        let mut log = BoundedLog::create(&path, 100).unwrap();
        log.write_all(b"one ").unwrap();
        let mut other = OpenOptions::new().append(true).open(&path).unwrap();
        other.write_all(b"two ").unwrap();
        log.write_all(b"three ").unwrap();
        other.write_all(b"four").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one two three four");
    }

    #[test]
    fn a_file_is_cut_down_to_its_newest_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let bytes: Vec<u8> = (0..=255).cycle().take(20_000).collect();
        for (limit, kept) in [(30_000, 20_000), (20_000, 20_000), (9_000, 9_000), (0, 0)] {
            fs::write(&path, &bytes).unwrap();
            keep_newest(&path, limit).unwrap();
            assert_eq!(fs::read(&path).unwrap(), bytes[20_000 - kept..]);
        }
        assert!(keep_newest(&dir.path().join("none"), 1).is_err());
    }

    #[test]
    fn what_an_earlier_vm_wrote_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        fs::write(&path, "old").unwrap();
        BoundedLog::create(&path, 100).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        assert!(BoundedLog::create(&dir.path().join("no/such"), 100).is_err());
    }
}
