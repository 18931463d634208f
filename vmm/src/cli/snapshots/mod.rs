// SPDX-License-Identifier: GPL-2.0-only
//! `mvasvm snapshots`: what is in the store.

mod listed;
pub(super) mod text;

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use mvas_host::store::meta::{self, VasSummary};
use mvas_host::store::{Freed, Kept, SnapshotFacts, SnapshotName, SnapshotState, Store, User};
use serde::Serialize;
use serde_json::{Map, Value};

use super::store::{StoreDir, note_blocked, size};
use listed::{Listed, find};
use text::{json, shown};

/// List, show and remove snapshots
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mvasvm snapshots ls
  mvasvm snapshots show redis-warm
  mvasvm snapshots rm 3f9a")]
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
/// ID: the beginning of the snapshot's identity, which is its alone for ever. NAME: what whoever
/// dumped it calls it. VASES: virtual address spaces, one for each task and one for CRIU's images. MEMORY: what these
/// have. OWN: host memory that goes with the snapshot, unless VMs use it; SHARED: host memory
/// that other snapshots have, too. KEPT: hot, if the memory of a running VM shows something of it;
/// cold, if it is in the store only. FROM: the VM that made it. ORIGIN: the container engine, and
/// the container. USED BY: running VMs, and how many of its extents each uses, unless all. NAME
/// and ORIGIN are what the guest says.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mvasvm snapshots ls
  mvasvm snapshots ls --json | jq -r '.[] | select(.state == \"broken\").name'
  mvasvm snapshots ls --json | jq -r '.[] | select(.label.name == \"redis-warm\").name'")]
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
    /// The snapshot: its name, or its ID or the beginning of that, 4 digits at least
    #[arg(value_name = "SNAPSHOT")]
    snapshot: SnapshotName,
    #[command(flatten)]
    dir: StoreDir,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Remove snapshots, broken ones too
///
/// Running VMs that see their memory keep it until they let go of it. Where a word fits no
/// snapshot, or more than one, nothing is removed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mvasvm snapshots rm redis-warm redis-cold
  mvasvm snapshots ls --json | jq -r '.[].name' | xargs mvasvm snapshots rm")]
struct RmArgs {
    /// The snapshots: their names, or their IDs or the beginnings of these
    #[arg(required = true, value_name = "SNAPSHOT")]
    snapshots: Vec<SnapshotName>,
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
    let all = match &args.dir.store {
        None => args
            .dir
            .open_existing()?
            .map_or(Ok(Vec::new()), |store| Listed::all(&store))?,
        Some(_) => Listed::all(&args.dir.open()?)?,
    };
    let mut out = io::stdout().lock();
    if args.json {
        json(&mut out, &all)?;
        return Ok(0);
    }
    writeln!(
        out,
        "{:<12}  {:<20} {:>5} {:>8} {:>8} {:>8} {:>7} {:>5}  {:<4}  {:<12} {:<16} USED BY",
        "ID",
        "NAME",
        "VASES",
        "MEMORY",
        "OWN",
        "SHARED",
        "EXTENTS",
        "AGE",
        "KEPT",
        "FROM",
        "ORIGIN"
    )?;
    for listed in &all {
        let name = listed.name().map_or("-".to_owned(), shown);
        write!(out, "{:<12}  {name:<20} ", listed.id())?;
        match &listed.entry.state {
            SnapshotState::Complete(s) => writeln!(
                out,
                "{:>5} {:>8} {:>8} {:>8} {:>7} {:>5}  {:<4}  {:<12} {:<16} {}",
                s.vases,
                size(s.memory_bytes),
                size(s.own_bytes),
                size(s.shared_bytes),
                s.extents,
                age(s),
                kept(s),
                shown(&s.vm),
                origin(listed),
                users(s)
            )?,
            SnapshotState::Broken { reason } => writeln!(out, "BROKEN: {reason}")?,
        }
    }
    Ok(0)
}

fn origin(listed: &Listed) -> String {
    let origin = listed.origin();
    origin.map_or("-".to_owned(), |origin| shown(&origin))
}

/// A snapshot with what its metadata says.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    listed: &'a Listed,
    address_spaces: Vec<VasSummary>,
}

fn show(args: &ShowArgs) -> Result<u8> {
    let store = args.dir.open()?;
    let all = Listed::all(&store)?;
    let listed = find(&all, &args.snapshot)?;
    let id = &listed.entry.name;
    let SnapshotState::Complete(facts) = &listed.entry.state else {
        // Says why.
        store.load(id)?;
        bail!("the snapshot {} was broken a moment ago", listed.called());
    };
    let address_spaces = address_spaces(&store, id)?;
    let mut out = io::stdout().lock();
    if args.json {
        let shown = Shown {
            listed,
            address_spaces,
        };
        json(&mut out, &shown)?;
        return Ok(0);
    }
    let used_by = match facts.kept {
        Kept::Cold => "no running VM".to_owned(),
        Kept::Hot => users(facts),
    };
    let made_by = format!("{} (run {})", shown(&facts.vm), facts.run);
    for (what, value) in [
        ("id", id.to_string()),
        ("name", listed.name().map_or("-".to_owned(), shown)),
        ("origin", origin(listed)),
        ("made by VM", made_by),
        ("age", age(facts)),
        ("memory", size(facts.memory_bytes)),
        ("own", size(facts.own_bytes)),
        ("shared", size(facts.shared_bytes)),
        ("extents", format!("{} of 2M", facts.extents)),
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
struct Removed<'a> {
    name: &'a SnapshotName,
    label: &'a Option<Map<String, Value>>,
    #[serde(flatten)]
    freed: &'a Freed,
}

fn rm(args: &RmArgs) -> Result<u8> {
    let store = args.dir.open()?;
    let all = Listed::all(&store)?;
    // First it must be clear what all words mean; two may mean one snapshot.
    let mut found: Vec<&Listed> = Vec::new();
    for word in &args.snapshots {
        let listed = find(&all, word)?;
        if !found.iter().any(|other| std::ptr::eq(*other, listed)) {
            found.push(listed);
        }
    }
    let mut removed = Vec::new();
    let mut failed = None;
    for listed in found {
        match store.remove(&listed.entry.name) {
            Ok(freed) => removed.push((listed, freed)),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    let mut out = io::stdout().lock();
    if args.json {
        let removed = removed.iter().map(|(listed, freed)| Removed {
            name: &listed.entry.name,
            label: &listed.label,
            freed,
        });
        json(&mut out, &removed.collect::<Vec<_>>())?;
    } else {
        for (listed, freed) in &removed {
            let back = size(freed.bytes);
            writeln!(out, "{} removed: {back} given back", listed.called())?;
        }
    }
    if let Some((_, freed)) = removed.last() {
        note_blocked(&freed.blocked_by);
    }
    failed.map_or(Ok(0), |error| Err(error.into()))
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
        some if some < all => format!("{} ({some} of {all})", shown(&user.vm)),
        _ => shown(&user.vm),
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
