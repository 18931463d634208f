// SPDX-License-Identifier: GPL-2.0-only
//! `vascriu serve`.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::crash::{comes_back, kill, moments, rehearse, spawn, tasks_or_snapshot, tree};
use crate::harness::{
    Test, Workload, bad, dump, json, restore, rm, vascriu, wait_until, workloads,
};
use crate::snapshots::small;

/// All tests here.
pub const TESTS: &[Test] = &[
    ("a_started_criu_does_what_one_of_ones_own_does", used),
    ("what_needs_a_criu_of_its_own_has_one", unused),
    ("who_cannot_serve_says_why", refused),
    (
        "a_service_that_is_killed_in_a_dump_loses_nothing",
        killed_in_dump,
    ),
    (
        "a_service_that_is_killed_in_a_restore_leaves_all_or_nothing",
        killed_in_restore,
    ),
];

/// A running service.
struct Service(Child);

impl Service {
    fn start() -> Self {
        let child = vascriu(&["serve"]).spawn().expect("vascriu");
        let service = Self(child);
        service.criu();
        service
    }

    /// The CRIU that waits.
    #[track_caller]
    fn criu(&self) -> i32 {
        let mut found = None;
        wait_until("a CRIU to be ready", || {
            let waiting = Path::new("/run/vascriu/ready").read_dir();
            let mut names = waiting.into_iter().flatten().flatten();
            found = names.find_map(|e| e.file_name().to_str()?.parse().ok());
            found.is_some_and(|pid| vascriu::process::parent(pid).is_ok())
        });
        found.expect("found")
    }

    /// Whether `work` takes the CRIU that waits.
    #[track_caller]
    fn is_used(&self, work: impl FnOnce()) -> bool {
        let before = self.criu();
        work();
        self.criu() != before
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        wait_until("the service's CRIU to end", || {
            let criu = Command::new("pgrep").args(["-x", "criu"]).output();
            criu.is_ok_and(|out| out.stdout.is_empty())
        });
    }
}

fn used(dir: &Path) {
    let service = Service::start();
    let mut w = Workload::start(&tree(dir));
    assert_eq!(w.check(), 1);
    for generation in 2..5 {
        let options = ["--tcp-established", "--timeout=60", "-v4"];
        assert!(service.is_used(|| drop(w.dump("x", &options))));
        assert!(!w.is_alive());
        assert!(service.is_used(|| w = restore("x", &w, &options).0));
        assert_eq!(w.check(), generation);
        rm(&["x"]);
    }
    assert!(service.is_used(|| drop(w.dump("x", &["--leave-running"]))));
    assert_eq!(w.check(), 5);
    w.kill();
    // Tasks are restored into the group of who restores them, and are nobody's children.
    let group = Path::new("/sys/fs/cgroup/vascriu-tests");
    fs::create_dir_all(group).expect("a group");
    let script = format!(
        "echo $$ >{}/cgroup.procs && exec vascriu restore x -d --json",
        group.display()
    );
    let mut said = serde_json::Value::Null;
    assert!(service.is_used(|| said = json(Command::new("sh").args(["-c", &script]))));
    let pid = said["pid"].as_i64().expect("a PID");
    let in_group = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("a process");
    assert!(in_group.contains("/vascriu-tests"), "{in_group}");
    wait_until("the worker to end", || {
        vascriu::process::parent(w.pid).is_ok_and(|parent| parent == 1)
    });
    assert_eq!(w.check(), 5);
    w.kill();
    wait_until("the group to be empty", || fs::remove_dir(group).is_ok());
    // A failure is told as without a service.
    bad(&mut dump(w.pid, "x"), &["cannot dump"]);
    bad(
        vascriu(&["restore", "x", "-d"]).args(["--network-lock", "gate"]),
        &["CRIU's restore failed", "network-lock"],
    );
    let (w, _) = restore("x", &w, &[]);
    bad(
        &mut vascriu(&["restore", "x", "-d"]),
        &["CRIU's restore failed", &w.pid.to_string()],
    );
    assert_eq!(w.check(), 5);
    w.kill();
    rm(&["x"]);
}

fn unused(dir: &Path) {
    let service = Service::start();
    let w = Workload::start(&small(dir));
    let images = dir.join("images");
    let pid = w.pid.to_string();
    let dumps = |program: &[&str], more: &[&str]| {
        let before = service.criu();
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).args(["dump", "-R", "-t", &pid]);
        let said = json(command.args(more).arg("--json").stdin(Stdio::null()));
        rm(&[said["snapshot"].as_str().expect("an identity")]);
        assert_eq!(service.criu(), before, "{program:?} {more:?}");
    };
    dumps(&["vascriu"], &["-D", images.to_str().expect("UTF-8")]);
    dumps(&["vascriu"], &["--shell-job"]);
    dumps(&["vascriu"], &["--ghost-limit", "1", "-v"]);
    dumps(&["env", "CRIU_FAULT=130", "vascriu"], &[]);
    dumps(&["unshare", "--uts", "vascriu"], &[]);
    dumps(&["sh", "-c", "umask 77; exec vascriu \"$@\"", "sh"], &[]);
    w.dump("x", &[]);
    // Who waits for the tasks needs them as children.
    let before = service.criu();
    let mut waiting = spawn(&mut vascriu(&["restore", "x"]));
    wait_until("the workload", || w.is_alive());
    assert_eq!(w.check(), 1);
    assert_eq!(service.criu(), before);
    w.kill();
    waiting.wait().expect("its end");
    rm(&["x"]);
}

fn refused(dir: &Path) {
    let service = Service::start();
    bad(&mut vascriu(&["serve"]), &["there is one already"]);
    bad(&mut vascriu(&["serve", "--ready", "0"]), &["--ready"]);
    drop(service);
    let config = Path::new("/etc/criu/default.conf");
    fs::create_dir_all("/etc/criu").expect("directory");
    fs::write(config, "tcp-established\n").expect("written");
    bad(&mut vascriu(&["serve"]), &["configuration"]);
    fs::remove_file(config).expect("removed");
    // What a killed one leaves is in nobody's way.
    let service = Service::start();
    let before = service.criu();
    drop(service);
    let w = Workload::start(&small(dir));
    w.dump("x", &[]);
    comes_back(&w);
    let service = Service::start();
    assert_ne!(service.criu(), before);
}

/// What is killed.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Criu,
    Worker,
    Service,
}

const VICTIMS: [Victim; 3] = [Victim::Criu, Victim::Worker, Victim::Service];

/// Starts a service, and kills a part of it so long after `command` was started; whether that
/// succeeds.
fn killed(victim: Victim, after: Duration, command: &mut Command) -> bool {
    let service = Service::start();
    let criu = service.criu();
    let worker = vascriu::process::parent(criu).expect("its parent");
    let running = spawn(command);
    sleep(after);
    kill(match victim {
        Victim::Criu => criu,
        Victim::Worker => worker,
        Victim::Service => service.0.id().cast_signed(),
    });
    let out = running.wait_with_output().expect("status");
    wait_until("CRIU to end", || {
        vascriu::process::PidFd::open(criu).map_or(true, |p| p.is_dead())
    });
    out.status.success()
}

fn killed_in_dump(dir: &Path) {
    let w = Workload::start(&tree(dir));
    let (whole, _) = rehearse(&w, &[]);
    for victim in VICTIMS {
        for moment in moments(whole).into_iter().step_by(3) {
            let done = killed(victim, moment, &mut dump(w.pid, "x"));
            let kept = tasks_or_snapshot(&w, "x", &[]);
            assert!(kept || !done, "{victim:?} after {moment:?}");
        }
    }
    w.kill();
}

fn killed_in_restore(dir: &Path) {
    let w = Workload::start(&tree(dir));
    let (_, whole) = rehearse(&w, &[]);
    w.dump("x", &[]);
    for victim in VICTIMS {
        for moment in moments(whole).into_iter().step_by(3) {
            let done = killed(victim, moment, &mut vascriu(&["restore", "x", "-d"]));
            if done || matches!(victim, Victim::Worker) && w.is_alive() {
                w.check();
                w.kill();
            }
            wait_until("half-restored tasks to go", || workloads().is_empty());
        }
    }
    comes_back(&w);
}
