//! CRIU or vascriu killed with SIGKILL, at moments spread over a whole dump or
//! restore.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::harness::{
    Test, Workload, dump, end_workloads, errors, good, is_debug_kernel, packet_filters, restore,
    rm, vascriu, vases, wait_until, workloads,
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
    ("faults_inside_criu_are_clean_failures", faults),
];

/// The moments at which to kill, in something that takes as long as `whole`: fewer where
/// everything is many times slower.
fn moments(whole: Duration) -> Vec<Duration> {
    let steps = if is_debug_kernel() { 5 } else { 16 };
    (0..=steps).map(|step| whole * step / steps).collect()
}

fn child_of(pid: u32) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let first = children.split_whitespace().next()?.parse().ok()?;
    let comm = fs::read_to_string(format!("/proc/{first}/comm")).ok()?;
    (comm.trim() == "criu").then_some(first)
}

fn kill(pid: i32) {
    // SAFETY: kill takes two integers.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

/// Waits for CRIU to start under `running`, then for a part of its run.
fn criu_after(running: &mut Child, part: Duration) -> Option<i32> {
    let mut criu = None;
    wait_until("CRIU to start", || {
        criu = child_of(running.id());
        criu.is_some() || matches!(running.try_wait(), Ok(Some(_)))
    });
    sleep(part);
    criu
}

fn spawn(command: &mut Command) -> Child {
    command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("vascriu")
}

/// How long CRIU takes, and a workload that has been dumped and restored.
fn rehearse(w: &Workload, options: &[&str]) -> (Duration, Duration) {
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
fn tasks_or_snapshot(w: &Workload, name: &str, options: &[&str]) -> bool {
    let kept = !vases().is_empty();
    if kept {
        w.kill(); // tasks that CRIU did not come to end
        end_workloads();
        restore(name, w, options);
        rm(&[name]);
    }
    assert_eq!(vases(), Vec::<String>::new());
    w.check();
    assert_eq!(packet_filters(), "", "the connection is locked");
    kept
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
    let options = Options {
        children: 2,
        threads: 2,
        files: true,
        ..small(dir)
    };
    dumps_killed(&options, &[]);
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
    let w = Workload::start(&Options {
        children: 2,
        threads: 2,
        files: true,
        ..small(dir)
    });
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
    let (r, _) = restore("x", &w, &[]);
    r.check();
    r.kill();
    rm(&["x"]);
}

/// Also where a vascriu that was killed had only just begun it.
fn criu_is_gone() -> bool {
    !Command::new("pgrep")
        .args(["-x", "criu|vascriu"])
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

fn vascriu_in_dump(dir: &Path) {
    let w = Workload::start(&Options {
        children: 2,
        threads: 2,
        files: true,
        ..small(dir)
    });
    let (whole, _) = rehearse(&w, &[]);
    for moment in moments(whole) {
        let mut dumping = spawn(&mut dump(w.pid, "x"));
        sleep(moment);
        dumping.kill().expect("kill");
        dumping.wait().expect("status");
        wait_until("CRIU to end", criu_is_gone);
        // The next vascriu finishes or takes back what it finds.
        good(&mut vascriu(&["ls"]));
        tasks_or_snapshot(&w, "x", &[]);
    }
}

fn vascriu_in_restore(dir: &Path) {
    let w = Workload::start(&Options {
        children: 2,
        threads: 2,
        files: true,
        ..small(dir)
    });
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
    let (r, _) = restore("x", &w, &[]);
    r.check();
    r.kill();
    rm(&["x"]);
}

/// CRIU's own fault injection, by the numbers of its `fault-injection.h`.
fn faults(dir: &Path) {
    let w = Workload::start(&Options {
        children: 2,
        threads: 2,
        files: true,
        ..small(dir)
    });
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
    let (r, _) = restore("x", &w, &[]);
    r.check();
    r.kill();
    rm(&["x"]);
}
