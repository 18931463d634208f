//! Exit codes. What a command in a guest returns passes through, so codes of our own lie
//! where shells and Docker have theirs, and just below.

use anyhow::Error;
use mvas_agent::client::ClientError;
use mvasvm::run::ExitReason;

/// The command line makes no sense.
pub(super) const USAGE: u8 = 2;
/// The guest powered off before the command in it ended.
pub(super) const POWERED_OFF: u8 = 119;
/// The guest asked for a reset.
pub(super) const RESET: u8 = 120;
/// The guest's kernel panicked.
pub(super) const PANIC: u8 = 121;
/// The guest crashed: a triple fault.
pub(super) const TRIPLE_FAULT: u8 = 122;
/// `mvasvm` itself failed: nothing, or not all of it, was done.
pub(super) const FAILED: u8 = 125;

/// What `run --help` says about them.
pub(super) const HELP: &str = "Exit code:
    0        the guest powered off (without CMD)
    CMD's    with CMD; 128+N if signal N ended it
    119      the guest powered off before CMD ended
    120      the guest asked for a reset
    121      the guest's kernel panicked
    122      the guest crashed (triple fault)
    125      mvasvm failed: it says why on standard error
    126 127  CMD could not be run, was not found
    128+N    signal N stopped the VM";

/// The exit code for an error: a command that could not be run has its own.
pub(super) fn of(error: &Error) -> u8 {
    error
        .chain()
        .find_map(|cause| cause.downcast_ref::<ClientError>())
        .map_or(FAILED, ClientError::exit_code)
}

/// The exit code for the way a VM ended, and what to say about it.
pub(super) fn of_end(reason: ExitReason, panicked: bool, with_command: bool) -> (u8, String) {
    let code = match reason {
        _ if panicked => PANIC,
        ExitReason::PowerOff if with_command => POWERED_OFF,
        ExitReason::PowerOff => 0,
        ExitReason::Reset => RESET,
        ExitReason::TripleFault => TRIPLE_FAULT,
        ExitReason::Stopped => FAILED,
    };
    if panicked {
        (code, "the guest's kernel panicked".to_owned())
    } else {
        (code, reason.to_string())
    }
}

/// The whole chain, without what a cause repeats of its effect.
pub(super) fn one_line(error: &Error) -> String {
    mvas_agent::chain(error.as_ref())
}
