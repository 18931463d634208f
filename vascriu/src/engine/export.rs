// SPDX-License-Identifier: GPL-2.0-only
//! Checkpoints that Podman puts into an archive or an image, to be restored elsewhere.
//!
//! Podman asks its runtime for a checkpoint in either case, and packs the directory when that
//! is made. Only Podman's own command line tells that it will, and only its environment can
//! tell us what its user wants. A checkpoint that Podman's service makes for a client may be
//! either, which nobody can tell.

use std::fs;

use crate::process;

/// In Podman's environment: `memory` has the archive carry the memory.
pub const ENV: &str = "VASCRIU_EXPORT";
/// What is said there for that.
const MEMORY: &[u8] = b"memory";

/// What Podman packs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Export {
    /// All that a restore on any machine needs: the stock CRIU's images.
    Memory,
    /// The reference to a snapshot of this machine.
    Reference,
}

/// What comes of the checkpoint that `runtime` was started for by Podman; nothing, if it
/// stays here.
#[must_use]
pub fn of(runtime: i32) -> Option<Export> {
    let podman = process::parent(runtime).ok()?;
    let [line, environment] = ["cmdline", "environ"].map(|file| {
        let path = format!("/proc/{podman}/{file}");
        fs::read(path).unwrap_or_default()
    });
    let wanted = [ENV.as_bytes(), b"=", MEMORY].concat();
    let carries = environment.split(|&b| b == 0).any(|v| v == wanted);
    decide(&line, carries)
}

/// The same, by Podman's command line and by whether its environment asks for memory.
fn decide(line: &[u8], carries: bool) -> Option<Export> {
    let words: Vec<_> = line.split(|&b| b == 0).collect();
    let checkpoint = words.iter().position(|w| *w == b"checkpoint");
    match checkpoint {
        // Its service: what may be an export carries what an export shall.
        None => carries.then_some(Export::Memory),
        Some(at) if !exports(&words[at + 1..]) => None,
        Some(_) if carries => Some(Export::Memory),
        Some(_) => Some(Export::Reference),
    }
}

/// Whether these options of `podman container checkpoint` have it packed.
fn exports(options: &[&[u8]]) -> bool {
    let mut options = options.iter().take_while(|o| **o != b"--");
    while let Some(option) = options.next() {
        if let Some(long) = option.strip_prefix(b"--") {
            let name = long.split(|&b| b == b'=').next().unwrap_or(long);
            if name == b"export" || name == b"create-image" {
                return true;
            }
            if long == b"compress" {
                options.next();
            }
        } else if let Some(short) = option.strip_prefix(b"-") {
            // Only these two take a value, which may be in the same word.
            match short.iter().position(|b| b"ec".contains(b)) {
                Some(at) if short[at] == b'e' => return true,
                Some(at) if at + 1 == short.len() => drop(options.next()),
                _ => {}
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(line: &str, carries: bool) -> Option<Export> {
        decide(line.replace(' ', "\0").as_bytes(), carries)
    }

    #[test]
    fn an_export_is_known_however_it_is_written() {
        for options in [
            "--export /a.tar web",
            "--export=/a.tar web",
            "web --export /a.tar",
            "-e /a.tar web",
            "-Re/a.tar web",
            "-kRe /a.tar web",
            "-c none -e /a.tar web",
            "--compress none -e /a.tar web",
            "--create-image saved web",
        ] {
            let line = format!("podman --runtime crun container checkpoint {options}");
            assert_eq!(decided(&line, false), Some(Export::Reference), "{line}");
            assert_eq!(decided(&line, true), Some(Export::Memory), "{line}");
        }
    }

    #[test]
    fn a_checkpoint_that_stays_is_none() {
        for options in [
            "web",
            "-kR web",
            "--keep --leave-running web",
            "-c -e web",
            "--compress -e web",
            "-- -e",
            "",
        ] {
            let line = format!("podman container checkpoint {options}");
            assert_eq!(decided(&line, false), None, "{line}");
            assert_eq!(decided(&line, true), None, "{line}");
        }
    }

    #[test]
    fn what_the_service_makes_carries_memory_where_that_is_wanted() {
        assert_eq!(decided("podman system service", false), None);
        assert_eq!(decided("podman system service", true), Some(Export::Memory));
    }
}
