// SPDX-License-Identifier: GPL-2.0-only
//! CRIU's configuration files, as far as they could get in our way: CRIU reads them after
//! what an engine asks for, and so after what we make of it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::criu::run::libdir;

/// The file for every CRIU of the machine, and the one below a home directory.
const GLOBAL: &str = "/etc/criu/default.conf";
const HOME: &str = ".criu/default.conf";

/// What contradicts how a VAS snapshot works, wherever it stands.
const REFUSED: &[&str] = &[
    "lazy-pages",
    "page-server",
    "prev-images-dir",
    "auto-dedup",
    "stream",
    "unprivileged",
];
/// What we have set, but the engine's file would set anew.
const OVERRIDING: &[&str] = &["images-dir", "libdir"];
/// With these the tasks are there after the dump.
const LEAVING: &[&str] = &["leave-running", "leave-stopped"];

/// A configuration that does not go with vascriu.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{option}` in {file} does not go with vascriu: take it out")]
pub struct Refused {
    /// The option.
    option: String,
    /// Where it stands.
    file: PathBuf,
}

/// What the files say that concerns us.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The tasks are there after the dump.
    pub leaves_tasks: bool,
}

impl Config {
    /// Reads the files that CRIU will read; `engine` is the one that an engine names.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn read(engine: Option<&Path>) -> Result<Self, Refused> {
        let mut config = Self::default();
        for file in files() {
            config.add(&file, &[])?;
        }
        if let Some(file) = engine {
            config.add(file, OVERRIDING)?;
        }
        Ok(config)
    }

    fn add(&mut self, file: &Path, overriding: &[&str]) -> Result<(), Refused> {
        // One that cannot be read is none for CRIU, too.
        let text = fs::read_to_string(file).unwrap_or_default();
        for (option, value) in text.lines().filter_map(statement) {
            let ours = option == "libdir" && Path::new(value) == libdir();
            if REFUSED.contains(&option) || (overriding.contains(&option) && !ours) {
                return Err(Refused {
                    option: option.into(),
                    file: file.into(),
                });
            }
            self.leaves_tasks |= LEAVING.contains(&option);
        }
        Ok(())
    }
}

/// Whether CRIU reads any file but one that an engine names.
#[must_use]
pub fn is_there() -> bool {
    files().any(|file| file.exists())
}

/// The files that CRIU reads by itself.
fn files() -> impl Iterator<Item = PathBuf> {
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(HOME));
    let named = env::var_os("CRIU_CONFIG_FILE").map(PathBuf::from);
    [Some(GLOBAL.into()), home, named].into_iter().flatten()
}

/// An option and its value in a line.
fn statement(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let (option, value) = line.split_once([' ', '\t']).unwrap_or((line, ""));
    let value = value.split('#').next().unwrap_or("");
    Some((option, value.trim().trim_matches('"')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().expect("temp dir");
        let file = dir.path().join("runc.conf");
        fs::write(&file, text).expect("write");
        let mut config = Config::default();
        let added = config.add(&file, OVERRIDING);
        added.map(|()| config).map_err(|e| e.option)
    }

    #[test]
    fn what_concerns_us_is_found_as_criu_reads_it() {
        assert_eq!(
            read("# leave-running\n\ntcp-established\n"),
            Ok(Config::default())
        );
        let leaves = Config { leaves_tasks: true };
        assert_eq!(read("  leave-running # yes\n"), Ok(leaves));
    }

    #[test]
    fn what_would_undo_our_doing_is_refused() {
        for option in ["lazy-pages", "images-dir /x", "libdir \"/usr/lib/criu\""] {
            let name = option.split(' ').next().expect("a word").to_owned();
            assert_eq!(read(&format!("tcp-close\n{option}\n")), Err(name));
        }
    }

    #[test]
    fn our_own_directory_of_plugins_may_be_named() {
        let line = format!("libdir {}\n", libdir().display());
        assert_eq!(read(&line), Ok(Config::default()));
    }

    #[test]
    fn a_file_that_is_not_there_says_nothing() {
        let mut config = Config::default();
        assert_eq!(config.add(Path::new("/nonexistent"), OVERRIDING), Ok(()));
    }
}
