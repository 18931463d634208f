// SPDX-License-Identifier: GPL-2.0-only
//! `/dev/vas`, safely: the [`Session`], what it says of the snapshot store, and the
//! [`VasFile`].
//!
//! `guest-kernel/linux/include/uapi/linux/vas.h` defines what every call means.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use mvas_abi::vas::{
    VAS_ABI_VERSION, VAS_FEATURE_PAGEMAP_HIDE, VAS_IOC_COMMIT, VAS_IOC_CREATE, VAS_IOC_GUARD,
    VAS_IOC_INFO, VAS_IOC_OPEN, VAS_LABEL_MAX, VAS_NAME_MAX, VasCreate, VasGuard, VasInfo, VasOpen,
};
pub use mvas_abi::vas::{VAS_ACCESS_READ, VAS_ACCESS_WRITE};
use serde::{Deserialize, Serialize};

mod store;
mod vas;

pub use store::StoredSnapshot;
pub use vas::{Attached, Captured, Kept, Range, Stat, Usage, VasFile};

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
    /// A label that the kernel cannot hold.
    #[error("a label is text of less than {VAS_LABEL_MAX} bytes")]
    Label,
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
    /// There is no snapshot store.
    #[error(
        "this microVM has no snapshot store: snapshots stay in the guest (`mvasvm run --store`, `vascriu check`)"
    )]
    NoStore,
    /// The store has no such snapshot, or it was not granted to this microVM.
    #[error("the snapshot store has no `{0}` for this microVM")]
    NotStored(String),
    /// Somebody has given the stored snapshot another label meanwhile.
    #[error("the label of `{0}` in the snapshot store was changed meanwhile: try again")]
    Relabelled(String),
    /// The store has the snapshot, but not as it was written.
    #[error(
        "`{0}` in the snapshot store is broken and cannot be used: `mvasvm snapshots ls` on the host says why, `vascriu rm {0}` removes it"
    )]
    Broken(String),
    /// The store's snapshot names cannot be used again.
    #[error(
        "the snapshot store has a `{0}` already, perhaps of another microVM: choose another name"
    )]
    StoreHas(String),
    /// The store's limit, or its file system's.
    #[error("the snapshot store is full: remove snapshots, or give it more (`--store-limit`)")]
    StoreFull,
    /// A VAS that the store does not have, or not yet, cannot turn cold.
    #[error("VAS {vas} is {} in the store: it stays in memory", how(.draining))]
    NotInStore {
        /// Its name.
        vas: String,
        /// On its way there.
        draining: bool,
    },
    /// A cold VAS whose snapshot is no more.
    #[error("VAS {vas} was in the snapshot store only, and is no longer there")]
    Lost {
        /// Its name.
        vas: String,
    },
    /// The memory of a drained VAS is in the store, but not as it was written.
    #[error(
        "the snapshot store has the memory of VAS {vas}, but broken: `mvasvm snapshots ls` on the host says why"
    )]
    StoreBroken {
        /// Its name.
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

fn how(draining: &bool) -> &'static str {
    if *draining { "not completely" } else { "not" }
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

/// Text as the kernel takes it for a label.
fn c_label(text: &str) -> Result<[u8; VAS_LABEL_MAX], Error> {
    let bytes = text.as_bytes();
    if bytes.len() >= VAS_LABEL_MAX || bytes.contains(&0) {
        return Err(Error::Label);
    }
    let mut out = [0; VAS_LABEL_MAX];
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
        let info = session.info()?;
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

    fn info(&self) -> Result<VasInfo, Error> {
        let mut info = VasInfo::default();
        // SAFETY: INFO takes a VasInfo, which holds no pointers.
        unsafe { ioctl(self.0.as_fd(), VAS_IOC_INFO, &mut info) }.map_err(|e| Error::Call {
            call: "INFO",
            what: DEVICE.into(),
            source: e,
        })?;
        Ok(info)
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

    /// Holds the device against all others that do this, whatever their namespaces; waits
    /// for them.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn exclusive(&self) -> Result<Exclusive<'_>, Error> {
        loop {
            // SAFETY: flock takes two integers.
            if unsafe { libc::flock(self.0.as_raw_fd(), libc::LOCK_EX) } == 0 {
                return Ok(Exclusive(self));
            }
            let source = io::Error::last_os_error();
            if source.kind() != io::ErrorKind::Interrupted {
                return Err(Error::Call {
                    call: "flock",
                    what: DEVICE.into(),
                    source,
                });
            }
        }
    }

    /// The same session once more.
    ///
    /// # Errors
    /// No free descriptor.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Saves the registers and the signal mask of a thread that the caller traces and has
    /// stopped, and `len` bytes of its memory at `addr`. The kernel puts them back where the
    /// caller ends while it traces the thread.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn guard(&self, tid: i32, addr: u64, len: u32) -> Result<(), Error> {
        let mut arg = VasGuard {
            tid,
            addr,
            len,
            ..VasGuard::default()
        };
        // SAFETY: GUARD takes a VasGuard; its address is the thread's, not ours.
        unsafe { ioctl(self.0.as_fd(), VAS_IOC_GUARD, &mut arg) }
            .map(drop)
            .map_err(|e| Error::Call {
                call: "GUARD",
                what: format!("thread {tid}"),
                source: e,
            })
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

/// While it lives, the session has the device for itself. A process that is killed lets go.
#[derive(Debug)]
pub struct Exclusive<'a>(&'a Session);

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        // SAFETY: flock takes two integers.
        unsafe { libc::flock(self.0.0.as_raw_fd(), libc::LOCK_UN) };
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
