// SPDX-License-Identifier: GPL-2.0-only
//! What the plugin tells of one run of CRIU: a memory file that CRIU inherits.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use serde::{Deserialize, Serialize};

use crate::process::Vpid;

/// One attach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// The task inside its namespaces.
    pub vpid: Vpid,
    /// The task as CRIU sees it.
    pub pid: i32,
    /// Resident 4 KiB pages that it now shares with its VAS.
    pub pages: u64,
    /// How long it took, in microseconds.
    pub us: u64,
}

/// What the plugin did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Why it failed, as a sentence.
    pub error: Option<String>,
    /// What it attached.
    pub attached: Vec<Attach>,
    /// What was restored is a copy, not the continuation of the tasks that were dumped.
    pub clone: bool,
    /// Bytes of the images.
    pub image_bytes: u64,
}

/// Where a report is written.
#[derive(Debug)]
pub struct Channel(File);

impl Channel {
    /// A new one, without a report.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> io::Result<Self> {
        super::memory_file(c"vascriu-report").map(Self)
    }

    /// Its number, for the order.
    #[must_use]
    pub fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// The report; an empty one where the plugin did not come to write it.
    #[must_use]
    pub fn read(mut self) -> Report {
        let mut text = Vec::new();
        let read = self.0.rewind().and_then(|()| self.0.read_to_end(&mut text));
        read.ok()
            .and_then(|_| serde_json::from_slice(&text).ok())
            .unwrap_or_default()
    }
}

impl From<OwnedFd> for Channel {
    /// One that another process has made.
    fn from(fd: OwnedFd) -> Self {
        Self(fd.into())
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Report {
    /// Writes it to the descriptor of a [`Channel`]. Where nobody reads it, that is not worth
    /// failing CRIU for.
    pub fn save(&self, channel: Option<RawFd>) {
        let (Some(fd), Ok(text)) = (channel, serde_json::to_vec(self)) else {
            return;
        };
        let file = File::create(format!("/proc/self/fd/{fd}"));
        let _ = file.and_then(|mut f| f.write_all(&text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_report_is_read() {
        let channel = Channel::new().expect("memory");
        let mut report = Report {
            error: Some("a long reason".into()),
            ..Report::default()
        };
        report.save(Some(channel.number()));
        report.error = None;
        report.save(Some(channel.number()));
        assert_eq!(channel.read(), report);
        let silent = Channel::new().expect("memory");
        assert_eq!(silent.read(), Report::default());
    }
}
