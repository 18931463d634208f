//! The CRIU plugin that captures memory into a VAS and attaches it back.
//!
//! Made for the plugin interface of CRIU 4.1.1. CRIU loads it only from the
//! directory that `--libdir` names, so CRIU without that is stock.

mod criu;
mod dump;
mod guard;
mod imports;
mod lent;
mod restore;
mod session;

use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use criu::{Criu, Descriptor, HOOKS, Hook};
use vascriu::report::{self, Report};

#[derive(Debug)]
enum State {
    Idle,
    Dump(dump::Dump),
    Restore(restore::Restore),
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
        criu::STAGE_DUMP => Ok(State::Dump(dump::Dump::begin(Criu::find()?)?)),
        criu::STAGE_PRE_DUMP => Err(dump::Error::Incremental.into()),
        criu::STAGE_RESTORE => {
            let criu = Criu::find()?;
            if criu.am_required() {
                Ok(State::Restore(restore::Restore::begin(&criu)?))
            } else {
                Ok(State::Idle) // stock images
            }
        }
        _ => Ok(State::Idle),
    }
}

extern "C" fn init(stage: c_int) -> c_int {
    let started = with_state(|state| match start(stage) {
        Ok(new) => {
            *state = new;
            true
        }
        Err(e) => {
            let text = report::chain(&*e);
            criu::error(&text);
            Report {
                error: Some(text),
                ..Report::default()
            }
            .save();
            false
        }
    });
    if started == Some(true) { 0 } else { -1 }
}

extern "C" fn exit(_stage: c_int, ret: c_int) {
    let ended = with_state(|state| match std::mem::replace(state, State::Idle) {
        State::Dump(dump) if ret == 0 => dump.commit(),
        State::Dump(dump) => dump.cancel(),
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
                let text = report::chain(&e);
                criu::error(&format!("task {pid}: {text}"));
                Report {
                    error: Some(text),
                    ..Report::default()
                }
                .save();
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
