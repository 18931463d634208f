// SPDX-License-Identifier: GPL-2.0-only
//! `mvasvm exec`.

use std::env;

use anyhow::Result;
use mvas_agent::protocol::{Exec, OsText};

use super::args::ExecArgs;
use super::guest::{run_in_guest, signals};
use super::reach;
use super::vmdir::Vms;

pub(super) fn run(args: ExecArgs) -> Result<u8> {
    let signals = signals()?;
    let vm = Vms::open()?.running(&args.name)?;
    let session = reach::agent(&vm)?;
    let mut exec = Exec::new(args.command);
    exec.env = with_term(args.tty);
    let env = args.env.into_iter();
    exec.env
        .extend(env.map(|(name, value)| (name.into(), value.into())));
    exec.cwd = args.workdir.map(OsText::from);
    exec.user = args.user;
    Ok(run_in_guest(session, exec, args.tty, &signals)?.exit_code())
}

/// A terminal there is of the kind that this one is.
pub(super) fn with_term(terminal: bool) -> Vec<(OsText, OsText)> {
    env::var_os("TERM")
        .filter(|_| terminal)
        .map(|term| (OsText::from("TERM"), OsText::from(term)))
        .into_iter()
        .collect()
}
