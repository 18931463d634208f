// SPDX-License-Identifier: GPL-2.0-only
//! `vascriu clone`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

use super::{ms_since, print_json, restore};
use crate::clone::runc::{self, Bundle, Runc};
use crate::clone::{Bridge, Clones, Copy, Failure, Maker, Net, Subnet};
use crate::criu::options;
use crate::criu::version::Criu;
use crate::device::VasFile;
use crate::snapshot::entry::Entry;
use crate::snapshot::id::{Member, SnapshotId};
use crate::snapshot::images::Found;
use crate::snapshot::label::{Label, Origin};
use crate::snapshot::name::Name;
use crate::snapshot::reference::Reference;
use crate::snapshot::registry::{self, Registry};
use crate::{store, text};

const EXAMPLES: &str = "\
Examples:
  vascriu clone web -n 20
  vascriu clone web -n 20 --net none        each with a loopback of its own
  vascriu clone web -n 20 --net br0 --subnet 10.1.0.0/16
  vascriu clone redis -n 4 --net none --tcp-close   without the connections that there were
  nsenter -t SUPERVISOR -a                  a shell in a copy
  kill SUPERVISOR                           passes the signal on to the copy's root
  vascriu clone --runc ./bundle box -n 20   containers box-1 to box-20
  runc delete -f box-1                      ends one of those";

/// Make running copies of a snapshot, each in namespaces of its own
///
/// Of a container's snapshot (`--runc`) the copies are containers of runc's, called NAME-1,
/// NAME-2 and so on, but for names that runc has already. Options of CRIU that `runc restore` has,
/// too, go to that: `--tcp-established`, `--file-locks`, `--shell-job`, `--ext-unix-sk`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Its name, its identity, or the beginning of that
    snapshot: String,
    /// How many copies
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// The copies are containers that the stock runc makes of this OCI bundle
    #[arg(long, value_name = "BUNDLE", conflicts_with_all = ["net", "subnet"])]
    runc: Option<PathBuf>,
    #[command(flatten)]
    how: How,
}

/// How copies are made, of whatever.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct How {
    /// How many are made at a time
    #[arg(long, short = 'P', value_name = "P", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..))]
    parallel: u32,
    /// `host`: the network that is here; `none`: each its own, with a loopback only;
    /// else a bridge, on which each gets an address
    #[arg(long, value_name = "BRIDGE", default_value = "host")]
    net: String,
    /// These addresses, from the given one on
    #[arg(long, value_name = "CIDR")]
    subnet: Option<Subnet>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl Args {
    /// Copies of a snapshot that was just made.
    pub(super) fn of(id: SnapshotId, count: u32, how: How) -> Self {
        Self {
            snapshot: id.to_string(),
            count,
            runc: None,
            how,
        }
    }
}

/// What was made.
#[derive(Debug, Serialize)]
pub(super) struct Cloned {
    snapshot: SnapshotId,
    name: Option<Name>,
    /// How many were wanted.
    asked: u32,
    running: Vec<Copy>,
    failed: Vec<Failure>,
    /// All of it.
    clone_ms: f64,
}

fn net(name: &str, subnet: Option<Subnet>) -> anyhow::Result<Net> {
    Ok(match (name, subnet) {
        ("host", None) => Net::Host,
        ("none", None) => Net::Own,
        ("host" | "none", Some(_)) => bail!("`--subnet` needs a bridge: `--net BRIDGE`"),
        (_, None) => bail!("`--net {name}` needs addresses, such as `--subnet 10.1.0.0/16`"),
        (bridge, Some(subnet)) => Net::Bridged(Bridge::find(bridge, subnet)?),
    })
}

/// The snapshot, in this guest.
pub(super) fn find(registry: &Registry, text: &str) -> anyhow::Result<Entry> {
    let entry = registry.find(text)?;
    if entry.is_here() {
        return Ok(entry);
    }
    store::load(registry, entry.id)?;
    let loaded = registry.get(entry.id)?;
    Ok(loaded.ok_or_else(|| registry::Error::Unknown(text.into()))?)
}

/// Makes copies as `vascriu restore` does.
struct Restore<'a> {
    criu: &'a Criu,
    id: SnapshotId,
    options: &'a [String],
}

impl Maker for Restore<'_> {
    fn make(&self, _: &str) -> Result<i32, String> {
        restore::copy(self.criu, self.id, self.options).map_err(|e| text::chain(&e))
    }

    fn end(&self, _: &str, root: i32) {
        let _ = kill(Pid::from_raw(root), Signal::SIGKILL);
    }
}

/// What makes copies of the container's snapshot that is `found` in `images`.
fn runc(
    bundle: &Path,
    images: &VasFile,
    entry: &Entry,
    found: Found,
    options: &[String],
) -> anyhow::Result<Runc> {
    let Some(descriptors) = found.descriptors else {
        bail!("{entry} is no container's: `vascriu clone {entry}` without `--runc`");
    };
    let label = Label::parse(&images.label()?);
    let label = label.unwrap_or_else(|| Label::new(None, Origin::process()));
    Ok(Runc {
        bundle: Bundle::open(bundle)?,
        reference: Reference::new(entry.id, &label, found.digest).for_copies(),
        descriptors,
        options: options.to_vec(),
    })
}

fn print_head(of_runc: bool) {
    if of_runc {
        println!(
            "{:20}  {:>7}  {:>10}  GENERATION",
            "CONTAINER", "ROOT", "RESTORE_MS"
        );
        return;
    }
    println!(
        "{:>5}  {:>10}  {:>7}  {:15}  {:>10}  GENERATION",
        "INDEX", "SUPERVISOR", "ROOT", "ADDRESS", "RESTORE_MS"
    );
}

fn print_row(copy: &Copy, of_runc: bool) {
    let none = || "-".to_owned();
    let generation = copy.generation.as_deref().unwrap_or("-");
    if of_runc {
        println!(
            "{:20}  {:>7}  {:>10.0}  {generation}",
            copy.name, copy.pid, copy.restore_ms
        );
        return;
    }
    println!(
        "{:>5}  {:>10}  {:>7}  {:15}  {:>10.0}  {generation}",
        copy.index,
        copy.supervisor.map_or_else(none, |p| p.to_string()),
        copy.pid,
        copy.address.map_or_else(none, |a| a.to_string()),
        copy.restore_ms,
    );
}

/// What makes the copies of the snapshot whose images are in `images`.
fn maker<'a>(
    args: &Args,
    criu: &'a Criu,
    entry: &Entry,
    images: &VasFile,
    options: &'a [String],
) -> anyhow::Result<Box<dyn Maker + 'a>> {
    let found = Found::of(images, entry.id)?;
    match &args.runc {
        Some(bundle) => Ok(Box::new(runc(bundle, images, entry, found, options)?)),
        None if found.descriptors.is_some() => bail!(
            "it is a container's: `vascriu clone --runc BUNDLE {entry}` makes copies by runc; other engines restore it as often as they are told to"
        ),
        None => Ok(Box::new(Restore {
            criu,
            id: entry.id,
            options,
        })),
    }
}

/// Makes the copies, and says how each runs as soon as it does.
pub(super) fn clone(args: &Args, options: &[String], start: Instant) -> anyhow::Result<Cloned> {
    if options::value(options, &["-o", "--log-file", "--pidfile"]).is_some() {
        bail!("`--log-file` and `--pidfile` are for one process; `--json` tells all PIDs");
    }
    let net = net(&args.how.net, args.how.subnet)?;
    let criu = Criu::find()?;
    let registry = Registry::open()?;
    let entry = find(&registry, &args.snapshot)?;
    // While it is open, nobody removes the snapshot.
    let images = registry.open_member(entry.id, Member::Images)?;
    let maker = maker(args, &criu, &entry, &images, options)?;
    let mut name = entry.to_string();
    let of_runc = args.runc.is_some();
    let mut taken = Vec::new();
    if of_runc {
        name = runc::container_name(&name);
        taken = runc::taken_numbers(&name)?;
    }
    let clones = Clones {
        name,
        tasks: entry.tasks.iter().map(|(vpid, _)| vpid.0).collect(),
        pages: entry.pages(),
        count: args.count,
        taken,
        parallel: args.how.parallel,
        net,
    };
    let mut running = Vec::new();
    let failed = clones.run(&*maker, |copy| {
        if !args.how.json {
            if running.is_empty() {
                print_head(of_runc);
            }
            print_row(&copy, of_runc);
        }
        running.push(copy);
    })?;
    Ok(Cloned {
        snapshot: entry.id,
        name: entry.name().cloned(),
        asked: args.count,
        running,
        failed,
        clone_ms: ms_since(start),
    })
}

/// Runs the command, with these options for CRIU.
///
/// # Errors
/// There is no copy.
pub fn run(args: &Args, options: &[String], start: Instant) -> anyhow::Result<ExitCode> {
    let done = clone(args, options, start);
    let done = done.with_context(|| format!("cannot clone {}", args.snapshot))?;
    if args.how.json {
        print_json(&done)?;
    }
    Ok(tell_failures(args, &done))
}

/// Says which copies do not run; what the command ends with.
pub(super) fn tell_failures(args: &Args, done: &Cloned) -> ExitCode {
    for Failure { name, error, .. } in &done.failed {
        eprintln!("vascriu: {name} failed: {error}");
    }
    if !done.failed.is_empty() {
        if args.how.net == "host" && args.runc.is_none() {
            eprintln!("vascriu: all share this network; `--net none` gives each one of its own");
        }
        eprintln!(
            "vascriu: {} of {} copies run",
            done.running.len(),
            args.count
        );
    }
    if done.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
