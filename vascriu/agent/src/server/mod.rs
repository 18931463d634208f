// SPDX-License-Identifier: GPL-2.0-only
//! The side that runs commands: one thread per connection, one request after another.

mod connect;
mod copy;
mod exec;
mod ports;
mod spawn;
mod vsock;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::sys::utsname::uname;
use thiserror::Error;

pub use ports::serve_ports;
pub(crate) use spawn::{DEFAULT_PATH, unblock_signals};
pub use vsock::serve_vsock;

use crate::protocol::{
    FailureKind, Frame, FrameError, Info, Link, LinkError, Reply, Request, ShutdownKind,
};

/// What the machine around the server does for it.
pub trait Host: Send + Sync {
    /// Makes everything durable.
    ///
    /// # Errors
    /// This is no machine to bring down.
    fn prepare(&self) -> Result<(), String>;

    /// Brings the machine down, soon after it returns.
    ///
    /// # Errors
    /// The machine does not obey.
    fn go_down(&self, kind: ShutdownKind) -> io::Result<()>;
}

/// A host that is not to be shut down: an ordinary process serves.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHost;

impl Host for NoHost {
    fn prepare(&self) -> Result<(), String> {
        Err("this agent does not run a machine of its own".to_owned())
    }

    fn go_down(&self, _: ShutdownKind) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Serves sessions; cheap to clone, one per connection.
#[derive(Clone)]
pub struct Server {
    host: Arc<dyn Host>,
    boot_ms: u64,
}

/// A request that failed: what the client is told.
#[derive(Debug, Error)]
#[error("{message}")]
struct Failure {
    kind: FailureKind,
    message: String,
}

impl Failure {
    fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }
}

/// How serving one request went wrong.
#[derive(Debug, Error)]
enum ServeError {
    /// The request failed; the session is in order.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The session is broken.
    #[error(transparent)]
    Link(#[from] LinkError),
}

impl From<FrameError> for ServeError {
    fn from(error: FrameError) -> Self {
        Self::Link(error.into())
    }
}

impl Server {
    /// A server on `host`, ready as of now.
    pub fn new(host: Arc<dyn Host>) -> Self {
        Self {
            host,
            boot_ms: uptime_ms(),
        }
    }

    /// Serves one connection until it ends. A session broken by the client ends what ran in
    /// it; the next greeting starts afresh.
    ///
    /// # Errors
    /// Why the connection ended, unless the client just closed it.
    pub fn serve(&self, connection: OwnedFd) -> Result<(), LinkError> {
        let mut link = Link::new(connection)?;
        loop {
            let result = match link.accept() {
                Ok(Frame::Request(request)) => self.handle(&mut link, request),
                Ok(other) => Err(other.unexpected().into()),
                Err(error) => Err(error.into()),
            };
            match result {
                Ok(()) => {}
                Err(ServeError::Failed(Failure { kind, message })) => {
                    link.queue(&Frame::Reply(Reply::Failed { kind, message }));
                    link.flush()?;
                }
                Err(ServeError::Link(LinkError::Closed)) => return Ok(()),
                Err(ServeError::Link(LinkError::Protocol(FrameError::Restart))) => {}
                Err(ServeError::Link(LinkError::Protocol(error))) => {
                    let failed = Reply::Failed {
                        kind: FailureKind::BadRequest,
                        message: error.to_string(),
                    };
                    link.queue(&Frame::Reply(failed));
                    link.flush()?;
                    return Err(error.into());
                }
                Err(ServeError::Link(error)) => return Err(error),
            }
        }
    }

    fn handle(&self, link: &mut Link, request: Request) -> Result<(), ServeError> {
        let reply = match request {
            Request::Exec(exec) => return exec::serve(link, exec),
            Request::CopyIn { dest, name } => return copy::serve_in(link, &dest, &name),
            Request::CopyOut { path } => return copy::serve_out(link, &path),
            Request::Connect { port } => return connect::serve(link, port),
            Request::Info => Reply::Info(self.info()?),
            Request::Shutdown(kind) => return self.shutdown(link, kind),
        };
        link.queue(&Frame::Reply(reply));
        Ok(link.flush()?)
    }

    fn shutdown(&self, link: &mut Link, kind: ShutdownKind) -> Result<(), ServeError> {
        self.host
            .prepare()
            .map_err(|why| Failure::new(FailureKind::BadRequest, why))?;
        // Before, because afterwards this process is among the first to be ended.
        link.queue(&Frame::Reply(Reply::Done));
        link.flush()?;
        if let Err(error) = self.host.go_down(kind) {
            log(format!("cannot reach PID 1: {error}"));
        }
        Ok(())
    }

    fn info(&self) -> Result<Info, Failure> {
        let uts = uname().map_err(|e| Failure::new(FailureKind::Os, format!("uname: {e}")))?;
        Ok(Info {
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: uts.release().to_string_lossy().into_owned(),
            hostname: uts.nodename().to_string_lossy().into_owned(),
            boot_ms: self.boot_ms,
            uptime_ms: uptime_ms(),
        })
    }
}

/// Milliseconds since the kernel started; 0 where `/proc` does not say.
fn uptime_ms() -> u64 {
    let parse = |text: &str| {
        let (seconds, rest) = text.split_once('.')?;
        let hundredths = rest.get(..2)?.parse::<u64>().ok()?;
        Some(seconds.parse::<u64>().ok()? * 1000 + hundredths * 10)
    };
    fs::read_to_string("/proc/uptime")
        .ok()
        .and_then(|text| parse(&text))
        .unwrap_or(0)
}

/// Says something about the agent itself: on the console of a guest, the standard error of
/// an ordinary process.
pub(crate) fn log(message: impl std::fmt::Display) {
    use std::io::Write;
    // A console that cannot be written to must not end the agent.
    let _ = writeln!(std::io::stderr(), "mvas-agent: {message}");
}
