// SPDX-License-Identifier: GPL-2.0-only
//! What a command line tells of itself: completions for shells, and manual pages. What is hidden
//! from its help is not in them.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Command};
use clap_complete::Shell;

pub mod testing;

/// Print the completions of a shell, as it reads them
#[derive(Debug, Args)]
pub struct Completions {
    /// Of which shell
    shell: Shell,
}

impl Completions {
    /// Prints them, for `command`.
    ///
    /// # Errors
    /// Standard output takes no more.
    pub fn print(&self, command: &Command) -> Result<()> {
        io::stdout()
            .write_all(&script(self.shell, command))
            .context("cannot write the completions")
    }
}

fn script(shell: Shell, command: &Command) -> Vec<u8> {
    let mut script = Vec::new();
    let name = command.get_name();
    clap_complete::generate(shell, &mut visible(command), name, &mut script);
    script
}

/// `command` less what is hidden: clap cannot take a part away, and `clap_complete` leaves
/// nothing out. Few short names are leaked: clap's feature for owned ones costs vascriu 135 KiB.
fn visible(command: &Command) -> Command {
    let commands = command.get_subcommands().filter(|c| !c.is_hide_set());
    let mut visible = Command::new(leak(command.get_name()))
        .args(command.get_arguments().filter(|a| !a.is_hide_set()))
        .subcommands(commands.map(visible));
    if let Some(about) = command.get_about() {
        visible = visible.about(about.clone());
    }
    if let Some(version) = command.get_version() {
        visible = visible.version(leak(version));
    }
    visible
}

fn leak(text: &str) -> &'static str {
    text.to_owned().leak()
}

/// Write the manual pages, one for each command
#[derive(Debug, Args)]
pub struct Man {
    /// A folder that exists
    dir: PathBuf,
}

impl Man {
    /// Writes those of `command`.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, command: Command) -> Result<()> {
        clap_mangen::generate_to(command, &self.dir)
            .with_context(|| format!("cannot write manual pages into {}", self.dir.display()))
    }
}
