// SPDX-License-Identifier: GPL-2.0-only
//! What this host offers, and what to do about what is missing.

mod facts;
mod kvm;
mod logout;
mod report;
mod store;

use std::io::{self, Write};

use anyhow::Result;

pub(crate) use facts::mem_available;
pub(crate) use kvm::KvmHost;

/// `mvasvm doctor`. 0: microVMs can run here.
pub(crate) fn run(json: bool) -> Result<u8> {
    let report = report::Report::make();
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        write!(out, "{report}")?;
    }
    Ok(u8::from(!report.usable))
}
