// SPDX-License-Identifier: GPL-2.0-only
//! The process beside CRIU. The process that was started as `criu` must become CRIU, for
//! its parent waits for it and restored tasks are to be its siblings or children. What comes
//! before, meanwhile and after is done by a process beside it: a grandchild, so that CRIU
//! has no child that it does not know.
//!
//! It holds nothing of the engine's but what it is given: an engine waits for the ends of
//! pipes. It leaves the cgroup of a container that is being restored, whose limits and
//! device filter are not for it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, setsid};
use serde::{Deserialize, Serialize};

use crate::criu::order::Order;
use crate::process;
use crate::socket::{self, Message};

/// Why there is no word.
const KILLED: &str = "the process of vascriu beside CRIU was killed";

/// What the process beside tells the one that waits to become CRIU.
#[derive(Debug, Serialize, Deserialize)]
pub enum Word {
    /// Become CRIU, with this order for the plugin; what it names by numbers comes with it.
    Become(Order),
    /// End as CRIU does when it fails, for this reason.
    Fail(String),
}

/// What comes with [`Word::Become`].
#[derive(Debug)]
pub struct Given<T> {
    /// Where the plugin reports.
    pub report: Option<T>,
    /// The directory that gets a reference.
    pub reference: Option<T>,
    /// CRIU's end of the connection.
    pub socket: Option<T>,
}

impl<T> Default for Given<T> {
    fn default() -> Self {
        Self {
            report: None,
            reference: None,
            socket: None,
        }
    }
}

/// Where the process beside gives its word.
#[derive(Debug)]
pub struct Speaker(OwnedFd);

impl Speaker {
    /// Gives the word, and descriptors with it.
    ///
    /// # Errors
    /// The other process is gone.
    pub fn say(self, word: &Word, given: &Given<BorrowedFd<'_>>) -> io::Result<()> {
        let all = [given.report, given.reference, given.socket];
        let text = serde_json::to_vec(&(word, all.map(|fd| fd.is_some())))?;
        let fds: Vec<_> = all.into_iter().flatten().collect();
        socket::send(self.0.as_fd(), &text, &fds)
    }
}

/// Where the process that becomes CRIU waits.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    /// Waits for the word; [`Word::Fail`], if the process beside ended without one.
    #[must_use]
    pub fn listen(self) -> (Word, Given<OwnedFd>) {
        match socket::receive(self.0.as_fd(), true) {
            Ok(Some(message)) => hear(message),
            _ => (Word::Fail(KILLED.into()), Given::default()),
        }
    }
}

fn hear(Message { bytes, fds }: Message) -> (Word, Given<OwnedFd>) {
    let (word, there) = match serde_json::from_slice::<(Word, [bool; 3])>(&bytes) {
        Ok(heard) => heard,
        Err(e) => return (Word::Fail(e.to_string()), Given::default()),
    };
    let mut fds = fds.into_iter();
    let [report, reference, socket] = there.map(|there| there.then(|| fds.next()).flatten());
    let given = Given {
        report,
        reference,
        socket,
    };
    (word, given)
}

/// Starts the process beside, which runs `work` and ends. Of the descriptors it has only
/// `keep`: `work` uses no other. `client` is whose cgroup it enters.
///
/// # Errors
/// The kernel's.
pub fn start(
    mut keep: Vec<RawFd>,
    client: i32,
    work: impl FnOnce(Speaker),
) -> io::Result<Listener> {
    let (ours, theirs) = socket::pair()?;
    // SAFETY: this program has one thread when it is run as `criu`, so the child may do
    // whatever its parent could.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            // An engine that has SIGCHLD ignored leaves us nothing to wait for.
            let _ = waitpid(child, None);
            Ok(Listener(ours))
        }
        ForkResult::Child => {
            // SAFETY: as above.
            if let Ok(ForkResult::Child) = unsafe { fork() } {
                drop(ours);
                keep.push(theirs.as_raw_fd());
                shed(keep);
                enter_cgroup_of(client);
                work(Speaker(theirs));
            }
            // SAFETY: ends the process without the clean-up that is its parent's.
            unsafe { libc::_exit(0) }
        }
    }
}

/// Lets everything go that is not to be kept: descriptors, standard streams, the session.
fn shed(mut keep: Vec<RawFd>) {
    let _ = setsid();
    let streams: Vec<RawFd> = (0..=2).filter(|fd| !keep.contains(fd)).collect();
    keep.extend(&streams);
    keep.sort_unstable();
    for gap in gaps(&keep) {
        // SAFETY: closes numbers that nothing in this process goes on to use: it has only
        // been forked, and uses what it was told to keep.
        unsafe { libc::close_range(*gap.start(), *gap.end(), 0) };
    }
    if let Ok(null) = fs::File::options().read(true).write(true).open("/dev/null") {
        for stream in streams {
            // SAFETY: replaces a standard stream by a descriptor that is open.
            unsafe { libc::dup2(null.as_raw_fd(), stream) };
        }
    }
}

/// The numbers between those of `keep`, which is sorted, and after them.
fn gaps(keep: &[RawFd]) -> Vec<std::ops::RangeInclusive<u32>> {
    let mut gaps = Vec::new();
    let mut next = 0;
    for fd in keep.iter().filter_map(|&fd| u32::try_from(fd).ok()) {
        if fd > next {
            gaps.push(next..=fd - 1);
        }
        next = fd + 1;
    }
    gaps.push(next..=u32::MAX);
    gaps
}

/// Where cgroup v2 is.
pub(crate) const CGROUPS: &str = "/sys/fs/cgroup";

/// The group of a process in the one hierarchy of cgroup v2, as its directory.
#[must_use]
pub fn cgroup(pid: &str) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|l| l.strip_prefix("0::/"))?;
    Some(Path::new(CGROUPS).join(path))
}

/// The group with this directory, as the kernel calls it.
#[must_use]
pub fn group(directory: &Path) -> Option<String> {
    let path = directory.strip_prefix(CGROUPS).ok()?.to_str()?;
    Some(format!("/{path}"))
}

/// Moves this process to the cgroup of `client`. Where that is not possible, what the
/// group forbids fails later, with its reason.
fn enter_cgroup_of(client: i32) {
    let theirs = cgroup(&client.to_string());
    if theirs != cgroup("self")
        && let Some(group) = theirs
    {
        let _ = fs::write(group.join("cgroup.procs"), "0");
    }
}

/// Kills what has come into a group and those below it since `since`, in clock ticks: what a
/// CRIU that was killed has left half restored. It would wait for that CRIU for ever.
pub fn kill_newer(group: &Path, since: u64) {
    loop {
        let is_newer = |pid: &i32| {
            let started = process::started(*pid);
            started.is_ok_and(|s| s >= since) && !process::is_ending(*pid)
        };
        let left: Vec<i32> = members(group).into_iter().filter(is_newer).collect();
        if left.is_empty() {
            return;
        }
        for pid in left {
            // SAFETY: kill takes two integers.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
}

/// The processes in a group and in those below it.
fn members(group: &Path) -> Vec<i32> {
    let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<i32> = procs.lines().filter_map(|l| l.parse().ok()).collect();
    for entry in group.read_dir().into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            pids.extend(members(&entry.path()));
        }
    }
    pids
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criu::order;
    use crate::snapshot::id::SnapshotId;

    #[test]
    fn everything_but_what_is_kept_is_closed() {
        assert_eq!(gaps(&[0, 1, 2, 5, 6, 9]), [3..=4, 7..=8, 10..=u32::MAX]);
        assert_eq!(gaps(&[1]), [0..=0, 2..=u32::MAX]);
    }

    #[test]
    fn a_word_arrives_with_its_descriptors() {
        let (ours, theirs) = socket::pair().expect("pair");
        let order = Order::Restore(order::Restore {
            id: SnapshotId::random(),
            clone: false,
            report: None,
            engine: None,
        });
        let word = Word::Become(order.clone());
        let null = fs::File::open("/dev/null").expect("open");
        let given = Given {
            socket: Some(null.as_fd()),
            ..Given::default()
        };
        Speaker(theirs).say(&word, &given).expect("said");
        let (heard, given) = Listener(ours).listen();
        assert!(matches!(heard, Word::Become(o) if o == order));
        assert!(given.socket.is_some() && given.report.is_none() && given.reference.is_none());
    }

    #[test]
    fn a_process_beside_that_died_is_a_failure() {
        let (ours, theirs) = socket::pair().expect("pair");
        drop(theirs);
        let (heard, given) = Listener(ours).listen();
        assert!(matches!(heard, Word::Fail(_)) && given.socket.is_none());
    }
}
