// SPDX-License-Identifier: GPL-2.0-only
//! `mvasvm`: runs microVMs, talks to them, and simulates a host for them where there is none.

mod cli;
mod doctor;
mod sim;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
