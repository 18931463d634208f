// SPDX-License-Identifier: GPL-2.0-only
//! What the tests are written with: commands, and seeing that nothing was left behind.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

/// A name and what it runs.
pub type Test = (&'static str, fn());

/// Longest wait for anything; emulated machines are slow.
const PATIENCE: Duration = Duration::from_secs(90);
/// The root file system of all containers, as a tar file.
pub const ROOT: &str = "/tmp/container-root.tar";
/// What all containers run.
pub const REDIS: [&str; 9] = [
    "redis-server",
    "--save",
    "",
    "--enable-debug-command",
    "yes",
    "--protected-mode",
    "no",
    "--unixsocket",
    "/tmp/redis",
];

/// Waits for Docker, puts vascriu in place for all engines, and makes their image.
pub fn prepare() {
    docker_answers();
    good(&[
        "vascriu",
        "enable",
        "docker",
        "podman",
        "containerd",
        "runc",
    ]);
    sh(&format!("/usr/lib/mvas/container-root >{ROOT}"));
    good(&["docker", "import", ROOT, "mvas:1"]);
}

/// Waits until Docker answers: from its socket on, its clients wait by themselves.
pub fn docker_answers() {
    wait_until("dockerd to listen", || {
        std::os::unix::net::UnixStream::connect("/run/docker.sock").is_ok()
    });
    good(&["docker", "version"]);
}

/// Runs a test; then no snapshot may be left that it did not remove by [`forget`], no VAS and
/// no word from the kernel.
pub fn run(test: fn()) {
    let said = kernel_log().len();
    let result = std::panic::catch_unwind(test);
    forget();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
    assert_eq!(vases(), Vec::<String>::new(), "left behind");
    let alarms = [
        "WARNING",
        "BUG",
        "Oops",
        "INFO: ",
        "Bad page",
        "general protection",
    ];
    let log = kernel_log().split_off(said);
    let log: Vec<_> = log
        .iter()
        .filter(|l| alarms.iter().any(|a| l.contains(a)))
        .collect();
    assert!(log.is_empty(), "the kernel complains: {log:?}");
}

fn kernel_log() -> Vec<String> {
    good(&["dmesg"]).lines().map(str::to_owned).collect()
}

/// Removes all snapshots.
pub fn forget() {
    for snapshot in snapshots() {
        good(&["vascriu", "rm", "--force", text(&snapshot["id"])]);
    }
}

/// What `vascriu ls` lists.
#[track_caller]
pub fn snapshots() -> Vec<Value> {
    let list: Value = serde_json::from_str(&good(&["vascriu", "ls", "--json"])).expect("JSON");
    list["snapshots"].as_array().expect("snapshots").clone()
}

/// The only snapshot, which is of that engine and container.
#[track_caller]
pub fn snapshot_of(engine: &str, container: &str) -> Value {
    let mut all = snapshots();
    all.retain(|s| s["name"] == container);
    assert_eq!(all.len(), 1, "{:?}", snapshots());
    assert_eq!(all[0]["origin"]["engine"], engine, "{all:?}");
    all.remove(0)
}

/// The text of a JSON value.
#[track_caller]
pub fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

/// The names of all VASes.
pub fn vases() -> Vec<String> {
    let all = Path::new("/sys/kernel/vas")
        .read_dir()
        .expect("sysfs")
        .flatten();
    all.filter_map(|e| fs::read_to_string(e.path().join("name")).ok())
        .map(|n| n.trim().to_owned())
        .collect()
}

/// Runs a command that must succeed; what it printed. It waits for the command's end, not for
/// that of what it left running.
#[track_caller]
pub fn good(args: &[&str]) -> String {
    let (ok, out) = output(args);
    assert!(ok, "{}: {out}", args.join(" "));
    out
}

/// Runs a command that must fail and say each of `words`.
#[track_caller]
pub fn bad(args: &[&str], words: &[&str]) {
    let (ok, out) = output(args);
    assert!(!ok, "{} succeeded: {out}", args.join(" "));
    for word in words {
        assert!(
            out.contains(word),
            "{} did not say `{word}` but: {out}",
            args.join(" ")
        );
    }
}

/// Runs a script that must succeed.
#[track_caller]
pub fn sh(script: &str) -> String {
    good(&["sh", "-ec", script])
}

/// Whether a command succeeds, and all that it prints.
pub fn output(args: &[&str]) -> (bool, String) {
    let begun = Instant::now();
    let out = tempfile::tempfile().expect("a file");
    let both = || Stdio::from(out.try_clone().expect("a descriptor"));
    let status = Command::new(args[0])
        .args(&args[1..])
        .stdin(Stdio::null())
        .stdout(both())
        .stderr(both())
        .status()
        .unwrap_or_else(|e| panic!("{}: {e}", args[0]));
    let mut text = String::new();
    let mut out = out;
    std::io::Seek::rewind(&mut out)
        .and_then(|()| std::io::Read::read_to_string(&mut out, &mut text))
        .expect("text");
    eprintln!("  {:5} ms  {}", begun.elapsed().as_millis(), args.join(" "));
    (status.success(), text.trim_end().to_owned())
}

/// Waits until `done`.
#[track_caller]
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "waited too long for {what}");
        sleep(Duration::from_millis(20));
    }
}

/// PIDs of all that runs below a process.
pub fn tree(pid: i32) -> Vec<i32> {
    let mut pids = vec![pid];
    let mut at = 0;
    while at < pids.len() {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", pids[at]));
        let children = children.unwrap_or_default();
        pids.extend(
            children
                .split_whitespace()
                .filter_map(|p| p.parse::<i32>().ok()),
        );
        at += 1;
    }
    pids
}

/// The value of a line of `/proc/PID/status`.
pub fn status(pid: i32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let mut values = status
        .lines()
        .filter_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
    values.next().expect("a field").trim().to_owned()
}
