// SPDX-License-Identifier: GPL-2.0-only
//! `vascriu ls`, and how a snapshot is told in JSON (`docs/vascriu-ls.schema.json`).

use std::process::ExitCode;

use serde::Serialize;

use super::print_json;
use crate::device::{Usage, VAS_ACCESS_READ};
use crate::snapshot::entry::{Entry, Whereabouts};
use crate::snapshot::id::SnapshotId;
use crate::snapshot::label::{Label, Origin, now};
use crate::snapshot::name::Name;
use crate::snapshot::registry::Registry;
use crate::text;

/// Version of the JSON.
const VERSION: u32 = 1;
const PAGE: u64 = 4096;

/// List snapshots
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  vascriu ls --json")]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// All snapshots.
#[derive(Debug, Serialize)]
struct List {
    version: u32,
    snapshots: Vec<Row>,
}

/// One snapshot.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    id: SnapshotId,
    name: Option<Name>,
    series: Option<Name>,
    origin: Option<Origin>,
    machine: Option<String>,
    created: u64,
    age_seconds: u64,
    expires: Option<u64>,
    parent: Option<SnapshotId>,
    tasks: Option<u32>,
    comm: Option<String>,
    left_running: Option<bool>,
    restored: Option<u64>,
    /// Of its tasks, wherever it is.
    memory_bytes: u64,
    /// Of this guest's memory: what would be free without it, and the rest.
    own_bytes: u64,
    shared_bytes: u64,
    /// In the snapshot store.
    stored_bytes: Option<u64>,
    #[serde(flatten)]
    whereabouts: Whereabouts,
}

impl Row {
    pub(super) fn new(registry: &Registry, entry: &Entry) -> Self {
        let label = entry.label.as_ref();
        let usage = usage(registry, entry);
        let known = |of: fn(&Label) -> u64| label.map(of);
        Self {
            id: entry.id,
            name: entry.name().cloned(),
            series: label.and_then(|l| l.series.clone()),
            origin: label.map(|l| l.origin.clone()),
            machine: label.map(|l| l.machine.clone()),
            created: entry.created(),
            age_seconds: now().saturating_sub(entry.created()),
            expires: label.and_then(|l| l.expires),
            parent: label.and_then(|l| l.parent),
            tasks: label.map(|l| l.tasks),
            comm: label.map(|l| l.comm.clone()),
            left_running: label.map(|l| l.left_running),
            restored: known(|l| l.restored),
            memory_bytes: entry.pages().saturating_mul(PAGE),
            own_bytes: usage.own_pages.saturating_mul(PAGE),
            shared_bytes: usage.shared_pages.saturating_mul(PAGE),
            stored_bytes: entry.stored.as_ref().map(|s| s.bytes),
            whereabouts: entry.whereabouts(),
        }
    }
}

/// Of all its VASes; nothing of one that has just gone.
fn usage(registry: &Registry, entry: &Entry) -> Usage {
    let of = |id| registry.session().vas(id, VAS_ACCESS_READ)?.usage();
    let usages = entry.stats().filter_map(|s| of(s.id).ok());
    usages.fold(Usage::default(), |all, one| Usage {
        own_pages: all.own_pages.saturating_add(one.own_pages),
        shared_pages: all.shared_pages.saturating_add(one.shared_pages),
    })
}

/// Who had it dumped.
pub(super) fn origin(label: &Label) -> String {
    let Origin {
        engine,
        container,
        id,
    } = &label.origin;
    match container.as_ref().or(id.as_ref()) {
        Some(container) => format!("{engine} {container}"),
        None => engine.clone(),
    }
}

/// When it may be removed, in words.
pub(super) fn expiry(label: &Label) -> String {
    label.expires.map_or_else(
        || "never".into(),
        |e| format!("in {}", text::duration(e.saturating_sub(now()))),
    )
}

/// A snapshot as one line of a table.
fn columns(entry: &Entry) -> [String; 9] {
    let label = entry.label.as_ref();
    let known = |of: &dyn Fn(&Label) -> String| label.map_or_else(|| "-".into(), of);
    [
        entry.id.short(),
        entry.name().map_or_else(|| "-".into(), ToString::to_string),
        known(&origin),
        known(&|l| l.tasks.to_string()),
        known(&|l| l.comm.clone()),
        text::memory(entry.pages()),
        text::duration(now().saturating_sub(entry.created())),
        known(&|l| l.parent.map_or_else(|| "-".into(), SnapshotId::short)),
        entry.whereabouts().to_string(),
    ]
}

/// Lines of a table, each column as wide as it must be.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, &w)| format!("{cell:w$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// Snapshots as a table.
pub(super) fn list(entries: &[Entry]) -> String {
    let head = [
        "ID", "NAME", "ORIGIN", "TASKS", "ROOT", "MEMORY", "AGE", "PARENT", "STATE",
    ];
    let rows: Vec<_> = std::iter::once(head.map(String::from))
        .chain(entries.iter().map(columns))
        .collect();
    table(&rows)
}

/// Runs the command.
///
/// # Errors
/// `/dev/vas` is not usable.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let registry = Registry::open()?;
    registry.sweep_expired()?;
    let entries = registry.list()?;
    if let Err(e) = registry.session().stored() {
        eprintln!(
            "vascriu: the snapshot store is not listed: {}",
            text::chain(&e)
        );
    }
    if args.json {
        let snapshots = entries.iter().map(|e| Row::new(&registry, e)).collect();
        print_json(&List {
            version: VERSION,
            snapshots,
        })?;
    } else {
        print!("{}", list(&entries));
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::entry::State;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |cells: [&str; 3]| cells.map(String::from);
        let rows = [
            row(["a", "b", "c"]),
            row(["1234", "5", "6"]),
            row(["", "ää", ""]),
        ];
        assert_eq!(table(&rows), "a     b   c\n1234  5   6\n      ää\n");
    }

    /// Checks a value by what this schema uses: type, required, properties, items, enum,
    /// const, and that there is nothing else.
    fn check(schema: &serde_json::Value, value: &serde_json::Value, at: &str) {
        use serde_json::Value;
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let is_of = |t: &Value| t == kind;
        match &schema["type"] {
            Value::Array(kinds) => assert!(kinds.iter().any(is_of), "{at} is {kind}"),
            one => assert!(is_of(one), "{at} is {kind}"),
        }
        if let Some(only) = schema.get("const") {
            assert_eq!(value, only, "{at}");
        }
        if let Some(all) = schema["enum"].as_array() {
            assert!(all.contains(value), "{at} is {value}");
        }
        for item in value.as_array().into_iter().flatten() {
            check(&schema["items"], item, &format!("{at}[]"));
        }
        if let Some(object) = value.as_object() {
            assert_eq!(schema["additionalProperties"], false, "{at}");
            let required = schema["required"].as_array().into_iter().flatten();
            for name in required.filter_map(Value::as_str) {
                assert!(object.contains_key(name), "{at} has no {name}");
            }
            for (name, value) in object {
                let schema = schema["properties"].get(name);
                let schema = schema.unwrap_or_else(|| panic!("{at} has {name}"));
                check(schema, value, &format!("{at}.{name}"));
            }
        }
    }

    fn full() -> Row {
        let name: Option<Name> = "web".parse().ok();
        Row {
            id: SnapshotId::random(),
            series: name.clone(),
            name,
            origin: Some(Origin {
                engine: "docker".into(),
                container: Some("web".into()),
                id: Some("12ab".into()),
            }),
            machine: Some("m".into()),
            created: 1,
            age_seconds: 2,
            expires: Some(3),
            parent: Some(SnapshotId::random()),
            tasks: Some(4),
            comm: Some("nginx".into()),
            left_running: Some(true),
            restored: Some(5),
            memory_bytes: 6,
            own_bytes: 7,
            shared_bytes: 8,
            stored_bytes: Some(9),
            whereabouts: Whereabouts {
                state: State::Draining,
                drained_percent: Some(10),
                drain_error: Some(11),
            },
        }
    }

    #[test]
    fn the_json_is_that_of_its_schema() {
        let schema = include_str!("../../../docs/vascriu-ls.schema.json");
        let schema = serde_json::from_str(schema).expect("a schema");
        let bare = Row {
            name: None,
            series: None,
            origin: None,
            machine: None,
            expires: None,
            parent: None,
            tasks: None,
            comm: None,
            left_running: None,
            restored: None,
            stored_bytes: None,
            whereabouts: Whereabouts {
                state: State::InStoreOnly,
                drained_percent: None,
                drain_error: None,
            },
            ..full()
        };
        for snapshots in [vec![], vec![full(), bare]] {
            let list = List {
                version: VERSION,
                snapshots,
            };
            check(&schema, &serde_json::to_value(list).expect("json"), "ls");
        }
    }
}
