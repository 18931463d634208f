// SPDX-License-Identifier: GPL-2.0-only
//! What is refused or fails: always with a clear message, nothing lost and
//! nothing left behind (the harness looks).

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use memmap2::MmapMut;
use vascriu::device::{Session, VAS_ACCESS_READ, VAS_ACCESS_WRITE};
use vascriu::process::PidFd;

use crate::harness::{
    Test, Workload, bad, dump, errors, good, id_of, json as json_of, restore, rm, vascriu, vases,
    wait_until, workloads,
};
use crate::snapshots::small;
use crate::workload::Options;

/// All tests here.
pub const TESTS: &[Test] = &[
    ("a_pid_that_nobody_has_is_refused", no_such_pid),
    ("arguments_that_make_no_sense_are_refused", nonsense),
    ("options_that_contradict_a_vas_are_refused", contradictions),
    ("plain_criu_with_the_plugin_dumps_nothing", without_order),
    (
        "a_process_that_exits_meanwhile_is_a_clean_failure",
        exits_meanwhile,
    ),
    ("without_rights_nothing_happens", no_rights),
    ("a_name_twice_is_refused", name_twice),
    (
        "a_directory_in_use_gets_a_reference_and_keeps_the_rest",
        directory_in_use,
    ),
    ("an_unknown_snapshot_is_named", unknown),
    (
        "a_snapshot_that_is_being_restored_cannot_be_removed",
        rm_in_use,
    ),
    ("a_snapshot_whose_vas_is_gone_is_not_restored", vas_gone),
    (
        "an_altered_reference_never_brings_another_snapshot",
        altered,
    ),
    ("a_task_without_its_own_memory_never_runs", wrong_memory),
    (
        "a_restore_beside_the_original_fails_and_leaves_it_alone",
        beside,
    ),
];

fn no_such_pid(_: &Path) {
    bad(
        &mut vascriu(&["dump", "-t", "4194303"]),
        &["cannot dump 4194303", "no process with PID"],
    );
}

fn nonsense(_: &Path) {
    for pid in ["0", "-1", "x", "", "99999999999"] {
        bad(&mut vascriu(&["dump", "-t", pid]), &["error"]);
    }
    bad(&mut vascriu(&["dump"]), &["--tree"]);
    bad(
        &mut vascriu(&["dump", "-t", "1", "--no-such-option"]),
        &["--no-such-option"],
    );
    bad(&mut vascriu(&["restore"]), &["required"]);
    for name in ["../x", ".x", "a/b", "", "a b", &"x".repeat(200)] {
        bad(&mut vascriu(&["restore", name]), &["no snapshot"]);
        bad(&mut vascriu(&["rm", name]), &["no snapshot"]);
        bad(
            &mut vascriu(&["dump", "-t", "1", "--name", name]),
            &["snapshot name"],
        );
    }
    bad(&mut vascriu(&["no-such-command"]), &["no-such-command"]);
}

fn contradictions(dir: &Path) {
    let w = Workload::start(&small(dir));
    for option in [
        "--track-mem",
        "--lazy-pages",
        "--page-server",
        "--auto-dedup",
        "--stream",
    ] {
        bad(
            dump(w.pid, "x").arg(option),
            &[option, "does not go with vascriu"],
        );
    }
    bad(
        dump(w.pid, "x").args(["--prev-images-dir", "y"]),
        &["--prev-images-dir"],
    );
    bad(
        dump(w.pid, "x").args(["--", "--track-mem"]),
        &["--track-mem"],
    );
    bad(dump(w.pid, "x").args(["--timeout"]), &["needs a value"]);
    assert_eq!(w.check(), 1);
}

pub fn criu(action: &str, images: &Path) -> Command {
    let mut command = Command::new("criu");
    command
        .arg(action)
        .arg("-D")
        .arg(images)
        .args(["-o", "log", "--libdir", "/usr/lib/vascriu"]);
    command
}

fn log(images: &Path) -> String {
    fs::read_to_string(images.join("log")).expect("a log")
}

fn without_order(dir: &Path) {
    let w = Workload::start(&small(dir));
    let images = dir.join("images");
    fs::create_dir(&images).expect("directory");
    let reason = "incremental dumps";
    for (action, reason) in [("pre-dump", reason), ("dump", "run CRIU through vascriu")] {
        bad(criu(action, &images).args(["-t", &w.pid.to_string()]), &[]);
        assert!(log(&images).contains(reason), "{}", log(&images));
    }
    assert_eq!(w.check(), 1);
}

fn exits_meanwhile(dir: &Path) {
    for delay in [0, 10, 30, 60, 100, 150, 200, 300] {
        let w = Workload::start(&Options {
            children: 2,
            threads: 2,
            ..small(dir)
        });
        let dumping = dump(w.pid, "x")
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("vascriu");
        sleep(Duration::from_millis(delay));
        // SAFETY: kill takes two integers.
        unsafe { libc::kill(w.pid, libc::SIGKILL) };
        let out = dumping.wait_with_output().expect("status");
        if out.status.success() || errors(&out).contains("kept as") {
            let (r, _) = restore("x", &w, &[]);
            r.check();
            r.kill();
            rm(&["x"]);
        } else {
            let said = errors(&out);
            assert!(
                said.contains("cannot dump") && said.len() > 30,
                "a reason: {said}"
            );
        }
        assert_eq!(vases(), Vec::<String>::new(), "after {delay} ms");
        w.kill();
        for pid in workloads() {
            // SAFETY: as above; a killed root leaves its children.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        wait_until("the end", || workloads().is_empty());
        let _ = fs::remove_dir_all(dir);
        fs::create_dir_all(dir).expect("directory");
    }
}

fn as_nobody(args: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "vascriu",
        ])
        .args(args);
    command
}

fn no_rights(dir: &Path) {
    let w = Workload::start(&small(dir));
    let pid = w.pid.to_string();
    bad(&mut as_nobody(&["dump", "-t", &pid]), &["/dev/vas", "root"]);
    w.dump("x", &[]);
    bad(&mut as_nobody(&["restore", "x"]), &["/dev/vas", "root"]);
    bad(&mut as_nobody(&["rm", "x"]), &["/dev/vas", "root"]);
    bad(&mut as_nobody(&["ls"]), &["/dev/vas"]);
    bad(&mut as_nobody(&["check"]), &[]);
    let (r, _) = restore("x", &w, &[]);
    r.check();
    r.kill();
    rm(&["x"]);
}

fn name_twice(dir: &Path) {
    let w = Workload::start(&small(dir));
    w.dump("x", &["--leave-running"]);
    bad(
        &mut dump(w.pid, "x"),
        &["the name `x` is taken", "vascriu rm x"],
    );
    let other = dir.join("y");
    bad(
        dump(w.pid, "x").arg("-D").arg(&other),
        &["the name `x` is taken"],
    );
    assert!(!other.exists(), "what was made for it is gone");
    assert_eq!(w.check(), 1);
    w.kill();
    let (r, _) = restore("x", &w, &[]);
    assert_eq!(r.check(), 1);
    r.kill();
    rm(&["x"]);
}

fn directory_in_use(dir: &Path) {
    let w = Workload::start(&small(dir));
    let images = dir.join("images");
    fs::create_dir(&images).expect("directory");
    fs::write(images.join("mine"), "x").expect("file");
    let mine = || fs::read_to_string(images.join("mine")).expect("still there");
    bad(dump(w.pid, "x").args(["-D", "/proc/x"]), &["/proc/x"]);
    bad(
        dump(w.pid, "x").arg("-D").arg(images.join("mine")),
        &["mine"],
    );
    w.dump("x", &["-D", images.to_str().expect("UTF-8")]);
    assert_eq!(mine(), "x");
    json_of(vascriu(&["restore", "-d", "--json", "-D"]).arg(&images));
    assert_eq!(w.check(), 1);
    w.kill();
    rm(&["x"]);
    assert_eq!(mine(), "x");
}

fn unknown(_: &Path) {
    for args in [["restore", "nobody"], ["show", "nobody"], ["rm", "nobody"]] {
        bad(&mut vascriu(&args), &["no snapshot `nobody`"]);
    }
    bad(
        &mut vascriu(&["restore", "-D", "/usr"]),
        &["refers to no snapshot", "not made by vascriu"],
    );
}

/// A script that CRIU runs at `action`, and that waits there until `go`.
fn waiting_script(dir: &Path, action: &str) -> PathBuf {
    let path = dir.join("script");
    let text = format!(
        "#!/bin/sh\n[ \"$CRTOOLS_SCRIPT_ACTION\" = {action} ] || exit 0\n\
         touch {0}/waiting\nwhile [ ! -e {0}/go ]; do sleep 0.02; done\n",
        dir.display()
    );
    executable(&path, &text);
    path
}

pub fn executable(path: &Path, text: &str) {
    fs::write(path, text).expect("script");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("mode");
}

fn rm_in_use(dir: &Path) {
    let w = Workload::start(&small(dir));
    w.dump("x", &[]);
    let script = waiting_script(dir, "post-restore");
    let mut restoring = vascriu(&["restore", "x", "-d", "--action-script"]);
    let mut restoring = restoring.arg(script).spawn().expect("vascriu");
    wait_until("the restore", || dir.join("waiting").exists());
    bad(&mut vascriu(&["rm", "x"]), &["cannot remove x", "in use"]);
    assert_eq!(vases().len(), 1);
    fs::write(dir.join("go"), "").expect("go");
    assert!(restoring.wait().expect("status").success());
    w.check();
    // Its memory is shared with a running task, and that is no hindrance.
    rm(&["x"]);
    assert_eq!(w.check(), 2);
}

fn delete_vas(name: &str) {
    let session = Session::open().expect("session");
    let vas = session
        .vas_by_name(name, VAS_ACCESS_READ | VAS_ACCESS_WRITE)
        .expect("open");
    vas.delete(true).expect("delete");
}

fn refuses_to_restore(words: &[&str]) {
    bad(&mut vascriu(&["restore", "x", "-d"]), words);
    assert_eq!(workloads(), Vec::<i32>::new(), "nothing runs");
}

fn vas_gone(dir: &Path) {
    let w = Workload::start(&Options {
        children: 1,
        ..small(dir)
    });
    w.dump("x", &["--guest-only"]);
    delete_vas(&vases()[0]);
    refuses_to_restore(&["memory of task", "is gone"]);
    rm(&["x"]);
}

fn wrong_memory(dir: &Path) {
    let w = Workload::start(&Options {
        children: 2,
        ..small(dir)
    });
    w.dump("x", &["--guest-only"]);
    // The memory of another process in place of one task's.
    let name = vases().pop().expect("a VAS");
    delete_vas(&name);
    let session = Session::open().expect("session");
    let (_, vas) = session.create(&name, 0o600).expect("create");
    let own = PidFd::open(std::process::id().cast_signed()).expect("pidfd");
    let mut memory = MmapMut::map_anon(4096).expect("memory");
    memory[0] = 1;
    vas.capture_own(own.as_fd(), &memory).expect("capture");
    session.commit().expect("commit");
    drop((vas, session));
    refuses_to_restore(&["ATTACH"]);
    rm(&["x"]);
}

fn altered(dir: &Path) {
    let w = Workload::start(&small(dir));
    let images = dir.join("images");
    let path = images.to_str().expect("UTF-8");
    w.dump("x", &["-R", "-D", path]);
    w.dump("y", &[]);
    let file = images.join("inventory.img");
    let whole = fs::read_to_string(&file).expect("read");
    let refuses = |text: &str, words: &[&str]| {
        fs::write(&file, text).expect("write");
        bad(&mut vascriu(&["restore", "-d", "-D", path]), words);
        assert_eq!(workloads(), Vec::<i32>::new(), "nothing runs");
    };
    let (x, y) = (id_of("x").to_string(), id_of("y").to_string());
    refuses(&whole.replace(&x, &y), &["was altered", &y]);
    refuses(
        &whole.replace(&x, &"0".repeat(32)),
        &["is not there", "dumped on"],
    );
    refuses(&whole[..whole.len() / 2], &["damaged"]);
    refuses(
        &whole.replace("\"vascriu\": 1", "\"vascriu\": 9"),
        &["version 9"],
    );
    refuses("", &["refers to no snapshot"]);
    fs::remove_file(&file).expect("remove");
    std::os::unix::fs::symlink("/etc/passwd", &file).expect("link");
    bad(
        &mut vascriu(&["restore", "-d", "-D", path]),
        &["inventory.img"],
    );
    fs::remove_file(&file).expect("remove");
    fs::write(&file, &whole).expect("write");
    good(&mut vascriu(&["restore", "-d", "-D", path]));
    assert_eq!(w.check(), 1);
    w.kill();
    rm(&["x", "y"]);
}

fn beside(dir: &Path) {
    let w = Workload::start(&Options {
        children: 1,
        ..small(dir)
    });
    w.dump("x", &["--leave-running"]);
    bad(
        &mut vascriu(&["restore", "x", "-d"]),
        &["CRIU's restore failed", "Error"],
    );
    assert_eq!(workloads().len(), 2, "the original two");
    assert_eq!(w.check(), 1);
    w.kill();
    rm(&["x"]);
}
