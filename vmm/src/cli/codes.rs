// SPDX-License-Identifier: GPL-2.0-only
//! Exit codes. What a command in a guest returns passes through, so codes of our own lie
//! where shells and Docker have theirs, and just below.

use anyhow::{Error, Result};
use mvas_agent::client::ClientError;
use mvasvm::run::ExitReason;

use super::record::{Cause, End};

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

/// How a VM ended, for its record, and the exit code for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    pub cause: Cause,
    pub text: String,
    pub code: u8,
}

impl Outcome {
    pub fn new(cause: Cause, text: impl Into<String>, code: u8) -> Self {
        let text = text.into();
        Self { cause, text, code }
    }

    /// The VM ended by itself.
    pub fn of_guest(reason: ExitReason, panicked: bool, with_command: bool) -> Self {
        let (cause, code) = match reason {
            _ if panicked => (Cause::GuestPanic, PANIC),
            ExitReason::PowerOff if with_command => (Cause::PoweredOff, POWERED_OFF),
            ExitReason::PowerOff => (Cause::PoweredOff, 0),
            ExitReason::Reset => (Cause::Reset, RESET),
            ExitReason::TripleFault => (Cause::TripleFault, TRIPLE_FAULT),
            ExitReason::Stopped => (Cause::Failed, FAILED),
        };
        let text = match panicked {
            true => "the guest's kernel panicked".to_owned(),
            false => reason.to_string(),
        };
        Self { cause, text, code }
    }

    /// A signal ended it.
    pub fn of_signal(number: u8) -> Self {
        let text = format!("stopped by signal {number}");
        Self::new(Cause::Stopped, text, 128 + number)
    }

    /// What the record says of a run that gave this outcome.
    pub fn end_of(outcome: &Result<Self>) -> End {
        match outcome {
            Ok(outcome) => End::new(outcome.cause, &outcome.text, Some(outcome.code)),
            Err(error) => End::new(Cause::Failed, one_line(error), Some(of(error))),
        }
    }
}

/// The whole chain, without what a cause repeats of its effect.
pub(super) fn one_line(error: &Error) -> String {
    mvas_agent::chain(error.as_ref())
}
