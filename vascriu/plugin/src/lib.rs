// SPDX-License-Identifier: GPL-2.0-only
//! The CRIU plugin that captures memory into a VAS and attaches it back.
//!
//! Made for the plugin interface of CRIU 4.1 and 4.2. CRIU loads it only from the directory
//! that `--libdir` or `CRIU_LIBS_DIR` names, so CRIU without that is stock. What it shall do
//! stands in its order (`vascriu::criu::order`).

mod criu;
mod dump;
mod guard;
mod imports;
mod inventory;
mod lent;
mod restore;
mod seek;
mod session;

use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use criu::{Criu, Descriptor, HOOKS, Hook};
use vascriu::criu::order::Order;
use vascriu::criu::report::Report;
use vascriu::text;

#[derive(Debug)]
enum State {
    Idle,
    Dump(Box<dump::Dump>),
    Restore(Box<restore::Restore>),
}

static STATE: Mutex<State> = Mutex::new(State::Idle);

const fn hooks() -> [Option<Hook>; HOOKS] {
    let mut hooks: [Option<Hook>; HOOKS] = [None; HOOKS];
    hooks[criu::CHECKPOINT_DEVICES] = Some(checkpoint_devices);
    hooks[criu::RESUME_DEVICES_LATE] = Some(resume_devices_late);
    hooks
}

/// What CRIU looks for in a plugin.
#[unsafe(no_mangle)]
pub static CR_PLUGIN_DESC: Descriptor = Descriptor::new(init, exit, hooks());

/// Runs `f` on the state; no panic crosses into C.
fn with_state<T>(f: impl FnOnce(&mut State) -> T) -> Option<T> {
    let run = || STATE.lock().ok().map(|mut state| f(&mut state));
    catch_unwind(AssertUnwindSafe(run)).ok().flatten()
}

fn start(stage: c_int) -> Result<State, Box<dyn std::error::Error>> {
    match stage {
        criu::STAGE_DUMP => Ok(State::Dump(Box::new(dump::Dump::begin(Criu::find()?)?))),
        criu::STAGE_PRE_DUMP => Err(dump::Error::Incremental.into()),
        criu::STAGE_RESTORE => {
            let criu = Criu::find()?;
            if criu.am_required() {
                Ok(State::Restore(Box::new(restore::Restore::begin(&criu)?)))
            } else {
                Ok(State::Idle) // stock images
            }
        }
        _ => Ok(State::Idle),
    }
}

/// Tells CRIU's log, and who has run CRIU, why it fails.
fn fail(why: &dyn std::error::Error) {
    let text = text::chain(why);
    criu::error(&text);
    let channel = match Order::from_env() {
        Ok(Order::Dump(order)) => order.report,
        Ok(Order::Restore(order)) => order.report,
        Err(_) => None,
    };
    Report {
        error: Some(text),
        ..Report::default()
    }
    .save(channel);
}

extern "C" fn init(stage: c_int) -> c_int {
    let started = with_state(|state| match start(stage) {
        Ok(new) => {
            *state = new;
            true
        }
        Err(e) => {
            fail(&*e);
            false
        }
    });
    if started == Some(true) { 0 } else { -1 }
}

extern "C" fn exit(_stage: c_int, ret: c_int) {
    let ended = with_state(|state| match std::mem::replace(state, State::Idle) {
        State::Dump(dump) if ret == 0 => dump.commit(),
        // What was not committed goes with the session.
        State::Dump(_) => {}
        State::Restore(restore) => restore.end(ret),
        State::Idle => {}
    });
    if ended.is_none() {
        // Without us nothing was committed or attached: CRIU must not go on.
        std::process::abort();
    }
}

extern "C" fn checkpoint_devices(pid: c_int) -> c_int {
    let captured = with_state(|state| match state {
        State::Dump(dump) => match dump.capture(pid) {
            Ok(()) => 0,
            Err(e) => {
                criu::error(&format!("task {pid}:"));
                fail(&e);
                -1
            }
        },
        _ => -libc::ENOTSUP,
    });
    captured.unwrap_or(-1)
}

extern "C" fn resume_devices_late(pid: c_int) -> c_int {
    let attached = with_state(|state| match state {
        State::Restore(restore) => {
            if restore.attach(pid).is_ok() {
                0
            } else {
                -1
            }
        }
        _ => -libc::ENOTSUP,
    });
    if attached.is_none() {
        // SAFETY: kill takes two integers; CRIU holds this task, so it is ours.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    attached.unwrap_or(-1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_stays_here() {
        assert_eq!(with_state(|_| -> c_int { panic!("meant") }), None);
    }
}
