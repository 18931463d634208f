//! `/dev/vas`, safely: the [`Session`] and the [`VasFile`].
//!
//! `guest-kernel/linux/include/uapi/linux/vas.h` defines what every call means.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use mvas_abi::vas::{
    VAS_ABI_VERSION, VAS_FEATURE_PAGEMAP_HIDE, VAS_IOC_ATTACH, VAS_IOC_CAPTURE, VAS_IOC_COMMIT,
    VAS_IOC_CREATE, VAS_IOC_DELETE, VAS_IOC_INFO, VAS_IOC_OPEN, VAS_IOC_RANGES, VAS_IOC_STAT,
    VAS_NAME_MAX, VasAttach, VasCapture, VasCreate, VasDelete, VasInfo, VasOpen, VasRange,
    VasRanges, VasStat,
};
pub use mvas_abi::vas::{
    VAS_ACCESS_READ, VAS_ACCESS_WRITE, VAS_CAPTURE_HIDE, VAS_DELETE_FORCE, VAS_STATE_COMMITTED,
};
use serde::{Deserialize, Serialize};

/// The device.
pub const DEVICE: &str = "/dev/vas";
/// One directory for every VAS of the machine.
pub const SYSFS: &str = "/sys/kernel/vas";

/// What can go wrong at `/dev/vas`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The running kernel has no MVAS.
    #[error("this kernel has no {DEVICE}: boot the MVAS kernel (`mvasvm run`)")]
    NoDevice,
    /// The caller may not use the device.
    #[error("may not open {DEVICE}: run as root, or with CAP_CHECKPOINT_RESTORE")]
    NoRights(#[source] io::Error),
    /// The device answers, but in another language.
    #[error(
        "{DEVICE} speaks version {found} of its interface, this program version {VAS_ABI_VERSION}: kernel and vascriu are of different builds"
    )]
    Version {
        /// What the kernel said.
        found: u32,
    },
    /// The kernel cannot hide captured memory from CRIU.
    #[error("{DEVICE} cannot hide captured memory from PAGEMAP_SCAN: CRIU would write all of it")]
    NoHide,
    /// A name that the kernel cannot hold.
    #[error("`{0}` is no VAS name: 1 to {max} of [A-Za-z0-9._:@+-], not beginning with a dot", max = VAS_NAME_MAX - 1)]
    Name(String),
    /// There is no such VAS.
    #[error("VAS {vas} does not exist any more")]
    Gone {
        /// Its id or name.
        vas: String,
    },
    /// Other VAS files are open.
    #[error("VAS {vas} is in use")]
    Busy {
        /// Its id or name.
        vas: String,
    },
    /// Any other refusal.
    #[error("{call} on {what} failed")]
    Call {
        /// What was asked.
        call: &'static str,
        /// Of whom.
        what: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A VAS's id: never 0, never used again until reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VasId(pub u64);

impl std::fmt::Display for VasId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Issues an ioctl whose argument is a struct of `mvas_abi`.
///
/// # Safety
/// `nr` must be the request that takes a `T`, and pointers within it be valid.
unsafe fn ioctl<T>(fd: BorrowedFd<'_>, nr: u32, arg: &mut T) -> io::Result<i32> {
    // SAFETY: `arg` is a live, exclusive `T`, and by contract `nr` reads and
    // writes at most one `T` there; `mvas_abi` compares the layouts with C.
    let ret = unsafe { libc::ioctl(fd.as_raw_fd(), libc::Ioctl::from(nr), arg as *mut T) };
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(ret)
    }
}

fn c_name(name: &str) -> Result<[u8; VAS_NAME_MAX], Error> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || b"._:@+-".contains(&b);
    let bytes = name.as_bytes();
    if bytes.is_empty()
        || bytes.len() >= VAS_NAME_MAX
        || bytes[0] == b'.'
        || !bytes.iter().copied().all(ok)
    {
        return Err(Error::Name(name.into()));
    }
    let mut out = [0; VAS_NAME_MAX];
    out[..bytes.len()].copy_from_slice(bytes);
    Ok(out)
}

fn from_c_name(name: &[u8]) -> String {
    let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
    String::from_utf8_lossy(&name[..end]).into_owned()
}

/// An open of `/dev/vas`. VASes created in it vanish with it unless committed,
/// and so does the hiding of captured memory.
#[derive(Debug)]
pub struct Session(OwnedFd);

impl Session {
    /// Opens the device.
    ///
    /// # Errors
    /// No device, no rights, another interface version.
    pub fn open() -> Result<Self, Error> {
        let file = File::options()
            .read(true)
            .write(true)
            .open(DEVICE)
            .map_err(|e| match e.raw_os_error() {
                Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => Error::NoDevice,
                Some(libc::EPERM | libc::EACCES) => Error::NoRights(e),
                _ => Error::Call {
                    call: "open",
                    what: DEVICE.into(),
                    source: e,
                },
            })?;
        Self::adopt(file.into())
    }

    /// Takes an open `/dev/vas`, and checks that it is one we can work with.
    ///
    /// # Errors
    /// Another interface version.
    pub fn adopt(fd: OwnedFd) -> Result<Self, Error> {
        let session = Self(fd);
        let mut info = VasInfo::default();
        // SAFETY: INFO takes a VasInfo, which holds no pointers.
        unsafe { ioctl(session.0.as_fd(), VAS_IOC_INFO, &mut info) }.map_err(|e| Error::Call {
            call: "INFO",
            what: DEVICE.into(),
            source: e,
        })?;
        if info.abi_version != VAS_ABI_VERSION {
            return Err(Error::Version {
                found: info.abi_version,
            });
        }
        if info.features & VAS_FEATURE_PAGEMAP_HIDE == 0 {
            return Err(Error::NoHide);
        }
        Ok(session)
    }

    /// Creates an empty, transient VAS with permission bits `mode`.
    ///
    /// # Errors
    /// A bad name, a name twice (`EEXIST`), no memory.
    pub fn create(&self, name: &str, mode: u32) -> Result<(VasId, VasFile), Error> {
        let mut arg = VasCreate {
            name: c_name(name)?,
            mode,
            flags: 0,
            id: 0,
        };
        // SAFETY: CREATE takes a VasCreate, which holds no pointers.
        let fd = unsafe { ioctl(self.0.as_fd(), VAS_IOC_CREATE, &mut arg) }.map_err(|e| {
            Error::Call {
                call: "CREATE",
                what: format!("VAS {name}"),
                source: e,
            }
        })?;
        Ok((VasId(arg.id), VasFile::adopt(fd, name.into())))
    }

    /// Opens a VAS by its id.
    ///
    /// # Errors
    /// No such VAS, or its mode denies `access`.
    pub fn vas(&self, id: VasId, access: u32) -> Result<VasFile, Error> {
        self.open_vas(id.0, [0; VAS_NAME_MAX], access, id.to_string())
    }

    /// Opens a VAS by its name.
    ///
    /// # Errors
    /// As [`Session::vas`].
    pub fn vas_by_name(&self, name: &str, access: u32) -> Result<VasFile, Error> {
        self.open_vas(0, c_name(name)?, access, name.into())
    }

    fn open_vas(
        &self,
        id: u64,
        name: [u8; VAS_NAME_MAX],
        access: u32,
        what: String,
    ) -> Result<VasFile, Error> {
        let mut arg = VasOpen {
            id,
            name,
            access,
            flags: 0,
        };
        // SAFETY: OPEN takes a VasOpen, which holds no pointers.
        match unsafe { ioctl(self.0.as_fd(), VAS_IOC_OPEN, &mut arg) } {
            Ok(fd) => Ok(VasFile::adopt(fd, from_c_name(&arg.name))),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Err(Error::Gone { vas: what }),
            Err(e) => Err(Error::Call {
                call: "OPEN",
                what: format!("VAS {what}"),
                source: e,
            }),
        }
    }

    /// Makes all VASes of this session permanent, at once.
    ///
    /// # Errors
    /// What the kernel says; then nothing was committed.
    pub fn commit(&self) -> Result<(), Error> {
        // SAFETY: COMMIT takes no argument; the kernel ignores the pointer.
        unsafe { ioctl(self.0.as_fd(), VAS_IOC_COMMIT, &mut ()) }
            .map(drop)
            .map_err(|e| Error::Call {
                call: "COMMIT",
                what: DEVICE.into(),
                source: e,
            })
    }
}

/// What a capture did, in 4 KiB pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Captured {
    /// VMAs.
    pub vmas: u64,
    /// Resident pages now shared.
    pub pages: u64,
    /// Of these, in huge pages.
    pub huge_pages: u64,
    /// Swapped pages now shared.
    pub swap_pages: u64,
    /// Pinned pages that had to be copied.
    pub copied_pages: u64,
}

/// What an attach did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attached {
    /// VMAs.
    pub vmas: u64,
    /// Resident 4 KiB pages now shared.
    pub pages: u64,
}

/// What a VAS is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stat {
    /// Its id.
    pub id: VasId,
    /// Its name.
    pub name: String,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
    /// Lives until it is deleted.
    pub committed: bool,
    /// Nanoseconds since the epoch.
    pub created_ns: u64,
    /// VMAs.
    pub vmas: u64,
    /// Sum of the lengths of its VMAs.
    pub bytes: u64,
    /// Resident 4 KiB pages.
    pub pages: u64,
    /// Of these, in huge pages.
    pub huge_pages: u64,
    /// Swapped pages.
    pub swap_pages: u64,
    /// Attaches since it was created.
    pub attaches: u64,
    /// Open VAS files, the asker's included.
    pub users: u64,
}

/// One VMA of a VAS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// End, exclusive.
    pub end: u64,
    /// Resident 4 KiB pages.
    pub pages: u64,
    /// `PROT_*` at the time of the capture.
    pub prot: u32,
    /// Holds huge pages.
    pub huge: bool,
}

/// An open VAS. It pins the VAS's memory.
#[derive(Debug)]
pub struct VasFile {
    fd: OwnedFd,
    name: String,
}

impl VasFile {
    /// Takes the descriptor that an ioctl has just returned.
    fn adopt(fd: i32, name: String) -> Self {
        // SAFETY: the kernel has just made this descriptor for us (CREATE and
        // OPEN return a new VAS file), so nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Self { fd, name }
    }

    /// The VAS's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn failed(&self, call: &'static str, source: io::Error) -> Error {
        match source.raw_os_error() {
            Some(libc::EBUSY) if call == "DELETE" => Error::Busy {
                vas: self.name.clone(),
            },
            _ => Error::Call {
                call,
                what: format!("VAS {}", self.name),
                source,
            },
        }
    }

    /// Shares all eligible memory of the task with this empty VAS, and with
    /// `hide` keeps it out of the task's PAGEMAP_SCAN until the session closes.
    ///
    /// # Errors
    /// The target is gone or may not be traced, or memory is short; then
    /// nothing happened.
    pub fn capture(&self, pidfd: BorrowedFd<'_>, hide: bool) -> Result<Captured, Error> {
        let flags = if hide { VAS_CAPTURE_HIDE } else { 0 };
        let mut arg = VasCapture {
            pidfd: pidfd.as_raw_fd(),
            flags,
            ..VasCapture::default()
        };
        // SAFETY: CAPTURE takes a VasCapture, which holds no pointers.
        unsafe { ioctl(self.fd.as_fd(), VAS_IOC_CAPTURE, &mut arg) }
            .map_err(|e| self.failed("CAPTURE", e))?;
        Ok(Captured {
            vmas: arg.vmas,
            pages: arg.pages,
            huge_pages: arg.huge_pages,
            swap_pages: arg.swap_pages,
            copied_pages: arg.copied_pages,
        })
    }

    /// Replaces the task's memory by the whole VAS, in place.
    ///
    /// # Errors
    /// The target's VMAs are not those of the capture, it is gone or may not be
    /// traced, or memory is short; then nothing happened.
    pub fn attach(&self, pidfd: BorrowedFd<'_>) -> Result<Attached, Error> {
        let mut arg = VasAttach {
            pidfd: pidfd.as_raw_fd(),
            ..VasAttach::default()
        };
        // SAFETY: ATTACH takes a VasAttach, which holds no pointers.
        unsafe { ioctl(self.fd.as_fd(), VAS_IOC_ATTACH, &mut arg) }
            .map_err(|e| self.failed("ATTACH", e))?;
        Ok(Attached {
            vmas: arg.vmas,
            pages: arg.pages,
        })
    }

    /// What this VAS is.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn stat(&self) -> Result<Stat, Error> {
        let mut arg = VasStat {
            id: 0,
            name: [0; VAS_NAME_MAX],
            mode: 0,
            uid: 0,
            gid: 0,
            state: 0,
            created_ns: 0,
            vmas: 0,
            bytes: 0,
            pages: 0,
            huge_pages: 0,
            swap_pages: 0,
            attaches: 0,
            users: 0,
            store: 0,
            drain_error: 0,
            drained_pages: 0,
            reserved: [0; 2],
        };
        // SAFETY: STAT takes a VasStat, which holds no pointers.
        unsafe { ioctl(self.fd.as_fd(), VAS_IOC_STAT, &mut arg) }
            .map_err(|e| self.failed("STAT", e))?;
        Ok(Stat {
            id: VasId(arg.id),
            name: from_c_name(&arg.name),
            mode: arg.mode,
            uid: arg.uid,
            gid: arg.gid,
            committed: arg.state == VAS_STATE_COMMITTED,
            created_ns: arg.created_ns,
            vmas: arg.vmas,
            bytes: arg.bytes,
            pages: arg.pages,
            huge_pages: arg.huge_pages,
            swap_pages: arg.swap_pages,
            attaches: arg.attaches,
            users: arg.users,
        })
    }

    /// All VMAs of this VAS.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn ranges(&self) -> Result<Vec<Range>, Error> {
        const BATCH: u32 = 256;
        let mut out = Vec::new();
        let mut buf = [VasRange::default(); BATCH as usize];
        let mut start = 0;
        loop {
            let mut arg = VasRanges {
                start,
                ranges: buf.as_mut_ptr() as u64,
                count: BATCH,
                reserved: 0,
            };
            // SAFETY: RANGES takes a VasRanges; its pointer is to `buf`, which
            // lives through the call and has room for BATCH entries.
            unsafe { ioctl(self.fd.as_fd(), VAS_IOC_RANGES, &mut arg) }
                .map_err(|e| self.failed("RANGES", e))?;
            out.extend(
                buf.iter()
                    .take(arg.count.min(BATCH) as usize)
                    .map(|r| Range {
                        start: r.start,
                        end: r.end,
                        pages: r.pages,
                        prot: r.prot,
                        huge: r.flags & mvas_abi::vas::VAS_RANGE_HUGE != 0,
                    }),
            );
            if arg.start <= start {
                return Ok(out);
            }
            start = arg.start;
        }
    }

    /// Deletes this VAS; its memory goes with its last open file. Without
    /// `force` that must be this one.
    ///
    /// # Errors
    /// [`Error::Busy`] where others have it open.
    pub fn delete(&self, force: bool) -> Result<(), Error> {
        let flags = if force { VAS_DELETE_FORCE } else { 0 };
        let mut arg = VasDelete { flags, reserved: 0 };
        // SAFETY: DELETE takes a VasDelete, which holds no pointers.
        unsafe { ioctl(self.fd.as_fd(), VAS_IOC_DELETE, &mut arg) }
            .map(drop)
            .map_err(|e| self.failed("DELETE", e))
    }
}

/// Ids of all VASes of this machine, in order.
///
/// # Errors
/// [`Error::NoDevice`] where the kernel has no MVAS.
pub fn list() -> Result<Vec<VasId>, Error> {
    let dir = Path::new(SYSFS)
        .read_dir()
        .map_err(|e| match e.raw_os_error() {
            Some(libc::ENOENT) => Error::NoDevice,
            _ => Error::Call {
                call: "readdir",
                what: SYSFS.into(),
                source: e,
            },
        })?;
    let mut ids: Vec<_> = dir
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok().map(VasId))
        .collect();
    ids.sort_unstable();
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_kernel_would_refuse_are_refused_before_the_call() {
        for bad in ["", ".x", "a b", "a/b", "ä", &"x".repeat(VAS_NAME_MAX)] {
            assert!(matches!(c_name(bad), Err(Error::Name(_))), "{bad}");
        }
    }

    #[test]
    fn a_name_survives_the_way_to_c_and_back() {
        for good in ["a", "redis-1:42", &"x".repeat(VAS_NAME_MAX - 1)] {
            assert_eq!(from_c_name(&c_name(good).expect("valid")), good);
        }
    }
}
