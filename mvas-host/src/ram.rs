//! The file that backs a guest's memory.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use thiserror::Error;

use crate::locked::{self, open_locked};
use crate::range::{FileOffset, FileRange};

/// Why a RAM file could not be made.
#[derive(Debug, Error)]
pub enum RamError {
    /// A guest without memory was asked for.
    #[error("a RAM file cannot be empty: ask for some memory")]
    Empty,
    /// The name cannot be part of a file name.
    #[error("{0:?} cannot name a RAM file: use a plain name without '/'")]
    Name(String),
    /// Another process uses the file.
    #[error("the RAM file {} is in use by another VM: stop that one or use another name", .0.display())]
    InUse(PathBuf),
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

/// The file that backs a guest's memory: sparse, zeroed, of one size for life.
///
/// It takes host memory only for what the guest has touched. A named file is locked
/// against use by a second VM and removed on drop.
#[derive(Debug)]
pub struct RamFile {
    file: File,
    range: FileRange,
    path: Option<PathBuf>,
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
        Ok(Self {
            file,
            range,
            path: None,
        })
    }

    /// The file `DIR/NAME.ram` of `len` bytes, readable by its owner only. What a crashed
    /// VM left behind under this name is emptied and used.
    ///
    /// # Errors
    /// `len` is 0, `name` is not a plain name, another VM uses the file, or the file
    /// system refuses.
    pub fn create_in(dir: &Path, name: &str, len: u64) -> Result<Self, RamError> {
        let range = whole(len)?;
        if name.is_empty() || name.contains(['/', '\0']) {
            return Err(RamError::Name(name.to_owned()));
        }
        let path = dir.join(format!("{name}.ram"));
        let file = open_locked(&path).map_err(|e| failed("open", &path, e))?;
        // Owned from here on: an error below removes the file.
        let ram = Self {
            file: file.ok_or_else(|| RamError::InUse(path.clone()))?,
            range,
            path: Some(path.clone()),
        };
        ram.file
            .set_len(0)
            .and_then(|()| ram.file.set_len(len))
            .map_err(|e| failed("size", &path, e))?;
        Ok(ram)
    }

    /// The new file `path` of `len` bytes, locked for as long as it is open, which nobody
    /// removes: the store knows when.
    pub(crate) fn create_kept(path: &Path, len: u64) -> Result<Self, RamError> {
        let range = whole(len)?;
        let file = locked::options()
            .create_new(true)
            .open(path)
            .map_err(|e| failed("make", path, e))?;
        file.lock()
            .and_then(|()| file.set_len(len))
            .map_err(|e| failed("size", path, e))?;
        Ok(Self {
            file,
            range,
            path: None,
        })
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// All of it.
    pub fn range(&self) -> FileRange {
        self.range
    }

    /// Its path, unless it is a memfd.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Bytes of host memory that the file takes now.
    ///
    /// # Errors
    /// The file's status cannot be read.
    pub fn allocated_bytes(&self) -> Result<u64, RamError> {
        let meta = self
            .file
            .metadata()
            .map_err(|e| failed("stat", self.path().unwrap_or(Path::new("memfd")), e))?;
        Ok(meta.blocks() * 512)
    }
}

impl Drop for RamFile {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Still locked, so the name is ours. Nobody is left to tell of a failure.
            let _ = fs::remove_file(path);
        }
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
    fn a_named_file_is_private_and_vanishes_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let ram = RamFile::create_in(dir.path(), "vm", 2 * MIB).unwrap();
        let path = ram.path().unwrap().to_owned();
        let meta = fs::metadata(&path).unwrap();
        assert_eq!((meta.len(), meta.mode() & 0o777), (2 * MIB, 0o600));
        assert!(closes_on_exec(ram.file()));
        drop(ram);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_in_use_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let first = RamFile::create_in(dir.path(), "vm", 2 * MIB).unwrap();
        first.file().write_at(b"data", 0).unwrap();
        let error = RamFile::create_in(dir.path(), "vm", 2 * MIB).unwrap_err();
        assert!(matches!(error, RamError::InUse(_)), "{error}");
        let mut data = [0; 4];
        first.file().read_at(&mut data, 0).unwrap();
        assert_eq!(&data, b"data");
        assert!(first.path().unwrap().exists());
    }

    #[test]
    fn what_a_crashed_vm_left_is_emptied() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("vm.ram"), b"secret of an earlier guest").unwrap();
        let ram = RamFile::create_in(dir.path(), "vm", 2 * MIB).unwrap();
        let mut data = [1; 26];
        ram.file().read_at(&mut data, 0).unwrap();
        assert_eq!(data, [0; 26]);
        assert_eq!(ram.allocated_bytes().unwrap(), 0);
    }

    #[test]
    fn bad_names_sizes_and_folders_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(RamFile::memfd("x", 0), Err(RamError::Empty)));
        assert!(matches!(RamFile::memfd("a\0b", 1), Err(RamError::Name(_))));
        for name in ["", "a/b", "../x", "a\0b"] {
            let made = RamFile::create_in(dir.path(), name, MIB);
            assert!(matches!(made, Err(RamError::Name(_))), "{name:?}");
        }
        assert!(matches!(
            RamFile::create_in(dir.path(), "vm", 0),
            Err(RamError::Empty)
        ));
        let nowhere = dir.path().join("nowhere");
        let error = RamFile::create_in(&nowhere, "vm", MIB).unwrap_err();
        assert!(error.to_string().contains("nowhere/vm.ram"), "{error}");
    }

    #[test]
    fn a_size_that_the_file_system_refuses_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(RamFile::create_in(dir.path(), "vm", u64::MAX).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(RamFile::memfd("vm", u64::MAX).is_err());
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("precious");
        fs::write(&target, b"keep").unwrap();
        std::os::unix::fs::symlink(&target, dir.path().join("vm.ram")).unwrap();
        assert!(RamFile::create_in(dir.path(), "vm", MIB).is_err());
        assert_eq!(fs::read(&target).unwrap(), b"keep");
    }
}
