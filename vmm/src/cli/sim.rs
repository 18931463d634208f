// SPDX-License-Identifier: GPL-2.0-only
//! `mvasvm sim`.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mvas_agent::protocol::{Exec, OsText};
use mvasvm::config::MemSize;

use super::args::SimArgs;
use super::guest::run_in_guest;
use super::guest::{is_interactive, signals};
use super::paths;
use crate::sim::{Ended, Share, SimConfig, SimHost, is_hidden};

pub(super) fn run(args: SimArgs) -> Result<u8> {
    let cwd = env::current_dir().context("cannot tell the current folder")?;
    let work = work_folder(args.work.as_deref(), &cwd)?;
    let config = SimConfig {
        kernel: paths::kernel(args.kernel.as_deref())?,
        mem: match args.mem {
            Some(mem) => mem,
            None => default_mem()?,
        },
        cpus: args.cpus,
        shares: shares(work, paths::cache()),
        boot_timeout: Duration::from_secs(args.boot_timeout),
        console: args.console,
    };
    // Before any thread is started.
    let signals = signals()?;
    let mut host = SimHost::start(&config)?;
    let channel = match host.wait_booted(&signals)? {
        Ok(channel) => channel,
        Err(Ended(code)) => return Ok(code),
    };
    let mut exec = Exec::new(args.command);
    exec.env = environment();
    exec.clear_env = true;
    exec.cwd = Some(OsText::from(cwd));
    let end = channel
        .with(|session| run_in_guest(session, exec, is_interactive(), &signals))
        .map_err(|error| host.explain(error))?;
    host.stop();
    Ok(end.exit_code())
}

/// The work folder, and what `mvasvm` needs there if the simulated host would not see it.
fn shares(work: Option<PathBuf>, cache: Option<PathBuf>) -> Vec<Share> {
    let cache = cache.filter(|cache| is_hidden(cache) && cache.is_dir());
    let cache = cache.filter(|cache| !work.as_ref().is_some_and(|work| cache.starts_with(work)));
    let read_only = |path| Share {
        path,
        writable: false,
    };
    let mut shares: Vec<Share> = cache.map(read_only).into_iter().collect();
    shares.extend(work.map(Share::writable));
    // An outer folder must not be mounted over an inner one.
    shares.sort_by(|a, b| a.path.cmp(&b.path));
    shares
}

/// The current folder, where it is not the whole host.
fn work_folder(asked: Option<&Path>, cwd: &Path) -> Result<Option<PathBuf>> {
    let work = match asked {
        None if cwd == Path::new("/") => return Ok(None),
        None => cwd,
        Some(asked) => asked,
    };
    let work = work
        .canonicalize()
        .with_context(|| format!("there is no work folder {}", work.display()))?;
    if !work.is_dir() || work == Path::new("/") {
        bail!("{} cannot be the work folder", work.display());
    }
    Ok(Some(work))
}

/// This process's environment, without what names folders that are another's there.
pub(super) fn environment() -> Vec<(OsText, OsText)> {
    env::vars_os()
        .filter(|(name, _)| name != "TMPDIR" && name != "XDG_RUNTIME_DIR")
        .map(|(name, value)| (OsText::from(name), OsText::from(value)))
        .chain([(OsText::from("MVAS_SIM"), OsText::from("1"))])
        .collect()
}

/// Three quarters of what is available. It is sparse: only what is used there is taken here.
pub(super) fn default_mem() -> Result<MemSize> {
    let available = crate::doctor::mem_available()
        .context("cannot tell the available memory: say how much with --mem")?;
    let bytes = available / 4 * 3 / MemSize::BLOCK * MemSize::BLOCK;
    MemSize::from_bytes(bytes).context("too little memory is available")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_that_would_be_hidden_is_shared_once() {
        // In /tmp, of which a simulated host has its own.
        let folder = tempfile::tempdir_in("/tmp").expect("a folder");
        let cache = folder.path().to_owned();
        let of = |work: &str| {
            let shares = shares(Some(work.into()), Some(cache.clone()));
            let paths = shares.into_iter().map(|share| (share.path, share.writable));
            paths.collect::<Vec<_>>()
        };
        let work = PathBuf::from("/work");
        assert_eq!(of("/work"), [(cache.clone(), false), (work.clone(), true)]);
        assert_eq!(of("/tmp"), [(PathBuf::from("/tmp"), true)]);
        assert_eq!(shares(Some(work), Some("/usr".into())).len(), 1);
    }
}
