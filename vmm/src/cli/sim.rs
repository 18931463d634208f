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
use crate::sim::{Ended, Share, SimConfig, SimHost};

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
        shares: work.into_iter().map(Share::writable).collect(),
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
