// SPDX-License-Identifier: GPL-2.0-only
//! `podman container checkpoint` and `restore`, by crun and by runc.

use std::fs;

use crate::harness::{REDIS, ROOT, Test, bad, forget, good, sh, snapshot_of, snapshots, text};
use crate::redis::Redis;

/// What `make test` runs.
pub const TESTS: &[Test] = &[
    (
        "podman_with_crun_a_container_comes_back_and_is_exported",
        || comes_back("crun"),
    ),
    (
        "podman_an_export_that_carries_the_memory_needs_no_vascriu",
        exported_with_memory,
    ),
];

/// What `make test-all` runs besides.
pub const LONG_TESTS: &[Test] = &[
    (
        "podman_with_runc_a_container_comes_back_and_is_exported",
        || comes_back("runc"),
    ),
    (
        "podman_an_imported_container_is_exported_again",
        second_generation,
    ),
];

const ARCHIVE: &str = "/tmp/web.tar";

/// Removes all containers of Podman's.
struct Cleanup;

impl Drop for Cleanup {
    fn drop(&mut self) {
        let out = std::process::Command::new("podman")
            .args(["rm", "-f", "-a", "-t", "0"])
            .output();
        assert!(std::thread::panicking() || out.is_ok_and(|o| o.status.success()));
    }
}

#[track_caller]
fn run(runtime: &str) -> Cleanup {
    if good(&["podman", "images", "-q"]).is_empty() {
        good(&["podman", "import", "-q", ROOT, "mvas:1"]);
    }
    let options = [
        "podman",
        "--runtime",
        runtime,
        "run",
        "-d",
        "--name",
        "web",
        "mvas:1",
    ];
    good(&[&options[..], &REDIS].concat());
    Cleanup
}

#[track_caller]
fn redis(name: &str) -> Redis {
    let pid = good(&["podman", "inspect", "-f", "{{.State.Pid}}", name]);
    Redis::of(pid.parse().expect("a PID"))
}

#[track_caller]
fn container(args: &[&str]) {
    good(&[&["podman", "container"], args].concat());
}

/// Exports it; what Podman printed.
#[track_caller]
fn export(options: &[&str], name: &str) -> String {
    let verb = ["podman", "container", "checkpoint", "--compress=none"];
    good(&[&verb, options, &["--export", ARCHIVE, name]].concat())
}

fn importing(name: &str) -> [&str; 7] {
    [
        "podman",
        "container",
        "restore",
        "--import",
        ARCHIVE,
        "--name",
        name,
    ]
}

#[track_caller]
fn import(name: &str) {
    good(&importing(name));
}

fn comes_back(runtime: &str) {
    let _cleanup = run(runtime);
    let digest = redis("web").load();
    container(&["checkpoint", "--keep", "web"]);
    snapshot_of("podman", "web");
    container(&["restore", "--keep", "web"]);
    assert_eq!(redis("web").digest(), digest);

    let said = export(&["--leave-running"], "web");
    let id = text(&snapshot_of("podman", "web")["id"]).to_owned();
    assert!(said.contains(&id), "which snapshot it is in: {said}");
    redis("web").mark("later");
    // Twice at once, beside the first.
    for copy in ["copy1", "copy2"] {
        import(copy);
    }
    for copy in ["copy1", "copy2"] {
        assert_eq!(redis(copy).digest(), digest);
        redis(copy).mark(copy);
    }
    assert_eq!(redis("web").say("GET mark"), "later");
    assert_eq!(redis("copy1").say("GET mark"), "copy1");

    // Elsewhere there is no such snapshot, which stands in the log that Podman names.
    forget();
    bad(&importing("copy3"), &["restor"]);
    let log = good(&["podman", "inspect", "-f", "{{.State.RestoreLog}}", "copy3"]);
    let log = fs::read_to_string(log).expect("a log");
    let missing = format!("snapshot {id} (`web`)");
    assert!(
        log.contains(&missing) && log.contains("is not there"),
        "{log}"
    );
}

fn exported_with_memory() {
    let _cleanup = run("crun");
    let digest = redis("web").load();
    let said = sh(&format!(
        "VASCRIU_EXPORT=memory podman container checkpoint --compress=none -Re {ARCHIVE} web"
    ));
    assert!(!said.contains("vascriu"), "nothing to warn of: {said}");
    assert!(snapshots().is_empty(), "{:?}", snapshots());
    good(&["vascriu", "disable", "podman"]);
    import("copy1");
    good(&["vascriu", "enable", "podman"]);
    assert_eq!(redis("copy1").digest(), digest);
}

fn second_generation() {
    let _cleanup = run("crun");
    redis("web").load();
    export(&[], "web");
    import("second");
    redis("second").mark("second");
    let digest = redis("second").digest();
    export(&[], "second");
    import("third");
    assert_eq!(redis("third").digest(), digest);
}
