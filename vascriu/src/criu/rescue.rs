// SPDX-License-Identifier: GPL-2.0-only
//! Undoing what a killed CRIU cannot undo itself.
//!
//! The kernel resumes the tasks of a dead tracer. But for `--tcp-established`
//! CRIU also locks connections by packet filter rules and puts their sockets
//! into repair mode, and a frozen cgroup stays frozen. All of that is undone here
//! for the tasks that go on.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::options;
use crate::process::{self, PidFd};

/// The two ends of a connection, the task's own first.
type Connection = (SocketAddr, SocketAddr);

/// A cgroup that CRIU freezes: cgroup v2, or v1's freezer. One that is frozen before is not
/// ours to thaw.
#[derive(Debug)]
pub struct Frozen(Option<PathBuf>);

impl Frozen {
    /// Looks before CRIU runs with these options.
    #[must_use]
    pub fn look(options: &[String]) -> Self {
        let group = options::value(options, &["--freeze-cgroup"]).map(PathBuf::from);
        let is = |group: &Path, file, state: &str| {
            fs::read_to_string(group.join(file)).is_ok_and(|s| s.trim() == state)
        };
        let is_frozen =
            |g: &PathBuf| is(g, "cgroup.freeze", "1") || is(g, "freezer.state", "FROZEN");
        Self(group.filter(|g| !is_frozen(g)))
    }

    fn thaw(&self) {
        if let Some(group) = &self.0 {
            let _ = fs::write(group.join("cgroup.freeze"), "0");
            let _ = fs::write(group.join("freezer.state"), "THAWED");
        }
    }
}

/// Lets the tree below `root` go on after its CRIU failed, perhaps because it was killed.
/// Each step is tried; what was not done cannot be undone, and that is no failure. Where a
/// task is traced, another CRIU is at work, and what there is to undo is its own.
pub fn release(root: i32, frozen: &Frozen) {
    if tree(root).into_iter().any(process::is_traced) {
        return;
    }
    frozen.thaw();
    let mut connections = Vec::new();
    for pid in tree(root) {
        for socket in sockets(pid) {
            connections.extend(connection(&socket));
            // SAFETY: asks and sets an integer option of a socket we hold.
            unsafe { end_repair(socket.as_raw_fd()) };
        }
    }
    if !connections.is_empty() {
        unlock(root, &connections);
    }
}

/// The tasks of a tree.
fn tree(root: i32) -> Vec<i32> {
    let mut pids = vec![root];
    let mut next = 0;
    while let Some(pid) = pids.get(next) {
        let threads = fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten()
            .flatten();
        let children = threads.map(|t| fs::read_to_string(t.path().join("children")));
        let children: String = children.map(|c| c.unwrap_or_default() + " ").collect();
        pids.extend(
            children
                .split_whitespace()
                .filter_map(|p| p.parse::<i32>().ok()),
        );
        next += 1;
    }
    pids
}

/// Our own descriptors of a task's sockets.
fn sockets(pid: i32) -> Vec<OwnedFd> {
    let Ok(task) = PidFd::open(pid) else {
        return Vec::new();
    };
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    let is_socket = |e: &fs::DirEntry| {
        fs::read_link(e.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
    };
    let numbers = entries
        .filter(is_socket)
        .filter_map(|e| e.file_name().to_str()?.parse().ok());
    let take = |number: i32| {
        // SAFETY: pidfd_getfd takes three integers and touches no memory.
        let fd =
            unsafe { libc::syscall(libc::SYS_pidfd_getfd, task.as_fd().as_raw_fd(), number, 0) };
        let fd = i32::try_from(fd).ok().filter(|&fd| fd >= 0)?;
        // SAFETY: the kernel has just made this descriptor for us.
        Some(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    numbers.filter_map(take).collect()
}

/// Ends the repair mode of a TCP socket, if it is in it.
///
/// # Safety
/// `fd` must be a socket.
unsafe fn end_repair(fd: i32) {
    let mut on: libc::c_int = 0;
    let mut len: libc::socklen_t = 4;
    // SAFETY: `on` is a live int of `len` bytes.
    let got = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_TCP,
            libc::TCP_REPAIR,
            (&raw mut on).cast(),
            &raw mut len,
        )
    };
    if got == 0 && on == 1 {
        let off: libc::c_int = 0;
        // SAFETY: `off` is a live int.
        unsafe {
            libc::setsockopt(
                fd,
                libc::SOL_TCP,
                libc::TCP_REPAIR,
                (&raw const off).cast(),
                4,
            )
        };
    }
}

fn connection(socket: &OwnedFd) -> Option<Connection> {
    // A dup: the TcpStream closes what it gets. It is a stream of whatever kind;
    // of anything but TCP/IP the addresses are no SocketAddr.
    let stream = std::net::TcpStream::from(socket.try_clone().ok()?);
    Some((stream.local_addr().ok()?, stream.peer_addr().ok()?))
}

fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The rule by which CRIU drops what goes from `from` to `to`.
fn rule(chain: &str, from: SocketAddr, to: SocketAddr) -> Vec<String> {
    let words = format!(
        "-w -t filter -D {chain} --protocol tcp -m mark ! --mark 0xC114 --source {} --sport {} \
         --destination {} --dport {} -j DROP",
        from.ip(),
        from.port(),
        to.ip(),
        to.port()
    );
    words.split(' ').map(str::to_owned).collect()
}

/// The same connection as an element of CRIU's nftables sets.
fn element(from: SocketAddr, to: SocketAddr) -> String {
    let set = if from.is_ipv4() { "conns4" } else { "conns6" };
    format!(
        "{set} {{ {} . {} . {} . {} }}",
        from.ip(),
        from.port(),
        to.ip(),
        to.port()
    )
}

/// Runs a command in the network namespace of `pid`.
fn run(pid: i32, command: &str, args: &[String]) -> io::Result<String> {
    let output = Command::new("nsenter")
        .arg(format!("--net=/proc/{pid}/ns/net"))
        .arg(command)
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(io::Error::other("failed"))
    }
}

/// CRIU's tables among all of nftables, such as `inet CRIU-…`.
fn tables(list: &str) -> Vec<&str> {
    let tables = list.lines().filter_map(|l| l.trim().strip_prefix("table "));
    tables.filter(|t| t.starts_with("inet CRIU-")).collect()
}

fn unlock(root: i32, connections: &[Connection]) {
    let list = run(root, "nft", &["list".into(), "tables".into()]).unwrap_or_default();
    for &(own, peer) in connections {
        let (own, peer) = (plain(own), plain(peer));
        let iptables = match own.ip() {
            IpAddr::V4(_) => "iptables",
            IpAddr::V6(_) => "ip6tables",
        };
        for (chain, from, to) in [("INPUT", peer, own), ("OUTPUT", own, peer)] {
            let _ = run(root, iptables, &rule(chain, from, to));
            for table in tables(&list) {
                // CRIU has one table for each run, so one connection shows whose.
                let ours = format!("delete element {table} {}", element(from, to));
                if run(root, "nft", &[ours]).is_ok() {
                    let _ = run(root, "nft", &[format!("delete table {table}")]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn the_rule_is_the_one_that_criu_makes() {
        let rule = rule("INPUT", address("10.0.0.1:80"), address("10.0.0.2:4000")).join(" ");
        assert!(rule.ends_with(
            "-D INPUT --protocol tcp -m mark ! --mark 0xC114 --source 10.0.0.1 --sport 80 \
             --destination 10.0.0.2 --dport 4000 -j DROP"
        ));
    }

    #[test]
    fn a_mapped_address_is_locked_as_ipv4() {
        assert_eq!(plain(address("[::ffff:1.2.3.4]:5")), address("1.2.3.4:5"));
        assert!(element(address("[::1]:5"), address("[::1]:6")).starts_with("conns6"));
    }

    #[test]
    fn only_tables_of_criu_are_touched() {
        let list = "table ip filter\ntable inet CRIU-1234\ntable inet mine\n";
        assert_eq!(tables(list), ["inet CRIU-1234"]);
    }

    #[test]
    fn connections_of_a_task_are_found_and_other_sockets_are_not() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let at = listener.local_addr().expect("address");
        let client = TcpStream::connect(at).expect("connect");
        let _unix = std::os::unix::net::UnixStream::pair().expect("pair");
        let own = std::process::id().cast_signed();
        let found: Vec<_> = sockets(own).iter().filter_map(connection).collect();
        assert!(found.contains(&(client.local_addr().expect("address"), at)));
        assert!(tree(own).contains(&own));
    }
}
