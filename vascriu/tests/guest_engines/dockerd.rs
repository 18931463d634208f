// SPDX-License-Identifier: GPL-2.0-only
//! dockerd killed in the middle of its work.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::docker::Container;
use crate::harness::{
    REDIS, Test, docker_answers, forget, good, output, sh, snapshot_of, snapshots, wait_until,
};

/// What `make test-all` runs.
pub const LONG_TESTS: &[Test] = &[
    (
        "docker_a_container_outlives_a_dockerd_that_is_killed_in_a_checkpoint",
        || killed_in_checkpoint(&["--leave-running"]),
    ),
    (
        "docker_a_checkpoint_that_dockerd_did_not_live_to_see_is_whole_or_none",
        || killed_in_checkpoint(&[]),
    ),
    (
        "docker_a_start_that_dockerd_did_not_live_to_see_can_be_made_again",
        killed_in_start,
    ),
];

const PID: &str = "/run/docker.pid";
/// Into so many parts the time that the work takes is divided.
const MOMENTS: u32 = 6;

/// Containers go on without dockerd, as long as this lives.
struct LiveRestore(String);

impl LiveRestore {
    const FILE: &str = "/etc/docker/daemon.json";

    fn on() -> Self {
        let before = fs::read_to_string(Self::FILE).expect("a configuration");
        reload(&before, true);
        Self(before)
    }
}

impl Drop for LiveRestore {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            reload(&self.0, false);
        }
        fs::write(Self::FILE, &self.0).expect("write");
    }
}

/// What the file does not say stays as it was.
fn reload(config: &str, live: bool) {
    let said = format!("{{\"live-restore\": {live},");
    fs::write(LiveRestore::FILE, config.replacen('{', &said, 1)).expect("write");
    sh("kill -HUP $(cat /run/docker.pid)");
    wait_until("dockerd to read its configuration", || {
        good(&["docker", "info", "-f", "{{.LiveRestoreEnabled}}"]) == live.to_string()
    });
}

fn begin(args: &[&str]) -> Child {
    let mut command = Command::new("docker");
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command.stderr(Stdio::null()).spawn().expect("docker")
}

/// How long it takes if nobody is killed.
fn time(args: &[&str]) -> Duration {
    let begun = Instant::now();
    good(&[&["docker"], args].concat());
    begun.elapsed()
}

/// Kills dockerd `after` the command has begun; returns when the next one answers.
fn interrupt(args: &[&str], after: Duration) {
    let mut command = begin(args);
    sleep(after);
    let pid = || fs::read_to_string(PID).unwrap_or_default();
    let killed = pid();
    good(&["kill", "-9", &killed]);
    command.wait().expect("docker");
    // PID 1 starts it again.
    wait_until("the next dockerd", || !["", &killed].contains(&&*pid()));
    docker_answers();
}

fn is_running(c: &Container) -> bool {
    c.inspect("{{.State.Running}}") == "true"
}

fn no_criu_is_left() {
    wait_until("all of CRIU to end", || {
        sh("pgrep -x criu || true").is_empty()
    });
}

/// dockerd pauses what it checkpoints, and only the same dockerd would end that: so it is with
/// the stock CRIU, too.
fn resume(c: &Container) {
    let id = c.inspect("{{.Id}}");
    let tasks = good(&["ctr", "-n", "moby", "task", "ls"]);
    let is_paused = |l: &str| l.contains(&id) && l.contains("PAUSED");
    if tasks.lines().any(is_paused) {
        good(&["ctr", "-n", "moby", "task", "resume", &id]);
    }
}

fn create<'a>(options: &[&'a str], name: &'a str) -> Vec<&'a str> {
    [&["checkpoint", "create"], options, &["web", name]].concat()
}

fn killed_in_checkpoint(options: &[&str]) {
    let _live = LiveRestore::on();
    let c = Container::run("web", &[], &REDIS);
    let digest = c.redis().load();
    let whole = time(&create(options, "whole"));
    if options.is_empty() {
        c.start("whole");
    }
    for moment in 1..MOMENTS {
        forget();
        let name = format!("g{moment}");
        interrupt(&create(options, &name), whole * moment / MOMENTS);
        no_criu_is_left();
        let made = snapshots();
        eprintln!(
            "  at {moment}/{MOMENTS}: {} snapshots, {:?}, running: {}",
            made.len(),
            c.checkpoints(),
            is_running(&c)
        );
        assert!(made.len() <= 1, "{made:?}");
        if is_running(&c) {
            resume(&c);
            assert_eq!(c.redis().digest(), digest, "unharmed");
            continue;
        }
        assert!(options.is_empty(), "it was to go on");
        assert_eq!(made.len(), 1, "it is in a snapshot");
        // dockerd makes the folder first, and fills it last.
        if c.folder().join(&name).join("inventory.img").exists() {
            c.start(&name);
        } else {
            good(&["docker", "start", "web"]);
        }
    }
}

/// containerd keeps what the killed dockerd had given it, and refuses to take the same bytes
/// again. Those of a checkpoint that was touched are others.
fn start_again(c: &Container) {
    let start = ["docker", "start", "--checkpoint", "whole", c.0];
    let (started, said) = output(&start);
    if !started {
        assert!(said.contains("already exists"), "{said}");
        let inventory = c.folder().join("whole/inventory.img");
        good(&["touch", inventory.to_str().expect("UTF-8")]);
        good(&start);
    }
}

fn killed_in_start() {
    let _live = LiveRestore::on();
    let c = Container::run("web", &[], &REDIS);
    let digest = c.redis().load();
    c.checkpoint("whole", &[]);
    let id = snapshot_of("docker", c.0)["id"].clone();
    let start = ["start", "--checkpoint", "whole", c.0];
    let whole = time(&start);
    c.kill();
    interrupt(&start, whole / MOMENTS);
    no_criu_is_left();
    if !is_running(&c) {
        start_again(&c);
    }
    assert_eq!(c.redis().digest(), digest);
    assert_eq!(snapshot_of("docker", c.0)["id"], id, "as before");
}
