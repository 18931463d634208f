// SPDX-License-Identifier: GPL-2.0-only
//! `mvas-images`: builds and caches the guest kernel, the guest image and the emulator.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use mvas_images::cache::Cache;
use mvas_images::kernel::Flavor;
use mvas_images::workspace::Workspace;
use mvas_images::{emulator, image, kernel, status};

/// Builds the guest kernel, the guest image and the emulator, or takes them from the cache.
///
/// The cache is ${XDG_CACHE_HOME:-~/.cache}/mvas; docs/BUILD.md tells its layout.
/// `mvasvm` boots what was built last.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    /// The checkout to build [default: the one this program was built from]
    #[arg(long, global = true, env = "MVAS_WORKSPACE", value_name = "DIR")]
    workspace: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Builds the guest kernel and its self-tests
    #[command(after_help = "Example: mvas-images kernel --debug")]
    Kernel {
        /// The flavor with KASAN, lockdep and DEBUG_VM
        #[arg(long)]
        debug: bool,
    },
    /// Builds the guest image: Debian's packages, our programs, the tests
    #[command(after_help = "Example: mvas-images image --flavor containers")]
    Image {
        /// Which image
        #[arg(long, value_enum, default_value_t = image::Flavor::Default)]
        flavor: image::Flavor,
    },
    /// Brings the emulator of simulated hosts: a newer Debian's QEMU
    Emulator,
    /// Builds the kernel and the image, brings the emulator
    All {
        /// Which image
        #[arg(long, value_enum, default_value_t = image::Flavor::Default)]
        flavor: image::Flavor,
        /// Also the kernel with KASAN, lockdep and DEBUG_VM
        #[arg(long)]
        debug: bool,
    },
    /// Shows what is in the cache
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Removes from the cache what is neither current nor needed by this checkout
    Gc,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mvas-images: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let cache = Cache::of_user()?;
    let workspace = Workspace::find(cli.workspace.as_deref())?;
    let kernel = || kernel::Builder::new(&cache, &workspace);
    let images = |flavor| image::Builder::new(&cache, &workspace, flavor);
    match cli.command {
        Command::Kernel { debug } => {
            let flavor = if debug {
                Flavor::Debug
            } else {
                Flavor::Release
            };
            let kernel = kernel()?;
            done("kernel", &kernel.kernel(flavor)?);
            done("self-tests", &kernel.selftests()?);
        }
        Command::Image { flavor } => done("image", &images(flavor).image(&kernel()?.selftests()?)?),
        Command::Emulator => done("emulator", &emulator::build(&cache)?),
        Command::All { flavor, debug } => {
            let kernel = kernel()?;
            done("emulator", &emulator::build(&cache)?);
            done("kernel", &kernel.kernel(Flavor::Release)?);
            if debug {
                done("debug kernel", &kernel.kernel(Flavor::Debug)?);
            }
            done("image", &images(flavor).image(&kernel.selftests()?)?);
        }
        Command::Status { json } => print_status(&status::status(&cache, &workspace)?, json)?,
        Command::Gc => {
            for path in status::gc(&cache, &workspace)? {
                println!("removed {}", path.display());
            }
        }
    }
    Ok(())
}

fn done(what: &str, path: &std::path::Path) {
    println!("{what}: {}", path.display());
}

fn print_status(status: &status::Status, json: bool) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, status)?;
        writeln!(out)?;
        return Ok(());
    }
    writeln!(out, "cache: {}", status.cache.display())?;
    writeln!(out, "\nneeded by this checkout:")?;
    for needed in &status.needed {
        let built = if needed.built { "built" } else { "not built" };
        writeln!(
            out,
            "  {:<13} {built:<10} {}",
            needed.kind,
            needed.path.display()
        )?;
    }
    writeln!(out, "\ncurrent (what mvasvm boots):")?;
    for current in &status.current {
        let gone = if current.present {
            ""
        } else {
            " (gone: build it again)"
        };
        writeln!(
            out,
            "  {:<13} {}{gone}",
            current.name,
            current.path.display()
        )?;
    }
    writeln!(out, "\nentries:")?;
    for entry in &status.entries {
        let left = if entry.whole {
            ""
        } else {
            " (left by an interrupted build: gc removes it)"
        };
        writeln!(
            out,
            "  {:>6} MiB  {}{left}",
            entry.disk_bytes >> 20,
            entry.path.display()
        )?;
    }
    Ok(())
}
