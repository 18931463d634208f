// SPDX-License-Identifier: GPL-2.0-only
//! `vascriu prune`.

use std::collections::{HashMap, HashSet};
use std::process::ExitCode;

use super::ls;
use crate::engine::checkpoints::{KNOWN, referenced_ids};
use crate::snapshot::entry::Entry;
use crate::snapshot::id::SnapshotId;
use crate::snapshot::label::{Label, now};
use crate::snapshot::registry::Registry;
use crate::text;

const EXAMPLES: &str = "\
Examples:
  vascriu prune                               what has expired
  vascriu prune --older-than 7d --keep 3      old ones, but never the last three of a name
  vascriu prune --older-than 7d --keep 3 --yes
  vascriu prune --unreferenced                after `docker checkpoint rm`, `podman rm`";

/// Remove snapshots by rule, here and in the snapshot store. Shows which those are; removes
/// them with --yes only. With several rules, those go that all of them let go; what has
/// expired always goes
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Those that were dumped 90s, 15m, 2h, 7d ago or earlier
    #[arg(long, value_name = "TIME", value_parser = text::parse_duration)]
    older_than: Option<u64>,
    /// All but the newest N of each series: of those that were dumped under one name, or from
    /// one container
    #[arg(long, value_name = "N")]
    keep: Option<usize>,
    /// Those of Docker's, Podman's and containerd's containers that no checkpoint of these
    /// engines refers to any more. One that was exported into a file does not count
    #[arg(long)]
    unreferenced: bool,
    /// Remove them
    #[arg(long)]
    yes: bool,
}

/// What may go.
#[derive(Debug, Default)]
struct Rules {
    /// What was dumped by then, in seconds since the epoch.
    before: Option<u64>,
    /// All but so many of a series.
    keep: Option<usize>,
    /// What comes from an engine whose references we find, but is none of these.
    referenced: Option<HashSet<SnapshotId>>,
}

/// How many of its series are newer than each of these, which begin with the oldest; nothing
/// of what is in no series.
fn newer(list: &[Entry]) -> Vec<Option<usize>> {
    let mut seen: HashMap<(&str, &str), usize> = HashMap::new();
    let mut counts: Vec<_> = list
        .iter()
        .rev()
        .map(|e| {
            let engine = e.label.as_ref()?.origin.engine.as_str();
            let count = seen.entry((engine, e.series()?)).or_default();
            *count += 1;
            Some(*count - 1)
        })
        .collect();
    counts.reverse();
    counts
}

/// Whether the rules let a snapshot go of whose series `newer` ones are there.
fn goes(rules: &Rules, entry: &Entry, newer: Option<usize>) -> bool {
    if entry.label.as_ref().is_some_and(Label::has_expired) {
        return true;
    }
    // Of the others nobody knows where their references are.
    let is_engines = |e: &Entry| {
        let engine = e.label.as_ref().map(|l| l.origin.engine.as_str());
        KNOWN.iter().any(|k| Some(k.as_str()) == engine)
    };
    let verdicts = [
        rules.before.map(|b| entry.created() <= b),
        rules.keep.map(|k| newer.is_some_and(|n| n >= k)),
        rules
            .referenced
            .as_ref()
            .map(|r| is_engines(entry) && !r.contains(&entry.id)),
    ];
    let mut given = verdicts.iter().flatten().peekable();
    given.peek().is_some() && given.all(|&v| v)
}

fn select(rules: &Rules, list: Vec<Entry>) -> Vec<Entry> {
    let newer = newer(&list);
    let all = list.into_iter().zip(newer);
    all.filter(|(e, n)| goes(rules, e, *n))
        .map(|(e, _)| e)
        .collect()
}

/// Runs the command.
///
/// # Errors
/// `/dev/vas` is not usable.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut rules = Rules {
        before: args.older_than.map(|s| now().saturating_sub(s)),
        keep: args.keep,
        referenced: None,
    };
    let registry = Registry::open()?;
    // The list goes first: what is dumped from now on is in no danger.
    let list = registry.list()?;
    if args.unreferenced {
        rules.referenced = Some(referenced_ids()?);
    }
    let selected = select(&rules, list);
    if selected.is_empty() {
        println!("nothing to remove");
        return Ok(ExitCode::SUCCESS);
    }
    print!("{}", ls::list(&selected));
    if !args.yes {
        println!("nothing was removed: `--yes` removes these");
        return Ok(ExitCode::SUCCESS);
    }
    let mut code = ExitCode::SUCCESS;
    for entry in selected {
        if let Err(e) = registry.remove(entry.id, false) {
            eprintln!(
                "vascriu: cannot remove {entry}: {:#}",
                anyhow::Error::from(e)
            );
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::label::Origin;

    /// As the store knows it.
    fn entry(series: Option<&str>, created: u64, engine: &str) -> Entry {
        let origin = Origin {
            engine: engine.into(),
            container: None,
            id: None,
        };
        let mut label = Label::new(series.map(|n| n.parse().expect("a name")), origin);
        label.created = created;
        Entry::in_store(SnapshotId::random(), label)
    }

    fn created(entries: &[Entry]) -> Vec<u64> {
        entries.iter().map(Entry::created).collect()
    }

    #[test]
    fn without_a_rule_only_what_has_expired_goes() {
        let mut expired = entry(None, 2, "process");
        if let Some(label) = &mut expired.label {
            label.expires = Some(1);
        }
        let list = vec![entry(Some("a"), 1, "process"), expired];
        assert_eq!(created(&select(&Rules::default(), list)), [2]);
    }

    #[test]
    fn the_newest_of_each_series_are_kept_and_what_is_in_none() {
        let list = vec![
            entry(Some("a"), 1, "process"),
            entry(Some("a"), 2, "docker"),
            entry(None, 3, "process"),
            entry(Some("b"), 4, "process"),
            entry(Some("a"), 5, "process"),
            entry(Some("a"), 6, "process"),
        ];
        let rules = Rules {
            keep: Some(1),
            ..Rules::default()
        };
        assert_eq!(created(&select(&rules, list.clone())), [1, 5]);
        let rules = Rules {
            before: Some(4),
            ..rules
        };
        assert_eq!(
            created(&select(&rules, list)),
            [1],
            "all rules must let it go"
        );
    }

    #[test]
    fn of_engines_what_nothing_refers_to_goes() {
        let list = vec![
            entry(None, 1, "docker"),
            entry(None, 2, "docker"),
            entry(None, 3, "process"),
            entry(None, 4, "runc"),
        ];
        let rules = Rules {
            referenced: Some(HashSet::from([list[1].id])),
            ..Rules::default()
        };
        assert_eq!(created(&select(&rules, list)), [1]);
    }
}
