// SPDX-License-Identifier: GPL-2.0-only
//! containerd by itself, and crun; runc by itself is in the tests of vascriu.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{REDIS, ROOT, Test, good, sh, snapshot_of, snapshots};
use crate::redis::Redis;

/// What `make test` runs.
pub const TESTS: &[Test] = &[
    (
        "containerd_a_container_comes_back_under_another_name",
        containerd,
    ),
    ("crun_a_container_comes_back", crun),
];

fn containerd() {
    let archive = "/tmp/docker-save.tar";
    good(&["docker", "save", "mvas:1", "-o", archive]);
    good(&["ctr", "image", "import", archive]);
    let image = "docker.io/library/mvas:1";
    good(&[&["ctr", "run", "-d", image, "first"], &REDIS[..]].concat());
    let pid = |name: &str| -> i32 {
        let tasks = good(&["ctr", "task", "ls"]);
        let mut rows = tasks
            .lines()
            .map(|l| l.split_whitespace().collect::<Vec<_>>());
        let row = rows.find(|r| r.first() == Some(&name)).expect("a task");
        row[1].parse().expect("a PID")
    };
    let digest = Redis::of(pid("first")).load();
    good(&[
        "ctr",
        "container",
        "checkpoint",
        "--rw",
        "--task",
        "first",
        "saved",
    ]);
    snapshot_of("containerd", "first");
    Redis::of(pid("first")).mark("goes-on");
    good(&[
        "ctr",
        "container",
        "restore",
        "--rw",
        "--live",
        "second",
        "saved",
    ]);
    assert_eq!(Redis::of(pid("second")).digest(), digest);
    for name in ["first", "second"] {
        good(&["ctr", "task", "rm", "-f", name]);
        good(&["ctr", "container", "rm", name]);
    }
}

fn crun() {
    let bundle = Path::new("/tmp/bundle");
    for dir in [&bundle.join("rootfs"), Path::new("/tmp/work")] {
        fs::create_dir_all(dir).expect("directory");
    }
    sh(&format!(
        "cd {}; tar -C rootfs -xf {ROOT}; crun spec",
        bundle.display()
    ));
    let path = bundle.join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&path).expect("a spec")).expect("JSON");
    spec["process"]["args"] = json!(REDIS);
    spec["process"]["terminal"] = json!(false);
    spec["root"]["readonly"] = json!(false);
    fs::write(&path, spec.to_string()).expect("write");
    // Its log would be a file that its root does not have.
    let crun = |args: &str| sh(&format!("cd {}; crun {args} >/dev/null", bundle.display()));
    let redis = || {
        let state = good(&["crun", "state", "web"]);
        let state: Value = serde_json::from_str(&state).expect("JSON");
        let pid = state["pid"].as_i64().and_then(|p| p.try_into().ok());
        Redis::of(pid.expect("a PID"))
    };
    crun("run -d web 2>/dev/null");
    let digest = redis().load();
    crun("checkpoint --image-path /tmp/images --work-path /tmp/work web");
    assert_eq!(snapshots().len(), 1, "{:?}", snapshots());
    for _ in 0..2 {
        crun("restore -d --image-path /tmp/images --work-path /tmp/work web 2>/dev/null");
        assert_eq!(redis().digest(), digest);
        redis().mark("later");
        crun("delete -f web");
    }
    good(&["rm", "-r", "/tmp/bundle", "/tmp/images", "/tmp/work"]);
}
