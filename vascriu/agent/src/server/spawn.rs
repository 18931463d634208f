// SPDX-License-Identifier: GPL-2.0-only
//! Starts a command: environment, user, folder, pipes or a terminal.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::pty::{OpenptyResult, openpty};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Group, Uid, User, fchown, getgrouplist};

use super::Failure;
use crate::protocol::{Exec, FailureKind, WindowSize};

/// Where commands are looked for when nobody says otherwise.
pub(crate) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A started command and our ends of its streams.
pub(super) struct Spawned {
    pub child: Child,
    pub pidfd: OwnedFd,
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    /// None on a terminal.
    pub stderr: Option<OwnedFd>,
    /// The terminal, if it has one: for its size.
    pub terminal: Option<File>,
}

pub(super) fn spawn(exec: &Exec) -> Result<Spawned, Failure> {
    let (program, args) = exec
        .argv
        .split_first()
        .ok_or_else(|| Failure::new(FailureKind::BadRequest, "no command given"))?;
    let mut command = Command::new(program.as_os_str());
    command.args(args.iter().map(|arg| arg.as_os_str()));
    if exec.clear_env {
        command.env_clear();
    }
    let user = exec.user.as_deref().map(find_user).transpose()?;
    if let Some(user) = &user {
        command.env("HOME", &user.home);
        if let Some(name) = &user.name {
            command.env("USER", name);
        }
        become_user(&mut command, user);
    }
    command.envs(
        exec.env
            .iter()
            .map(|(name, value)| (name.as_os_str(), value.as_os_str())),
    );
    let cwd = match (&exec.cwd, &user) {
        (Some(cwd), _) => Some(PathBuf::from(cwd.as_os_str())),
        (None, Some(user)) => Some(user.home.clone()),
        (None, None) => None,
    };
    if let Some(cwd) = &cwd {
        if !cwd.is_dir() {
            return Err(Failure::new(
                FailureKind::Os,
                format!("the working folder {} does not exist", cwd.display()),
            ));
        }
        command.current_dir(cwd);
    }
    // SAFETY: sigprocmask is async-signal-safe and touches the child's stack only.
    unsafe { command.pre_exec(unblock_signals) };
    let started = match exec.tty {
        Some(size) => on_terminal(command, size, user.as_ref()),
        None => on_pipes(command),
    };
    started.map_err(|error| not_started(program, &error))
}

/// A new process inherits the set of blocked signals; a command is to start with none.
pub(crate) fn unblock_signals() -> io::Result<()> {
    nix::sys::signal::SigSet::empty().thread_set_mask()?;
    Ok(())
}

/// Who a command becomes.
struct Account {
    /// A number needs no name.
    name: Option<String>,
    home: PathBuf,
    uid: Uid,
    gid: Gid,
    groups: Vec<libc::gid_t>,
}

/// A user by name or number, in a group of its own or behind a colon: as images name them.
fn find_user(text: &str) -> Result<Account, Failure> {
    let refused = |why: String| Failure::new(FailureKind::BadRequest, why);
    let os = |why: String| Failure::new(FailureKind::Os, why);
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let number = user.parse().ok().map(Uid::from_raw);
    let known = match (found(User::from_name(user)), number) {
        (Ok(None), Some(uid)) => found(User::from_uid(uid)),
        (known, _) => known,
    };
    let known = known.map_err(|e| os(format!("cannot look up user {user:?}: {e}")))?;
    let mut account = match (known, number) {
        (Some(user), _) => Account {
            groups: groups_of(&user).map_err(os)?,
            name: Some(user.name),
            home: user.dir,
            uid: user.uid,
            gid: user.gid,
        },
        (None, Some(uid)) => Account {
            name: None,
            home: PathBuf::from("/"),
            uid,
            gid: Gid::from_raw(0),
            groups: Vec::new(),
        },
        (None, None) => return Err(refused(format!("there is no user {user:?}"))),
    };
    if let Some(group) = group {
        let known = found(Group::from_name(group))
            .map_err(|e| os(format!("cannot look up group {group:?}: {e}")))?;
        let number = || group.parse().ok().map(Gid::from_raw);
        let gid = known.map(|known| known.gid).or_else(number);
        account.gid = gid.ok_or_else(|| refused(format!("there is no group {group:?}")))?;
        account.groups = vec![account.gid.as_raw()];
    }
    Ok(account)
}

/// An image without /etc/passwd or /etc/group has none there.
fn found<T>(looked_up: nix::Result<Option<T>>) -> nix::Result<Option<T>> {
    match looked_up {
        Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
        other => other,
    }
}

fn groups_of(user: &User) -> Result<Vec<libc::gid_t>, String> {
    let name = CString::new(user.name.as_str()).map_err(|e| e.to_string())?;
    let groups = getgrouplist(&name, user.gid)
        .map_err(|e| format!("cannot look up the groups of {}: {e}", user.name))?;
    Ok(groups.into_iter().map(Gid::as_raw).collect())
}

fn become_user(command: &mut Command, user: &Account) {
    let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
    let groups = user.groups.clone();
    // Not by `Command::uid`: it drops all groups, and leaves no moment to set ours.
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. These are bare
    // system calls on memory allocated before the fork; glibc's wrappers would also reach
    // for threads that the child does not have.
    unsafe {
        command.pre_exec(move || {
            if libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) == 0
                && libc::syscall(libc::SYS_setgid, gid) == 0
                && libc::syscall(libc::SYS_setuid, uid) == 0
            {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            }
        });
    }
}

fn not_started(program: &crate::protocol::OsText, error: &io::Error) -> Failure {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => FailureKind::CommandNotFound,
        io::ErrorKind::OutOfMemory => FailureKind::Os,
        _ => FailureKind::CommandNotRunnable,
    };
    Failure::new(kind, format!("cannot run {program}: {error}"))
}

fn on_pipes(mut command: Command) -> io::Result<Spawned> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own, so that signals reach all of a pipeline.
        .process_group(0);
    let mut child = command.spawn()?;
    Ok(Spawned {
        pidfd: pidfd(&child)?,
        stdin: child.stdin.take().map(OwnedFd::from),
        stdout: child.stdout.take().map(OwnedFd::from),
        stderr: child.stderr.take().map(OwnedFd::from),
        terminal: None,
        child,
    })
}

fn on_terminal(
    mut command: Command,
    size: WindowSize,
    user: Option<&Account>,
) -> io::Result<Spawned> {
    let OpenptyResult { master, slave } = openpty(Some(&winsize(size)), None)?;
    if let Some(user) = user {
        fchown(&slave, Some(user.uid), None)?;
    }
    fchmod(&slave, Mode::S_IRUSR | Mode::S_IWUSR | Mode::S_IWGRP)?;
    // Not for the command: it would keep its own terminal open.
    set_cloexec(&master)?;
    command
        .stdin(slave.try_clone()?)
        .stdout(slave.try_clone()?)
        .stderr(slave);
    // SAFETY: setsid and ioctl are async-signal-safe and touch no memory of ours.
    unsafe {
        command.pre_exec(|| {
            if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let child = command.spawn()?;
    Ok(Spawned {
        pidfd: pidfd(&child)?,
        stdin: Some(master.try_clone()?),
        stdout: Some(master.try_clone()?),
        stderr: None,
        terminal: Some(master.into()),
        child,
    })
}

fn winsize(size: WindowSize) -> libc::winsize {
    libc::winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// Tells the terminal its new size; its foreground job gets a SIGWINCH from the kernel.
pub(super) fn resize(terminal: &File, size: WindowSize) {
    let size = winsize(size);
    // SAFETY: TIOCSWINSZ reads one winsize, which lives on our stack. A terminal whose other
    // side is gone refuses, and nobody is left to care.
    unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
}

fn set_cloexec(fd: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(())
}

fn pidfd(child: &Child) -> io::Result<OwnedFd> {
    // SAFETY: plain system call; a child that was not waited for keeps its id.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor, nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
