// SPDX-License-Identifier: GPL-2.0-only
//! A snapshot is one object: no path, no name and no namespace decides what exists.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use nix::sys::ptrace;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::Value;

use crate::bad_input::executable;
use crate::harness::{
    Test, Workload, all_vases, bad, dump, good, id_of, json, ls, restore, rm, vascriu, vases,
    wait_until, work_dirs, workloads,
};
use crate::snapshots::small;
use crate::workload::Options;

/// All tests here.
pub const TESTS: &[Test] = &[
    (
        "two_dumps_into_one_directory_are_two_snapshots",
        one_directory,
    ),
    (
        "a_dump_that_fails_leaves_an_older_reference_as_it_was",
        older_reference,
    ),
    (
        "gc_removes_nothing_that_is_a_snapshot_wherever_it_is_called",
        gc,
    ),
    ("gc_removes_what_a_killed_rm_has_left", half_removed),
    ("restores_in_namespaces_of_their_own_run_at_once", at_once),
    (
        "what_a_post_dump_script_copies_is_no_image_of_criu",
        copied_images,
    ),
    (
        "the_foreground_restore_waits_for_the_root_alone",
        root_alone,
    ),
    ("an_unknown_version_of_criu_is_refused", unknown_version),
    (
        "a_criu_that_says_success_without_a_snapshot_is_not_believed",
        no_criu,
    ),
    ("of_two_snapshots_with_a_name_the_newer_has_it", names),
    ("a_snapshot_is_renamed", rename),
    (
        "ls_takes_as_long_for_each_snapshot_however_many_there_are",
        ls_is_linear,
    ),
    ("what_has_expired_goes_with_the_next_command", expired),
    ("prune_shows_first_and_removes_by_rule", prune),
    ("a_snapshot_of_a_restored_task_knows_its_parent", parent),
    (
        "the_first_restore_is_the_continuation_and_all_others_are_clones",
        clones,
    ),
];

/// Of `vascriu ls`.
#[expect(clippy::zombie_processes, reason = "it is waited for by its PID")]
fn system_calls() -> i64 {
    let mut command = vascriu(&["ls", "--json"]);
    command.stdout(Stdio::null());
    // SAFETY: it only makes a system call.
    unsafe { command.pre_exec(|| Ok(ptrace::traceme()?)) };
    let child = command.spawn().expect("vascriu");
    let pid = Pid::from_raw(child.id().cast_signed());
    let mut stops = 0;
    while let WaitStatus::Stopped(..) = waitpid(pid, None).expect("wait") {
        stops += 1;
        ptrace::syscall(pid, None).expect("go on");
    }
    stops / 2
}

fn ls_is_linear(dir: &Path) {
    let w = Workload::start(&small(dir));
    let mut names = Vec::new();
    let calls = [4, 8, 12].map(|count| {
        for n in names.len()..count {
            names.push(format!("n{n}"));
            w.dump(&names[n], &["--guest-only", "--leave-running"]);
        }
        system_calls()
    });
    let [first, second] = [calls[1] - calls[0], calls[2] - calls[1]];
    assert!(first > 0 && second <= first + 16, "{calls:?}");
    w.kill();
    rm(&names.iter().map(String::as_str).collect::<Vec<_>>());
}

fn names_of(rows: &[Value]) -> Vec<Option<&str>> {
    rows.iter().map(|r| r["name"].as_str()).collect()
}

fn restore_dir(dir: &Path, w: &Workload) -> Workload {
    let said = json(vascriu(&["restore", "-d", "--json", "-D"]).arg(dir));
    let pid = said["pid"].as_i64().and_then(|p| p.try_into().ok());
    w.restored_as(pid.expect("a PID"))
}

fn one_directory(dir: &Path) {
    let w = Workload::start(&small(dir));
    let images = dir.join("images");
    let path = images.to_str().expect("UTF-8");
    w.dump("old", &["-R", "-D", path]);
    assert_eq!(w.check(), 1);
    w.dump("new", &["-D", path]);
    assert_eq!(images.read_dir().expect("directory").count(), 1);
    let r = restore_dir(&images, &w);
    assert_eq!(r.check(), 2, "the directory refers to the newer");
    r.kill();
    rm(&["old"]);
    let r = restore_dir(&images, &w);
    assert_eq!(r.check(), 2, "which the older one's removal does not touch");
    r.kill();
    rm(&["new"]);
}

fn older_reference(dir: &Path) {
    let w = Workload::start(&small(dir));
    let images = dir.join("images");
    let path = images.to_str().expect("UTF-8");
    w.dump("x", &["-R", "-D", path]);
    let file = || fs::read(images.join("inventory.img")).expect("a reference");
    let before = file();
    let script = dir.join("script");
    executable(
        &script,
        "#!/bin/sh\n[ \"$CRTOOLS_SCRIPT_ACTION\" != post-dump ]\n",
    );
    let script = script.to_str().expect("UTF-8");
    for more in [
        &["--name", "x"][..],
        &["--name", "y", "--action-script", script],
    ] {
        let pid = w.pid.to_string();
        let mut command = vascriu(&["dump", "-t", &pid, "-D", path]);
        bad(command.args(more), &["cannot dump"]);
        assert_eq!(file(), before);
        assert_eq!(images.read_dir().expect("directory").count(), 1);
    }
    assert_eq!(w.check(), 1);
    w.kill();
    assert_eq!(restore_dir(&images, &w).check(), 1);
    w.kill();
    rm(&["x"]);
}

fn gc(dir: &Path) {
    let w = Workload::start(&small(dir));
    w.dump("x", &["--guest-only"]);
    let hidden = "mount -t tmpfs x /run && exec vascriu gc";
    let said = good(Command::new("unshare").args(["-m", "sh", "-c", hidden]));
    assert_eq!(said, "");
    for variable in ["VASCRIU_DIR", "TMPDIR", "XDG_RUNTIME_DIR"] {
        assert_eq!(good(vascriu(&["gc"]).env(variable, dir)), "");
    }
    let (r, _) = restore("x", &w, &[]);
    assert_eq!(r.check(), 1);
    r.kill();
    rm(&["x"]);
}

fn half_removed(dir: &Path) {
    let w = Workload::start(&Options {
        children: 1,
        ..small(dir)
    });
    w.dump("x", &["--guest-only"]);
    let id = id_of("x");
    // Its images are the first to go.
    let registry = vascriu::snapshot::registry::Registry::open().expect("registry");
    let images = registry.members(id).expect("members").remove(0);
    images.delete(true).expect("delete");
    drop(images);
    assert_eq!(ls(), Vec::<Value>::new());
    bad(
        &mut vascriu(&["restore", &id.to_string()]),
        &["no snapshot"],
    );
    let would = good(&mut vascriu(&["gc", "--dry-run"]));
    assert_eq!(vases().len(), 2);
    assert_eq!(good(&mut vascriu(&["gc"])), would);
    assert_eq!(would.lines().count(), 2);
    assert_eq!(all_vases(), Vec::<String>::new());
}

/// Restores `x` below the init of PID and mount namespaces of its own.
fn start_copy(report: &Path) -> Child {
    let script = "vascriu restore x -d --json && exec sleep infinity";
    let mut command = Command::new("unshare");
    command.args([
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "sh",
        "-c",
        script,
    ]);
    let report = fs::File::create(report).expect("report");
    command.stdin(Stdio::null()).stdout(report);
    command.spawn().expect("unshare")
}

fn at_once(dir: &Path) {
    let w = Workload::start(&small(dir));
    w.dump("x", &[]);
    let reports: Vec<PathBuf> = (0..4).map(|n| dir.join(format!("report-{n}"))).collect();
    let mut copies: Vec<Child> = reports.iter().map(|r| start_copy(r)).collect();
    let read = |r: &PathBuf| fs::read_to_string(r).unwrap_or_default();
    wait_until("four copies", || {
        reports.iter().all(|r| read(r).ends_with('\n'))
    });
    let clones = reports.iter().map(read).map(|r| {
        let report: Value = serde_json::from_str(&r).expect("JSON");
        report["clone"].as_bool().expect("whether it is a clone")
    });
    assert_eq!(clones.filter(|c| *c).count(), 3, "one is the continuation");
    let pids = workloads();
    assert_eq!(pids.len(), 4);
    for pid in pids {
        assert_eq!(Workload::at(pid, w.vpid, dir).check(), 1);
    }
    for copy in &mut copies {
        copy.kill().expect("kill");
        copy.wait().expect("status");
    }
    wait_until("the copies to end", || workloads().is_empty());
    rm(&["x"]);
}

fn copied_images(dir: &Path) {
    let w = Workload::start(&small(dir));
    let (script, copy) = (dir.join("script"), dir.join("copy"));
    let text = format!(
        "#!/bin/sh\n[ \"$CRTOOLS_SCRIPT_ACTION\" != post-dump ] || cp -r \"$CRTOOLS_IMAGE_DIR/.\" {}\n",
        copy.display()
    );
    executable(&script, &text);
    w.dump("x", &["--action-script", script.to_str().expect("UTF-8")]);
    assert!(copy.join("pstree.img").exists(), "it got the images");
    for more in [&[][..], &["--libdir", "/usr/lib/vascriu"]] {
        let mut criu = Command::new("criu");
        bad(
            criu.args(["restore", "-d", "-D"]).arg(&copy).args(more),
            &[],
        );
        assert_eq!(
            workloads(),
            Vec::<i32>::new(),
            "nothing runs without its memory"
        );
    }
    let (r, _) = restore("x", &w, &[]);
    assert_eq!(r.check(), 1);
    r.kill();
    rm(&["x"]);
}

fn is_there(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn kill(pid: i32) {
    // SAFETY: kill takes two integers.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

fn root_alone(_: &Path) {
    let mut command = Command::new("setsid");
    command.args(["sh", "-c", "sleep 1000 & exec sleep 1000"]);
    let null = || [Stdio::null(), Stdio::null(), Stdio::null()];
    let [i, o, e] = null();
    let root = command.stdin(i).stdout(o).stderr(e).spawn().expect("sleep");
    let pid = i32::try_from(root.id()).expect("a PID");
    crate::harness::reap(root);
    let child = || {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        children.ok()?.trim().parse::<i32>().ok()
    };
    let comm = || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    wait_until("the tree", || child().is_some() && comm().trim() == "sleep");
    let child = child().expect("a child");
    json(&mut dump(pid, "x"));
    wait_until("its end", || {
        !is_there(child) && !Path::new(&format!("/proc/{pid}")).exists()
    });
    let mut waiting = vascriu(&["restore", "x"])
        .stdout(Stdio::null())
        .spawn()
        .expect("vascriu");
    wait_until("the restore", || {
        is_there(pid) && is_there(child) && work_dirs().is_empty()
    });
    kill(pid);
    wait_until("vascriu's end", || {
        waiting.try_wait().expect("status").is_some()
    });
    assert_eq!(waiting.wait().expect("status").code(), Some(128 + 9));
    assert!(is_there(child), "what the root left goes on");
    kill(child);
    rm(&["x"]);
}

fn unknown_version(dir: &Path) {
    let w = Workload::start(&small(dir));
    let script = dir.join("criu-9");
    executable(&script, "#!/bin/sh\necho Version: 9.9\ntouch \"$0\".ran\n");
    let ran = dir.join("criu-9.ran");
    bad(
        dump(w.pid, "x").env("VASCRIU_CRIU", &script),
        &["CRIU 9.9", "4.1", "4.2"],
    );
    fs::remove_file(&ran).expect("asked for its version");
    bad(dump(w.pid, "x").env("VASCRIU_CRIU", &script), &["CRIU 9.9"]);
    assert!(!ran.exists(), "which is known then");
    assert_eq!(w.check(), 1);
    w.dump("x", &[]);
    bad(
        vascriu(&["restore", "x"]).env("VASCRIU_CRIU", &script),
        &["CRIU 9.9"],
    );
    bad(
        vascriu(&["restore", "x"]).env("VASCRIU_CRIU", "/no/criu"),
        &["no `/no/criu`"],
    );
    rm(&["x"]);
}

fn no_criu(dir: &Path) {
    let w = Workload::start(&small(dir));
    let script = dir.join("no-criu");
    executable(&script, "#!/bin/sh\necho Version: 4.1.1\n");
    bad(
        dump(w.pid, "x").env("VASCRIU_CRIU", &script),
        &["there is no snapshot"],
    );
    assert_eq!(w.check(), 1);
}

fn names(dir: &Path) {
    let w = Workload::start(&small(dir));
    w.dump("x", &["-R", "--guest-only"]);
    let old = id_of("x");
    assert_eq!(w.check(), 1);
    w.dump("x", &["--replace", "--guest-only"]);
    let new = id_of("x");
    assert_ne!(old, new);
    let rows = ls();
    assert_eq!(names_of(&rows), [None, Some("x")]);
    assert!(rows.iter().all(|r| r["series"] == "x"));
    let (r, _) = restore("x", &w, &[]);
    assert_eq!(r.check(), 2);
    r.kill();
    let (r, _) = restore(&old.to_string(), &w, &[]);
    assert_eq!(r.check(), 1);
    r.kill();
    rm(&["x"]);
    assert_eq!(id_of("x"), old, "which has it again");
    rm(&["x"]);
}

fn rename(dir: &Path) {
    let w = Workload::start(&small(dir));
    w.dump("x", &["-R"]);
    w.dump("y", &["-R"]);
    bad(
        &mut vascriu(&["rename", "x", "y"]),
        &["cannot rename x", "`y` is taken"],
    );
    bad(&mut vascriu(&["rename", "z", "a"]), &["no snapshot `z`"]);
    bad(&mut vascriu(&["rename", "x", "a/b"]), &["snapshot name"]);
    let (x, y) = (id_of("x"), id_of("y"));
    good(&mut vascriu(&["rename", "x", "z"]));
    assert_eq!(id_of("z"), x);
    assert_eq!(ls()[0]["series"], "x", "which it was dumped under");
    good(&mut vascriu(&["rename", "z", "y", "--replace"]));
    assert_eq!(id_of("y"), x);
    assert_eq!(names_of(&ls()).iter().flatten().count(), 1);
    w.kill();
    rm(&["y", &y.to_string()]);
}

fn expired(dir: &Path) {
    let w = Workload::start(&small(dir));
    w.dump("x", &["-R", "--ttl", "1s"]);
    w.dump("y", &["-R", "--ttl", "1h"]);
    sleep(Duration::from_millis(1100));
    assert_eq!(names_of(&ls()), [Some("y")]);
    bad(
        dump(w.pid, "z").args(["--ttl", "1y"]),
        &["90s, 15m, 2h or 7d"],
    );
    assert_eq!(w.check(), 1);
    rm(&["y"]);
}

fn prune(dir: &Path) {
    let w = Workload::start(&small(dir));
    for more in [&[][..], &["--replace"], &["--replace"]] {
        w.dump("x", &[&["-R"], more].concat());
    }
    w.dump("y", &["-R"]);
    let mut command = vascriu(&["prune", "--keep", "1"]);
    let shown = good(&mut command);
    assert!(shown.contains("`--yes` removes these"), "{shown}");
    assert_eq!(ls().len(), 4);
    let older = vascriu(&["prune", "--keep", "1", "--older-than", "1h", "--yes"]);
    assert_eq!(good(&mut { older }), "nothing to remove\n");
    good(command.arg("--yes"));
    assert_eq!(names_of(&ls()), [Some("x"), Some("y")]);
    assert_eq!(good(&mut vascriu(&["prune"])), "nothing to remove\n");
    sleep(Duration::from_millis(1100));
    good(&mut vascriu(&["prune", "--older-than", "1s", "--yes"]));
    assert_eq!(ls(), Vec::<Value>::new());
    assert_eq!(w.check(), 1);
}

fn parent(dir: &Path) {
    let w = Workload::start(&small(dir));
    w.dump("x", &["--guest-only"]);
    let (r, _) = restore("x", &w, &[]);
    r.dump("y", &["--guest-only"]);
    assert_eq!(ls()[1]["parent"], id_of("x").to_string());
    assert!(good(&mut vascriu(&["show", "y"])).contains(&id_of("x").to_string()));
    let (r, _) = restore("y", &w, &[]);
    let vas = fs::read_to_string(format!("/proc/{}/vas", r.pid)).expect("vas");
    assert!(vas.contains(&id_of("y").to_string()), "{vas}");
    assert_eq!(r.check(), 1);
    r.kill();
    rm(&["x", "y"]);
}

fn clones(dir: &Path) {
    let w = Workload::start(&small(dir));
    w.dump("x", &["-R"]);
    w.dump("y", &[]);
    for (name, expected) in [("x", true), ("y", false), ("y", true), ("y", true)] {
        let (r, said) = restore(name, &w, &[]);
        assert_eq!(said["clone"], expected, "{name}");
        assert_eq!(r.check(), 1);
        r.kill();
    }
    let restored = |name: &str| {
        let id = id_of(name).to_string();
        ls().into_iter().find(|r| r["id"] == id).expect("listed")["restored"].clone()
    };
    assert_eq!((restored("x"), restored("y")), (1.into(), 3.into()));
    rm(&["x", "y"]);
}
