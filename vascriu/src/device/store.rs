// SPDX-License-Identifier: GPL-2.0-only
//! What a session can do with the snapshot store, which is outside of this guest
//! (docs/STORE.md).

use std::io;
use std::os::fd::AsFd;

use mvas_abi::vas::{
    VAS_DRAIN_MAX, VAS_DRAIN_SYNC, VAS_FEATURE_STORE, VAS_IOC_DRAIN, VAS_IOC_STORE_DELETE,
    VAS_IOC_STORE_LABEL, VAS_IOC_STORE_LIST, VAS_IOC_STORE_LOAD, VAS_LABEL_MAX, VAS_NAME_MAX,
    VasDrain, VasStoreDelete, VasStoreLabel, VasStoreList, VasStoreLoad, VasStoreSnapshot,
};
use serde::Serialize;

use super::{Error, Session, VasId, c_label, c_name, from_c_name, ioctl};

/// A complete snapshot in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoredSnapshot {
    /// Its name.
    pub name: String,
    /// Nanoseconds since the epoch, by the host's clock.
    pub created_ns: u64,
    /// 4 KiB pages, those of its huge pages too.
    pub pages: u64,
    /// Bytes of the store.
    pub bytes: u64,
    /// Its label.
    pub label: String,
}

impl From<&VasStoreSnapshot> for StoredSnapshot {
    fn from(s: &VasStoreSnapshot) -> Self {
        Self {
            name: from_c_name(&s.name),
            created_ns: s.created_ns,
            pages: s.blocks.saturating_mul(512).saturating_add(s.packed_pages),
            bytes: s.bytes,
            label: from_c_name(&s.label),
        }
    }
}

fn failed(call: &'static str, name: &str, source: io::Error) -> Error {
    match source.raw_os_error() {
        Some(libc::EOPNOTSUPP) => Error::NoStore,
        Some(libc::EEXIST) if call == "DRAIN" => Error::StoreHas(name.into()),
        Some(libc::ENOENT) if call != "DRAIN" => Error::NotStored(name.into()),
        Some(libc::ESTALE) => Error::Relabelled(name.into()),
        Some(libc::EBADMSG) => Error::Broken(name.into()),
        Some(libc::ENOSPC) => Error::StoreFull,
        _ => Error::Call {
            call,
            what: format!("snapshot {name}"),
            source,
        },
    }
}

impl Session {
    /// Whether there is a store now.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn has_store(&self) -> Result<bool, Error> {
        Ok(self.info()?.features & VAS_FEATURE_STORE != 0)
    }

    /// Begins to put VASes into the store as the snapshot `name`, or with `sync`
    /// does so to the end. It goes on when the caller ends.
    ///
    /// # Errors
    /// [`Error::StoreHas`] the name, and what the kernel says; then the store has
    /// nothing of it.
    pub fn drain(&self, name: &str, vases: &[VasId], sync: bool) -> Result<(), Error> {
        let ids: Vec<u64> = vases.iter().map(|v| v.0).collect();
        let mut arg = VasDrain {
            name: c_name(name)?,
            ids: ids.as_ptr() as u64,
            // More than the kernel takes, it refuses.
            count: u32::try_from(ids.len()).unwrap_or(u32::MAX),
            flags: if sync { VAS_DRAIN_SYNC } else { 0 },
            reserved: [0; 2],
        };
        // SAFETY: DRAIN takes a VasDrain; its pointer is to `ids`, which lives
        // through the call and has `count` entries, or the kernel refuses it.
        unsafe { ioctl(self.0.as_fd(), VAS_IOC_DRAIN, &mut arg) }
            .map(drop)
            .map_err(|e| failed("DRAIN", name, e))
    }

    /// Why a drain failed that went on in the background, by [`super::Stat::drain_error`].
    #[must_use]
    pub fn drain_failed(name: &str, errno: i32) -> Error {
        failed("DRAIN", name, io::Error::from_raw_os_error(errno))
    }

    /// The snapshots of the store that this microVM may use; none where there is no
    /// store.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn stored(&self) -> Result<Vec<StoredSnapshot>, Error> {
        const BATCH: usize = 64;
        const EMPTY: VasStoreSnapshot = VasStoreSnapshot {
            name: [0; VAS_NAME_MAX],
            created_ns: 0,
            meta_bytes: 0,
            blocks: 0,
            packed_pages: 0,
            bytes: 0,
            reserved: 0,
            label: [0; VAS_LABEL_MAX],
        };
        let mut found = Vec::new();
        let mut buf = vec![EMPTY; BATCH];
        loop {
            let mut arg = VasStoreList {
                skip: found.len() as u64,
                snapshots: buf.as_mut_ptr() as u64,
                count: u32::try_from(BATCH).expect("a few"),
                ..VasStoreList::default()
            };
            // SAFETY: STORE_LIST takes a VasStoreList; its pointer is to `buf`,
            // which lives through the call and has room for BATCH entries.
            match unsafe { ioctl(self.0.as_fd(), VAS_IOC_STORE_LIST, &mut arg) } {
                Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(Vec::new()),
                done => done.map_err(|e| failed("STORE_LIST", "list", e))?,
            };
            let new = (arg.count as usize).min(BATCH);
            found.extend(buf[..new].iter().map(StoredSnapshot::from));
            if new == 0 || found.len() as u64 >= arg.total {
                return Ok(found);
            }
        }
    }

    /// Makes the VASes of a snapshot in the store, cold and transient; their ids.
    ///
    /// # Errors
    /// [`Error::NotStored`], and what the kernel says, such as that a VAS of such a
    /// name is here.
    pub fn load(&self, name: &str) -> Result<Vec<VasId>, Error> {
        let mut ids = vec![0u64; VAS_DRAIN_MAX as usize];
        let mut arg = VasStoreLoad {
            name: c_name(name)?,
            ids: ids.as_mut_ptr() as u64,
            count: VAS_DRAIN_MAX,
            flags: 0,
            reserved: [0; 2],
        };
        // SAFETY: STORE_LOAD takes a VasStoreLoad; its pointer is to `ids`, which
        // lives through the call and has room for `count` entries.
        unsafe { ioctl(self.0.as_fd(), VAS_IOC_STORE_LOAD, &mut arg) }
            .map_err(|e| failed("STORE_LOAD", name, e))?;
        ids.truncate(arg.count as usize);
        Ok(ids.into_iter().map(VasId).collect())
    }

    /// Gives a snapshot in the store, which has the label `from`, the label `to`.
    ///
    /// # Errors
    /// [`Error::NotStored`]: it is not there, or not complete yet; [`Error::Relabelled`]: it has
    /// another label; and what the kernel says.
    pub fn store_label(&self, name: &str, from: &str, to: &str) -> Result<(), Error> {
        let mut arg = VasStoreLabel {
            name: c_name(name)?,
            label: c_label(to)?,
            expected: c_label(from)?,
        };
        // SAFETY: STORE_LABEL takes a VasStoreLabel, which holds no pointers.
        unsafe { ioctl(self.0.as_fd(), VAS_IOC_STORE_LABEL, &mut arg) }
            .map(drop)
            .map_err(|e| failed("STORE_LABEL", name, e))
    }

    /// Removes a snapshot from the store. A cold VAS of it is lost.
    ///
    /// # Errors
    /// [`Error::NotStored`], and what the kernel says.
    pub fn unstore(&self, name: &str) -> Result<(), Error> {
        let mut arg = VasStoreDelete {
            name: c_name(name)?,
            created_ns: 0,
            flags: 0,
            reserved: 0,
        };
        // SAFETY: STORE_DELETE takes a VasStoreDelete, which holds no pointers.
        unsafe { ioctl(self.0.as_fd(), VAS_IOC_STORE_DELETE, &mut arg) }
            .map(drop)
            .map_err(|e| failed("STORE_DELETE", name, e))
    }
}
