// SPDX-License-Identifier: GPL-2.0-only
//! What this process says: on standard error, and once it is a VM's monitor also in a file of
//! the VM's folder, where it can be read after its end.

#[cfg(test)]
mod tests;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::Instant;

use mvasvm::devices::BoundedLog;

/// The most that is kept, bytes.
const LIMIT: u64 = 1 << 20;

static KEPT: Mutex<Option<Kept>> = Mutex::new(None);

struct Kept {
    log: BoundedLog,
    path: PathBuf,
    since: Instant,
    /// Standard error is the file, too.
    alone: bool,
}

impl Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        write!(self.log, "[{:12.6}] ", self.since.elapsed().as_secs_f64())?;
        self.log.write_all(bytes)
    }
}

/// Says one thing, with its end of line. Nobody may be there to hear it: that is no error.
pub(super) fn say(bytes: &[u8]) {
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(kept) = kept.as_mut() {
        let _ = kept.write(bytes);
        if kept.alone {
            return;
        }
    }
    let _ = io::stderr().write_all(bytes);
}

/// Writes one thing, with its end of line, to the VM's log alone.
pub(super) fn log(text: impl std::fmt::Display) {
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(kept) = kept.as_mut() {
        // As in `say`.
        let _ = kept.write(format!("{text}\n").as_bytes());
    }
}

/// From here on, what is said is also written to `path`.
///
/// # Errors
/// The file cannot be made.
pub(super) fn keep(path: PathBuf) -> io::Result<()> {
    let kept = Kept {
        log: BoundedLog::create(&path, LIMIT)?,
        path,
        since: Instant::now(),
        alone: false,
    };
    *KEPT.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
    Ok(())
}

/// Nobody reads standard error any more: what libraries and the kernel write there (the last
/// words of an abort) goes to the file, too.
///
/// # Errors
/// The file cannot be opened.
pub(super) fn leave_stderr() -> io::Result<()> {
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let path = kept
        .as_ref()
        .map_or(Path::new("/dev/null"), |kept| &kept.path);
    let file = OpenOptions::new().append(true).open(path)?;
    nix::unistd::dup2_stderr(&file)?;
    if let Some(kept) = kept.as_mut() {
        kept.alone = true;
    }
    Ok(())
}

/// Warnings are said; `MVAS_LOG=debug` asks for more. A panic's message is kept, too.
pub(super) fn start() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("MVAS_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| Said)
        .without_time()
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .log_internal_errors(false)
        .init();
    let say_on_stderr = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // This thread may have panicked while it said something.
        let mut kept = match KEPT.try_lock() {
            Ok(kept) => Some(kept),
            Err(TryLockError::Poisoned(kept)) => Some(kept.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if let Some(kept) = kept.as_deref_mut().and_then(Option::as_mut)
            && !kept.alone
        {
            let _ = kept.write(format!("{panic}\n").as_bytes());
        }
        drop(kept);
        say_on_stderr(panic);
    }));
}

/// Where the log of events goes: each comes in one piece.
struct Said;

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        say(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
