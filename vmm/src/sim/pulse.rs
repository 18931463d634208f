// SPDX-License-Identifier: GPL-2.0-only
//! A beat from outside, which a lost interrupt cannot stop.
//!
//! QEMU's emulator (seen with 7.2) sets `interrupt_request` of a CPU from its main loop under a lock,
//! and SVM's `VMRUN` and `#VMEXIT` change the same word from the CPU's thread without it, so
//! at times the APIC timer's interrupt is forgotten. It stays pending in the APIC, and the
//! next interrupt from anywhere brings it back; but a machine that sleeps until then waits
//! for nothing. So a port that nobody uses is opened and closed once a second: the driver is
//! told each time, by an interrupt.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

/// The port's name in the simulated host, and its socket's in the folder.
pub(super) const PORT: &str = "pulse";

const HALF_BEAT: Duration = Duration::from_millis(500);

/// Beats until it is dropped.
pub(super) struct Pulse {
    _stop: Sender<()>,
}

impl Pulse {
    /// QEMU's socket of the port.
    pub fn socket(dir: &Path) -> PathBuf {
        dir.join(PORT)
    }

    pub fn start(dir: &Path) -> std::io::Result<Self> {
        let (stop, stopped) = mpsc::channel::<()>();
        let socket = Self::socket(dir);
        thread::Builder::new().name("pulse".into()).spawn(move || {
            let mut open = None;
            while stopped.recv_timeout(HALF_BEAT) == Err(RecvTimeoutError::Timeout) {
                open = match open {
                    // QEMU may not listen yet, or no more.
                    None => UnixStream::connect(&socket).ok(),
                    Some(_) => None,
                };
            }
        })?;
        Ok(Self { _stop: stop })
    }
}
