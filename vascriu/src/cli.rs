// SPDX-License-Identifier: GPL-2.0-only
//! What the `vascriu` command can be asked.

use clap::{Parser, Subcommand};

use crate::cmd::{
    check, clone, drain, dump, enable, evict, fork, gc, ls, prune, rename, restore, rm, rollback,
    serve, show,
};

/// In-memory snapshots of processes and containers: CRIU, with the memory kept
/// in DRAM by the kernel (VAS) instead of copied to files
#[derive(Debug, Parser)]
#[command(name = "vascriu", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  vascriu dump -t 1234 --name web          snapshot the tree of 1234 and end it
  vascriu dump -t 1234 --leave-running     … and let it go on
  vascriu restore web -d                   bring it back, and return
  vascriu restore web                      … and wait for it, again and again
  vascriu clone web -n 20                  … and many times at once
  vascriu fork -t 1234 -n 20               copies of what runs
  vascriu rollback web                     what runs is again what it was
  vascriu ls; vascriu show web; vascriu rm web

Where the microVM has a snapshot store (`vascriu check`), a dump goes there in the background.

CRIU's own options go to CRIU: `vascriu dump -t 1234 --tcp-established -v4 -o /tmp/log`;
what follows `--` goes there unseen.";

/// A command: each has a module in [`crate::cmd`].
#[derive(Debug, Subcommand)]
#[allow(missing_docs)] // there
pub enum Command {
    Dump(dump::Args),
    Restore(restore::Args),
    Clone(clone::Args),
    Fork(fork::Args),
    Rollback(rollback::Args),
    Ls(ls::Args),
    Show(show::Args),
    Rename(rename::Args),
    Rm(rm::Args),
    Prune(prune::Args),
    Evict(evict::Args),
    Drain(drain::Args),
    Check(check::Args),
    Enable(enable::Enable),
    Disable(enable::Disable),
    Gc(gc::Args),
    Serve(serve::Args),
    #[command(after_help = "Example:
  vascriu completions bash > /etc/bash_completion.d/vascriu")]
    Completions(mvas_cli::Completions),
}
