// SPDX-License-Identifier: GPL-2.0-only
//! CRIU or vascriu killed with SIGKILL, at moments spread over a whole dump or
//! restore.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::bad_input::executable;
use crate::harness::{
    Test, Workload, bad, dump, end_workloads, errors, good, is_debug_kernel, ls, packet_filters,
    restore, rm, vascriu, vases, wait_until, work_dirs, workloads,
};
use crate::snapshots::small;
use crate::workload::Options;

/// All tests here.
pub const TESTS: &[Test] = &[
    (
        "criu_killed_in_a_dump_leaves_the_tasks_or_the_snapshot",
        criu_in_dump,
    ),
    (
        "criu_killed_while_it_has_a_child_leaves_no_process",
        criu_with_child,
    ),
    (
        "criu_killed_in_a_dump_with_tcp_leaves_the_connection_working",
        criu_in_tcp_dump,
    ),
    (
        "criu_killed_in_a_restore_leaves_nothing_half_restored",
        criu_in_restore,
    ),
    (
        "vascriu_killed_in_a_dump_leaves_the_tasks_or_the_snapshot",
        vascriu_in_dump,
    ),
    (
        "vascriu_killed_in_a_restore_leaves_all_or_nothing",
        vascriu_in_restore,
    ),
    (
        "vascriu_killed_in_a_dump_into_a_directory_loses_nothing",
        vascriu_in_dump_with_directory,
    ),
    (
        "a_wrapper_of_criu_that_fails_after_it_loses_nothing",
        wrapper_fails,
    ),
    (
        "criu_killed_behind_a_wrapper_leaves_the_tasks_or_the_snapshot",
        behind_wrapper,
    ),
    ("a_killed_wrapper_takes_its_criu_along", wrapper_killed),
    (
        "criu_killed_in_a_restore_leaves_no_cgroup_mounted",
        cgroups_of_killed_restore,
    ),
    ("faults_inside_criu_are_clean_failures", faults),
];

/// The moments at which to kill, in something that takes as long as `whole`: fewer where
/// everything is many times slower.
pub fn moments(whole: Duration) -> Vec<Duration> {
    let steps = if is_debug_kernel() { 5 } else { 16 };
    (0..=steps).map(|step| whole * step / steps).collect()
}

fn child_of(pid: u32, is: &str) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let first = children.split_whitespace().next()?.parse().ok()?;
    let comm = fs::read_to_string(format!("/proc/{first}/comm")).ok()?;
    (comm.trim() == is).then_some(first)
}

pub fn kill(pid: i32) {
    // SAFETY: kill takes two integers.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

/// Waits for CRIU to start under `running`, then for a part of its run.
fn criu_after(running: &mut Child, part: Duration) -> Option<i32> {
    let mut criu = None;
    wait_until("CRIU to start", || {
        criu = child_of(running.id(), "criu");
        criu.is_some() || matches!(running.try_wait(), Ok(Some(_)))
    });
    sleep(part);
    criu
}

pub fn spawn(command: &mut Command) -> Child {
    command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("vascriu")
}

/// How long CRIU takes, and a workload that has been dumped and restored.
pub fn rehearse(w: &Workload, options: &[&str]) -> (Duration, Duration) {
    let dumped = w.dump("rehearsal", options);
    let (_, restored) = restore("rehearsal", w, options);
    rm(&["rehearsal"]);
    let of = |v: &serde_json::Value| {
        Duration::from_secs_f64(v["criu_ms"].as_f64().expect("a number") / 1000.0)
    };
    (of(&dumped), of(&restored))
}

/// The tasks go on, or there is a snapshot that can take their place: says whether that.
#[track_caller]
pub fn tasks_or_snapshot(w: &Workload, name: &str, options: &[&str]) -> bool {
    // What a killed CRIU did not commit goes with the last of its children.
    let kept = !ls().is_empty();
    if kept {
        w.kill(); // tasks that CRIU did not come to end
        end_workloads();
        restore(name, w, options);
        rm(&[name]);
    }
    wait_until("the VASes to be gone", || vases().is_empty());
    w.check();
    assert_eq!(packet_filters(), "", "the connection is locked");
    kept
}

/// Several processes with threads, in files too.
pub fn tree(dir: &Path) -> Options {
    Options {
        children: 2,
        threads: 2,
        files: true,
        shared: true,
        ..small(dir)
    }
}

/// The snapshot `x` of it is whole: it is restored and ended, and the snapshot goes.
#[track_caller]
pub fn comes_back(w: &Workload) {
    let (r, _) = restore("x", w, &[]);
    r.check();
    r.kill();
    rm(&["x"]);
}

/// Kills CRIU at moments spread over a dump. Also where it has put system calls into the
/// tasks, by rewriting their registers and code, they go on as if nothing had happened.
fn dumps_killed(more: &Options, options: &[&str]) {
    let w = Workload::start(more);
    let (whole, _) = rehearse(&w, options);
    let (mut kept, mut went_on) = (0, 0);
    for moment in moments(whole) {
        let mut command = dump(w.pid, "x");
        let mut dumping = spawn(command.args(options));
        if let Some(criu) = criu_after(&mut dumping, moment) {
            kill(criu);
        }
        let out = dumping.wait_with_output().expect("status");
        if !out.status.success() {
            let said = errors(&out);
            assert!(
                said.contains("killed by signal 9") || said.contains("failed"),
                "{said}"
            );
        }
        if tasks_or_snapshot(&w, "x", options) {
            kept += 1;
        } else {
            went_on += 1;
        }
    }
    println!("killed: {kept} times a snapshot, {went_on} times the tasks");
    assert!(went_on > 0);
}

fn criu_in_dump(dir: &Path) {
    dumps_killed(&tree(dir), &[]);
}

/// CRIU begins with a child that sleeps for ever, to try out `ptrace` on: lets CRIU run
/// until it is about to trace that; says whether it was.
fn runs_to_its_attach(criu: i32) -> bool {
    let criu = Pid::from_raw(criu);
    ptrace::seize(criu, ptrace::Options::PTRACE_O_TRACESYSGOOD).expect("seize");
    ptrace::interrupt(criu).expect("interrupt");
    loop {
        let signal = match waitpid(criu, Some(WaitPidFlag::__WALL)).expect("a stop") {
            WaitStatus::PtraceSyscall(_) => {
                let regs = ptrace::getregs(criu).expect("registers");
                let ptraces = regs.orig_rax == libc::SYS_ptrace.cast_unsigned();
                if ptraces && regs.rdi == u64::from(libc::PTRACE_ATTACH) {
                    return true;
                }
                None
            }
            WaitStatus::Stopped(_, signal) => Some(signal),
            WaitStatus::PtraceEvent(..) => None,
            _ => return false,
        };
        ptrace::syscall(criu, signal).expect("go on");
    }
}

fn criu_with_child(dir: &Path) {
    let w = Workload::start(&small(dir));
    let mut dumping = spawn(&mut dump(w.pid, "x"));
    let criu = criu_after(&mut dumping, Duration::ZERO).expect("CRIU");
    assert!(runs_to_its_attach(criu), "CRIU has begun without it");
    kill(criu);
    // The tracer comes before the parent.
    waitpid(Pid::from_raw(criu), Some(WaitPidFlag::__WALL)).expect("CRIU's end");
    dumping.wait().expect("status");
    wait_until("CRIU's child to end", criu_is_gone);
    assert!(!tasks_or_snapshot(&w, "x", &[]));
    w.kill();
}

fn criu_in_tcp_dump(dir: &Path) {
    let options = Options {
        tcp: true,
        ..small(dir)
    };
    dumps_killed(&options, &["--tcp-established"]);
}

fn criu_in_restore(dir: &Path) {
    let w = Workload::start(&tree(dir));
    let (_, whole) = rehearse(&w, &[]);
    w.dump("x", &[]);
    let (mut all, mut none) = (0, 0);
    for moment in moments(whole) {
        let mut restoring = spawn(&mut vascriu(&["restore", "x", "-d"]));
        if let Some(criu) = criu_after(&mut restoring, moment) {
            kill(criu);
        }
        if restoring
            .wait_with_output()
            .expect("status")
            .status
            .success()
        {
            all += 1;
            w.check();
            w.kill();
        } else {
            none += 1;
        }
        wait_until("half-restored tasks to go", || workloads().is_empty());
        assert_eq!(vases().len(), 3, "the snapshot stays");
    }
    println!("killed: {all} times restored, {none} times not");
    assert!(none > 0);
    comes_back(&w);
}

/// Also where a vascriu that was killed had only just begun it.
pub fn criu_is_gone() -> bool {
    !Command::new("pgrep")
        .args(["-x", "criu|vascriu"])
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

fn vascriu_in_dump(dir: &Path) {
    let w = Workload::start(&tree(dir));
    let (whole, _) = rehearse(&w, &[]);
    for moment in moments(whole) {
        let mut dumping = spawn(&mut dump(w.pid, "x"));
        sleep(moment);
        dumping.kill().expect("kill");
        dumping.wait().expect("status");
        wait_until("CRIU to end", criu_is_gone);
        // Nothing has to be finished or taken back by whoever comes next.
        tasks_or_snapshot(&w, "x", &[]);
    }
}

fn vascriu_in_dump_with_directory(dir: &Path) {
    let w = Workload::start(&Options {
        children: 2,
        ..small(dir)
    });
    let (whole, _) = rehearse(&w, &[]);
    let images = dir.join("images");
    for moment in moments(whole) {
        let mut dumping = spawn(dump(w.pid, "x").arg("-D").arg(&images));
        sleep(moment);
        dumping.kill().expect("kill");
        dumping.wait().expect("status");
        wait_until("CRIU to end", criu_is_gone);
        // Who believes paths would remove what has none yet.
        good(&mut vascriu(&["gc"]));
        if vases().is_empty() {
            w.check();
        } else {
            w.kill();
            end_workloads();
            good(vascriu(&["restore", "-d", "-D"]).arg(&images));
            w.check();
            rm(&["x"]);
        }
        let _ = fs::remove_dir_all(&images);
    }
}

/// A script that runs CRIU, with `before` and `after` around.
fn wrapper(dir: &Path, before: &str, after: &str) -> PathBuf {
    let path = dir.join("wrapper");
    let text = format!(
        "#!/bin/sh\n[ \"$1\" != --version ] || exec criu --version\n{before} criu \"$@\"\n{after}\n"
    );
    executable(&path, &text);
    path
}

fn wrapper_fails(dir: &Path) {
    let w = Workload::start(&Options {
        children: 1,
        ..small(dir)
    });
    let images = dir.join("images");
    for after in ["exit 1", "exit 137", "kill -9 $$"] {
        let script = wrapper(dir, "", after);
        let mut command = dump(w.pid, "x");
        command.env("VASCRIU_CRIU", &script).arg("-D").arg(&images);
        bad(&mut command, &["the snapshot was whole", "kept as"]);
        assert_eq!(images.read_dir().expect("directory").count(), 1);
        let (r, _) = restore("x", &w, &[]);
        r.check();
        rm(&["x"]);
    }
    // With all tasks alive there is nothing to lose.
    let script = wrapper(dir, "", "exit 1");
    let mut command = dump(w.pid, "x");
    command
        .env("VASCRIU_CRIU", &script)
        .arg("-R")
        .arg("-D")
        .arg(&images);
    bad(&mut command, &["CRIU's dump failed"]);
    assert_eq!(vases(), Vec::<String>::new());
    // And a directory that goes meanwhile is no snapshot.
    let script = wrapper(dir, "", &format!("rm -r {}", images.display()));
    good(
        dump(w.pid, "x")
            .env("VASCRIU_CRIU", &script)
            .arg("-D")
            .arg(&images),
    );
    comes_back(&w);
}

fn behind_wrapper(dir: &Path) {
    let w = Workload::start(&tree(dir));
    let (whole, _) = rehearse(&w, &[]);
    for moment in moments(whole) {
        let seconds = moment.as_secs_f64().max(0.001);
        let script = wrapper(dir, &format!("timeout -s KILL {seconds}"), "");
        let out = dump(w.pid, "x").env("VASCRIU_CRIU", &script).output();
        let said = errors(&out.expect("vascriu"));
        println!(
            "after {seconds} s: {}",
            said.lines().next().unwrap_or("done")
        );
        wait_until("CRIU to end", criu_is_gone);
        tasks_or_snapshot(&w, "x", &[]);
    }
}

fn wrapper_killed(dir: &Path) {
    let w = Workload::start(&tree(dir));
    let (whole, _) = rehearse(&w, &[]);
    let script = wrapper(dir, "", "exit $?");
    for moment in moments(whole) {
        let mut command = dump(w.pid, "x");
        let mut dumping = spawn(command.env("VASCRIU_CRIU", &script));
        sleep(moment);
        if let Some(wrapper) = child_of(dumping.id(), "wrapper") {
            kill(wrapper);
        }
        dumping.wait().expect("status");
        assert!(criu_is_gone(), "it went with its wrapper");
        tasks_or_snapshot(&w, "x", &[]);
    }
}

/// CRIU mounts the cgroups in its work directory to move tasks there.
fn cgroups_of_killed_restore(dir: &Path) {
    let group = Path::new("/sys/fs/cgroup/vascriu-test");
    fs::create_dir_all(group).expect("group");
    let w = Workload::start(&small(dir));
    fs::write(group.join("cgroup.procs"), w.pid.to_string()).expect("move");
    let (_, whole) = rehearse(&w, &[]);
    w.dump("x", &[]);
    for moment in moments(whole) {
        let mut restoring = spawn(&mut vascriu(&["restore", "x", "-d"]));
        if let Some(criu) = criu_after(&mut restoring, moment) {
            kill(criu);
            restoring.kill().expect("kill");
        }
        restoring.wait().expect("status");
        // Without the two, what is half restored would wait for ever.
        wait_until("CRIU to end", || {
            let left = Command::new("pgrep").args(["-x", "criu"]).output();
            let left = String::from_utf8(left.expect("pgrep").stdout).expect("PIDs");
            left.lines()
                .filter_map(|pid| pid.parse().ok())
                .for_each(kill);
            criu_is_gone()
        });
        // Its command line is in its stack, which it may not have yet.
        wait_until("the task to end", || {
            kill(w.pid);
            !Path::new(&format!("/proc/{}", w.pid)).exists()
        });
        for command in ["ls", "gc"] {
            good(&mut vascriu(&[command]));
        }
        assert_eq!(work_dirs(), Vec::<String>::new());
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        assert!(!mounts.contains("/run/vascriu"), "{mounts}");
    }
    comes_back(&w);
    wait_until("the group to empty", || fs::remove_dir(group).is_ok());
}

fn vascriu_in_restore(dir: &Path) {
    let w = Workload::start(&tree(dir));
    let (_, whole) = rehearse(&w, &[]);
    w.dump("x", &[]);
    for moment in moments(whole) {
        let mut restoring = spawn(&mut vascriu(&["restore", "x", "-d"]));
        sleep(moment);
        restoring.kill().expect("kill");
        restoring.wait().expect("status");
        wait_until("CRIU to end", criu_is_gone);
        if workloads().is_empty() {
            continue;
        }
        assert_eq!(workloads().len(), 3);
        w.check();
        w.kill();
    }
    wait_until("the end", || workloads().is_empty());
    good(&mut vascriu(&["ls"]));
    comes_back(&w);
}

/// CRIU's own fault injection, by the numbers of its `fault-injection.h`.
fn faults(dir: &Path) {
    let w = Workload::start(&tree(dir));
    // DUMP_EARLY (kills itself), DUMP_PAGES, PARASITE_CONNECT, DUMP_CRASH.
    for fault in ["1", "3", "5", "136"] {
        let out = dump(w.pid, "x")
            .env("CRIU_FAULT", fault)
            .output()
            .expect("vascriu");
        if out.status.success() {
            restore("x", &w, &[]);
            rm(&["x"]);
        }
        assert_eq!(vases(), Vec::<String>::new(), "fault {fault}");
        w.check();
    }
    w.dump("x", &[]);
    // RESTORE_ROOT_ONLY, POST_RESTORE.
    for fault in ["2", "6"] {
        let out = vascriu(&["restore", "x", "-d"])
            .env("CRIU_FAULT", fault)
            .output()
            .expect("vascriu");
        assert!(!out.status.success(), "fault {fault}");
        wait_until("half-restored tasks to go", || workloads().is_empty());
    }
    comes_back(&w);
}
