// SPDX-License-Identifier: GPL-2.0-only
//! The file that backs a guest's memory.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use thiserror::Error;

use crate::locked;
use crate::range::{FileOffset, FileRange};

/// Why a RAM file could not be made.
#[derive(Debug, Error)]
pub enum RamError {
    /// A guest without memory was asked for.
    #[error("a RAM file cannot be empty: ask for some memory")]
    Empty,
    /// The name contains a 0 byte.
    #[error("{0:?} cannot name a RAM file")]
    Name(String),
    /// A system call failed.
    #[error("cannot {what} the RAM file {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file, or its name if it is a memfd.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// The file that backs a guest's memory: sparse, zeroed. It takes host memory only for what
/// the guest has touched.
#[derive(Debug)]
pub struct RamFile {
    file: File,
    range: FileRange,
}

impl RamFile {
    /// A file of `len` bytes without a name in any file system (a memfd), gone with its
    /// last user. `name` shows in `/proc/PID/maps`.
    ///
    /// # Errors
    /// `len` is 0 or more than the kernel allows, or `name` contains a 0 byte.
    ///
    /// ```
    /// let ram = mvas_host::RamFile::memfd("doc", 64 << 30)?;
    /// assert_eq!((ram.range().len(), ram.allocated_bytes()?), (64 << 30, 0));
    /// # Ok::<(), mvas_host::RamError>(())
    /// ```
    pub fn memfd(name: &str, len: u64) -> Result<Self, RamError> {
        let range = whole(len)?;
        let path = Path::new(name);
        let c_name = CString::new(name).map_err(|_| RamError::Name(name.to_owned()))?;
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd =
            memfd_create(c_name.as_c_str(), flags).map_err(|e| failed("create", path, e.into()))?;
        let file = File::from(fd);
        file.set_len(len).map_err(|e| failed("size", path, e))?;
        // A shorter file would turn guest memory into SIGBUS.
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
        fcntl(file.as_fd(), FcntlArg::F_ADD_SEALS(seals))
            .map_err(|e| failed("seal", path, e.into()))?;
        Ok(Self { file, range })
    }

    /// The new file `path` of `len` bytes, for its owner only, locked for as long as it is
    /// open. The store removes it.
    pub(crate) fn create(path: &Path, len: u64) -> Result<Self, RamError> {
        let range = whole(len)?;
        let file = locked::options()
            .create_new(true)
            .open(path)
            .map_err(|e| failed("make", path, e))?;
        file.lock()
            .and_then(|()| file.set_len(len))
            .map_err(|e| failed("size", path, e))?;
        Ok(Self { file, range })
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The guest's memory in it: all of it, but for what a store's run adds behind.
    pub fn range(&self) -> FileRange {
        self.range
    }

    /// Bytes of host memory that the file takes now.
    ///
    /// # Errors
    /// The file's status cannot be read.
    pub fn allocated_bytes(&self) -> Result<u64, RamError> {
        let meta = self
            .file
            .metadata()
            .map_err(|e| failed("stat", Path::new("of a guest"), e))?;
        Ok(meta.blocks() * 512)
    }
}

fn whole(len: u64) -> Result<FileRange, RamError> {
    FileRange::new(FileOffset(0), len).ok_or(RamError::Empty)
}

fn failed(what: &'static str, path: &Path, source: io::Error) -> RamError {
    RamError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::FdFlag;
    use std::os::unix::fs::FileExt;

    const MIB: u64 = 1 << 20;

    fn closes_on_exec(file: &File) -> bool {
        let flags = fcntl(file.as_fd(), FcntlArg::F_GETFD).unwrap();
        FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC)
    }

    #[test]
    fn a_memfd_is_sparse_and_cannot_change_its_size() {
        let ram = RamFile::memfd("sparse", 1 << 40).unwrap();
        assert_eq!(ram.allocated_bytes().unwrap(), 0);
        ram.file().write_at(&[1], 1 << 39).unwrap();
        let allocated = ram.allocated_bytes().unwrap();
        assert!((1..=2 * MIB).contains(&allocated), "{allocated}");
        assert!(ram.file().set_len(4096).is_err());
        assert!(ram.file().set_len(1 << 41).is_err());
        assert!(closes_on_exec(ram.file()));
    }

    #[test]
    fn a_named_file_is_private_and_locked_and_never_an_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.ram");
        let ram = RamFile::create(&path, 2 * MIB).unwrap();
        let meta = std::fs::metadata(&path).unwrap();
        assert_eq!((meta.len(), meta.mode() & 0o777), (2 * MIB, 0o600));
        assert!(closes_on_exec(ram.file()));
        assert!(File::open(&path).unwrap().try_lock().is_err());
        assert!(RamFile::create(&path, 2 * MIB).is_err());
        drop(ram);
        assert!(RamFile::create(&path, 2 * MIB).is_err());
        let link = dir.path().join("link.ram");
        std::os::unix::fs::symlink(dir.path().join("nothing"), &link).unwrap();
        assert!(RamFile::create(&link, MIB).is_err());
    }

    #[test]
    fn bad_names_sizes_and_folders_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(RamFile::memfd("x", 0), Err(RamError::Empty)));
        assert!(matches!(RamFile::memfd("a\0b", 1), Err(RamError::Name(_))));
        assert!(RamFile::memfd("vm", u64::MAX).is_err());
        let path = dir.path().join("vm.ram");
        assert!(matches!(RamFile::create(&path, 0), Err(RamError::Empty)));
        assert!(RamFile::create(&path, u64::MAX).is_err());
        let nowhere = dir.path().join("nowhere/vm.ram");
        let error = RamFile::create(&nowhere, MIB).unwrap_err();
        assert!(error.to_string().contains("nowhere/vm.ram"), "{error}");
    }
}
