// SPDX-License-Identifier: GPL-2.0-only
//! The drop-in under runc, with CRIU or the process beside it killed at any moment.

use std::fs;
use std::path::Path;
use std::process::Child;
use std::thread::sleep;
use std::time::Duration;

use crate::bundle::{Bundle, Found, WORK};
use crate::container::{names, rm_all};
use crate::harness::{Test, Workload, all_vases, end_workloads, ls, vases, wait_until, workloads};

/// All tests here.
pub const TESTS: &[Test] = &[
    (
        "a_killed_checkpoint_leaves_the_container_or_the_snapshot",
        killed_dump,
    ),
    (
        "a_checkpoint_without_its_process_beside_leaves_one_of_both",
        killed_beside,
    ),
    ("a_killed_restore_leaves_no_task", killed_restore),
    (
        "a_restore_without_its_process_beside_leaves_no_task",
        restore_killed_beside,
    ),
];

/// Kills the CRIU that a runc has started, when it has run for that long; whether there was
/// one.
fn kill_criu(runc: &Child, after: Duration) -> bool {
    let list = format!("/proc/{0}/task/{0}/children", runc.id());
    // The process beside is adopted by runc.
    let is_criu = |pid: &i32| {
        vascriu::process::comm(*pid).is_ok_and(|c| c == "criu") && session(*pid) != Some(*pid)
    };
    let find = || {
        let tasks = Path::new(&list)
            .parent()?
            .parent()?
            .read_dir()
            .ok()?
            .flatten();
        let lists = tasks.filter_map(|t| fs::read_to_string(t.path().join("children")).ok());
        let pids: Vec<i32> = lists
            .flat_map(|l| {
                l.split(' ')
                    .filter_map(|p| p.trim().parse().ok())
                    .collect::<Vec<_>>()
            })
            .collect();
        pids.into_iter().find(is_criu)
    };
    let mut found = None;
    wait_until("runc to start its CRIU", || {
        found = find();
        found.is_some() || vascriu::process::is_ending(runc.id().cast_signed())
    });
    sleep(after);
    // runc runs several, one after the other: the version is asked for first.
    let Some(pid) = find() else {
        return false;
    };
    // SAFETY: kill takes two integers.
    unsafe { libc::kill(pid, libc::SIGKILL) == 0 }
}

/// Kill times that are spread over a run of CRIU's.
fn delays() -> impl Iterator<Item = Duration> {
    (0..12).map(|step| Duration::from_millis(step * step * 12))
}

/// Kills the process beside the next CRIU, when that has run for so long; whether there was one.
fn kill_beside(runc: &Child, after: Duration) -> bool {
    // It has a session of its own; what becomes CRIU does not.
    let find = || beside().into_iter().find(|pid| session(*pid) == Some(*pid));
    let mut found = None;
    wait_until("a process beside CRIU", || {
        found = find();
        found.is_some() || vascriu::process::is_ending(runc.id().cast_signed())
    });
    sleep(after);
    // SAFETY: kill takes two integers.
    find().is_some_and(|pid| unsafe { libc::kill(pid, libc::SIGKILL) == 0 })
}

fn session(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(3)?.parse().ok()
}

fn killed_dump(dir: &Path) {
    killed(dir, kill_criu);
}

fn killed_beside(dir: &Path) {
    killed(dir, kill_beside);
}

fn killed(dir: &Path, kill: impl Fn(&Child, Duration) -> bool) {
    let b = Bundle::new(dir);
    let mut w = b.start("c1");
    let mut generation = 0;
    let mut killed = 0;
    for delay in delays() {
        let mut runc = b
            .checkpoint(Found::DropIn, "c1", &[])
            .spawn()
            .expect("runc");
        killed += u32::from(kill(&runc, delay));
        let done = runc.wait().expect("runc").success();
        // What is beside CRIU sees to the rest.
        wait_until("the process beside CRIU to end", || beside().is_empty());
        if w.is_alive() {
            assert!(!done, "not half a success");
            wait_until("what was not committed to go", || all_vases().is_empty());
            assert!(!b.images().join("inventory.img").exists());
        } else {
            assert!(all_whole(), "killed after {delay:?}: {}", b.logs());
            b.delete("c1");
            b.good(b.restore(Found::DropIn, "c1"));
            w = b.workload("c1");
            rm_all();
            fs::remove_dir_all(b.images()).expect("removed");
        }
        generation += 1;
        assert_eq!(w.check(), generation, "killed after {delay:?}");
    }
    assert!(killed > 3, "{killed}");
    b.delete("c1");
}

/// Whether there is exactly one snapshot, with the memory of both tasks.
fn all_whole() -> bool {
    ls().len() == 1 && vases().len() == 2
}

/// Processes beside a CRIU.
fn beside() -> Vec<i32> {
    let is_one = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(b"criu\0swrk")
    };
    vascriu::process::all().filter(is_one).collect()
}

fn killed_restore(dir: &Path) {
    restore_killed(dir, kill_criu, |_| false);
}

/// Killed between CRIU's last look for it and passing on that all is well, it leaves tasks that run
/// as they should, of which the engine does not know.
fn restore_killed_beside(dir: &Path) {
    restore_killed(dir, kill_beside, |w| {
        // Who is ending has ended by then.
        sleep(Duration::from_secs(1));
        let root = workloads().into_iter().min();
        root.is_some_and(|pid| w.restored_as(pid).ask().is_ok_and(|a| a == "ok 1"))
    });
}

/// `untold`: whether who was restored may go on, and does, where the engine was told of a failure.
fn restore_killed(
    dir: &Path,
    kill: impl Fn(&Child, Duration) -> bool,
    untold: impl Fn(&Workload) -> bool,
) {
    let b = Bundle::new(dir);
    b.start("c1");
    let w = b.workload("c1");
    b.good(b.checkpoint(Found::DropIn, "c1", &[]));
    let mut killed = 0;
    for delay in delays() {
        let mut runc = b.restore(Found::DropIn, "c1").spawn().expect("runc");
        killed += u32::from(kill(&runc, delay));
        let done = runc.wait().expect("runc").success();
        wait_until("the process beside CRIU to end", || beside().is_empty());
        if done {
            assert_eq!(b.workload("c1").check(), 1, "restored although killed");
        } else {
            if untold(&w) {
                end_workloads();
            }
            let all = format!("all of it to end, killed after {delay:?}");
            wait_until(&all, || workloads().is_empty());
        }
        b.delete("c1");
        wait_until("the container to end", || workloads().is_empty());
        let mounted = |n: &String| n.starts_with(".criu.cgyard.");
        assert!(!names(Path::new(WORK)).iter().any(mounted), "{delay:?}");
    }
    assert!(killed > 3, "{killed}");
    b.good(b.restore(Found::DropIn, "c1"));
    assert_eq!(b.workload("c1").check(), 1);
    b.delete("c1");
    rm_all();
}
