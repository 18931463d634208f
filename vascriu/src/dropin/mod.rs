// SPDX-License-Identifier: GPL-2.0-only
//! The drop-in: vascriu under the name `criu`, in front of the stock CRIU.
//!
//! A dump or restore, on the command line ([`command`]) or over an engine's socket
//! ([`swrk`]), is made ready as `vascriu dump` and `vascriu restore` would ([`job`]); then
//! this process becomes the stock CRIU, with a process beside it ([`aside`]) where something
//! is left to do. Everything else is the stock CRIU's.

pub mod aside;
pub mod command;
pub mod config;
pub mod job;
pub mod relay;
pub mod request;
pub mod swrk;

use std::ffi::{CStr, OsStr, OsString};
use std::os::fd::{IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::criu::order::{self, Order};
use crate::criu::run::libdir;
use crate::criu::version;
use crate::engine::export::Export;
use crate::engine::{self, Engine, switch};

/// The name that makes this program the drop-in.
pub const NAME: &str = "criu";

/// Whether a program that was called by this name is the drop-in.
#[must_use]
pub fn is_called(program: &OsStr) -> bool {
    Path::new(program).file_name() == Some(OsStr::new(NAME))
}

/// Does what `criu` is asked to do; `args` are those behind its name.
#[must_use]
pub fn run(args: &[OsString]) -> ExitCode {
    let words: Vec<_> = args.iter().filter_map(|a| a.to_str()).collect();
    match words[..] {
        ["swrk", socket] => match socket.parse() {
            Ok(socket) => swrk::serve(socket, args),
            Err(_) => become_criu(criu(args.iter().cloned())),
        },
        _ => command::run(args),
    }
}

/// Whether dumps of this process are ours. Under the name that `vascriu enable` made, which
/// all engines find, they are for those engines that it was said for. Whoever calls us by
/// another path has chosen. An export that is to carry the memory never is.
fn is_wanted(pid: i32, client: Option<i32>) -> bool {
    let (engine, _) = engine::of(pid, client);
    let is_on = || engine.is_some_and(switch::is_on);
    export(engine, client) != Some(Export::Memory)
        && (started_as() != Path::new(switch::LINK) || is_on())
}

/// What comes of a checkpoint that `client` asks for, if it is one of Podman's exports.
fn export(engine: Option<Engine>, client: Option<i32>) -> Option<Export> {
    client
        .filter(|_| engine == Some(Engine::Podman))
        .and_then(engine::export::of)
}

/// The path that this program was started by, before links.
fn started_as() -> PathBuf {
    // SAFETY: getauxval takes an integer and touches no memory.
    let name = unsafe { libc::getauxval(libc::AT_EXECFN) };
    let Some(name) = usize::try_from(name).ok().filter(|&n| n != 0) else {
        return PathBuf::new();
    };
    // SAFETY: the kernel has put a string there that lives as long as the process.
    let name = unsafe { CStr::from_ptr(std::ptr::with_exposed_provenance(name)) };
    OsStr::from_bytes(name.to_bytes()).into()
}

/// The stock CRIU with these arguments.
fn criu(args: impl IntoIterator<Item = OsString>) -> Command {
    let mut command =
        Command::new(version::program().unwrap_or_else(|_| Path::new(version::USUAL).join(NAME)));
    command.arg0(NAME).args(args).env_remove(order::ENV);
    command
}

/// CRIU with our plugin and this order, which gets the numbers of what CRIU inherits; `args`
/// are those behind CRIU's name.
fn criu_with_plugin(
    mut order: Order,
    report: Option<OwnedFd>,
    reference: Option<OwnedFd>,
    args: Vec<OsString>,
) -> Result<Command, order::Error> {
    let [report, reference] = [report, reference].map(|fd| fd.map(inherited));
    match &mut order {
        Order::Dump(dump) => {
            dump.report = report;
            dump.reference_dir = reference;
        }
        Order::Restore(restore) => restore.report = report,
    }
    let plugin = ["--libdir".into(), libdir().into_os_string()];
    let mut command = criu(plugin.into_iter().chain(args));
    order.give(&mut command)?;
    Ok(command)
}

/// Becomes CRIU; returns only where that fails.
fn become_criu(mut command: Command) -> ExitCode {
    let failed = command.exec();
    eprintln!(
        "vascriu: cannot run the stock CRIU, {}: {failed}; is the package `criu` installed?",
        command.get_program().display()
    );
    ExitCode::FAILURE
}

/// Has the program that this process becomes inherit the descriptor; its number.
fn inherited(fd: OwnedFd) -> RawFd {
    // It cannot fail on a descriptor that is open; not inherited, CRIU's plugin refuses it.
    let _ = fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty()));
    fd.into_raw_fd()
}
