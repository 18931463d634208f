// SPDX-License-Identifier: GPL-2.0-only
//! `vascriu fork`.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use serde::Serialize;

use super::clone::{self, Cloned, How};
use super::{dump, forget, print_json};
use crate::clone::inside;
use crate::snapshot::name::Name;

const EXAMPLES: &str = "\
Examples:
  vascriu fork -t 1234                      one copy of a tree that goes on
  vascriu fork -t 1234 -n 20 --net none     each with a loopback of its own
  vascriu fork -t 1234 -n 20 --name warm    and more later: `vascriu clone warm -n 20`";

/// Copy a running tree, which goes on: a snapshot and its clones in one step
///
/// Each copy runs in namespaces of its own, as `vascriu clone` makes them.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// PID of the root of the tree
    #[arg(short = 't', long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    tree: i32,
    /// How many copies
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Keep the snapshot under this name; without one it goes when the copies run
    #[arg(long)]
    name: Option<Name>,
    #[command(flatten)]
    how: How,
}

/// What was made.
#[derive(Debug, Serialize)]
struct Forked {
    #[serde(flatten)]
    cloned: Cloned,
    /// The tree stood still.
    frozen_ms: f64,
    /// The whole dump.
    dump_ms: f64,
}

fn fork(args: &Args, options: &[String], start: Instant) -> anyhow::Result<ExitCode> {
    // Of a copy's task, too, copies are made here: they are no part of that copy.
    let dumped = inside(args.tree, |tree| {
        let args = dump::Args::of(tree, args.name.clone(), true);
        Ok(dump::dump(&args, options, start)?)
    })?;
    let copies = clone::Args::of(dumped.snapshot, args.count, args.how.clone());
    let cloned = clone::clone(&copies, options, Instant::now());
    if args.name.is_none() {
        // The copies keep what they share.
        forget(dumped.snapshot);
    }
    let forked = Forked {
        cloned: cloned?,
        frozen_ms: dumped.frozen_ms,
        dump_ms: dumped.dump_ms,
    };
    if args.how.json {
        print_json(&forked)?;
    } else {
        println!("{} stood still for {:.0} ms", args.tree, forked.frozen_ms);
    }
    Ok(clone::tell_failures(&copies, &forked.cloned))
}

/// Runs the command, with these options for CRIU.
///
/// # Errors
/// There is no copy; the tree goes on, unless it says otherwise.
pub fn run(args: &Args, options: &[String], start: Instant) -> anyhow::Result<ExitCode> {
    fork(args, options, start).with_context(|| format!("cannot fork {}", args.tree))
}
