// SPDX-License-Identifier: GPL-2.0-only
//! What copies cost, and what becomes of them where it is too much or ends early.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{clone, copies, kill};
use crate::harness::{
    Test, Workload, bad, errors, good, kib_of, rm, vascriu, wait_until, workloads,
};
use crate::snapshots::small;
use crate::workload::Options;

/// All tests here.
pub const TESTS: &[Test] = &[
    (
        "what_cannot_be_cloned_is_refused_before_anything_is_begun",
        refused,
    ),
    ("where_memory_runs_out_what_runs_stays", out_of_memory),
    ("a_killed_clone_leaves_no_half_made_copy", killed),
    ("a_hundred_copies_take_little_memory_each", hundred),
];

fn refused(dir: &Path) {
    let w = Workload::start(&small(dir));
    w.dump("x", &[]);
    let count = |n| vascriu(&["clone", "x", "-n", n]);
    bad(&mut count("0"), &["0 is not in 1"]);
    bad(&mut count("-1"), &["-1"]);
    bad(&mut count("100000"), &["100000 copies", "room for"]);
    bad(&mut count("4294967295"), &["4294967295 copies", "room for"]);
    bad(
        &mut vascriu(&["clone", "none", "-n", "1"]),
        &["no snapshot `none`"],
    );
    let net = |args: &[&str]| {
        let mut command = vascriu(&["clone", "x", "-n", "1", "--net"]);
        command.args(args);
        command
    };
    bad(
        &mut net(&["nobridge", "--subnet", "10.0.0.0/8"]),
        &["no bridge `nobridge`"],
    );
    bad(&mut net(&["lo"]), &["--subnet"]);
    bad(
        &mut net(&["lo", "--subnet", "10.0.0.0/8"]),
        &["no bridge `lo`"],
    );
    bad(
        &mut net(&["none", "--subnet", "10.0.0.0/8"]),
        &["--net BRIDGE"],
    );
    bad(
        &mut net(&["lo", "--subnet", "10.0.0.0/99"]),
        &["no IPv4 subnet"],
    );
    assert_eq!(workloads(), Vec::<i32>::new());
    rm(&["x"]);
}

fn out_of_memory(dir: &Path) {
    let w = Workload::start(&Options {
        threads: 4,
        ..small(dir)
    });
    w.dump("x", &[]);
    let group = Path::new("/sys/fs/cgroup/vastest");
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory").expect("controller");
    fs::create_dir_all(group).expect("cgroup");
    fs::write(group.join("memory.max"), "96M").expect("limit");
    let procs = group.join("cgroup.procs");
    let mut command = vascriu(&["clone", "x", "-n", "200", "--json"]);
    // SAFETY: runs in the child, which has this one thread; write does not allocate more
    // than std does for any command.
    unsafe { command.pre_exec(move || fs::write(&procs, "0")) };
    let out = command.output().expect("run");
    let text = errors(&out);
    assert!(!out.status.success(), "{text}");
    let said: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let all = copies(&said);
    assert!(!all.is_empty() && all.len() < 200, "{text}");
    let counted = format!("{} of 200 copies run", all.len());
    assert!(text.contains(&counted) && text.contains("memory"), "{text}");
    assert_eq!(workloads().len(), all.len());
    for c in &all {
        let adjusted = fs::read_to_string(format!("/proc/{}/oom_score_adj", c.pid));
        assert_eq!(adjusted.expect("score").trim(), "0");
    }
    fs::write(group.join("memory.max"), "max").expect("limit");
    for c in &all {
        assert_eq!(w.restored_as(c.pid).check(), 1);
        c.kill();
    }
    wait_until("the cgroup to be empty", || fs::remove_dir(group).is_ok());
    rm(&["x"]);
}

fn killed(dir: &Path) {
    let w = Workload::start(&small(dir));
    w.dump("x", &[]);
    for wait in [10, 100, 300, 600, 1000] {
        let mut command = vascriu(&["clone", "x", "-n", "50"]);
        let mut clone = command.stdout(Stdio::null()).spawn().expect("run");
        std::thread::sleep(std::time::Duration::from_millis(wait));
        clone.kill().expect("kill");
        clone.wait().expect("wait");
        // What ran stays; all else is gone with it.
        let of_criu = || {
            let names = good(Command::new("ps").args(["-eo", "comm"]));
            names.lines().any(|l| l == "criu")
        };
        wait_until("half made copies to be gone", || !of_criu());
        for pid in workloads() {
            assert_eq!(w.restored_as(pid).check(), 1);
            kill(pid, libc::SIGKILL);
        }
        wait_until("the copies to end", || workloads().is_empty());
    }
    // What it worked in goes with the next one.
    clone("x", 1, &[])[0].kill();
    rm(&["x"]);
}

/// `MemAvailable` in bytes, once what is being freed is free.
fn available() -> u64 {
    // SAFETY: sync takes nothing.
    unsafe { libc::sync() };
    fs::write("/proc/sys/vm/drop_caches", "3").expect("drop_caches");
    let text = fs::read_to_string("/proc/meminfo").expect("meminfo");
    kib_of(&text, "MemAvailable:") << 10
}

/// Memory of each of a hundred copies of 256 MiB; the times are only told, for the machine may be
/// busy.
fn hundred(dir: &Path) {
    const COPIES: usize = 100;
    const MIB: u64 = 256;
    let w = Workload::start(&Options {
        mib: 256,
        ..small(dir)
    });
    w.dump("x", &["--guest-only"]);
    let before = available();
    let all = clone("x", COPIES, &[]);
    let each = before.saturating_sub(available()) / COPIES as u64;
    let ms: Vec<f64> = all
        .iter()
        .filter_map(|c| c.said["restore_ms"].as_f64())
        .collect();
    let median = |part: &[f64]| {
        let mut part = part.to_vec();
        part.sort_by(f64::total_cmp);
        part[part.len() / 2]
    };
    let (first, last) = (median(&ms[..10]), median(&ms[COPIES - 10..]));
    println!(
        "{COPIES} copies of {MIB} MiB: {} KiB each; {first:.0} ms each at first, {last:.0} ms at last",
        each >> 10
    );
    assert!(each * 20 <= MIB << 20, "at most 5 %: {each} bytes");
    for c in [&all[0], &all[COPIES / 2], &all[COPIES - 1]] {
        assert_eq!(w.restored_as(c.pid).check(), 1);
    }
    for c in &all {
        kill(c.supervisor, libc::SIGKILL);
    }
    wait_until("the copies to end", || workloads().is_empty());
    rm(&["x"]);
}
