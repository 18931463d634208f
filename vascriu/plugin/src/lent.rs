// SPDX-License-Identifier: GPL-2.0-only
//! Tasks that CRIU has borrowed get themselves back where it is killed.
//!
//! To dump a task CRIU makes it run code of CRIU's: it changes its registers, its signal
//! mask and a few bytes of its code, and puts them back at the end. Killed in between, stock
//! CRIU leaves a task that goes on with the wrong registers. So before the first of each
//! such change the kernel saves what is changed (`VAS_IOC_GUARD`), and puts it back when
//! CRIU ends without having detached the task; what it saved ends with the detach. CRIU
//! makes the changes by `ptrace`, which it calls through its import table.

use std::collections::{HashMap, HashSet};
use std::ffi::{c_int, c_long, c_void};
use std::sync::Mutex;

use vascriu::device::{self, Session};
use vascriu::text;

use crate::{criu, imports};

/// Size of what `PTRACE_POKEDATA` writes.
const WORD: u32 = 8;

/// Why tasks are not guarded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no second descriptor of the session.
    #[error("cannot keep the session open")]
    Clone(#[source] std::io::Error),
    /// CRIU's `ptrace` is out of reach.
    #[error(transparent)]
    Import(#[from] imports::Error),
}

#[derive(Debug)]
struct Lent {
    /// Open until CRIU ends.
    session: Session,
    /// What is saved of each thread: itself (`None`), and words of its memory.
    saved: HashMap<libc::pid_t, HashSet<Option<u64>>>,
}

static LENT: Mutex<Option<Lent>> = Mutex::new(None);

impl Lent {
    fn save(&mut self, tid: libc::pid_t, word: Option<u64>) -> Result<(), device::Error> {
        let saved = self.saved.entry(tid).or_default();
        if saved.contains(&word) {
            return Ok(());
        }
        match word {
            Some(addr) => self.session.guard(tid, addr, WORD)?,
            None => self.session.guard(tid, 0, 0)?,
        }
        saved.insert(word);
        Ok(())
    }

    /// The kernel has nothing saved of a thread (any more).
    fn forget(&mut self, tid: libc::pid_t) {
        self.saved.remove(&tid);
    }
}

/// What a request of `ptrace` changes of a thread, if anything: a word of its memory, or its
/// registers or signal mask.
fn changes(request: c_int, addr: *mut c_void) -> Option<Option<u64>> {
    match request.cast_unsigned() {
        libc::PTRACE_POKETEXT | libc::PTRACE_POKEDATA => Some(Some(addr.addr() as u64)),
        libc::PTRACE_SETREGS
        | libc::PTRACE_SETFPREGS
        | libc::PTRACE_SETREGSET
        | libc::PTRACE_SETSIGMASK => Some(None),
        _ => None,
    }
}

/// Stands in for CRIU's `ptrace`, which is variadic: on x86-64 that takes pointers
/// and integers in the same registers as these.
unsafe extern "C" fn ptrace(
    request: c_int,
    pid: libc::pid_t,
    addr: *mut c_void,
    data: *mut c_void,
) -> c_long {
    if let Some(word) = changes(request, addr) {
        save(pid, word);
    }
    if request.cast_unsigned() == libc::PTRACE_DETACH {
        forget(pid);
    }
    // SAFETY: what CRIU asked for.
    unsafe { libc::ptrace(request.cast_unsigned(), pid, addr, data) }
}

/// Without it CRIU works as ever, and so is it when it is killed.
fn save(tid: libc::pid_t, word: Option<u64>) {
    let saved = LENT.lock().ok().and_then(|mut lent| {
        let lent = lent.as_mut()?;
        lent.save(tid, word).err()
    });
    if let Some(e) = saved {
        criu::info(&format!("not guarded: {}", text::chain(&e)));
    }
}

/// Before a detach: if that fails, what is changed later is saved once more, which is nothing new.
fn forget(tid: libc::pid_t) {
    if let Ok(mut lent) = LENT.lock()
        && let Some(lent) = lent.as_mut()
    {
        lent.forget(tid);
    }
}

/// Guards all tasks that CRIU traces from now on.
///
/// # Errors
/// See [`Error`]; then CRIU is as it was.
pub fn install(session: &Session) -> Result<(), Error> {
    let session = session.try_clone().map_err(Error::Clone)?;
    // SAFETY: it has the signature of what it stands in for.
    unsafe { imports::divert(c"ptrace", ptrace as *const c_void) }?;
    if let Ok(mut lent) = LENT.lock() {
        *lent = Some(Lent {
            session,
            saved: HashMap::new(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changes_a_thread_is_saved_first() {
        let changes = |request: libc::c_uint| {
            let at = std::ptr::without_provenance_mut(4096);
            changes(request.cast_signed(), at)
        };
        assert_eq!(changes(libc::PTRACE_POKEDATA), Some(Some(4096)));
        assert_eq!(changes(libc::PTRACE_SETREGS), Some(None));
        assert_eq!(changes(libc::PTRACE_SETSIGMASK), Some(None));
        assert_eq!(changes(libc::PTRACE_PEEKDATA), None);
        assert_eq!(changes(libc::PTRACE_CONT), None);
    }
}
