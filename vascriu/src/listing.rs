//! `vascriu ls` and `vascriu show`.

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;
use vascriu::device::{Range, Session, Stat, StoredSnapshot, VAS_ACCESS_READ};
use vascriu::manifest::{Header, Manifest, Task};
use vascriu::name::Name;
use vascriu::store::{self, Hold, Store};
use vascriu::stored::Whereabouts;

use crate::{mib, print_json};

/// One line of `ls`.
#[derive(Debug, Serialize)]
struct Row {
    name: Name,
    /// `ready`, `busy`, or why it cannot be restored.
    state: String,
    /// Where its memory is; `in_store` where this guest has nothing of it.
    #[serde(flatten)]
    memory: Memory,
    /// None where that is in the store only, too.
    tasks: Option<usize>,
    pages: u64,
    comm: Option<String>,
    created: Option<u64>,
    images: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Memory {
    Here(Whereabouts),
    Store { kept: &'static str },
}

const IN_STORE: Memory = Memory::Store { kept: "in_store" };

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Here(at) => at.fmt(f),
            Self::Store { .. } => f.write_str("in store only"),
        }
    }
}

/// What this guest has nothing of, but the snapshot store has.
fn stored_row(name: Name, snapshot: &StoredSnapshot) -> Row {
    Row {
        state: "ready".to_owned(),
        memory: IN_STORE,
        tasks: None,
        pages: snapshot.pages,
        comm: None,
        created: Some(snapshot.created_ns / 1_000_000_000),
        images: None,
        name,
    }
}

fn row(store: &Store, session: &Session, name: Name) -> Row {
    let path = store.images(&name).unwrap_or_else(|_| store.path(&name));
    let manifest = Manifest::load(&path);
    let state = match &manifest {
        _ if store.lock(&name, Hold::Shared).is_err() => "busy".to_owned(),
        Err(e) => e.to_string(),
        Ok(m) => m
            .open_all(session)
            .map_or_else(|e| e.to_string(), |_| "ready".to_owned()),
    };
    let manifest = manifest.ok();
    Row {
        state,
        memory: Memory::Here(whereabouts(&name)),
        tasks: manifest.as_ref().map(|m| m.tasks.len()),
        pages: manifest.as_ref().map_or(0, Manifest::pages),
        comm: manifest
            .as_ref()
            .and_then(|m| m.tasks.first())
            .map(|t| t.comm.clone()),
        created: manifest.map(|m| m.header.created),
        images: Some(path),
        name,
    }
}

fn whereabouts(name: &Name) -> Whereabouts {
    Whereabouts::of(&store::stat_vases(name).unwrap_or_default())
}

/// `vascriu ls`.
pub fn ls(json: bool) -> anyhow::Result<ExitCode> {
    let session = Session::open()?;
    let store = Store::open()?;
    store.recover()?;
    let names = store.names()?;
    let elsewhere: Vec<Row> = session
        .stored()?
        .iter()
        .filter_map(|s| Some(stored_row(s.name.parse().ok()?, s)))
        .filter(|r| !names.contains(&r.name))
        .collect();
    let here = names.into_iter().map(|n| row(&store, &session, n));
    let mut rows: Vec<Row> = here.chain(elsewhere).collect();
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    if json {
        print_json(&rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    let width = rows
        .iter()
        .map(|r| r.name.as_str().len())
        .max()
        .unwrap_or(0)
        .max(4);
    println!(
        "{:width$}  {:>5}  {:>10}  {:15}  STATE",
        "NAME", "TASKS", "MEMORY", "ROOT"
    );
    for r in rows {
        let (comm, memory) = (r.comm.unwrap_or_default(), mib(r.pages));
        let tasks = r.tasks.map_or_else(|| "-".to_owned(), |n| n.to_string());
        println!(
            "{:width$}  {tasks:>5}  {memory:>10}  {comm:15}  {}, {}",
            r.name, r.state, r.memory
        );
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Serialize)]
struct Detail {
    #[serde(flatten)]
    header: Header,
    #[serde(flatten)]
    memory: Memory,
    images: PathBuf,
    tasks: Vec<TaskDetail>,
}

#[derive(Debug, Serialize)]
struct TaskDetail {
    #[serde(flatten)]
    task: Task,
    /// What the kernel says of the VAS now; none where it is gone.
    stat: Option<Stat>,
    ranges: Vec<Range>,
}

/// `vascriu show`.
pub fn show(name: &Name, json: bool) -> anyhow::Result<ExitCode> {
    let session = Session::open()?;
    let store = Store::open()?;
    if !store.has(name) {
        let stored = session.stored()?;
        if let Some(s) = stored.iter().find(|s| s.name == name.as_str()) {
            return show_stored(stored_row(name.clone(), s), json);
        }
    }
    let images = store.images(name)?;
    let manifest = Manifest::load(&images)?;
    let detail = |task: Task| {
        let vas = session.vas(task.vas, VAS_ACCESS_READ).ok();
        let stat = vas.as_ref().and_then(|v| v.stat().ok());
        let ranges = vas.and_then(|v| v.ranges().ok()).unwrap_or_default();
        TaskDetail { task, stat, ranges }
    };
    let tasks = manifest.tasks.into_iter().map(detail).collect();
    let all = Detail {
        header: manifest.header,
        memory: Memory::Here(whereabouts(name)),
        images,
        tasks,
    };
    if json {
        print_json(&all)?;
        return Ok(ExitCode::SUCCESS);
    }
    println!("{name}: {}, images in {}", all.memory, all.images.display());
    println!(
        "{:>8}  {:15}  {:>6}  {:>10}  {:>10}  {:>8}",
        "PID", "COMMAND", "VAS", "MEMORY", "HUGE", "ATTACHES"
    );
    for TaskDetail { task: t, stat, .. } in all.tasks {
        let attaches = stat.map_or("gone".to_owned(), |s| s.attaches.to_string());
        let (memory, huge) = (mib(t.pages + t.swap_pages), mib(t.huge_pages));
        println!(
            "{:>8}  {:15}  {:>6}  {memory:>10}  {huge:>10}  {attaches:>8}",
            t.vpid, t.comm, t.vas
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn show_stored(row: Row, json: bool) -> anyhow::Result<ExitCode> {
    if json {
        print_json(&row)?;
    } else {
        println!(
            "{}: {}, {}; `vascriu restore {0}` brings it here",
            row.name,
            row.memory,
            mib(row.pages)
        );
    }
    Ok(ExitCode::SUCCESS)
}
