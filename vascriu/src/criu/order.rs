// SPDX-License-Identifier: GPL-2.0-only
//! What the plugin shall do in one run of CRIU: it stands in CRIU's environment, or in a file
//! that this names, where CRIU is started before it is known ([`crate::service`]). Without an
//! order the plugin dumps nothing, and restores stock images only.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::snapshot::id::SnapshotId;
use crate::snapshot::label::Origin;
use crate::snapshot::name::Name;

/// The environment variable that holds it.
pub const ENV: &str = "VASCRIU_ORDER";

/// Has CRIU follow a task from system call to system call (`FI_NO_BREAKPOINTS` in its
/// `fault-injection.h`) where it would have it run into a hardware breakpoint. Virtual
/// machines lose those: QEMU's TCG one of two that vCPUs of one CPU have set. The task is
/// then on its own before its memory is back.
const NO_BREAKPOINTS: (&str, &str) = ("CRIU_FAULT", "130");

/// Why there is no order.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// CRIU was not run by vascriu.
    #[error("run CRIU through vascriu: `vascriu dump`, `vascriu restore`, or `vascriu enable`")]
    Missing,
    /// It cannot be read.
    #[error("{ENV} is damaged: vascriu and its plugin are of different builds")]
    Damaged(#[from] serde_json::Error),
    /// The file with it.
    #[error("cannot read the order in {0}")]
    File(String, #[source] io::Error),
}

/// An order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "job", rename_all = "snake_case")]
pub enum Order {
    /// To dump.
    Dump(Dump),
    /// To restore.
    Restore(Restore),
}

/// What to dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dump {
    /// The identity of the new snapshot.
    pub id: SnapshotId,
    /// Its name.
    pub name: Option<Name>,
    /// Even if that is another one's now.
    pub replace: bool,
    /// Who has it dumped.
    pub origin: Origin,
    /// When it may be removed, in seconds since the epoch.
    pub expires: Option<u64>,
    /// The tasks go on, or stay stopped, after the dump.
    pub left_running: bool,
    /// CRIU's version.
    pub criu: String,
    /// The directory that shall refer to the snapshot: a descriptor that CRIU inherits, so
    /// that it is the right one in any mount namespace.
    pub reference_dir: Option<RawFd>,
    /// A [`super::report::Channel`] that CRIU inherits.
    pub report: Option<RawFd>,
}

/// What to restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// The snapshot.
    pub id: SnapshotId,
    /// As a copy, even if its tasks could come back.
    pub clone: bool,
    /// A [`super::report::Channel`] that CRIU inherits.
    pub report: Option<RawFd>,
    /// CRIU's end of the connection to the engine. With nobody at the other, the engine takes
    /// the restore for a failed one.
    pub engine: Option<RawFd>,
}

impl Order {
    /// Has a CRIU that `command` starts carry it out.
    ///
    /// # Errors
    /// None that is known.
    pub fn give(&self, command: &mut Command) -> Result<(), Error> {
        give(command, &serde_json::to_string(self)?);
        Ok(())
    }

    /// The order in this process's environment, or where that says it is.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn from_env() -> Result<Self, Error> {
        let mut text = std::env::var(ENV).map_err(|_| Error::Missing)?;
        if text.starts_with('/') {
            text = fs::read_to_string(&text).map_err(|e| Error::File(text, e))?;
        }
        Ok(serde_json::from_str(&text)?)
    }
}

/// Has a CRIU that `command` starts look for its order in the file that it inherits as `fd`.
pub fn give_later(command: &mut Command, fd: BorrowedFd<'_>) {
    give(command, &format!("/proc/self/fd/{}", fd.as_raw_fd()));
}

fn give(command: &mut Command, text: &str) {
    command.env(ENV, text);
    let (name, value) = NO_BREAKPOINTS;
    if std::env::var_os(name).is_none() {
        command.env(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_read_as_it_was_given() {
        let id = SnapshotId::random();
        let dump = Order::Dump(Dump {
            id,
            name: "web".parse().ok(),
            replace: true,
            origin: Origin::process(),
            expires: Some(7),
            left_running: false,
            criu: "4.1.1".into(),
            reference_dir: Some(5),
            report: None,
        });
        let restore = Order::Restore(Restore {
            id,
            clone: true,
            report: Some(3),
            engine: Some(4),
        });
        for order in [dump, restore] {
            let text = serde_json::to_string(&order).expect("text");
            assert_eq!(serde_json::from_str::<Order>(&text).expect("order"), order);
        }
    }
}
