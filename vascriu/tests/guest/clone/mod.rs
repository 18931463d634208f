// SPDX-License-Identifier: GPL-2.0-only
//! `vascriu clone`: many running copies of one snapshot.

pub mod limits;
pub mod net;
pub mod runc;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::harness::{Test, Workload, frames, good, json, rm, vascriu, wait_until, workloads};
use crate::snapshots::small;
use crate::workload::Options;

/// All tests of the subject itself.
pub const TESTS: &[Test] = &[
    (
        "copies_have_namespaces_of_their_own_and_share_memory",
        namespaces,
    ),
    ("copies_are_made_at_once", at_once),
    ("a_copy_ends_with_its_root_and_with_its_supervisor", ends),
    ("a_signal_for_the_supervisor_is_the_roots", signal),
    ("a_copy_is_dumped_and_copied_again", second_generation),
];

/// A copy, as `clone --json` tells it.
#[derive(Debug)]
pub struct Copy {
    /// The PID of its supervisor.
    pub supervisor: i32,
    /// The PID of its root as we see it.
    pub pid: i32,
    /// All that was told.
    pub said: Value,
}

impl Copy {
    fn of(said: &Value) -> Self {
        let pid = |field: &str| said[field].as_i64().and_then(|p| p.try_into().ok());
        Self {
            supervisor: pid("supervisor").expect("a PID"),
            pid: pid("pid").expect("a PID"),
            said: said.clone(),
        }
    }

    fn namespace(&self, kind: &str) -> PathBuf {
        namespace(&self.pid.to_string(), kind)
    }

    /// Ends it.
    pub fn kill(&self) {
        kill(self.supervisor, libc::SIGKILL);
        wait_until("a copy to end", || {
            is_gone(self.pid) && is_gone(self.supervisor)
        });
    }
}

fn namespace(pid: &str, kind: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("a namespace")
}

fn kill(pid: i32, signal: i32) {
    // SAFETY: kill takes two integers.
    unsafe { libc::kill(pid, signal) };
}

fn is_gone(pid: i32) -> bool {
    !Workload::at(pid, pid, Path::new("/")).is_alive()
}

/// The copies that a command has told of.
pub fn copies(said: &Value) -> Vec<Copy> {
    said["running"]
        .as_array()
        .expect("copies")
        .iter()
        .map(Copy::of)
        .collect()
}

/// `vascriu clone NAME -n COUNT MORE`, which must succeed.
#[track_caller]
pub fn clone(name: &str, count: usize, more: &[&str]) -> Vec<Copy> {
    let count = count.to_string();
    let said = json(vascriu(&["clone", name, "-n", &count, "--json"]).args(more));
    assert_eq!(said["asked"].to_string(), count);
    assert_eq!(said["failed"].to_string(), "[]");
    copies(&said)
}

fn all_different<T: std::hash::Hash + Eq>(of: impl Iterator<Item = T>) -> bool {
    let mut seen = HashSet::new();
    of.into_iter().all(|x| seen.insert(x))
}

fn namespaces(dir: &Path) {
    let w = Workload::start(&Options {
        children: 1,
        threads: 2,
        files: true,
        shared: true,
        ..small(dir)
    });
    let at = w
        .addresses()
        .iter()
        .find(|a| a.0 == w.vpid)
        .expect("address")
        .1;
    w.dump("x", &[]);
    let all = clone("x", 3, &[]);
    assert_eq!(all.len(), 3);
    for kind in ["pid", "mnt", "ipc", "uts"] {
        let seen = all.iter().map(|c| c.namespace(kind));
        assert!(
            all_different(seen.chain([namespace("self", kind)])),
            "{kind}"
        );
    }
    assert!(
        all.iter()
            .all(|c| c.namespace("net") == namespace("self", "net"))
    );
    for (c, name) in all.iter().zip(["x-1", "x-2", "x-3"]) {
        let host = good(Command::new("nsenter").args(["-u", "-t", &c.pid.to_string(), "hostname"]));
        assert_eq!(host.trim(), name);
        assert_eq!(c.said["name"], name);
        // Its /proc is its own.
        let id = c.pid.to_string();
        let comm = good(
            Command::new("nsenter")
                .args(["-m", "-p", "-t", &id, "cat"])
                .arg(format!("/proc/{}/comm", w.vpid)),
        );
        assert_eq!(
            comm,
            fs::read_to_string(format!("/proc/{id}/comm")).expect("comm")
        );
    }
    let shared: Vec<_> = all.iter().map(|c| frames(c.pid, at, 512)).collect();
    assert!(shared[0].iter().all(|&f| f != 0));
    assert!(shared.iter().all(|f| *f == shared[0]), "they share memory");
    let generations = all.iter().map(|c| c.said["generation"].to_string());
    assert!(all_different(generations));
    // Each goes its own way.
    for (n, c) in all.iter().enumerate() {
        let copy = w.restored_as(c.pid);
        for round in 1..=n as u64 + 1 {
            assert_eq!(copy.check(), round);
        }
    }
    all.iter().for_each(Copy::kill);
    assert_eq!(workloads(), Vec::<i32>::new());
    rm(&["x"]);
}

fn at_once(dir: &Path) {
    let w = Workload::start(&small(dir));
    w.dump("x", &[]);
    let all = clone("x", 6, &["--parallel", "3"]);
    assert!(all_different(all.iter().map(|c| c.pid)) && all.len() == 6);
    for c in &all {
        assert_eq!(w.restored_as(c.pid).check(), 1);
        c.kill();
    }
    rm(&["x"]);
}

fn ends(dir: &Path) {
    let w = Workload::start(&Options {
        children: 2,
        ..small(dir)
    });
    w.dump("x", &[]);
    for c in &clone("x", 1, &[]) {
        kill(c.pid, libc::SIGKILL);
        wait_until("the copy to end", || {
            is_gone(c.supervisor) && workloads().is_empty()
        });
    }
    for c in &clone("x", 1, &[]) {
        assert_eq!(workloads().len(), 3);
        kill(c.supervisor, libc::SIGKILL);
        wait_until("the copy to end", || {
            is_gone(c.supervisor) && workloads().is_empty()
        });
    }
    rm(&["x"]);
}

fn signal(dir: &Path) {
    let w = Workload::start(&small(dir));
    w.dump("x", &[]);
    let c = &clone("x", 1, &[])[0];
    // It answers to this one, and dies of the other.
    let supervisor = Workload::at(c.supervisor, w.vpid, dir);
    assert_eq!(supervisor.check(), 1);
    kill(c.supervisor, libc::SIGTERM);
    wait_until("the copy to end", || {
        is_gone(c.pid) && is_gone(c.supervisor)
    });
    rm(&["x"]);
}

fn second_generation(dir: &Path) {
    let w = Workload::start(&Options {
        children: 1,
        ..small(dir)
    });
    w.dump("x", &[]);
    let first = clone("x", 2, &[]);
    let copy = w.restored_as(first[0].pid);
    assert_eq!(copy.check(), 1);
    copy.dump("y", &["--leave-running"]);
    assert_eq!(copy.check(), 2, "it goes on");
    let shown = json(&mut vascriu(&["show", "y", "--json"]));
    let parent = json(&mut vascriu(&["show", "x", "--json"]));
    assert_eq!(shown["parent"], parent["id"]);
    copy.dump("z", &[]);
    wait_until("the copy to end", || is_gone(first[0].supervisor));
    assert_eq!(
        w.restored_as(first[1].pid).check(),
        1,
        "the other one does not mind"
    );
    for (name, round) in [("y", 2), ("z", 3)] {
        for c in clone(name, 2, &[]) {
            assert_eq!(w.restored_as(c.pid).check(), round);
            c.kill();
        }
    }
    first[1].kill();
    rm(&["x", "y", "z"]);
}
