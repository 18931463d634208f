//! A log file that does not grow for ever.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// A file that keeps the newest of what is written: when it reaches its limit, the older
/// half goes.
#[derive(Debug)]
pub struct BoundedLog {
    file: File,
    len: u64,
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
            len: 0,
            limit: limit.max(2),
        })
    }

    /// Moves the newest half to the front.
    fn drop_older_half(&mut self) -> io::Result<()> {
        let keep = self.limit / 2;
        let from = self.len.saturating_sub(keep);
        let mut buffer = [0; 8192];
        let (mut read_at, mut write_at) = (from, 0);
        loop {
            match self.file.read_at(&mut buffer, read_at)? {
                0 => break,
                n => {
                    self.file.write_all_at(&buffer[..n], write_at)?;
                    read_at += n as u64;
                    write_at += n as u64;
                }
            }
        }
        self.file.set_len(write_at)?;
        self.len = write_at;
        Ok(())
    }
}

impl Write for BoundedLog {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.len >= self.limit {
            self.drop_older_half()?;
        }
        let room = usize::try_from(self.limit - self.len).unwrap_or(usize::MAX);
        let n = self
            .file
            .write_at(&data[..data.len().min(room)], self.len)?;
        self.len += n as u64;
        Ok(n)
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
    fn what_an_earlier_vm_wrote_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        fs::write(&path, "old").unwrap();
        BoundedLog::create(&path, 100).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        assert!(BoundedLog::create(&dir.path().join("no/such"), 100).is_err());
    }
}
