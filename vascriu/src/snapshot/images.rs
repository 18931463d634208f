// SPDX-License-Identifier: GPL-2.0-only
//! A directory for CRIU's images that nobody else sees: a tmpfs that is mounted nowhere. It
//! goes with its last descriptor, so whoever is killed leaves nothing.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use memmap2::MmapMut;

use super::id::SnapshotId;
use super::manifest::{self, Manifest};
use super::pack;
use crate::device::{self, VasFile};
use crate::process::{self, PidFd};

/// What CRIU reads first of all images.
pub const INVENTORY: &str = "inventory.img";
/// What a dump calls it, so that nobody takes the images for images of CRIU alone.
pub const HIDDEN_INVENTORY: &str = "inventory.vas.img";
/// What OCI runtimes write beside CRIU's images: what a container's first three descriptors
/// were. They restore no container without it, so the snapshot of one has it, too.
pub const DESCRIPTORS: &str = "descriptors.json";
/// More than the images of a snapshot have: 64 GiB.
const MAX_BYTES: u64 = 64 << 30;

/// Why there is no such directory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No tmpfs.
    #[error("cannot make a tmpfs for the images: {0} failed")]
    Tmpfs(&'static str, #[source] io::Error),
    /// The VAS of the images.
    #[error(transparent)]
    Device(#[from] device::Error),
    /// What is in it.
    #[error(transparent)]
    Pack(#[from] pack::Error),
    /// Its `vas.json`.
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    /// This process.
    #[error(transparent)]
    Process(#[from] process::Error),
    /// It was not made by vascriu, or was changed.
    #[error("VAS {0} holds no images of vascriu")]
    NotOurs(String),
    /// No memory.
    #[error("no memory for the {0} bytes of its images")]
    NoMemory(u64, #[source] io::Error),
}

/// CRIU's image directory. Children inherit it.
#[derive(Debug)]
pub struct Images(OwnedFd);

fn opened(fd: i64) -> io::Result<OwnedFd> {
    match RawFd::try_from(fd) {
        // SAFETY: a system call has just made this descriptor for us.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn configure(context: &OwnedFd, key: &CStr, value: &CStr) -> io::Result<()> {
    // SAFETY: both are NUL-terminated strings that outlive the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            libc::FSCONFIG_SET_STRING,
            key.as_ptr(),
            value.as_ptr(),
            0,
        )
    };
    (done == 0)
        .then_some(())
        .ok_or_else(io::Error::last_os_error)
}

impl Images {
    /// An empty directory.
    ///
    /// # Errors
    /// [`Error::Tmpfs`]: no rights, no memory.
    pub fn empty() -> Result<Self, Error> {
        let failed = |call| move |e| Error::Tmpfs(call, e);
        // SAFETY: a NUL-terminated string that outlives the call.
        let context =
            unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), libc::FSOPEN_CLOEXEC) };
        let context = opened(context).map_err(failed("fsopen"))?;
        // A size of 0 is no limit: what fits the memory fits.
        for (key, value) in [(c"mode", c"0700"), (c"size", c"0"), (c"nr_inodes", c"0")] {
            configure(&context, key, value).map_err(failed("fsconfig"))?;
        }
        // SAFETY: this command takes no strings.
        let made = unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                context.as_raw_fd(),
                libc::FSCONFIG_CMD_CREATE,
                std::ptr::null::<u8>(),
                std::ptr::null::<u8>(),
                0,
            )
        };
        if made != 0 {
            return Err(failed("fsconfig")(io::Error::last_os_error()));
        }
        let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
        // SAFETY: fsmount takes three integers. Without FSMOUNT_CLOEXEC: CRIU inherits it.
        let mount = unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 0, attributes) };
        Ok(Self(opened(mount).map_err(failed("fsmount"))?))
    }

    /// The images in the `images` VAS of the snapshot `id`, as CRIU wants them.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn of(vas: &VasFile, id: SnapshotId) -> Result<(Self, Found), Error> {
        let memory = read(vas)?;
        let mut files = pack::parse(&memory)?;
        let found = found(&files, vas, id)?;
        let images = Self::empty()?;
        for file in files.iter_mut().filter(|f| f.name == HIDDEN_INVENTORY) {
            file.name = INVENTORY;
        }
        pack::unpack(&files, &images.path())?;
        Ok((images, found))
    }

    /// The directory, for this process and its children.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        path(self.0.as_fd())
    }
}

/// A path of an open directory, for who has inherited it.
#[must_use]
pub fn path(dir: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()))
}

impl AsFd for Images {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What the images are of.
#[derive(Debug)]
pub struct Found {
    /// Their `vas.json`.
    pub manifest: Manifest,
    /// Its digest.
    pub digest: String,
    /// [`DESCRIPTORS`]; none where it is no container's.
    pub descriptors: Option<Vec<u8>>,
}

impl Found {
    /// Reads the `vas.json` in the `images` VAS of the snapshot `id`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn of(vas: &VasFile, id: SnapshotId) -> Result<Self, Error> {
        let memory = read(vas)?;
        found(&pack::parse(&memory)?, vas, id)
    }
}

fn found(files: &[pack::Image<'_>], vas: &VasFile, id: SnapshotId) -> Result<Found, Error> {
    let find = |name| files.iter().find(|f| f.name == name);
    let file = find(manifest::FILE).ok_or_else(|| Error::NotOurs(vas.name().into()))?;
    Ok(Found {
        manifest: Manifest::parse(file.bytes, id)?,
        digest: manifest::digest(file.bytes),
        descriptors: find(DESCRIPTORS).map(|f| f.bytes.to_vec()),
    })
}

/// Puts the images of the directory `dir` and a `vas.json` into an empty VAS; says how many
/// bytes they are.
///
/// # Errors
/// See [`Error`].
pub fn capture(dir: BorrowedFd<'_>, manifest: &[u8], vas: &VasFile) -> Result<u64, Error> {
    let manifest = pack::Image {
        name: manifest::FILE,
        bytes: manifest,
    };
    let wanted = |name: &str| name.ends_with(".img") || name == DESCRIPTORS;
    let memory = pack::pack(&path(dir), wanted, &[manifest])?;
    vas.capture_own(PidFd::own()?.as_fd(), &memory)?;
    Ok(memory.len() as u64)
}

/// The memory of the VAS of a snapshot's images.
fn read(vas: &VasFile) -> Result<MmapMut, Error> {
    let not_ours = || Error::NotOurs(vas.name().into());
    let ranges = vas.ranges()?;
    let [range] = ranges.as_slice() else {
        return Err(not_ours());
    };
    let len = range.end.saturating_sub(range.start);
    let size = usize::try_from(len).ok().filter(|_| len <= MAX_BYTES);
    let memory = MmapMut::map_anon(size.ok_or_else(not_ours)?);
    let mut memory = memory.map_err(|e| Error::NoMemory(len, e))?;
    vas.attach_own(PidFd::own()?.as_fd(), range.start, &mut memory)?;
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_lie_in_a_directory_that_no_path_leads_to() {
        let images = match Images::empty() {
            Err(Error::Tmpfs(_, e)) if e.kind() == io::ErrorKind::PermissionDenied => return,
            made => made.expect("a tmpfs"),
        };
        std::fs::write(images.path().join("a.img"), "x").expect("write");
        let child = std::process::Command::new("cat")
            .arg(images.path().join("a.img"))
            .output();
        assert_eq!(child.expect("cat").stdout, b"x");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let dev = std::fs::File::open(images.path())
            .and_then(|f| f.metadata())
            .expect("stat");
        let minor = std::os::unix::fs::MetadataExt::dev(&dev) & 0xff;
        assert!(
            !mounts
                .lines()
                .any(|l| l.split(' ').nth(2) == Some(&format!("0:{minor}")))
        );
    }
}
