// SPDX-License-Identifier: GPL-2.0-only
//! What can be asked.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use mvasvm::config::{CpuCount, MemSize, VmName, bytes_of};

use super::codes;
use super::disk::DiskArg;
use super::forward::Forward;
use super::image::ImageArgs;
use super::snapshots::SnapshotsArgs;
use super::store::StoreArgs;

/// CPUs of a simulated host. With more than one, QEMU's emulator (7.2; one thread for each)
/// now and then lets a CPU run into an instruction that another one is patching, and a
/// kernel dies of a stray INT3: on 2 busy cores in one boot out of four. So one, until asked.
pub(super) const DEFAULT_SIM_CPUS: &str = "1";

/// Runs microVMs that model large-memory servers, and talks to them.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Run(RunArgs),
    Exec(ExecArgs),
    Cp(CpArgs),
    Forward(ForwardArgs),
    Ls(LsArgs),
    Stop(StopArgs),
    Kill(KillArgs),
    Rm(RmArgs),
    Logs(LogsArgs),
    Metrics(MetricsArgs),
    Snapshots(SnapshotsArgs),
    Store(StoreArgs),
    Image(ImageArgs),
    Doctor(DoctorArgs),
    Sim(SimArgs),
    #[command(after_help = "Example:
  mvasvm completions bash > ~/.local/share/bash-completion/completions/mvasvm")]
    Completions(mvas_cli::Completions),
    #[command(hide = true)]
    Man(mvas_cli::Man),
    #[command(hide = true)]
    SimInit(crate::sim::init::InitArgs),
    #[command(hide = true)]
    SimServe,
    /// Be the agent of a VM on standard input and output
    #[command(hide = true)]
    Relay {
        name: VmName,
    },
    /// Give a killed VM's memory back; standard input ends with its monitor
    #[command(hide = true)]
    Janitor {
        name: VmName,
        store: PathBuf,
    },
}

/// Boot a microVM: with a login on this terminal, or for one command
///
/// Without CMD, the guest's login appears on this terminal; Ctrl-A X ends the VM, Ctrl-A Ctrl-A
/// sends one Ctrl-A. With CMD, CMD runs in the guest with this process's input, output and
/// signals (on a terminal if this is one), and the VM stops when it ends. An image that was imported
/// may have a command of its own, which runs without CMD, or an entry point, which gets CMD as its
/// arguments; --detach starts neither.
#[derive(Debug, Args)]
#[command(after_help = format!("Examples:
  mvasvm run
  mvasvm run --image db --overlay db.img --detach
  mvasvm run --mem 64G --cpus 4 -- free -g
  mvasvm run --name db --detach && mvasvm exec db -- redis-cli ping
  mvasvm run --disk data.img --disk tools.img,ro -- lsblk
  mvasvm run --store /dev/shm/snapshots --store-limit 16G --grant all

{}", codes::HELP))]
pub(super) struct RunArgs {
    /// Name of the VM, for the other commands and for whose its snapshots are [default: a new one]
    #[arg(long, value_name = "NAME")]
    pub name: Option<VmName>,
    /// Guest memory: a number with K, M, G or T, of MiB without; may exceed the host's
    #[arg(long, value_name = "SIZE", default_value = "8G")]
    pub mem: MemSize,
    /// Virtual CPUs
    #[arg(long, value_name = "N", default_value = "2")]
    pub cpus: CpuCount,
    /// An ELF vmlinux or a bzImage [default: $MVAS_KERNEL, or the one built last]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// An initial RAM file system
    #[arg(long, value_name = "FILE")]
    pub initramfs: Option<PathBuf>,
    /// The root file system, never written to: one of your images (`mvasvm image ls`), `default`,
    /// `containers` or `programs` of ours, or a file, with a slash in its path if it has such a
    /// name [default: $MVAS_IMAGE, or `default`; none with --initramfs]
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<PathBuf>,
    /// A raw disk image, again for more: /dev/vdb, /dev/vdc, …; with ",ro" read-only
    #[arg(long, value_name = "FILE[,ro]", value_parser = DiskArg::parse)]
    pub disk: Vec<DiskArg>,
    /// Keep what the guest writes to its root in this file, which is made if it is missing, and
    /// belongs to this image; without, it goes with the VM
    #[arg(long, value_name = "FILE")]
    pub overlay: Option<PathBuf>,
    /// The most that an overlay can take, when it is made: a number with K, M, G or T [default: 16G]
    #[arg(long, value_name = "SIZE", value_parser = bytes_of, requires = "overlay")]
    pub overlay_size: Option<u64>,
    /// Directory of the snapshot store, in a tmpfs; "none": snapshots stay in the guest
    /// [default: $MVAS_STORE, or /dev/shm/mvas-UID, if the guest's memory fits there]
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// The most that all snapshots of the store may take: a number with K, M, G or T [default:
    /// what its file system has beyond the memory of all running VMs]
    #[arg(long, value_name = "SIZE", value_parser = bytes_of)]
    pub store_limit: Option<u64>,
    /// Use a store that is not in a tmpfs, for tests
    #[arg(long)]
    pub store_force: bool,
    /// Which snapshots of the store the guest may restore, list, label and remove
    #[arg(long, value_name = "WHICH", default_value = "own")]
    pub grant: GrantArg,
    /// More for the kernel's command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub cmdline: Option<String>,
    /// What runs it: this host's KVM, a simulated host, or what there is
    #[arg(long, value_name = "HW", default_value = "auto")]
    pub hw: HwArg,
    /// Run the monitor without its sandbox: no seccomp filters, no Landlock. For debugging it
    #[arg(long)]
    pub no_sandbox: bool,
    /// Join this cgroup, a directory of cgroup2 with the limits that the VM shall have: those to
    /// memory hold for the guest's, too
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    /// Return once the guest takes commands, and leave the VM running
    #[arg(long, conflicts_with = "command")]
    pub detach: bool,
    /// Seconds that the guest gets until it takes commands
    #[arg(long, value_name = "SECONDS", default_value = "300")]
    pub boot_timeout: u64,
    /// The monitor behind `--detach`: says "ready" and goes on
    #[arg(long, hide = true, conflicts_with_all = ["command", "detach"])]
    pub detached_child: bool,
    /// A command to run in the guest, and its arguments
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum HwArg {
    /// KVM where it is hardware's, else a simulated host
    Auto,
    /// This host's KVM
    Kvm,
    /// A simulated host
    Sim,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum GrantArg {
    /// Those that a VM of this name made
    Own,
    /// All
    All,
}

/// Run a command in a running VM
///
/// Its standard input, output and errors are this process's, apart from each other; signals
/// sent here reach it there. Three times SIGINT or SIGTERM ends this side alone.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mvasvm exec db -- redis-cli info memory
  mvasvm exec -t db -- bash
  tar c src | mvasvm exec db -w /root -- tar x

Exit code: the command's own; 128+N if signal N ended it; 125 if mvasvm failed; 126 or 127 if
the command could not be run or was not found.")]
pub(super) struct ExecArgs {
    /// The VM
    pub name: VmName,
    /// Run it on a terminal
    #[arg(short = 't', long)]
    pub tty: bool,
    /// Set a variable of its environment, again for more
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub env: Vec<(String, String)>,
    /// Folder in the guest that it runs in [default: the user's home]
    #[arg(short = 'w', long, value_name = "DIR")]
    pub workdir: Option<OsString>,
    /// User in the guest that runs it [default: root]
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// Copy a file or folder into or out of a running VM
///
/// One of the two is NAME:PATH. A destination that is a folder takes the source under its own
/// name. Modes, and symbolic links in a folder, are kept; nothing is seen at the destination
/// before all of it is there.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mvasvm cp dump.rdb db:/var/lib/redis/
  mvasvm cp db:/var/log ./logs
A local file with a colon in its name: write ./ before it.")]
pub(super) struct CpArgs {
    /// What to copy
    pub source: OsString,
    /// Where to
    pub dest: OsString,
    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,
}

/// Let ports of this host lead to servers in a running VM
///
/// Needs no network in the guest: each TCP connection goes through the guest's agent to GUESTPORT
/// of its loopback address, 127.0.0.1. Only this host can connect, unless HOSTADDR says else. Once
/// all ports are open, each is a line on standard output; HOSTPORT 0 takes any that is free. It
/// goes on until a signal, or the VM's end.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mvasvm forward db 6379:6379
  mvasvm forward web 8080:80 0.0.0.0:8443:443

Exit code: 0 when the VM has ended; 128+N by signal N; 125 if a port cannot be opened.")]
pub(super) struct ForwardArgs {
    /// The VM
    pub name: VmName,
    /// A port here, and the one in the guest that it leads to
    #[arg(required = true, value_name = "[HOSTADDR:]HOSTPORT:GUESTPORT")]
    pub ports: Vec<Forward>,
}

/// List the running VMs
///
/// With --all also the 16 that ended last, and how each of them ended.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mvasvm ls
  mvasvm ls --json | jq '.[].name'
  mvasvm ls --all --json | jq '.[] | select(.end.cause == \"guest-panic\").name'")]
pub(super) struct LsArgs {
    /// Those that have ended, too
    #[arg(short, long)]
    pub all: bool,
    /// As JSON, with everything that is known
    #[arg(long)]
    pub json: bool,
}

/// Power VMs off
///
/// The guest ends its processes, writes everything to disk and powers off. A VM that does not
/// within the timeout is ended like `mvasvm kill` does.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mvasvm stop db
  mvasvm stop --timeout 5 db cache")]
pub(super) struct StopArgs {
    /// The VMs
    #[arg(required = true)]
    pub names: Vec<VmName>,
    /// Seconds that each gets
    #[arg(long, value_name = "SECONDS", default_value = "30")]
    pub timeout: u64,
}

/// End VMs at once, as if by pulling the plug
#[derive(Debug, Args)]
#[command(after_help = "Example:
  mvasvm kill db")]
pub(super) struct KillArgs {
    /// The VMs
    #[arg(required = true)]
    pub names: Vec<VmName>,
}

/// Remove what is kept of VMs that have ended
///
/// That is how they ended, their logs and their counters. Of several VMs, all are removed, or
/// none.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mvasvm rm db
  mvasvm rm --all")]
pub(super) struct RmArgs {
    /// The VMs
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub names: Vec<VmName>,
    /// All that have ended
    #[arg(long)]
    pub all: bool,
}

/// Show the kernel log of a VM that runs or has ended
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mvasvm logs db
  mvasvm logs -f db
  mvasvm logs --monitor db")]
pub(super) struct LogsArgs {
    /// The VM
    pub name: VmName,
    /// What its monitor said, instead of its kernel
    #[arg(long)]
    pub monitor: bool,
    /// Go on until the VM ends
    #[arg(short, long)]
    pub follow: bool,
}

/// Show what the monitor of a VM has counted
///
/// Of a VM that runs: now; of one that has ended: at its end, or, if its monitor was killed, at
/// most 10 seconds before. docs/VMM.md says what each counter counts.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mvasvm metrics db
  mvasvm metrics --json db | jq .snapshots.commits")]
pub(super) struct MetricsArgs {
    /// The VM
    pub name: VmName,
    /// As JSON: an object of objects of numbers
    #[arg(long)]
    pub json: bool,
}

/// Say what this host offers to microVMs, and what to do about what is missing
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mvasvm doctor
  mvasvm doctor --json | jq .kvm.kind

Exit code: 0 if microVMs can run here, on KVM or on a simulated host; 1 if not.")]
pub(super) struct DoctorArgs {
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Run a command on a simulated host that has hardware virtualization
///
/// QEMU emulates an AMD machine with SVM and nested paging. It boots our own kernel, sees the
/// files of this host read-only, may write to the work folder and to its own /tmp and /run, and
/// has no network. The command's input, output and exit code pass through, and its signals.
/// Everything in there is about ten times slower than here. QEMU is $MVAS_QEMU, the one built
/// last, or the one in PATH.
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
    /// CPUs of the simulated host; with more than one, kernels there may crash under load
    #[arg(long, value_name = "N", default_value = DEFAULT_SIM_CPUS)]
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

fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_help_with_examples() {
        let cli = Cli::command();
        let commands = cli.get_subcommands().filter(|c| !c.is_hide_set());
        for command in commands.flat_map(|c| std::iter::once(c).chain(c.get_subcommands())) {
            let name = command.get_name();
            assert!(command.get_about().is_some(), "{name}");
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(help.contains("Example"), "{name}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            "run --mem 0",
            "run --mem 9999999999T",
            "run --mem lots",
            "run --mem=-1",
            "run --cpus 0",
            "run --name ../x",
            "run --hw fpga",
            "run --detach -- true",
            "run --overlay-size 1G",
            "run --overlay x --overlay-size much",
            "exec",
            "exec vm",
            "exec vm -e =x -- true",
            "cp a",
            "forward",
            "forward vm",
            "forward vm 80",
            "forward ../x 80:80",
            "stop",
            "rm",
            "rm --all x",
            "metrics",
            "metrics a b",
            "sim",
            "sim --",
            "store",
            "store mount --force",
            "image",
            "image build",
            "image build ../x",
            "image build default",
            "image build x --packages a,,b",
            "image build x --packages ~i",
            "image build x --from /etc",
            "image rm",
            "snapshots rm",
            "snapshots show",
            "snapshots show ../x",
            "snapshots rm -- -x",
        ] {
            let words = std::iter::once("mvasvm").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_err(), "{line} was taken");
        }
    }
}
