// SPDX-License-Identifier: GPL-2.0-only
//! A raw disk image on the host.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{self, FallocateFlags};
use thiserror::Error;
use virtio_bindings::virtio_blk::VIRTIO_BLK_ID_BYTES;

/// Bytes in a sector, the unit of all virtio block addresses.
pub const SECTOR: u64 = 512;
/// Length of a disk's identity string.
pub const ID_LEN: usize = VIRTIO_BLK_ID_BYTES as usize;

/// Makes a hole.
const PUNCH: FallocateFlags =
    FallocateFlags::FALLOC_FL_PUNCH_HOLE.union(FallocateFlags::FALLOC_FL_KEEP_SIZE);
/// Has the file system note that there are zeroes.
const ZERO: FallocateFlags =
    FallocateFlags::FALLOC_FL_ZERO_RANGE.union(FallocateFlags::FALLOC_FL_KEEP_SIZE);
/// Zeroes written at a time where it can do neither.
const PIECE: usize = 64 << 10;

/// Why an image cannot be a disk.
#[derive(Debug, Error)]
pub enum DiskError {
    /// No such file.
    #[error("there is no disk image {}", .0.display())]
    Missing(PathBuf),
    /// It cannot be opened, or asked for its size.
    #[error("cannot open the disk image {}{}", path.display(), if *.read_only { "" } else { " for writing (add \",ro\" to only read it)" })]
    Open {
        /// The image.
        path: PathBuf,
        /// Whether only reading was asked for.
        read_only: bool,
        /// What the host says.
        #[source]
        source: io::Error,
    },
    /// A folder, a pipe, a terminal.
    #[error("{} is neither a file nor a block device, so it cannot be a disk", .0.display())]
    NotAnImage(PathBuf),
    /// Another VM has it.
    #[error(
        "the disk image {} is in use by another VM; only VMs that all use it read-only can share it",
        .0.display()
    )]
    Locked(PathBuf),
    /// It could not be locked for another reason.
    #[error("cannot lock the disk image {} against other VMs", path.display())]
    Lock {
        /// The image.
        path: PathBuf,
        /// What the host says.
        #[source]
        source: io::Error,
    },
    /// Its size is no whole number of sectors.
    #[error(
        "the disk image {} has {size} bytes, which is no multiple of {SECTOR}: it is truncated or not a raw image",
        path.display()
    )]
    OddSize {
        /// The image.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// It is empty.
    #[error("the disk image {} is empty", .0.display())]
    Empty(PathBuf),
}

/// An open, locked image. The lock goes with it.
#[derive(Debug)]
pub struct Disk {
    file: File,
    sectors: u64,
    read_only: bool,
    /// It is a file, not a block device.
    is_file: bool,
    /// Its file system can take blocks out of its middle.
    punches: bool,
    id: [u8; ID_LEN],
}

impl Disk {
    /// Opens and locks an image: for one writer, or for any number of readers.
    ///
    /// # Errors
    /// It is missing, in use, or not a disk image.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, DiskError> {
        let open_error = |source| DiskError::Open {
            path: path.to_owned(),
            read_only,
            source,
        };
        // Looked at first: opening a pipe would wait for its other end.
        let metadata = std::fs::metadata(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => DiskError::Missing(path.to_owned()),
            _ => open_error(source),
        })?;
        let kind = metadata.mode() & libc::S_IFMT;
        if kind != libc::S_IFREG && kind != libc::S_IFBLK {
            return Err(DiskError::NotAnImage(path.to_owned()));
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(path)
            .map_err(open_error)?;
        lock(&file, read_only).map_err(|source| match source.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => DiskError::Locked(path.to_owned()),
            _ => DiskError::Lock {
                path: path.to_owned(),
                source,
            },
        })?;
        // A block device has no length in its metadata.
        let size = file.seek(SeekFrom::End(0)).map_err(open_error)?;
        if size == 0 {
            return Err(DiskError::Empty(path.to_owned()));
        }
        if !size.is_multiple_of(SECTOR) {
            return Err(DiskError::OddSize {
                path: path.to_owned(),
                size,
            });
        }
        let is_file = kind == libc::S_IFREG;
        // Behind its end, where no hole changes it.
        let punches = is_file && !read_only && fallocate(&file, PUNCH, size, SECTOR).is_ok();
        Ok(Self {
            file,
            sectors: size / SECTOR,
            read_only,
            is_file,
            punches,
            id: identity(metadata.dev(), metadata.ino()),
        })
    }

    /// The image's file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Size in sectors.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Whether the guest may only read.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether the guest may have blocks of it freed: what the guest does not need is to take no
    /// room on the host. Not of a block device, where the room is what it is.
    pub fn can_discard(&self) -> bool {
        self.punches
    }

    /// Whether the guest may have ranges of it zeroed.
    pub fn can_write_zeroes(&self) -> bool {
        self.is_file && !self.read_only
    }

    /// Where in the image, in bytes, so many sectors from `sector` on begin. `None`: they do not all
    /// exist.
    pub fn offset_of(&self, sector: u64, count: u64) -> Option<u64> {
        let end = sector.checked_add(count)?;
        // No overflow: the size in bytes is a u64.
        (end <= self.sectors).then(|| sector * SECTOR)
    }

    /// Frees the blocks that lie in a range, bytes; it reads as zeroes.
    ///
    /// # Errors
    /// What the host says.
    pub fn discard(&self, at: u64, len: u64) -> io::Result<()> {
        fallocate(&self.file, PUNCH, at, len)
    }

    /// Has a range, bytes, read as zeroes. Its blocks stay allocated, if the file system can do
    /// that; or they may be freed, if it can do that and `unmap` says so.
    ///
    /// # Errors
    /// What the host says.
    pub fn write_zeroes(&self, at: u64, len: u64, unmap: bool) -> io::Result<()> {
        let ways = if unmap { &[PUNCH][..] } else { &[ZERO, PUNCH] };
        for way in ways {
            match fallocate(&self.file, *way, at, len) {
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
                done => return done,
            }
        }
        let zeroes = vec![0; usize::try_from(len).map_or(PIECE, |len| len.min(PIECE))];
        let end = at.saturating_add(len);
        let mut at = at;
        while at < end {
            let piece = usize::try_from(end - at).map_or(PIECE, |left| left.min(PIECE));
            self.file.write_all_at(&zeroes[..piece], at)?;
            at += piece as u64;
        }
        Ok(())
    }

    /// What names the disk, padded with zeroes.
    pub fn id(&self) -> &[u8; ID_LEN] {
        &self.id
    }
}

/// Changes how a range, bytes, is allocated; never the file's size.
fn fallocate(file: &File, mode: FallocateFlags, at: u64, len: u64) -> io::Result<()> {
    let too_far = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let (at, len) = (
        at.try_into().map_err(too_far)?,
        len.try_into().map_err(too_far)?,
    );
    loop {
        match fcntl::fallocate(file, mode, at, len) {
            Err(Errno::EINTR) => {}
            done => return Ok(done?),
        }
    }
}

/// Locks by open file description (fcntl(2), "Open file description locks"): two VMs of one
/// process exclude each other too, and closing another descriptor of the file keeps it.
fn lock(file: &File, shared: bool) -> io::Result<()> {
    let kind = if shared { libc::F_RDLCK } else { libc::F_WRLCK };
    // SAFETY: all zeroes is a valid flock: the whole file, no owner.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    // The constants are small; libc types them as c_int, the struct's fields are c_short.
    lock.l_type = libc::c_short::try_from(kind).map_err(io::Error::other)?;
    lock.l_whence = libc::c_short::try_from(libc::SEEK_SET).map_err(io::Error::other)?;
    // SAFETY: `lock` is a valid flock that lives until the call returns.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn identity(dev: u64, ino: u64) -> [u8; ID_LEN] {
    let mut id = [0; ID_LEN];
    for (to, from) in id.iter_mut().zip(format!("{dev:x}-{ino:x}").bytes()) {
        *to = from;
    }
    id
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn image(size: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        file
    }

    #[test]
    fn an_image_is_a_disk_of_its_size() {
        let image = image(4096);
        image.as_file().write_all_at(b"x", 0).unwrap();
        let disk = Disk::open(image.path(), false).unwrap();
        assert_eq!(disk.sectors(), 8);
        assert!(!disk.is_read_only());
        assert_ne!(disk.id(), &[0; ID_LEN]);
    }

    #[test]
    fn a_missing_image_is_named() {
        let error = Disk::open(Path::new("/nonexistent/disk"), true).unwrap_err();
        assert!(matches!(&error, DiskError::Missing(path) if path.ends_with("disk")));
    }

    #[test]
    fn folders_pipes_and_devices_without_blocks_are_no_disks() {
        for path in ["/", "/dev/null"] {
            let error = Disk::open(Path::new(path), true).unwrap_err();
            assert!(matches!(error, DiskError::NotAnImage(_)), "{path}: {error}");
        }
    }

    #[test]
    fn ranges_of_a_block_device_are_not_emptied() {
        let image = image(1 << 20);
        let losetup = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(image.path())
            .output();
        let Some(device) = losetup.ok().filter(|output| output.status.success()) else {
            println!("SKIPPED: cannot make a block device; run as root");
            return;
        };
        let device = String::from_utf8(device.stdout).unwrap();
        let disk = Disk::open(Path::new(device.trim()), false);
        let detached = Command::new("losetup")
            .args(["--detach", device.trim()])
            .status();
        let disk = disk.unwrap();
        assert!(detached.unwrap().success());
        assert_eq!(disk.sectors(), 2048);
        assert!(!disk.can_discard() && !disk.can_write_zeroes());
    }

    #[test]
    fn odd_and_empty_images_are_refused() {
        let error = Disk::open(image(1000).path(), true).unwrap_err();
        assert!(matches!(error, DiskError::OddSize { size: 1000, .. }));
        let error = Disk::open(image(0).path(), true).unwrap_err();
        assert!(matches!(error, DiskError::Empty(_)));
    }

    #[test]
    fn a_writer_excludes_everybody_and_readers_exclude_writers() {
        let image = image(512);
        let writer = Disk::open(image.path(), false).unwrap();
        for read_only in [false, true] {
            let error = Disk::open(image.path(), read_only).unwrap_err();
            assert!(matches!(error, DiskError::Locked(_)), "{error}");
        }
        drop(writer);
        let reader = Disk::open(image.path(), true).unwrap();
        let another = Disk::open(image.path(), true).unwrap();
        assert!(matches!(
            Disk::open(image.path(), false).unwrap_err(),
            DiskError::Locked(_)
        ));
        drop((reader, another));
        Disk::open(image.path(), false).unwrap();
    }
}
