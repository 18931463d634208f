// SPDX-License-Identifier: GPL-2.0-only
//! `mvasvm cp`.

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use mvasvm::config::VmName;

use super::args::CpArgs;
use super::reach;
use super::vmdir::Vms;

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Place<'a> {
    Here(&'a Path),
    Guest(VmName, &'a OsStr),
}

pub(super) fn run(args: &CpArgs) -> Result<u8> {
    let (source, dest) = (place(&args.source), place(&args.dest));
    let mut progress = Progress::new(args.quiet);
    let mut show = |done, total| progress.show(done, total);
    match (source, dest) {
        (Place::Here(source), Place::Guest(name, dest)) => {
            let session = reach::agent(&Vms::open()?.running(&name)?)?;
            session.copy_in(source, dest, &mut show)?;
        }
        (Place::Guest(name, source), Place::Here(dest)) => {
            let session = reach::agent(&Vms::open()?.running(&name)?)?;
            session.copy_out(source, dest, &mut show)?;
        }
        (Place::Here(_), Place::Here(_)) => {
            bail!("neither is in a VM: write NAME:PATH for the one that is")
        }
        (Place::Guest(..), Place::Guest(..)) => {
            bail!("both are in VMs: copy to this host first")
        }
    }
    progress.end();
    Ok(0)
}

/// `NAME:PATH` where NAME can be a VM's; everything else is a path here.
fn place(text: &OsString) -> Place<'_> {
    let bytes = text.as_bytes();
    let here = Place::Here(Path::new(text));
    let Some(colon) = bytes.iter().position(|b| *b == b':') else {
        return here;
    };
    let name = str::from_utf8(&bytes[..colon]).ok();
    match name.and_then(|name| name.parse().ok()) {
        Some(name) if colon + 1 < bytes.len() => {
            Place::Guest(name, OsStr::from_bytes(&bytes[colon + 1..]))
        }
        _ => here,
    }
}

/// A line on the terminal that counts up.
struct Progress {
    on: bool,
    last: Instant,
    shown: bool,
}

impl Progress {
    fn new(quiet: bool) -> Self {
        Self {
            on: !quiet && io::stderr().is_terminal(),
            last: Instant::now(),
            shown: false,
        }
    }

    fn show(&mut self, done: u64, total: u64) {
        if self.on && self.last.elapsed() >= Duration::from_millis(200) {
            self.last = Instant::now();
            self.shown = true;
            let percent = done.saturating_mul(100) / total.max(1);
            let _ = write!(io::stderr(), "\r{percent:3} % of {} MiB", total >> 20);
        }
    }

    fn end(&mut self) {
        if self.shown {
            let _ = writeln!(io::stderr(), "\r100 %");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_a_colon_mean_a_guest() {
        let text = OsString::from("db:/x:y");
        let name = "db".parse().expect("a name");
        assert_eq!(place(&text), Place::Guest(name, OsStr::new("/x:y")));
        for here in ["./db:/x", "/a:b", "a", ":x", "db:", "é:x"] {
            let text = OsString::from(here);
            assert_eq!(place(&text), Place::Here(Path::new(here)));
        }
    }
}
