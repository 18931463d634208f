//! What is refused or fails: always with a clear message, nothing lost and
//! nothing left behind (the harness looks).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use serde_json::{Value, json};
use vascriu::device::{Session, VAS_ACCESS_READ, VAS_ACCESS_WRITE};

use crate::harness::{
    Test, Workload, bad, dump, errors, good, restore, rm, vascriu, vases, wait_until, workloads,
};
use crate::snapshots::small;
use crate::workload::Options;

/// All tests here.
pub const TESTS: &[Test] = &[
    ("a_pid_that_nobody_has_is_refused", no_such_pid),
    ("arguments_that_make_no_sense_are_refused", nonsense),
    ("options_that_contradict_a_vas_are_refused", contradictions),
    (
        "plain_criu_with_the_plugin_refuses_incremental_dumps",
        incremental,
    ),
    (
        "a_process_that_exits_meanwhile_is_a_clean_failure",
        exits_meanwhile,
    ),
    ("without_rights_nothing_happens", no_rights),
    ("a_name_twice_is_refused", name_twice),
    ("a_directory_in_use_is_refused", directory_in_use),
    ("an_unknown_snapshot_is_named", unknown),
    (
        "a_snapshot_that_is_being_restored_cannot_be_removed",
        rm_in_use,
    ),
    ("a_snapshot_whose_vas_is_gone_is_not_restored", vas_gone),
    ("a_snapshot_of_another_boot_is_not_restored", other_boot),
    ("a_damaged_vas_json_is_not_restored", damaged),
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
        bad(&mut vascriu(&["restore", name]), &["snapshot name"]);
        bad(&mut vascriu(&["rm", name]), &["snapshot name"]);
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

fn incremental(dir: &Path) {
    let w = Workload::start(&small(dir));
    let pid = w.pid.to_string();
    let (first, second) = (dir.join("first"), dir.join("second"));
    for d in [&first, &second] {
        fs::create_dir(d).expect("directory");
    }
    bad(criu("pre-dump", &first).args(["-t", &pid]), &[]);
    assert!(log(&first).contains("incremental dumps"), "{}", log(&first));
    bad(
        criu("dump", &second).args(["-t", &pid, "--prev-images-dir", "../first"]),
        &[],
    );
    assert!(
        log(&second).contains("incremental dumps"),
        "{}",
        log(&second)
    );
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
    bad(&mut as_nobody(&["rm", "x"]), &["run as root"]);
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
        &["`x` exists already", "vascriu rm x"],
    );
    bad(
        dump(w.pid, "x").arg("-D").arg(dir.join("y")),
        &["`x` exists already"],
    );
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
    bad(dump(w.pid, "x").arg("-D").arg(&images), &["is not empty"]);
    bad(dump(w.pid, "x").args(["-D", "/proc/x"]), &["/proc/x"]);
    assert_eq!(
        fs::read_to_string(images.join("mine")).expect("still there"),
        "x"
    );
    assert_eq!(w.check(), 1);
}

fn unknown(_: &Path) {
    for args in [["restore", "nobody"], ["show", "nobody"], ["rm", "nobody"]] {
        bad(&mut vascriu(&args), &["no snapshot `nobody`"]);
    }
    bad(
        &mut vascriu(&["restore", "-D", "/usr"]),
        &["no vas.json", "not made by vascriu"],
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
    bad(&mut vascriu(&["rm", "-f", "x"]), &["in use"]);
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

fn refuses_to_restore(name: &str, words: &[&str]) {
    bad(&mut vascriu(&["restore", name, "-d"]), words);
    assert_eq!(workloads(), Vec::<i32>::new(), "nothing runs");
    // Nor does plain CRIU with the plugin.
    let images = Path::new("/run/vascriu").join(name);
    bad(criu("restore", &images).arg("-d"), &[]);
    let log = log(&images);
    for word in words {
        assert!(log.contains(word), "{log}");
    }
    // Plain CRIU kills what it restored, and does not wait for its end.
    wait_until("the end of what was restored", || workloads().is_empty());
}

fn vas_gone(dir: &Path) {
    let w = Workload::start(&Options {
        children: 1,
        ..small(dir)
    });
    w.dump("x", &[]);
    delete_vas(&vases()[0]);
    refuses_to_restore("x", &["is gone", "was deleted"]);
    let shown = good(&mut vascriu(&["ls"]));
    assert!(shown.contains("is gone"), "{shown}");
    rm(&["x"]);
}

fn edit(name: &str, change: impl FnOnce(&mut Value)) {
    let path = Path::new("/run/vascriu").join(name).join("vas.json");
    let mut all: Value = serde_json::from_slice(&fs::read(&path).expect("read")).expect("JSON");
    change(&mut all);
    fs::write(&path, all.to_string()).expect("write");
}

fn other_boot(dir: &Path) {
    let w = Workload::start(&small(dir));
    w.dump("x", &[]);
    edit("x", |all| {
        all["boot_id"] = json!("00000000-0000-0000-0000-000000000000")
    });
    refuses_to_restore("x", &["another boot"]);
    rm(&["x"]);
}

fn damaged(dir: &Path) {
    let w = Workload::start(&small(dir));
    w.dump("x", &[]);
    let path = Path::new("/run/vascriu/x/vas.json");
    let whole = fs::read(path).expect("read");
    edit("x", |all| all["version"] = json!(99));
    refuses_to_restore("x", &["version 99"]);
    fs::write(path, &whole[..whole.len() / 2]).expect("write");
    refuses_to_restore("x", &["damaged"]);
    fs::write(path, "").expect("write");
    refuses_to_restore("x", &["damaged"]);
    fs::remove_file(path).expect("remove");
    refuses_to_restore("x", &["vas.json"]);
    fs::write(path, &whole).expect("write");
    let (r, _) = restore("x", &w, &[]);
    r.check();
    r.kill();
    rm(&["x"]);
}

fn wrong_memory(dir: &Path) {
    let w = Workload::start(&Options {
        children: 2,
        ..small(dir)
    });
    w.dump("x", &[]);
    let other = dir.join("other");
    fs::create_dir(&other).expect("directory");
    let o = Workload::start(&Options {
        dir: other,
        mib: 8,
        ..Options::default()
    });
    o.dump("y", &[]);
    let whole = fs::read("/run/vascriu/x/vas.json").expect("read");
    let put_back = || fs::write("/run/vascriu/x/vas.json", &whole).expect("write");
    // One task of the tree is in no VAS.
    edit("x", |all| {
        drop(all["tasks"].as_array_mut().expect("tasks").pop())
    });
    refuses_to_restore("x", &["no memory for it"]);
    put_back();
    // One task more than there is.
    edit("x", |all| {
        let tasks = all["tasks"].as_array_mut().expect("tasks");
        let mut more = tasks[0].clone();
        more["vpid"] = json!(4_000_000);
        tasks.push(more);
    });
    refuses_to_restore("x", &["were not restored"]);
    put_back();
    // The VAS of another process.
    let shown = crate::harness::json(&mut vascriu(&["show", "y", "--json"]));
    edit("x", |all| {
        for what in ["vas", "vas_name"] {
            all["tasks"][1][what] = shown["tasks"][0][what].clone();
        }
    });
    refuses_to_restore("x", &["ATTACH"]);
    put_back();
    let (r, _) = restore("x", &w, &[]);
    r.check();
    r.kill();
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
