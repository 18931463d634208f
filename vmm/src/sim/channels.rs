// SPDX-License-Identifier: GPL-2.0-only
//! The channels into a simulated host: Unix sockets of QEMU, each a virtio-serial port there.
//!
//! A channel carries one session at a time; whoever uses it holds its lock. So any process
//! of this user can talk to the simulated host that another one started.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mvas_agent::client::{ClientError, Session};
use mvas_agent::protocol::LinkError;
use nix::fcntl::Flock;

/// Channels of a simulated host: so many commands can run in it at once.
pub(crate) const COUNT: usize = 8;

/// Names of the ports begin with this.
pub(crate) const PORT_PREFIX: &str = "mvas.";

/// The channels whose sockets are in one folder.
pub(crate) struct Channels {
    dir: PathBuf,
}

/// A session over a channel that nobody else uses meanwhile.
pub(crate) struct Channel {
    session: Session,
    _lock: Flock<File>,
}

impl Channels {
    pub fn in_dir(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// QEMU's socket of a channel.
    pub fn socket(dir: &Path, channel: usize) -> PathBuf {
        dir.join(format!("ch{channel}"))
    }

    /// Starts a session on a free channel. `None`: nobody answered for `patience`.
    pub fn try_open(&self, patience: Duration) -> Result<Option<Channel>> {
        let deadline = Instant::now() + patience;
        loop {
            for channel in 0..COUNT {
                let Some(lock) = super::lock(&self.dir.join(format!("ch{channel}.lock")))? else {
                    continue;
                };
                let path = Self::socket(&self.dir, channel);
                let stream = match UnixStream::connect(&path) {
                    Ok(stream) => stream,
                    // QEMU is just starting.
                    Err(e) if is_early(&e) => break,
                    Err(e) => return Err(e).with_context(|| path.display().to_string()),
                };
                let left = deadline.saturating_duration_since(Instant::now());
                match Session::start(stream, left) {
                    Ok(session) => {
                        let _lock = lock;
                        return Ok(Some(Channel { session, _lock }));
                    }
                    Err(ClientError::Link(LinkError::Timeout(_) | LinkError::Closed)) => {}
                    Err(e) => return Err(e).context("the simulated host's agent"),
                }
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Channel {
    /// Uses the session up, and then gives the channel back.
    pub fn with<T>(self, use_up: impl FnOnce(Session) -> T) -> T {
        use_up(self.session)
    }
}

fn is_early(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}
