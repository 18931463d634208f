// SPDX-License-Identifier: GPL-2.0-only
//! `vascriu show`.

use std::process::ExitCode;

use serde::Serialize;

use super::ls::{self, Row};
use super::print_json;
use crate::device::{Range, Stat, VAS_ACCESS_READ};
use crate::process::Vpid;
use crate::snapshot::entry::Entry;
use crate::snapshot::id::{Member, SnapshotId};
use crate::snapshot::images::Found;
use crate::snapshot::manifest::{Manifest, Task};
use crate::snapshot::registry::Registry;
use crate::text;

/// Show one snapshot: what it is, its tasks, and where their memory is
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  vascriu show redis")]
pub struct Args {
    /// Its name, its identity, or the beginning of that
    snapshot: String,
    /// Print JSON, memory ranges included
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Detail {
    #[serde(flatten)]
    row: Row,
    criu: Option<String>,
    members: Vec<MemberDetail>,
}

/// A task's VAS.
#[derive(Debug, Serialize)]
struct MemberDetail {
    vpid: Vpid,
    /// As it was dumped.
    task: Option<Task>,
    /// What the kernel says of it now.
    stat: Stat,
    ranges: Vec<Range>,
}

/// Its `vas.json`; none where it is in the store only.
fn manifest(registry: &Registry, id: SnapshotId) -> Option<Manifest> {
    let vas = registry.open_member(id, Member::Images).ok()?;
    Some(Found::of(&vas, id).ok()?.manifest)
}

fn detail(registry: &Registry, entry: &Entry) -> Detail {
    let manifest = manifest(registry, entry.id);
    let tasks = manifest.as_ref().map_or(&[][..], |m| &m.tasks);
    let member = |(vpid, stat): &(Vpid, Stat)| {
        let vas = registry.session().vas(stat.id, VAS_ACCESS_READ);
        MemberDetail {
            vpid: *vpid,
            task: tasks.iter().find(|t| t.vpid == *vpid).cloned(),
            stat: stat.clone(),
            ranges: vas.and_then(|v| v.ranges()).unwrap_or_default(),
        }
    };
    Detail {
        row: Row::new(registry, entry),
        members: entry.tasks.iter().map(member).collect(),
        criu: manifest.map(|m| m.criu),
    }
}

fn print(entry: &Entry, detail: &Detail) {
    let mut rows = vec![["snapshot".into(), entry.id.to_string()]];
    let mut row = |what: &str, says: String| rows.push([what.into(), says]);
    if let Some(label) = &entry.label {
        row(
            "name",
            label.name.as_ref().map_or("-".into(), ToString::to_string),
        );
        row("series", label.series().unwrap_or("-").into());
        row("origin", ls::origin(label));
        row("machine", label.machine.clone());
        row("created", text::time(label.created));
        row("expires", ls::expiry(label));
        row("parent", label.parent.map_or("-".into(), |p| p.to_string()));
        row("restored", label.restored.to_string());
    }
    row("memory", text::memory(entry.pages()));
    row("state", entry.whereabouts().to_string());
    print!("{}", ls::table(&rows));
    if detail.members.is_empty() {
        return;
    }
    let head = ["PID", "COMMAND", "MEMORY", "HUGE", "ATTACHES"].map(String::from);
    let member = |m: &MemberDetail| {
        let task = m.task.as_ref();
        [
            m.vpid.to_string(),
            task.map_or("-".into(), |t| t.comm.clone()),
            text::memory(task.map_or(m.stat.pages, |t| t.pages + t.swap_pages)),
            text::memory(task.map_or(m.stat.huge_pages, |t| t.huge_pages)),
            m.stat.attaches.to_string(),
        ]
    };
    let members = detail.members.iter().map(member);
    let rows: Vec<_> = std::iter::once(head).chain(members).collect();
    print!("\n{}", ls::table(&rows));
}

/// Runs the command.
///
/// # Errors
/// There is no such snapshot.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let registry = Registry::open()?;
    let entry = registry.find(&args.snapshot)?;
    let detail = detail(&registry, &entry);
    if args.json {
        print_json(&detail)?;
    } else {
        print(&entry, &detail);
    }
    Ok(ExitCode::SUCCESS)
}
