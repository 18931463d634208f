// SPDX-License-Identifier: GPL-2.0-only
//! Snapshots that outlive their guests: full and broken stores, guests that die, and several
//! VMs with one store.

use std::fs::{self, File};
use std::process::Output;
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::host::{Vm, output, show, succeed, text, wait_for};
use crate::store::{Job, Shelf};

#[test]
fn a_full_store_leaves_the_snapshot_in_the_guest_until_there_is_room() {
    let shelf = Shelf::new();
    let vm = shelf.vm("full", &["--store-limit", "44M"]);
    let (a, b) = (Job::start(&vm, 1, 24), Job::start(&vm, 2, 24));
    a.dumped(&vm, "a", &["--sync"]);
    let refused = b.dump(&vm, "b", &["--sync"]);
    assert_eq!(refused.status.code(), Some(1), "{}", show(&refused));
    let says = text(&refused.stderr);
    for words in [
        "in this guest's memory",
        "the snapshot store is full",
        "--store-limit",
        "vascriu drain b",
    ] {
        assert!(says.contains(words), "{says}");
    }
    // Nothing else was touched, and b can be used.
    assert_eq!(shelf.names(), ["a"]);
    shelf.is_right();
    assert_eq!(
        (vm.kept("a"), vm.kept("b")),
        ("stored".into(), "hot".into())
    );
    let listed = vm.good(&["vascriu", "ls"]);
    assert!(
        listed.contains("hot (drain failed: No space left"),
        "{listed}"
    );
    vm.bad(&["vascriu", "drain", "b", "--sync"], &["store is full"]);
    vm.good(&["vascriu", "evict", "a"]);
    b.comes_back(&vm, "b");
    a.comes_back(&vm, "a");
    // With room, it goes there.
    vm.good(&["vascriu", "rm", "a"]);
    vm.good(&["vascriu", "drain", "b", "--sync"]);
    vm.good(&["vascriu", "evict", "b"]);
    b.comes_back(&vm, "b");
    assert_eq!(shelf.names(), ["b"]);
    // One that is dumped in the background says so in `ls`.
    let c = Job::start(&vm, 3, 24);
    c.dumped(&vm, "c", &[]);
    wait_for("the drain to fail", || vm.kept("c") == "hot");
    c.comes_back(&vm, "c");
    vm.good(&["vascriu", "rm", "b", "c"]);
    drop(vm);
    shelf.is_empty();
}

/// Whoever holds the store's lock may be stopped, and the guests go on.
#[test]
fn a_guest_frees_memory_while_its_store_does_not_answer() {
    let drop_caches = "echo 2 >/proc/sys/vm/drop_caches";
    let shelf = Shelf::new();
    let vm = shelf.vm("slow", &[]);
    let job = Job::start(&vm, 1, 24);
    job.dumped(&vm, "a", &["--sync"]);
    let lock = File::open(shelf.path().join("lock")).expect("the lock");
    lock.lock().expect("locked");
    let freed = format!("({drop_caches}; touch /tmp/freed) >/dev/null 2>&1 &");
    vm.good(&["sh", "-c", &freed]);
    wait_for("reclaim in the guest to end", || {
        vm.exec(&["test", "-e", "/tmp/freed"]).status.success()
    });
    drop(lock);
    assert_eq!(vm.kept("a"), "stored");
    wait_for("the snapshot to turn cold", || {
        vm.good(&["sh", "-c", drop_caches]);
        vm.kept("a") == "cold"
    });
    job.comes_back(&vm, "a");
}

#[test]
fn the_memory_of_a_killed_monitor_is_given_back_by_itself() {
    let shelf = Shelf::new();
    let vm = shelf.vm("killed", &[]);
    let (pid, had) = (vm.pid(), shelf.ram_bytes());
    assert!(had > 0);
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill");
    // No mvasvm is run meanwhile.
    wait_for("its memory to be given back", || shelf.ram_bytes() == 0);
    let all: Value = serde_json::from_str(&succeed(&["ls", "--all", "--json"])).expect("JSON");
    let mut all = all.as_array().expect("a list").iter();
    let record = all.find(|of| of["name"] == "killed").expect("its record");
    assert_eq!(record["end"]["cause"], "monitor-killed");
}

#[test]
fn a_broken_snapshot_is_told_to_the_guest_and_takes_no_other_along() {
    let shelf = Shelf::new();
    let vm = shelf.vm("maker", &[]);
    let (x, y, z) = (
        Job::start(&vm, 1, 4),
        Job::start(&vm, 2, 4),
        Job::start(&vm, 3, 4),
    );
    x.dumped(&vm, "x", &["--sync"]);
    y.dumped(&vm, "y", &["--sync"]);
    z.dumped(&vm, "z", &["--sync"]);
    let broken = ["x", "y"].map(|name| shelf.identity(name));
    let mut bytes = fs::read(shelf.manifest("x")).expect("read");
    *bytes.last_mut().expect("bytes") ^= 1;
    fs::write(shelf.manifest("x"), bytes).expect("write");
    let bytes = fs::read(shelf.manifest("y")).expect("read");
    fs::write(shelf.manifest("y"), &bytes[..bytes.len() / 3]).expect("write");

    // Their maker has them in memory still, and keeps them there.
    vm.bad(&["vascriu", "evict", "x"], &["cannot evict x", "broken"]);
    // Whose y is cannot be read any more: it may be another VM's now.
    vm.bad(
        &["vascriu", "evict", "y"],
        &["cannot evict y", "not in the store"],
    );
    x.comes_back(&vm, "x");
    y.comes_back(&vm, "y");
    let other = shelf.vm("other", &["--grant", "all"]);
    for identity in &broken {
        other.bad(
            &["vascriu", "restore", identity, "-d"],
            &["cannot restore", "broken", "mvasvm snapshots ls"],
        );
    }
    z.comes_back(&other, "z");
    let list = shelf.json(&["snapshots", "ls"]);
    let states = |s: &Value| s["state"].as_str().expect("a state").to_owned();
    let states: Vec<String> = list.as_array().expect("rows").iter().map(states).collect();
    assert_eq!(states, ["broken", "broken", "complete"]);
    other.good(&["vascriu", "rm", &broken[0], &broken[1]]);
    shelf.is_right();
    assert_eq!(shelf.names(), ["z"]);
}

#[test]
fn what_was_complete_survives_panic_and_reboot_of_its_guest() {
    let shelf = Shelf::new();
    let vm = shelf.vm("mortal", &[]);
    let jobs = [1, 2, 3].map(|seed| Job::start(&vm, seed, 16));
    let [a, b, c] = &jobs;
    a.dumped(&vm, "a", &["--sync"]);
    b.dumped(&vm, "b", &["--guest-only"]);
    // On its way when the guest dies: there or not, but nothing in between.
    c.dumped(&vm, "c", &[]);
    let _ = vm.exec(&["sh", "-c", "echo c > /proc/sysrq-trigger"]);
    ended(&vm);
    shelf.is_right();

    let vm = shelf.vm("mortal", &[]);
    assert_eq!(
        (vm.kept("a"), vm.kept("b")),
        ("in_store_only".into(), Value::Null)
    );
    vm.bad(&["vascriu", "restore", "b", "-d"], &["no snapshot `b`"]);
    a.comes_back(&vm, "a");
    match vm.kept("c") {
        Value::Null => vm.bad(&["vascriu", "restore", "c", "-d"], &["no snapshot `c`"]),
        _ => c.comes_back(&vm, "c"),
    }
    let d = Job::start(&vm, 4, 16);
    d.dumped(&vm, "d", &["--sync"]);
    let _ = vm.exec(&["/usr/lib/mvas/agent", "reboot"]);
    ended(&vm);

    let vm = shelf.vm("mortal", &[]);
    a.comes_back(&vm, "a");
    d.comes_back(&vm, "d");
    let mut names = shelf.names();
    names.retain(|name| name != "c");
    assert_eq!(names, ["a", "d"]);
    shelf.is_right();
}

/// Waits for the end of a VM.
fn ended(vm: &Vm) {
    wait_for("the VM's end", || {
        !text(&output(&["ls"]).stdout).contains(&vm.0)
    });
}

#[test]
fn two_vms_remove_and_restore_one_snapshot_at_once() {
    let shelf = Shelf::new();
    let (left, right) = (
        shelf.vm("left", &["--grant", "all"]),
        shelf.vm("right", &["--grant", "all"]),
    );
    let restore = ["vascriu", "restore", "s", "-d", "--json"];
    for round in 0..7 {
        let job = Job::start(&left, 10 + round, 16);
        job.dumped(&left, "s", &["--sync"]);
        // Its maker removes what the other one restores, or both restore it.
        let (both, command) = match round {
            3.. => (true, &restore[..]),
            _ => (false, &["vascriu", "rm", "s"][..]),
        };
        let (here, there) = thread::scope(|scope| {
            let here = scope.spawn(|| left.exec(command));
            let there = right.exec(&restore);
            (here.join().expect("no panic"), there)
        });
        assert!(here.status.success(), "{}", show(&here));
        if there.status.success() {
            job.is_right(&right);
        } else {
            // Gone before it was opened, or before its memory was mapped.
            let says = text(&there.stderr);
            let gone = ["no snapshot `s`", "no longer there"];
            assert!(gone.iter().any(|words| says.contains(words)), "{says}");
        }
        if both {
            assert!(there.status.success(), "{}", show(&there));
            job.is_right(&left);
            // One of them goes on, the other is a copy.
            let is_clone = |said: &Output| -> Value {
                let report: Value = serde_json::from_slice(&said.stdout).expect("JSON");
                report["clone"].clone()
            };
            assert_ne!(is_clone(&here), is_clone(&there), "{}", show(&here));
        }
        shelf.is_right();
        // What each has left of it.
        for vm in [&left, &right] {
            let _ = vm.exec(&["vascriu", "rm", "s"]);
            let list = vm.json(&["vascriu", "ls"]);
            assert_eq!(list["snapshots"], Value::Array(Vec::new()));
            assert_eq!(vm.good(&["ls", "/sys/kernel/vas"]), "");
        }
        assert_eq!(shelf.names(), [""; 0]);
    }
    drop((left, right));
    shelf.is_empty();
}
