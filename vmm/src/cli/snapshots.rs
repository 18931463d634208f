//! `mvasvm snapshots`: what is in the store.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use mvas_host::store::meta::{self, VasSummary};
use mvas_host::store::{
    Freed, Kept, SnapshotEntry, SnapshotFacts, SnapshotName, SnapshotState, Store, StoreError, User,
};
use serde::Serialize;

use super::store::{StoreDir, note_blocked, size};

/// List, show and remove snapshots
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mvasvm snapshots ls
  mvasvm snapshots show redis-warm
  mvasvm snapshots rm redis-warm")]
pub(super) struct SnapshotsArgs {
    #[command(subcommand)]
    command: SnapshotsCommand,
}

#[derive(Debug, Subcommand)]
enum SnapshotsCommand {
    Ls(LsArgs),
    Show(ShowArgs),
    Rm(RmArgs),
}

/// List the snapshots in the store
///
/// VASES: virtual address spaces, one for each task and one for CRIU's images. MEMORY: what these
/// have. OWN: host memory that goes with the snapshot, unless VMs use it; SHARED: host memory
/// that other snapshots have, too. KEPT: hot, if the memory of a running VM shows something of it;
/// cold, if it is in the store only. FROM: the VM that made it. USED BY: running VMs, and how
/// many of its extents each uses, unless all.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mvasvm snapshots ls
  mvasvm snapshots ls --json | jq -r '.[] | select(.state == \"broken\").name'")]
struct LsArgs {
    #[command(flatten)]
    dir: StoreDir,
    /// As JSON, with everything that is known
    #[arg(long)]
    json: bool,
}

/// Show one snapshot, with its virtual address spaces
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mvasvm snapshots show redis-warm
  mvasvm snapshots show redis-warm --json | jq .address_spaces")]
struct ShowArgs {
    /// The snapshot
    name: SnapshotName,
    #[command(flatten)]
    dir: StoreDir,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Remove snapshots, broken ones too
///
/// Running VMs that see their memory keep it until they let go of it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mvasvm snapshots rm redis-warm redis-cold
  mvasvm snapshots ls --json | jq -r '.[].name' | xargs mvasvm snapshots rm")]
struct RmArgs {
    /// The snapshots
    #[arg(required = true)]
    names: Vec<SnapshotName>,
    #[command(flatten)]
    dir: StoreDir,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &SnapshotsArgs) -> Result<u8> {
    match &args.command {
        SnapshotsCommand::Ls(args) => ls(args),
        SnapshotsCommand::Show(args) => show(args),
        SnapshotsCommand::Rm(args) => rm(args),
    }
}

fn ls(args: &LsArgs) -> Result<u8> {
    // No VM has made the default store yet: that is no error. A wrong --store is one.
    let entries = match &args.dir.store {
        None => args
            .dir
            .open_existing()?
            .map_or(Ok(Vec::new()), |s| s.snapshots())?,
        Some(_) => args.dir.open()?.snapshots()?,
    };
    let mut out = io::stdout().lock();
    if args.json {
        return json(&mut out, &entries);
    }
    writeln!(
        out,
        "{:<24} {:>5} {:>8} {:>8} {:>8} {:>7} {:>5}  {:<4}  {:<16} USED BY",
        "NAME", "VASES", "MEMORY", "OWN", "SHARED", "EXTENTS", "AGE", "KEPT", "FROM"
    )?;
    for SnapshotEntry { name, state } in &entries {
        match state {
            SnapshotState::Complete(s) => writeln!(
                out,
                "{:<24} {:>5} {:>8} {:>8} {:>8} {:>7} {:>5}  {:<4}  {:<16} {}",
                name.as_str(),
                s.vases,
                size(s.memory_bytes),
                size(s.own_bytes),
                size(s.shared_bytes),
                s.extents,
                age(s),
                kept(s),
                s.vm,
                users(s)
            )?,
            SnapshotState::Broken { reason } => {
                writeln!(out, "{:<24} BROKEN: {reason}", name.as_str())?;
            }
        }
    }
    Ok(0)
}

/// A snapshot with what its metadata says.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    entry: &'a SnapshotEntry,
    address_spaces: Vec<VasSummary>,
}

fn show(args: &ShowArgs) -> Result<u8> {
    let store = args.dir.open()?;
    let entries = store.snapshots()?;
    let Some(entry) = entries.iter().find(|entry| entry.name == args.name) else {
        return Err(StoreError::NotFound(args.name.clone()).into());
    };
    let SnapshotState::Complete(facts) = &entry.state else {
        // Says why.
        store.load(&args.name)?;
        bail!("the snapshot {} was broken a moment ago", args.name);
    };
    let address_spaces = address_spaces(&store, &args.name)?;
    let mut out = io::stdout().lock();
    if args.json {
        let shown = Shown {
            entry,
            address_spaces,
        };
        return json(&mut out, &shown);
    }
    let used_by = match facts.kept {
        Kept::Cold => "no running VM".to_owned(),
        Kept::Hot => users(facts),
    };
    let extents = format!("{} of 2M", facts.extents);
    for (what, value) in [
        ("name", args.name.to_string()),
        ("made by VM", format!("{} (run {})", facts.vm, facts.run)),
        ("age", age(facts)),
        ("memory", size(facts.memory_bytes)),
        ("own", size(facts.own_bytes)),
        ("shared", size(facts.shared_bytes)),
        ("extents", extents),
        ("metadata", format!("{} bytes", facts.meta_bytes)),
        ("kept", kept(facts).to_owned()),
        ("used by", used_by),
    ] {
        writeln!(out, "{:<12}{value}", format!("{what}:"))?;
    }
    writeln!(
        out,
        "\n{:<40} {:>6} {:>8}",
        "ADDRESS SPACE", "VMAS", "MEMORY"
    )?;
    for vas in address_spaces {
        let memory = size(vas.pages.saturating_mul(4096));
        writeln!(out, "{:<40} {:>6} {memory:>8}", vas.name, vas.vmas)?;
    }
    Ok(0)
}

fn address_spaces(store: &Store, name: &SnapshotName) -> Result<Vec<VasSummary>> {
    let snapshot = store.load(name)?;
    let vases = meta::vases(&snapshot.meta, snapshot.blocks.len(), snapshot.packed_pages)?;
    Ok(vases.collect::<Result<_, _>>()?)
}

/// A snapshot that was removed.
#[derive(Serialize)]
struct RemovedSnapshot<'a> {
    name: &'a SnapshotName,
    #[serde(flatten)]
    freed: Freed,
}

fn rm(args: &RmArgs) -> Result<u8> {
    let store = args.dir.open()?;
    let mut removed = Vec::new();
    let mut failed = None;
    for name in &args.names {
        match store.remove(name) {
            Ok(freed) => removed.push(RemovedSnapshot { name, freed }),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    let mut out = io::stdout().lock();
    if args.json {
        json(&mut out, &removed)?;
    } else {
        for RemovedSnapshot { name, freed } in &removed {
            writeln!(out, "{name} removed: {} given back", size(freed.bytes))?;
        }
    }
    if let Some(last) = removed.last() {
        note_blocked(&last.freed.blocked_by);
    }
    failed.map_or(Ok(0), |error| Err(error.into()))
}

fn json(out: &mut impl Write, value: &impl Serialize) -> Result<u8> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)?;
    Ok(0)
}

fn kept(snapshot: &SnapshotFacts) -> &'static str {
    match snapshot.kept {
        Kept::Hot => "hot",
        Kept::Cold => "cold",
    }
}

/// The VMs that use it, and how many of its extents where that is not all.
fn users(snapshot: &SnapshotFacts) -> String {
    let all = snapshot.extents;
    let user = |user: &User| match user.extents {
        some if some < all => format!("{} ({some} of {all})", user.vm),
        _ => user.vm.clone(),
    };
    let users: Vec<String> = snapshot.used_by.iter().map(user).collect();
    users.join(", ")
}

fn age(snapshot: &SnapshotFacts) -> String {
    let created = SystemTime::UNIX_EPOCH + Duration::from_nanos(snapshot.created_ns);
    in_words(created.elapsed().unwrap_or_default())
}

/// In the greatest unit of which there is one.
fn in_words(age: Duration) -> String {
    let seconds = age.as_secs();
    let units = [(86400, "d"), (3600, "h"), (60, "m")];
    let fits = units.into_iter().find(|(unit, _)| seconds >= *unit);
    let (unit, letter) = fits.unwrap_or((1, "s"));
    format!("{}{letter}", seconds / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_the_greatest_unit_that_fits() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (3599, "59m"),
            (3600, "1h"),
            (86399, "23h"),
            (864_000, "10d"),
        ] {
            assert_eq!(in_words(Duration::from_secs(seconds)), text);
        }
    }
}
