// SPDX-License-Identifier: GPL-2.0-only
//! What can go wrong with a request, and what the guest is told.

use std::io;

use mvas_abi::virtio_vas::*;
use thiserror::Error;

use super::request::Handle;
use crate::store::StoreError;

/// A response's status, as numbered by the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs)] // docs/VIRTIO-VAS.md says what each means
pub enum Status {
    Ok = VIRTIO_VAS_S_OK,
    BadRequest = VIRTIO_VAS_S_BAD_REQUEST,
    BadRange = VIRTIO_VAS_S_BAD_RANGE,
    BadHandle = VIRTIO_VAS_S_BAD_HANDLE,
    NotFound = VIRTIO_VAS_S_NOT_FOUND,
    Exists = VIRTIO_VAS_S_EXISTS,
    State = VIRTIO_VAS_S_STATE,
    NoSpace = VIRTIO_VAS_S_NO_SPACE,
    BadMeta = VIRTIO_VAS_S_BAD_META,
    Limit = VIRTIO_VAS_S_LIMIT,
    Host = VIRTIO_VAS_S_HOST,
    Changed = VIRTIO_VAS_S_CHANGED,
}

/// Why a request was not done, or not all of it.
#[derive(Debug, Error)]
pub enum ServerError {
    /// It is malformed.
    #[error("the guest's request is malformed: {0}")]
    BadRequest(&'static str),
    /// Its memory is not what it should be.
    #[error("the guest's request names memory wrongly: {0}")]
    BadRange(&'static str),
    /// There is no such handle.
    #[error("the guest has no handle {}", .0.0)]
    BadHandle(Handle),
    /// The snapshot was not granted to this VM.
    #[error("the guest asks for a snapshot that another VM made (see --grant)")]
    NotGranted,
    /// A draft where a complete snapshot is needed, or the reverse, or a second PUBLISH.
    #[error("the guest's request does not fit the snapshot's state: {0}")]
    State(&'static str),
    /// Too much of something.
    #[error("the guest has too many snapshots open, or too much metadata in them")]
    Limit,
    /// The store refuses, or failed.
    #[error("the snapshot store refuses the guest's request")]
    Store(#[from] StoreError),
    /// The host failed.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// What was published may lack what a device wrote.
    #[error("the guest's memory is lost: the host had none for a page of it")]
    Lost,
    /// The device is being reset.
    #[error("the device was stopped in the middle of a request")]
    Stopped,
}

impl ServerError {
    /// What the guest is told.
    pub fn status(&self) -> Status {
        match self {
            Self::BadRequest(_) => Status::BadRequest,
            Self::BadRange(_) => Status::BadRange,
            Self::BadHandle(_) => Status::BadHandle,
            Self::NotGranted => Status::NotFound,
            Self::State(_) => Status::State,
            Self::Limit => Status::Limit,
            Self::Host { .. } | Self::Lost | Self::Stopped => Status::Host,
            Self::Store(error) => match error {
                StoreError::Name(_) | StoreError::Label => Status::BadRequest,
                StoreError::NotFound(_) => Status::NotFound,
                StoreError::Relabelled(_) => Status::Changed,
                StoreError::Exists(_) | StoreError::Drafted(_) => Status::Exists,
                StoreError::Limit { .. } | StoreError::Promised { .. } | StoreError::Full(_) => {
                    Status::NoSpace
                }
                StoreError::BadMeta(_) | StoreError::Broken { .. } => Status::BadMeta,
                _ => Status::Host,
            },
        }
    }
}

/// Makes a closure for `map_err` that says what the host could not do.
pub(super) fn cannot(what: &'static str) -> impl FnOnce(io::Error) -> ServerError {
    move |source| match source.raw_os_error() {
        // A full tmpfs, not a failure of the host.
        Some(nix::libc::ENOSPC) => StoreError::Full("the store".into()).into(),
        _ => ServerError::Host { what, source },
    }
}
