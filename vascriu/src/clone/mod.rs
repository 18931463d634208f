// SPDX-License-Identifier: GPL-2.0-only
//! `vascriu clone`: running copies of one snapshot, each in namespaces of its own, which
//! share memory until they write.
//!
//! For each copy this process forks one that makes the namespaces and restores the snapshot
//! in them ([`copy`]), and stays as its supervisor ([`supervisor`]). Copies of containers are
//! runc's ([`runc`]). docs/CLONES.md tells more.

use std::net::Ipv4Addr;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;

mod copy;
mod enter;
mod net;
mod netlink;
mod oom;
mod room;
pub mod runc;
mod supervisor;

use room::{Need, Room};

pub use enter::inside;
pub use net::{Bridge, Net, Subnet};

/// What to copy, and how.
#[derive(Debug)]
pub struct Clones {
    /// The snapshot's name.
    pub name: String,
    /// PIDs of its tasks, by their own count.
    pub tasks: Vec<i32>,
    /// 4 KiB pages that the copies share.
    pub pages: u64,
    /// How many.
    pub count: u32,
    /// Numbers that none of them has.
    pub taken: Vec<u32>,
    /// How many are made at a time.
    pub parallel: u32,
    /// Their network.
    pub net: Net,
}

/// Who makes the copies.
pub trait Maker {
    /// Brings the snapshot to life where it is called; the root's PID.
    ///
    /// # Errors
    /// In words; nothing of the copy is left.
    fn make(&self, name: &str) -> Result<i32, String>;

    /// Ends a container that was made, and of which nobody will ever hear.
    fn end(&self, name: &str, root: i32);
}

/// What one copy shall be.
struct Order<'a> {
    /// `NAME-INDEX`.
    name: String,
    net: &'a Net,
    address: Option<Ipv4Addr>,
    tasks: &'a [i32],
    is_container: bool,
    maker: &'a dyn Maker,
}

/// A running copy.
#[derive(Debug, Serialize)]
pub struct Copy {
    /// From 1 on.
    pub index: u32,
    /// `NAME-INDEX`, which is its host name, or the container.
    pub name: String,
    /// The PID of its supervisor; a container has none.
    pub supervisor: Option<i32>,
    /// The PID of its root as we see it.
    pub pid: i32,
    /// Its address on the bridge.
    pub address: Option<Ipv4Addr>,
    /// From nothing to running.
    pub restore_ms: f64,
    /// What tells its memory from that of all others.
    pub generation: Option<String>,
}

/// A copy that does not run.
#[derive(Debug, Serialize)]
pub struct Failure {
    /// From 1 on.
    pub index: u32,
    /// `NAME-INDEX`.
    pub name: String,
    /// Why.
    pub error: String,
}

/// Nothing was begun.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no room for so many.
    #[error(transparent)]
    Room(#[from] room::Error),
    /// There is no network for them.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// It has all namespaces of its own.
    #[error("a container brings its own network: `--net` is for processes")]
    Container,
    /// Waiting failed.
    #[error("waiting for the copies failed")]
    Wait(#[source] nix::errno::Errno),
}

/// A copy that is being made.
struct Pending {
    index: u32,
    address: Option<Ipv4Addr>,
    since: Instant,
    copy: copy::Begun,
}

impl Clones {
    /// Makes the copies. `running` hears of each copy when it runs. After a failure no further
    /// ones are begun.
    ///
    /// For a process with one thread.
    ///
    /// # Errors
    /// Nothing was begun.
    pub fn run(
        &self,
        maker: &dyn Maker,
        mut running: impl FnMut(Copy),
    ) -> Result<Vec<Failure>, Error> {
        let is_container = self.tasks.contains(&1);
        if is_container && !matches!(self.net, Net::Host) {
            return Err(Error::Container);
        }
        let need = Need::of(self.tasks.len(), self.pages);
        let count = self.count as usize;
        Room::now().holds(self.count.into(), need)?;
        let addresses = match &self.net {
            Net::Bridged(bridge) => bridge
                .free_addresses(count)?
                .into_iter()
                .map(Some)
                .collect(),
            Net::Host | Net::Own => vec![None; count],
        };
        let free = (1..).filter(|index| !self.taken.contains(index));
        let mut to_begin = free.zip(addresses);
        let mut pending: Vec<Pending> = Vec::new();
        let mut failures = Vec::new();
        loop {
            while failures.is_empty() && pending.len() < self.parallel as usize {
                let Some((index, address)) = to_begin.next() else {
                    break;
                };
                let order = Order {
                    name: self.name_of(index),
                    net: &self.net,
                    address,
                    tasks: &self.tasks,
                    is_container,
                    maker,
                };
                let since = Instant::now();
                let room = Room::now().holds_one(need).map_err(|e| e.to_string());
                match room.and_then(|()| copy::Begun::new(&order).map_err(|e| e.to_string())) {
                    Ok(copy) => pending.push(Pending {
                        index,
                        address,
                        since,
                        copy,
                    }),
                    Err(error) => failures.push(self.failure(index, error)),
                }
            }
            if pending.is_empty() {
                return Ok(failures);
            }
            for done in take_done(&mut pending)? {
                let Pending { index, since, .. } = done;
                match done.copy.finish() {
                    Ok((supervisor, pid)) => running(Copy {
                        index,
                        name: self.name_of(index),
                        supervisor,
                        pid,
                        address: done.address,
                        restore_ms: since.elapsed().as_secs_f64() * 1e3,
                        generation: generation(pid),
                    }),
                    Err(error) => failures.push(self.failure(index, error)),
                }
            }
        }
    }

    fn name_of(&self, index: u32) -> String {
        format!("{}-{index}", self.name)
    }

    fn failure(&self, index: u32, error: String) -> Failure {
        Failure {
            index,
            name: self.name_of(index),
            error,
        }
    }
}

/// Waits until one of them has something to say, and takes all that have.
fn take_done(pending: &mut Vec<Pending>) -> Result<Vec<Pending>, Error> {
    let mut fds: Vec<_> = pending
        .iter()
        .map(|p| PollFd::new(p.copy.report(), PollFlags::POLLIN))
        .collect();
    match poll(&mut fds, PollTimeout::NONE) {
        Err(nix::errno::Errno::EINTR) | Ok(_) => {}
        Err(e) => return Err(Error::Wait(e)),
    }
    let done: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
    let mut done = done.into_iter();
    Ok(pending
        .extract_if(.., |_| done.next().unwrap_or(false))
        .collect())
}

/// What `/proc/PID/vas` says of this restore.
fn generation(pid: i32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/vas")).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("generation:"))?;
    Some(line.trim().to_owned())
}
