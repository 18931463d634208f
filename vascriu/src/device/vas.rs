// SPDX-License-Identifier: GPL-2.0-only
//! The VAS file: one VAS, and what can be done with it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use mvas_abi::vas::{
    VAS_ATTACH_CLONE, VAS_ATTACH_STOPPED, VAS_CAPTURE_HIDE, VAS_CAPTURE_STOPPED, VAS_DELETE_FORCE,
    VAS_IOC_ATTACH, VAS_IOC_CAPTURE, VAS_IOC_DELETE, VAS_IOC_EVICT, VAS_IOC_GET_LABEL,
    VAS_IOC_RANGES, VAS_IOC_SET_LABEL, VAS_IOC_STAT, VAS_IOC_USAGE, VAS_LABEL_MAX, VAS_NAME_MAX,
    VAS_RANGE_HUGE, VAS_STATE_COMMITTED, VAS_STORE_COLD, VAS_STORE_DRAINING, VAS_STORE_STORED,
    VasAttach, VasCapture, VasDelete, VasEvict, VasLabel, VasRange, VasRanges, VasStat, VasUsage,
};
use serde::{Deserialize, Serialize};

use super::{Error, VasId, c_label, from_c_name, ioctl};

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
    /// Where its memory is.
    pub store: Kept,
    /// errno of the last drain, if that failed; else 0.
    pub drain_error: i32,
    /// 4 KiB pages that are in the store.
    pub drained_pages: u64,
    /// When the snapshot was made that it has in the store, by the host's clock: tells
    /// it from a later one of that name. 0 where it has none.
    pub stored_ns: u64,
}

/// Where a VAS's memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// In this guest's memory only.
    Hot,
    /// In memory, and on its way to the store.
    Draining,
    /// In memory and in the store.
    Stored,
    /// In the store only.
    Cold,
}

impl std::fmt::Display for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Hot => "hot",
            Self::Draining => "draining",
            Self::Stored => "stored",
            Self::Cold => "cold",
        })
    }
}

impl From<u32> for Kept {
    fn from(store: u32) -> Self {
        match store {
            VAS_STORE_DRAINING => Self::Draining,
            VAS_STORE_STORED => Self::Stored,
            VAS_STORE_COLD => Self::Cold,
            _ => Self::Hot,
        }
    }
}

/// Whom the resident pages of a VAS belong to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// 4 KiB pages that it alone maps.
    pub own_pages: u64,
    /// 4 KiB pages that others map, too.
    pub shared_pages: u64,
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
    pub(super) fn adopt(fd: i32, name: String) -> Self {
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
            Some(e @ (libc::EBUSY | libc::ENOENT)) if call == "EVICT" => Error::NotInStore {
                vas: self.name.clone(),
                draining: e == libc::EBUSY,
            },
            Some(libc::EOPNOTSUPP) if call == "EVICT" => Error::NoStore,
            Some(libc::ESTALE) if call == "ATTACH" => Error::Lost {
                vas: self.name.clone(),
            },
            Some(libc::EBADMSG) => Error::StoreBroken {
                vas: self.name.clone(),
            },
            _ => Error::Call {
                call,
                what: format!("VAS {}", self.name),
                source,
            },
        }
    }

    /// Shares all eligible memory of the stopped task with this empty VAS, and with
    /// `hide` keeps it out of the task's PAGEMAP_SCAN and smaps, as this process
    /// sees them, until the session closes.
    ///
    /// # Errors
    /// The target runs, is gone or may not be traced, or memory is short; then
    /// nothing happened.
    pub fn capture(&self, pidfd: BorrowedFd<'_>, hide: bool) -> Result<Captured, Error> {
        let hide = if hide { VAS_CAPTURE_HIDE } else { 0 };
        self.capture_with(VasCapture {
            pidfd: pidfd.as_raw_fd(),
            flags: VAS_CAPTURE_STOPPED | hide,
            ..VasCapture::default()
        })
    }

    /// Shares `memory`, whole pages of this process, with this empty VAS. What is
    /// written there later is not in the VAS.
    ///
    /// # Errors
    /// As [`VasFile::capture`].
    pub fn capture_own(&self, pidfd: BorrowedFd<'_>, memory: &[u8]) -> Result<Captured, Error> {
        self.capture_with(VasCapture {
            pidfd: pidfd.as_raw_fd(),
            start: memory.as_ptr() as u64,
            len: memory.len() as u64,
            ..VasCapture::default()
        })
    }

    fn capture_with(&self, mut arg: VasCapture) -> Result<Captured, Error> {
        // SAFETY: CAPTURE takes a VasCapture, which holds no pointers; it changes
        // nothing in the target's memory.
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

    /// Replaces the stopped task's memory by the whole VAS, in place. `/proc/PID/vas` tells
    /// `snapshot` from then on. In a `clone`, what is to be wiped on fork is empty.
    ///
    /// # Errors
    /// The target's VMAs are not those of the capture, it runs, is gone or may not
    /// be traced, or memory is short; then nothing happened.
    pub fn attach(
        &self,
        pidfd: BorrowedFd<'_>,
        snapshot: [u8; 16],
        clone: bool,
    ) -> Result<Attached, Error> {
        self.attach_with(VasAttach {
            pidfd: pidfd.as_raw_fd(),
            flags: VAS_ATTACH_STOPPED | if clone { VAS_ATTACH_CLONE } else { 0 },
            snapshot,
            ..VasAttach::default()
        })
    }

    /// Fills `memory`, whole pages of this process, from the address `src` of the
    /// VAS on.
    ///
    /// # Errors
    /// The VAS has nothing there; else as [`VasFile::attach`].
    pub fn attach_own(
        &self,
        pidfd: BorrowedFd<'_>,
        src: u64,
        memory: &mut [u8],
    ) -> Result<Attached, Error> {
        if memory.is_empty() {
            return Ok(Attached::default()); // a length of 0 means all, in place
        }
        self.attach_with(VasAttach {
            pidfd: pidfd.as_raw_fd(),
            src,
            len: memory.len() as u64,
            dst: memory.as_mut_ptr() as u64,
            ..VasAttach::default()
        })
    }

    fn attach_with(&self, mut arg: VasAttach) -> Result<Attached, Error> {
        // SAFETY: ATTACH takes a VasAttach, which holds no pointers. In our own
        // process it writes to `memory` of attach_own() only, which is exclusively
        // borrowed, and where any bytes are valid.
        unsafe { ioctl(self.fd.as_fd(), VAS_IOC_ATTACH, &mut arg) }
            .map_err(|e| self.failed("ATTACH", e))?;
        Ok(Attached {
            vmas: arg.vmas,
            pages: arg.pages,
        })
    }

    /// Turns this VAS cold: lets its pages go, which the store has. Says how many
    /// 4 KiB pages that were.
    ///
    /// # Errors
    /// [`Error::NotInStore`].
    pub fn evict(&self) -> Result<u64, Error> {
        let mut arg = VasEvict::default();
        // SAFETY: EVICT takes a VasEvict, which holds no pointers.
        unsafe { ioctl(self.fd.as_fd(), VAS_IOC_EVICT, &mut arg) }
            .map_err(|e| self.failed("EVICT", e))?;
        Ok(arg.pages)
    }

    /// Its label.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn label(&self) -> Result<String, Error> {
        let mut arg = VasLabel {
            label: [0; VAS_LABEL_MAX],
        };
        // SAFETY: GET_LABEL takes a VasLabel, which holds no pointers.
        unsafe { ioctl(self.fd.as_fd(), VAS_IOC_GET_LABEL, &mut arg) }
            .map_err(|e| self.failed("GET_LABEL", e))?;
        Ok(from_c_name(&arg.label))
    }

    /// Gives it another label.
    ///
    /// # Errors
    /// [`Error::Label`], or what the kernel says.
    pub fn set_label(&self, text: &str) -> Result<(), Error> {
        let mut arg = VasLabel {
            label: c_label(text)?,
        };
        // SAFETY: SET_LABEL takes a VasLabel, which holds no pointers.
        unsafe { ioctl(self.fd.as_fd(), VAS_IOC_SET_LABEL, &mut arg) }
            .map(drop)
            .map_err(|e| self.failed("SET_LABEL", e))
    }

    /// Which of its resident pages are its own.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn usage(&self) -> Result<Usage, Error> {
        let mut arg = VasUsage::default();
        // SAFETY: USAGE takes a VasUsage, which holds no pointers.
        unsafe { ioctl(self.fd.as_fd(), VAS_IOC_USAGE, &mut arg) }
            .map_err(|e| self.failed("USAGE", e))?;
        Ok(Usage {
            own_pages: arg.own_pages,
            shared_pages: arg.shared_pages,
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
            stored_ns: 0,
            reserved: 0,
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
            store: arg.store.into(),
            drain_error: arg.drain_error,
            drained_pages: arg.drained_pages,
            stored_ns: arg.stored_ns,
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
                        huge: r.flags & VAS_RANGE_HUGE != 0,
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
