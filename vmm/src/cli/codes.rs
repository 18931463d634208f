//! Exit codes. What a command in a guest returns passes through, so codes of our own lie
//! where shells and Docker have theirs.

use anyhow::Error;
use mvas_agent::client::ClientError;

/// The command line makes no sense.
pub(super) const USAGE: u8 = 2;
/// `mvasvm` itself failed: nothing, or not all of it, was done.
pub(super) const FAILED: u8 = 125;

/// The exit code for an error: a command that could not be run has its own.
pub(super) fn of(error: &Error) -> u8 {
    error
        .chain()
        .find_map(|cause| cause.downcast_ref::<ClientError>())
        .map_or(FAILED, ClientError::exit_code)
}

/// The whole chain, without what a cause repeats of its effect.
pub(super) fn one_line(error: &Error) -> String {
    mvas_agent::chain(error.as_ref())
}
