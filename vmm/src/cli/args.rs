//! What can be asked.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use mvasvm::config::{CpuCount, MemSize};

/// Runs microVMs that model large-memory servers, and talks to them.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Sim(SimArgs),
    #[command(hide = true)]
    SimInit(crate::sim::init::InitArgs),
    #[command(hide = true)]
    SimServe,
}

/// Run a command on a simulated host that has hardware virtualization
///
/// QEMU emulates an AMD machine with SVM and nested paging. It boots our own kernel, sees the
/// files of this host read-only, may write to the work folder and to its own /tmp and /run, and
/// has no network. The command's input, output and exit code pass through, and its signals.
/// Everything in there is about ten times slower than here.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mvasvm sim -- mvasvm doctor
  mvasvm sim --work target -- mvasvm run -- uname -a

Exit code: the command's own; 128+N if signal N ended it; 125 if the simulated host failed,
126 or 127 if the command could not be run there or was not found.")]
pub(super) struct SimArgs {
    /// Folder that the command may write to, at the same path [default: the current one]
    #[arg(long, value_name = "DIR")]
    pub work: Option<PathBuf>,
    /// Most memory that the simulated host may take [default: 3/4 of what is available]
    #[arg(long, value_name = "SIZE")]
    pub mem: Option<MemSize>,
    /// CPUs of the simulated host
    #[arg(long, value_name = "N", default_value = "2")]
    pub cpus: CpuCount,
    /// Kernel to boot there [default: $MVAS_KERNEL, or the one built last]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Seconds that the simulated host gets to boot
    #[arg(long, value_name = "SECONDS", default_value = "120")]
    pub boot_timeout: u64,
    /// Keep the simulated host's kernel log in this file
    #[arg(long, value_name = "FILE")]
    pub console: Option<PathBuf>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}
