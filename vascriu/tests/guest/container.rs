// SPDX-License-Identifier: GPL-2.0-only
//! A runc container, checkpointed and restored through the drop-in.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use vascriu::device::Session;

use crate::bundle::{Bundle, Found, MEMORY, WORK};
use crate::harness::{
    Test, Workload, all_vases, bad, good, ls, rm, vascriu, wait_until, workloads,
};

/// All tests here.
pub const TESTS: &[Test] = &[
    ("a_container_comes_back_under_another_host_pid", comes_back),
    ("two_copies_of_a_container_run_at_once", two_copies),
    ("a_container_that_is_left_running_has_copies", left_running),
    (
        "a_second_checkpoint_takes_the_name_over",
        name_is_taken_over,
    ),
    (
        "a_container_without_its_snapshot_is_not_restored",
        snapshot_gone,
    ),
    ("a_container_is_charged_for_its_memory", charged),
    (
        "a_container_with_more_memory_than_its_limit_is_ended",
        over_its_limit,
    ),
    ("an_altered_reference_restores_no_container", altered),
    ("a_container_whose_checkpoint_fails_goes_on", fails),
    ("stock_checkpoints_pass_through_the_drop_in", stock),
    (
        "pre_dumps_are_nothing_and_the_dump_after_them_is_whole",
        pre_dump,
    ),
    (
        "what_the_drop_in_cannot_do_is_refused_before_a_task_is_touched",
        refused,
    ),
    ("criu_on_the_command_line_dumps_into_memory", command_line),
    ("engines_are_switched_one_by_one", switched),
    (
        "a_container_dumped_past_runc_fails_clearly_and_goes_on",
        past_runc,
    ),
];

/// The only snapshot.
#[track_caller]
fn only() -> Value {
    let mut rows = ls();
    assert_eq!(rows.len(), 1, "{rows:?}");
    rows.remove(0)
}

/// Removes all snapshots.
pub fn rm_all() {
    for row in ls() {
        rm(&[row["id"].as_str().expect("an identity")]);
    }
}

/// What is in a directory.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = dir.read_dir().expect("directory").flatten();
    let mut names: Vec<_> = entries
        .filter_map(|e| e.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

fn comes_back(dir: &Path) {
    let b = Bundle::new(dir);
    let w = b.start("c1");
    assert_eq!(w.check(), 1);
    // Whoever reads its output waits for its end, and no longer.
    let mut checkpoint = b.checkpoint(Found::DropIn, "c1", &[]);
    checkpoint.stdout(Stdio::piped()).stderr(Stdio::piped());
    let said = checkpoint.output().expect("runc");
    assert!(
        said.status.success() && said.stdout.is_empty(),
        "{}",
        b.logs()
    );
    assert!(!w.is_alive());

    let row = only();
    assert_eq!(
        (&row["name"], &row["origin"]["engine"]),
        (&"c1".into(), &"runc".into())
    );
    assert_eq!(
        (&row["tasks"], &row["left_running"]),
        (&2.into(), &false.into())
    );
    assert_eq!(names(&b.images()), ["descriptors.json", "inventory.img"]);
    for file in ["dump.log", "stats-dump"] {
        assert!(
            Path::new(WORK).join(file).exists(),
            "{file} is where runc wants it"
        );
    }
    if Session::open().is_ok_and(|s| s.has_store().unwrap_or(false)) {
        wait_until("the snapshot to be stored", || only()["state"] == "stored");
    }

    b.good(b.restore(Found::DropIn, "c1"));
    let r = b.workload("c1");
    assert_ne!(r.pid, w.pid, "another host PID");
    assert_eq!(r.check(), 2);
    b.delete("c1");
    rm(&["c1"]);
}

fn two_copies(dir: &Path) {
    let b = Bundle::new(dir);
    b.start("c1");
    b.good(b.checkpoint(Found::DropIn, "c1", &[]));
    let running = ["c1", "c2"].map(|id| b.restore(Found::DropIn, id).spawn().expect("runc"));
    for mut restore in running {
        assert!(restore.wait().expect("runc").success(), "{}", b.logs());
    }
    let copies = ["c1", "c2"].map(|id| b.workload(id));
    assert_ne!(copies[0].pid, copies[1].pid);
    assert_eq!(copies[0].check(), 1);
    assert_eq!(copies[0].check(), 2);
    assert_eq!(copies[1].check(), 1, "each goes its own way");
    b.delete("c1");
    assert_eq!(copies[1].check(), 2);
    b.delete("c2");
    rm_all();
}

fn left_running(dir: &Path) {
    let b = Bundle::new(dir);
    let w = b.start("c1");
    b.good(b.checkpoint(Found::DropIn, "c1", &["--leave-running"]));
    assert_eq!(w.check(), 1);
    assert_eq!(only()["left_running"], true);
    b.good(b.restore(Found::DropIn, "c2"));
    assert_eq!(b.workload("c2").check(), 1);
    assert_eq!(w.check(), 2);
    for id in ["c1", "c2"] {
        b.delete(id);
    }
    rm_all();
}

fn name_is_taken_over(dir: &Path) {
    let b = Bundle::new(dir);
    let w = b.start("c1");
    let checkpoint = || b.good(b.checkpoint(Found::DropIn, "c1", &["--leave-running"]));
    checkpoint();
    let first = only();
    checkpoint();
    assert_eq!(w.check(), 1);
    let rows = ls();
    let named: Vec<_> = rows.iter().filter(|r| r["name"] == "c1").collect();
    assert_eq!((rows.len(), named.len()), (2, 1));
    assert_ne!(named[0]["id"], first["id"], "the newer one has it");
    // Both were written into the same directory: it refers to the newer.
    rm(&[first["id"].as_str().expect("an identity")]);
    b.delete("c1");
    b.good(b.restore(Found::DropIn, "c1"));
    b.delete("c1");
    rm_all();
}

fn snapshot_gone(dir: &Path) {
    let b = Bundle::new(dir);
    b.start("c1");
    b.good(b.checkpoint(Found::DropIn, "c1", &[]));
    rm(&["c1"]);
    let log = b.bad(b.restore(Found::DropIn, "c1"));
    assert!(log.contains("is not there"), "{log}");
    assert_eq!(workloads(), Vec::<i32>::new());
    b.delete("c1");
}

/// What the memory cgroup of container `id` says in `file`, by the key if it has some.
fn memory(b: &Bundle, id: &str, file: &str, key: &str) -> usize {
    let group = vascriu::dropin::aside::cgroup(&b.workload(id).pid.to_string());
    let path = group.expect("a group").join(file);
    let text = fs::read_to_string(&path).expect("a group");
    let value = text.lines().find_map(|line| line.strip_prefix(key));
    let value = value.and_then(|v| v.trim().parse().ok());
    value.unwrap_or_else(|| panic!("no number {key}in {path:?}: {text}"))
}

fn charged(dir: &Path) {
    let b = Bundle::new(dir);
    b.limit(64 << 20);
    b.start("c1");
    let before = memory(&b, "c1", "memory.stat", "anon ");
    assert!(before >= MEMORY, "{before}");
    b.good(b.checkpoint(Found::DropIn, "c1", &[]));
    b.delete("c1");
    // Once more, as the memory that the first one was charged for is nobody's then, too.
    for _ in 0..2 {
        b.good(b.restore(Found::DropIn, "c1"));
        assert_eq!(memory(&b, "c1", "memory.max", ""), 64 << 20);
        for (file, key) in [("memory.current", ""), ("memory.stat", "anon ")] {
            let charged = || memory(&b, "c1", file, key) >= MEMORY;
            wait_until(&format!("{file} to have it"), charged);
        }
        assert_eq!(b.workload("c1").check(), 1);
        b.delete("c1");
    }
    rm_all();
}

fn over_its_limit(dir: &Path) {
    let b = Bundle::new(dir);
    b.start("c1");
    b.good(b.checkpoint(Found::DropIn, "c1", &[]));
    b.delete("c1");
    b.limit(MEMORY);
    let done = b.restore(Found::DropIn, "c1").status().expect("runc");
    wait_until("the container to end by its limit", || {
        workloads().is_empty()
    });
    // It may come so far that runc takes it for restored.
    if done.success() {
        let events = fs::read_to_string("/sys/fs/cgroup/c1/memory.events").expect("a group");
        let kills = events.lines().find_map(|l| l.strip_prefix("oom_kill "));
        assert_ne!(kills, Some("0"), "{events}");
    }
    b.delete("c1");
    b.limit(4 * MEMORY);
    b.good(b.restore(Found::DropIn, "c1"));
    assert_eq!(b.workload("c1").check(), 1, "the snapshot is as before");
    b.delete("c1");
    rm_all();
}

fn altered(dir: &Path) {
    let b = Bundle::new(dir);
    b.start("c1");
    b.good(b.checkpoint(Found::DropIn, "c1", &[]));
    let path = b.images().join("inventory.img");
    let text = fs::read_to_string(&path).expect("a reference");
    let mut reference: Value = serde_json::from_str(&text).expect("JSON");
    reference["manifest_sha256"] = "0".repeat(64).into();
    for (text, word) in [
        (reference.to_string(), "altered"),
        (text[..text.len() / 2].to_owned(), "damaged"),
    ] {
        fs::write(&path, text).expect("write");
        let log = b.bad(b.restore(Found::DropIn, "c1"));
        assert!(log.contains(word), "{log}");
        assert_eq!(workloads(), Vec::<i32>::new());
        b.delete("c1");
    }
    rm_all();
}

fn fails(dir: &Path) {
    let b = Bundle::new(dir);
    let w = b.start("c1");
    // Room for runc's own file, but not for the reference.
    fs::create_dir(b.images()).expect("directory");
    let mount = ["-t", "tmpfs", "-o", "size=4k", "x"];
    good(Command::new("mount").args(mount).arg(b.images()));
    let log = b.bad(b.checkpoint(Found::DropIn, "c1", &[]));
    assert!(log.contains("No space left"), "{log}");
    assert_eq!(w.check(), 1, "it goes on");
    assert_eq!(all_vases(), Vec::<String>::new());
    good(Command::new("umount").arg(b.images()));
    b.delete("c1");
}

fn stock(dir: &Path) {
    let b = Bundle::new(dir);
    let w = b.start("c1");
    b.good(b.checkpoint(Found::Usual, "c1", &[]));
    assert_eq!(all_vases(), Vec::<String>::new());
    assert!(!w.is_alive() && b.images().join("pages-1.img").exists());
    b.good(b.restore(Found::DropIn, "c1"));
    assert_eq!(b.workload("c1").check(), 1);
    b.delete("c1");
}

fn pre_dump(dir: &Path) {
    let b = Bundle::new(dir);
    let w = b.start("c1");
    let mut pre = b.runc(Found::DropIn, &["checkpoint", "--pre-dump", "--image-path"]);
    pre.arg(b.images().with_file_name("pre"));
    pre.args(["--work-path", WORK, "c1"]);
    b.good(pre);
    assert_eq!(w.check(), 1);
    assert_eq!(all_vases(), Vec::<String>::new());
    b.good(b.checkpoint(Found::DropIn, "c1", &["--parent-path", "../pre"]));
    assert_eq!(only()["name"], "c1");
    b.good(b.restore(Found::DropIn, "c1"));
    assert_eq!(b.workload("c1").check(), 2);
    b.delete("c1");
    rm_all();
}

fn refused(dir: &Path) {
    let b = Bundle::new(dir);
    let w = b.start("c1");
    fs::create_dir_all(b.images().with_file_name("other")).expect("directory");
    for (more, words) in [
        (
            &["--lazy-pages", "--page-server", "127.0.0.1:4711"][..],
            "lazy pages do not go with",
        ),
        (
            &["--page-server", "127.0.0.1:4711"],
            "a page server does not go with",
        ),
        (&["--parent-path", "../other"], "are no pre-dump of vascriu"),
        (&["--auto-dedup"], "auto-dedup does not go with"),
    ] {
        let log = b.bad(b.checkpoint(Found::DropIn, "c1", more));
        assert!(log.contains(words), "{more:?}: {log}");
        assert_eq!(all_vases(), Vec::<String>::new());
    }
    assert_eq!(w.check(), 1);
    b.delete("c1");
}

fn command_line(dir: &Path) {
    let b = Bundle::new(dir);
    let images = b.images();
    fs::create_dir_all(&images).expect("directory");
    let criu = |args: &[&str]| {
        let mut command = Command::new("criu");
        command.env("PATH", b.path()).current_dir(&images);
        command.args(args).stdin(Stdio::null());
        command
    };
    let options = crate::workload::Options {
        dir: b.acks.clone(),
        mib: 16,
        ..Default::default()
    };
    let w = Workload::start(&options);
    let pid = w.pid.to_string();
    good(&mut criu(&["pre-dump", "-t", &pid]));
    bad(
        &mut criu(&["dump", "-t", &pid, "--lazy-pages"]),
        &["lazy pages do not go with"],
    );
    assert_eq!(w.check(), 1);
    good(&mut criu(&[
        "dump",
        "-t",
        &pid,
        "-v4",
        "-o",
        "d.log",
        "--leave-running",
    ]));
    assert_eq!(w.check(), 2);
    assert!(images.join("d.log").exists() && images.join("stats-dump").exists());
    assert_eq!(only()["left_running"], true);
    rm_all();

    good(&mut criu(&["dump", "-t", &pid, "-D", ".", "-o", "d.log"]));
    wait_until("the workload to end", || !w.is_alive());
    assert!(!images.join("pages-1.img").exists());
    good(&mut criu(&[
        "restore",
        "-d",
        "-o",
        "r.log",
        "--pidfile",
        "pid",
    ]));
    let pid = fs::read_to_string(images.join("pid")).expect("a PID");
    let r = w.restored_as(pid.trim().parse().expect("a PID"));
    assert_eq!(r.check(), 3);
    r.kill();
    rm_all();
    let version = good(&mut criu(&["--version"]));
    assert!(version.contains("Version: 4"), "{version}");
}

fn switched(dir: &Path) {
    let b = Bundle::new(dir);
    let w = b.start("c1");
    let checkpoint = || {
        let _ = fs::remove_dir_all(b.images());
        b.good(b.checkpoint(Found::Usual, "c1", &["--leave-running"]));
        let made = ls().len();
        rm_all();
        made
    };
    // It says that there is none, and goes by what it was told.
    let _ = vascriu(&["enable", "podman"]).output();
    assert_eq!(checkpoint(), 0, "runc was not meant");
    let said = good(&mut vascriu(&["enable", "runc"]));
    assert!(said.contains("dumps into memory"), "{said}");
    assert_eq!(checkpoint(), 1);
    good(&mut vascriu(&["disable", "runc"]));
    assert_eq!(checkpoint(), 0);
    let _ = vascriu(&["disable", "podman"]).output();
    assert!(fs::symlink_metadata(vascriu::engine::switch::LINK).is_err());
    assert_eq!(w.check(), 1);
    b.delete("c1");
}

fn past_runc(dir: &Path) {
    // What runc's checkpoint needs and a container's own root does not have is
    // CRIU's business; that it is refused clearly is ours.
    let b = Bundle::new(dir);
    let w = b.start("c1");
    bad(
        &mut crate::harness::dump(w.pid, "x"),
        &["CRIU's dump failed", "Error"],
    );
    assert_eq!(w.check(), 1, "and it goes on");
    b.delete("c1");
}
