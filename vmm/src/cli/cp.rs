// SPDX-License-Identifier: GPL-2.0-only
//! `mvasvm cp`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use mvasvm::config::VmName;

use super::args::CpArgs;
use super::reach;
use super::vmdir::Vms;

/// The line that a terminal shows meanwhile.
const PROGRESS: &str = "{percent:>3} % of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Place<'a> {
    Here(&'a Path),
    Guest(VmName, &'a OsStr),
}

pub(super) fn run(args: &CpArgs) -> Result<u8> {
    let (source, dest) = (place(&args.source), place(&args.dest));
    // It draws nothing where standard error is no terminal.
    let bar = match args.quiet {
        true => ProgressBar::hidden(),
        false => ProgressBar::new(0)
            .with_style(ProgressStyle::with_template(PROGRESS)?)
            .with_finish(ProgressFinish::AndClear),
    };
    let mut show = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
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
