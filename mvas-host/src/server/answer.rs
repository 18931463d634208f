// SPDX-License-Identifier: GPL-2.0-only
//! What goes back to the guest.

use mvas_abi::virtio_vas::VirtioVasResponse;

use super::error::{ServerError, Status};

/// The answer to a request.
#[derive(Debug, Default)]
pub struct Answer {
    /// Entries that took effect, bytes, or structs.
    pub done: u64,
    /// As the operation says.
    pub value: u64,
    /// What follows the response.
    pub payload: Vec<u8>,
    /// Why the request was not done, or not all of it.
    pub error: Option<ServerError>,
}

impl Answer {
    /// What the guest is told.
    pub fn status(&self) -> Status {
        self.error.as_ref().map_or(Status::Ok, ServerError::status)
    }

    /// Whether the host should hear of it: its store is full, or it failed.
    pub fn is_hosts_failure(&self) -> bool {
        matches!(self.status(), Status::NoSpace | Status::Host)
    }

    /// The response.
    pub fn response(&self) -> VirtioVasResponse {
        VirtioVasResponse {
            status: (self.status() as u32).into(),
            // A request has fewer entries, and an answer fewer bytes.
            done: u32::try_from(self.done).unwrap_or(u32::MAX).into(),
            value: self.value.into(),
        }
    }
}
