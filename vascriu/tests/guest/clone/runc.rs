// SPDX-License-Identifier: GPL-2.0-only
//! Copies of a runc container.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::{all_different, namespace};
use crate::bundle::{Bundle, Found};
use crate::harness::{
    Test, Workload, bad, errors, frames, good, json, rm, vascriu, wait_until, workloads,
};
use crate::randomness;
use crate::snapshots::small;
use crate::workload::Options;

/// All tests here.
pub const TESTS: &[Test] = &[
    (
        "copies_of_a_container_have_its_data_and_go_their_own_ways",
        own_ways,
    ),
    ("copies_of_a_container_share_no_randomness", random),
    (
        "a_bundle_that_names_a_cgroup_is_derived_for_each_copy",
        own_bundle,
    ),
    (
        "copies_of_containers_that_cannot_be_are_refused_before_anything_is_begun",
        refused,
    ),
    (
        "where_a_copy_of_a_container_fails_those_that_run_stay",
        one_fails,
    ),
    ("a_killed_clone_leaves_no_half_made_container", killed),
];

/// A container `c1`, checkpointed, of this bundle.
fn checkpointed(b: &Bundle) -> Workload {
    let w = b.start("c1");
    b.good(b.checkpoint(Found::DropIn, "c1", &[]));
    w
}

/// `vascriu clone --runc BUNDLE c1 -n COUNT MORE`, not yet run.
fn clone(b: &Bundle, count: &str, more: &[&str]) -> Command {
    let mut command = vascriu(&["clone", "c1", "-n", count, "--json", "--runc"]);
    command.arg(b.dir()).args(more);
    command
}

/// Names and PIDs of the copies that were made.
fn made(said: &Value) -> Vec<(String, i32)> {
    let one = |copy: &Value| {
        let pid = copy["pid"].as_i64().and_then(|p| p.try_into().ok());
        Some((copy["name"].as_str()?.to_owned(), pid?))
    };
    let copies = said["running"].as_array().expect("copies");
    copies.iter().map(|c| one(c).expect("a copy")).collect()
}

fn names(made: &[(String, i32)]) -> Vec<&str> {
    made.iter().map(|(name, _)| name.as_str()).collect()
}

fn containers() -> Vec<String> {
    let list = good(Command::new("runc").args(["list", "-q"]));
    list.lines().map(str::to_owned).collect()
}

fn group(name: &str) -> PathBuf {
    Path::new("/sys/fs/cgroup").join(name)
}

/// Ends them with nothing left of any.
fn delete(b: &Bundle, copies: &[(String, i32)]) {
    for (name, _) in copies {
        b.delete(name);
        // runc gives up, and forgets it, where a cgroup's tasks take long to end.
        wait_until(&format!("the cgroup of {name} to go"), || {
            let _ = fs::remove_dir(group(name));
            !group(name).exists()
        });
    }
    assert_eq!(containers(), Vec::<String>::new());
    wait_until("the containers to end", || workloads().is_empty());
}

fn own_ways(dir: &Path) {
    let b = Bundle::new(dir);
    let w = b.start("c1");
    assert_eq!(w.check(), 1);
    b.good(b.checkpoint(Found::DropIn, "c1", &[]));
    let addresses = w.addresses();
    let at = addresses.iter().find(|a| a.0 == 1).expect("an address").1;
    let said = json(&mut clone(&b, "3", &["--parallel", "2"]));
    let mut copies = made(&said);
    copies.sort();
    assert_eq!(names(&copies), ["c1-1", "c1-2", "c1-3"]);
    assert_eq!(said["failed"].to_string(), "[]");
    let here = ["self".to_owned()];
    for kind in ["pid", "mnt", "ipc", "uts", "net", "cgroup"] {
        let pids = copies.iter().map(|(_, pid)| pid.to_string());
        let seen = pids.chain(here.clone()).map(|pid| namespace(&pid, kind));
        assert!(all_different(seen), "{kind}");
    }
    let shared: Vec<_> = copies.iter().map(|c| frames(c.1, at, 512)).collect();
    assert!(shared[0].iter().all(|&f| f != 0));
    assert!(shared.iter().all(|f| *f == shared[0]), "they share memory");
    let generations = said["running"].as_array().expect("copies").iter();
    assert!(all_different(
        generations.map(|c| c["generation"].to_string())
    ));
    for (n, (name, pid)) in (1..).zip(&copies) {
        for round in 1..=n {
            assert_eq!(w.restored_as(*pid).check(), round + 1, "{name}");
        }
        // It is where runc looks for it.
        let members = fs::read_to_string(group(name).join("cgroup.procs")).expect("members");
        assert!(members.lines().any(|l| l == pid.to_string()), "{members}");
    }
    // The number of one that was ended is free again; those of the others are skipped.
    b.delete(&copies.remove(1).0);
    let more = made(&json(&mut clone(&b, "2", &[])));
    assert_eq!(names(&more), ["c1-2", "c1-4"]);
    assert_eq!(
        w.restored_as(more[0].1).check(),
        2,
        "the snapshot is unharmed"
    );
    assert_eq!(
        w.restored_as(copies[1].1).check(),
        5,
        "the others do not mind"
    );
    copies.extend(more);
    delete(&b, &copies);
    b.good(b.restore(Found::DropIn, "c1"));
    assert_eq!(b.workload("c1").check(), 2);
    b.delete("c1");
    rm(&["c1"]);
}

fn random(dir: &Path) {
    randomness::settle();
    let b = Bundle::of(
        dir,
        Options {
            random: true,
            ..Options::default()
        },
    );
    checkpointed(&b);
    let copies = made(&json(&mut clone(&b, "4", &[])));
    let said: Vec<_> = copies
        .iter()
        .map(|(_, pid)| randomness::ask(&b.acks, *pid))
        .collect();
    assert!(all_different(said.iter().map(|s| s["random"].to_string())));
    assert!(all_different(said.iter().map(|s| s["origin"].to_string())));
    // Also in the first, as which a restore would have gone on.
    assert!(said.iter().all(|s| s["empty"] == true));
    delete(&b, &copies);
    rm(&["c1"]);
}

fn own_bundle(dir: &Path) {
    let b = Bundle::new(dir);
    b.configure(|spec| spec["linux"]["cgroupsPath"] = "/vastest/c1".into());
    let w = checkpointed(&b);
    let copies = made(&json(&mut clone(&b, "2", &[])));
    for (name, pid) in &copies {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("cgroup");
        assert_eq!(text.trim(), format!("0::/vastest/{name}"));
        good(Command::new("runc").args(["exec", name, "true"]));
        assert_eq!(w.restored_as(*pid).check(), 1);
    }
    delete(&b, &copies);
    // As in delete().
    wait_until("nothing to be left there", || {
        for (name, _) in &copies {
            let _ = fs::remove_dir(group("vastest").join(name));
        }
        fs::remove_dir(group("vastest")).is_ok()
    });
    rm(&["c1"]);
}

fn refused(dir: &Path) {
    let b = Bundle::new(dir);
    checkpointed(&b);
    let w = Workload::start(&small(dir));
    w.dump("x", &[]);
    bad(&mut clone(&b, "0", &[]), &["0 is not in 1"]);
    for count in ["100000", "4294967295"] {
        bad(&mut clone(&b, count, &[]), &["room for"]);
    }
    bad(
        &mut vascriu(&["clone", "c1", "-n", "2"]),
        &["--runc BUNDLE"],
    );
    bad(&mut clone(&b, "2", &["--net", "none"]), &["--net"]);
    let of = |bundle: &Path, snapshot: &str| {
        let mut command = vascriu(&["clone", snapshot, "-n", "2", "--runc"]);
        command.arg(bundle);
        command
    };
    bad(&mut of(dir, "c1"), &["is no bundle", "runc spec"]);
    bad(&mut of(&dir.join("none"), "c1"), &["is no bundle"]);
    bad(
        &mut of(b.dir(), "x"),
        &["no container's", "without `--runc`"],
    );
    bad(&mut of(b.dir(), "none"), &["no snapshot `none`"]);
    fs::create_dir(dir.join("only")).expect("directory");
    std::os::unix::fs::symlink("/usr/sbin/criu", dir.join("only/criu")).expect("link");
    let vascriu = "/usr/bin/vascriu";
    let mut without = Command::new(vascriu);
    without
        .args(["clone", "c1", "-n", "2", "--runc"])
        .arg(b.dir());
    without.env("PATH", dir.join("only"));
    bad(&mut without, &["no `runc`", "install"]);
    assert_eq!(containers(), Vec::<String>::new());
    assert_eq!(workloads(), Vec::<i32>::new());
    rm(&["c1", "x"]);
}

fn one_fails(dir: &Path) {
    let b = Bundle::new(dir);
    let w = checkpointed(&b);
    // What runc does not list, but does not replace either.
    let taken = Path::new("/run/runc/c1-2");
    fs::create_dir_all(taken).expect("directory");
    let out = clone(&b, "3", &[]).output().expect("run");
    fs::remove_dir_all(taken).expect("removed");
    let text = errors(&out);
    assert!(!out.status.success(), "{text}");
    for words in ["c1-2 failed", "already exists", "1 of 3 copies run"] {
        assert!(text.contains(words), "{text}");
    }
    let said: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!(said["failed"][0]["name"], "c1-2");
    let copies = made(&said);
    assert_eq!(names(&copies), ["c1-1"]);
    assert_eq!(w.restored_as(copies[0].1).check(), 1);
    delete(&b, &copies);
    // CRIU's reason, with a snapshot that is there but cannot be restored by this bundle.
    b.configure(|spec| spec["mounts"].as_array_mut().expect("mounts").clear());
    let out = clone(&b, "2", &[]).output().expect("run");
    let text = errors(&out);
    assert!(
        text.contains("0 of 2 copies run") && text.contains("Error ("),
        "{text}"
    );
    for name in ["c1-1", "c1-2"] {
        assert!(!group(name).exists(), "the cgroup of {name}");
    }
    delete(&b, &[]);
    rm(&["c1"]);
}

fn killed(dir: &Path) {
    let b = Bundle::new(dir);
    let w = checkpointed(&b);
    for wait in [200, 1000, 2000, 3000] {
        let mut running = clone(&b, "20", &[]);
        let mut running = running.stdout(Stdio::null()).spawn().expect("run");
        std::thread::sleep(Duration::from_millis(wait));
        running.kill().expect("kill");
        running.wait().expect("wait");
        let is_busy = || {
            let names = good(Command::new("ps").args(["-eo", "comm"]));
            names
                .lines()
                .any(|l| ["vascriu", "runc", "criu"].contains(&l))
        };
        wait_until("what is being made to end", || !is_busy());
        let copies: Vec<_> = containers()
            .into_iter()
            .map(|name| (name.clone(), b.workload(&name).pid))
            .collect();
        for (name, pid) in &copies {
            assert_eq!(w.restored_as(*pid).check(), 1, "{name}");
        }
        assert_eq!(workloads().len(), copies.len() * 2);
        delete(&b, &copies);
    }
    rm(&["c1"]);
}
