// SPDX-License-Identifier: GPL-2.0-only
//! Which CRIU there is. The plugin uses what CRIU promises to nobody, so only versions that
//! it was verified with are run.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::work;

/// What the plugin was verified with.
const VERIFIED: [&str; 2] = ["4.1", "4.2"];

/// Where Debian has it, and a PATH of a user's or of a container's image may have not.
pub const USUAL: &str = "/usr/sbin";

/// There is no CRIU that can be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none.
    #[error("there is no `{0}`: install the package `criu`")]
    None(PathBuf),
    /// It cannot be started.
    #[error("cannot run `{0} --version`")]
    Start(PathBuf, #[source] io::Error),
    /// It does not say which it is.
    #[error("`{0} --version` says no version")]
    Silent(PathBuf),
    /// Not one of ours.
    #[error(
        "{program} is CRIU {found}; vascriu was verified with {} and runs no other", VERIFIED.join(" and ")
    )]
    Unverified {
        /// Which.
        program: PathBuf,
        /// Its version.
        found: String,
    },
}

/// A CRIU that vascriu can run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Criu {
    /// The program.
    pub program: PathBuf,
    /// Its version.
    pub version: String,
}

/// What was found out about a program, as long as it is the same file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    program: PathBuf,
    file: (u64, u64, i64, i64, u64),
    version: String,
}

fn file(path: &Path) -> io::Result<(u64, u64, i64, i64, u64)> {
    let m = fs::metadata(path)?;
    Ok((m.dev(), m.ino(), m.mtime(), m.mtime_nsec(), m.size()))
}

/// The CRIU behind vascriu: `VASCRIU_CRIU`, or the first in `PATH`, and in `/usr/sbin`, that is not
/// vascriu.
///
/// # Errors
/// [`Error::None`].
pub fn program() -> Result<PathBuf, Error> {
    let name = std::env::var_os("VASCRIU_CRIU").map_or_else(|| "criu".into(), PathBuf::from);
    let own = file(Path::new("/proc/self/exe")).ok();
    let is_other = |p: &PathBuf| file(p).is_ok_and(|f| Some(f) != own);
    let found = if name.components().count() > 1 {
        Some(name.clone()).filter(is_other)
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .chain([USUAL.into()])
            .map(|dir| dir.join(&name))
            .find(is_other)
    };
    found.ok_or(Error::None(name))
}

fn parse(output: &str) -> Option<&str> {
    let line = output.lines().find_map(|l| l.strip_prefix("Version:"))?;
    Some(line.trim()).filter(|v| !v.is_empty())
}

fn is_verified(version: &str) -> bool {
    let rest = VERIFIED.iter().find_map(|v| version.strip_prefix(v));
    rest.is_some_and(|r| r.is_empty() || r.starts_with(['.', '-', '~']))
}

impl Criu {
    /// Finds CRIU, and refuses what the plugin was not verified with.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn find() -> Result<Self, Error> {
        let criu = Self::look()?;
        if is_verified(&criu.version) {
            Ok(criu)
        } else {
            Err(Error::Unverified {
                program: criu.program,
                found: criu.version,
            })
        }
    }

    /// Finds CRIU, whichever it is. Its version is asked for once.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn look() -> Result<Self, Error> {
        let program = program()?;
        let file = file(&program).map_err(|e| Error::Start(program.clone(), e))?;
        let cache = work::root().join("criu-version.json");
        let known = fs::read(&cache).ok();
        let known: Option<Known> = known.and_then(|k| serde_json::from_slice(&k).ok());
        if let Some(known) = known.filter(|k| k.program == program && k.file == file) {
            let version = known.version;
            return Ok(Self { program, version });
        }
        let output = Command::new(&program).arg("--version").output();
        let output = output.map_err(|e| Error::Start(program.clone(), e))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = parse(&text).ok_or_else(|| Error::Silent(program.clone()))?;
        let version = version.to_owned();
        let known = Known {
            program,
            file,
            version,
        };
        // It works without, only slower.
        let _ = known.save(&cache);
        Ok(Self {
            program: known.program,
            version: known.version,
        })
    }
}

impl Known {
    fn save(&self, cache: &Path) -> io::Result<()> {
        work::make_root()?;
        let new = cache.with_extension(std::process::id().to_string());
        fs::File::create_new(&new)?.write_all(&serde_json::to_vec(self)?)?;
        fs::rename(&new, cache)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_found_among_other_lines() {
        assert_eq!(
            parse("Warn: x\nVersion: 4.1.1\nGitID: v4.1.1\n"),
            Some("4.1.1")
        );
        assert_eq!(parse("Version:\n"), None);
        assert_eq!(parse("no"), None);
    }

    #[test]
    fn only_verified_versions_are_run() {
        for good in ["4.1", "4.1.1", "4.1.1-1", "4.2", "4.2.1"] {
            assert!(is_verified(good), "{good}");
        }
        for bad in ["4.0", "4.3", "4.10", "4.20.1", "3.19", "5.0", ""] {
            assert!(!is_verified(bad), "{bad}");
        }
    }
}
