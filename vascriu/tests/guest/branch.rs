// SPDX-License-Identifier: GPL-2.0-only
//! `vascriu rollback` and `vascriu fork`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use crate::clone::copies;
use crate::crash::criu_is_gone;
use crate::harness::{Test, Workload, bad, good, json, ls, restore, rm, vascriu, wait_until};
use crate::snapshots::small;
use crate::workload::Options;

/// All tests here.
pub const TESTS: &[Test] = &[
    ("a_tree_is_rolled_back_and_forth_under_its_pids", rollback),
    ("what_cannot_be_rolled_back_goes_on", refused),
    ("a_failed_rollback_keeps_what_ran", failed),
    ("a_killed_rollback_leaves_the_tree_or_a_snapshot", killed),
    ("a_tree_is_forked_and_goes_on", fork),
];

fn tree(dir: &Path) -> Options {
    Options {
        children: 1,
        threads: 1,
        shared: true,
        ..small(dir)
    }
}

/// `vascriu rollback ARGS`, which must succeed.
#[track_caller]
fn roll_back(args: &[&str]) -> Value {
    json(vascriu(&["rollback"]).args(args).arg("--json"))
}

fn names() -> Vec<Value> {
    ls().iter().map(|row| row["name"].clone()).collect()
}

fn rollback(dir: &Path) {
    let w = Workload::start(&tree(dir));
    assert_eq!(w.check(), 1);
    w.dump("first", &["--leave-running"]);
    assert_eq!((w.check(), w.check()), (2, 3));
    let pids = w.tree();
    for _ in 0..2 {
        let said = roll_back(&["first"]);
        assert_eq!((&said["pid"], &said["tasks"]), (&w.pid.into(), &2.into()));
        assert_eq!(said["kept"], Value::Null);
        assert_eq!(w.tree(), pids);
        assert_eq!((w.check(), w.check()), (2, 3));
        assert_eq!(names(), ["first"], "what was replaced is no snapshot");
    }
    let said = roll_back(&["first", "--keep", "tried"]);
    assert_eq!(w.check(), 2);
    let kept = ls().into_iter().find(|row| row["name"] == "tried");
    assert_eq!(kept.expect("kept")["id"], said["kept"]);
    roll_back(&["tried"]);
    assert_eq!(w.check(), 4);
    // Also when nothing of it is left but the snapshot.
    w.kill();
    wait_until("the PID to be free", || {
        !Path::new(&format!("/proc/{}", w.pid)).exists()
    });
    bad(
        &mut vascriu(&["rollback", "first"]),
        &["there is no PID", "vascriu restore"],
    );
    restore("first", &w, &[]);
    roll_back(&["tried"]);
    assert_eq!(w.check(), 4);
    w.kill();
    rm(&["first", "tried"]);
}

fn refused(dir: &Path) {
    let w = Workload::start(&tree(dir));
    w.dump("x", &["--leave-running"]);
    let other_dir = dir.join("other");
    fs::create_dir(&other_dir).expect("a folder");
    let other = Workload::start(&small(&other_dir));
    let tree = other.pid.to_string();
    bad(
        &mut vascriu(&["rollback", "nothing"]),
        &["no snapshot `nothing`"],
    );
    bad(
        &mut vascriu(&["rollback", "x", "-t", "4194000"]),
        &["4194000"],
    );
    bad(&mut vascriu(&["rollback", "x", "--keep", "x"]), &["`x`"]);
    // The snapshot's PIDs are not those that become free.
    bad(
        &mut vascriu(&["rollback", "x", "-t", &tree]),
        &["cannot roll back to x", "what ran goes on", "is not free"],
    );
    assert_eq!((w.check(), other.check()), (1, 1));
    assert_eq!(names(), ["x"]);
    other.kill();
    w.kill();
    // The PID is another process's now.
    wait_until("the PID to be free", || {
        !Path::new(&format!("/proc/{}", w.pid)).exists()
    });
    let last = (w.pid - 1).to_string();
    fs::write("/proc/sys/kernel/ns_last_pid", last).expect("ns_last_pid");
    let mut stranger = Command::new("sleep").arg("1000").spawn().expect("sleep");
    if stranger.id().cast_signed() == w.pid {
        bad(
            &mut vascriu(&["rollback", "x"]),
            &["is another process than the snapshot's"],
        );
    }
    stranger.kill().expect("a child");
    stranger.wait().expect("status");
    rm(&["x"]);
}

/// A script that fails when CRIU restores, with whatever is restored.
fn failed(dir: &Path) {
    let script = dir.join("script");
    let text = "#!/bin/sh\n[ \"$CRTOOLS_SCRIPT_ACTION\" != pre-restore ]\n";
    fs::write(&script, text).expect("a script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("a script");
    let w = Workload::start(&tree(dir));
    w.check();
    w.dump("x", &["--leave-running"]);
    w.check();
    let script = script.to_str().expect("UTF-8");
    let said = bad(
        &mut vascriu(&["rollback", "x", "--action-script", script]),
        &[
            "cannot roll back to x",
            "what ran does not go on",
            "vascriu restore",
        ],
    );
    assert!(!w.is_alive());
    let rows = ls();
    let kept = rows.iter().find(|row| row["name"] != "x").expect("kept");
    let kept = kept["id"].as_str().expect("an identity");
    assert!(said.contains(kept), "{said}");
    restore(kept, &w, &[]);
    assert_eq!(w.check(), 3);
    w.kill();
    rm(&["x", kept]);
}

fn killed(dir: &Path) {
    let w = Workload::start(&tree(dir));
    w.dump("x", &["--leave-running"]);
    let whole = roll_back(&["x"])["rollback_ms"].as_f64().expect("a number");
    let (mut tasks, mut snapshots) = (0, 0);
    for step in 1..=8 {
        let mut command = vascriu(&["rollback", "x"]);
        let command = command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut rolling = command.spawn().expect("vascriu");
        sleep(Duration::from_secs_f64(
            whole / 1000.0 * f64::from(step) / 8.0,
        ));
        rolling.kill().expect("a child");
        rolling.wait().expect("status");
        wait_until("CRIU to end", criu_is_gone);
        // What it had restored of the tree, if it had not come to its end.
        sleep(Duration::from_millis(50));
        let rows = ls();
        let kept = rows.iter().find(|row| row["name"] != "x");
        if w.is_alive() {
            tasks += 1;
        } else {
            snapshots += 1;
            let kept = kept.unwrap_or_else(|| panic!("step {step}: neither tasks nor snapshot"));
            restore(kept["id"].as_str().expect("an identity"), &w, &[]);
        }
        w.check();
        if let Some(kept) = kept {
            rm(&[kept["id"].as_str().expect("an identity")]);
        }
    }
    // The work directory of the last one.
    good(&mut vascriu(&["gc"]));
    println!("killed: {tasks} times the tasks, {snapshots} times a snapshot");
    w.kill();
    rm(&["x"]);
}

fn fork(dir: &Path) {
    let w = Workload::start(&tree(dir));
    assert_eq!(w.check(), 1);
    let id = w.pid.to_string();
    let said = json(&mut vascriu(&[
        "fork", "-t", &id, "-n", "2", "--net", "none", "--json",
    ]));
    assert!(said["frozen_ms"].as_f64() > Some(0.0), "{said}");
    let all = copies(&said);
    assert_eq!(all.len(), 2);
    assert_eq!(names(), [""; 0], "nobody has named the snapshot");
    for copy in &all {
        assert_eq!(w.restored_as(copy.pid).check(), 2);
    }
    assert_eq!(w.check(), 2);
    all.iter().for_each(|copy| copy.kill());

    let said = json(&mut vascriu(&[
        "fork", "-t", &id, "--name", "warm", "--json",
    ]));
    let all = copies(&said);
    assert_eq!(all.len(), 1);
    assert_eq!(names(), ["warm"]);
    assert_eq!(w.restored_as(all[0].pid).check(), 3);
    bad(
        &mut vascriu(&["fork", "-t", &id, "--name", "warm"]),
        &["cannot fork", "`warm`"],
    );
    bad(&mut vascriu(&["fork", "-t", "4194000"]), &["4194000"]);
    assert_eq!(w.check(), 3);
    // A copy is a tree like any other; what is copied of it is no part of it.
    let id_of_copy = all[0].pid.to_string();
    let said = json(&mut vascriu(&["fork", "-t", &id_of_copy, "--json"]));
    let again = copies(&said);
    assert_eq!(again.len(), 1);
    assert_eq!(w.restored_as(again[0].pid).check(), 4);
    assert_eq!(w.restored_as(all[0].pid).check(), 4);
    all[0].kill();
    assert_eq!(w.restored_as(again[0].pid).check(), 5);
    again[0].kill();
    w.kill();
    rm(&["warm"]);
}
