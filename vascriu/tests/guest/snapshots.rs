// SPDX-License-Identifier: GPL-2.0-only
//! What a snapshot holds, and that it comes back.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, setsid};
use serde_json::Value;

use crate::harness::{
    Test, Workload, bad, dump, frames, good, json, kib_of, ls, reap, restore, rm, vascriu, vases,
    wait_until, workloads,
};
use crate::workload::Options;

/// All tests here.
pub const TESTS: &[Test] = &[
    ("the_guest_has_all_that_vascriu_needs", ready),
    ("a_process_comes_back_with_its_memory", single),
    ("huge_pages_come_back_as_huge_pages", huge),
    ("a_snapshot_is_restored_again_and_again", again),
    (
        "what_a_restored_process_writes_is_not_in_the_snapshot",
        isolated,
    ),
    ("a_restored_process_can_be_dumped_again", chain),
    ("a_process_goes_on_after_leave_running", leave_running),
    ("threads_come_back", threads),
    ("a_task_that_has_only_just_begun_comes_back", just_begun),
    ("files_pipes_and_sockets_come_back", files),
    ("a_tcp_connection_comes_back", tcp),
    ("a_tree_comes_back_and_shares_what_it_shared", tree),
    ("what_a_tree_shares_comes_back_shared", shared),
    ("a_process_comes_back_in_its_cgroup", cgroup),
    (
        "a_directory_refers_to_its_snapshot_and_so_does_any_copy",
        referred,
    ),
    ("a_snapshot_without_a_name_has_its_identity", nameless),
    (
        "the_foreground_restore_ends_with_the_status_of_its_task",
        foreground,
    ),
    ("show_and_ls_tell_what_there_is", tell),
    ("options_of_criu_reach_criu", pass_through),
    ("no_task_depends_on_a_hardware_breakpoint", no_breakpoints),
    ("plain_criu_is_stock", stock),
    ("plain_criu_refuses_our_images", without_plugin),
];

pub fn small(dir: &Path) -> Options {
    Options {
        dir: dir.into(),
        mib: 16,
        ..Options::default()
    }
}

fn ready(_: &Path) {
    let checks = json(&mut vascriu(&["check", "--json"]));
    let checks = checks.as_array().expect("an array");
    assert!(
        checks.len() >= 5 && checks.iter().all(|c| c["ok"] == true),
        "{checks:?}"
    );
}

fn round_trip(options: &Options, criu: &[&str]) {
    let w = Workload::start(options);
    assert_eq!(w.check(), 1);
    let said = w.dump("x", criu);
    assert!(!w.is_alive(), "the dump ends it");
    let tasks = options.children + 1;
    assert_eq!(said["tasks"], tasks);
    assert_eq!(vases().len(), tasks);
    let pages = said["pages"].as_u64().expect("a number");
    assert!(
        pages >= options.mib as u64 * 256,
        "all of its memory was captured: {pages}"
    );
    let image_bytes = said["image_bytes"].as_u64().expect("a number");
    assert!(
        image_bytes < 96 << 10,
        "and none of it written: {image_bytes}"
    );
    let (r, _) = restore("x", &w, criu);
    assert_eq!(r.check(), 2);
    assert_eq!(r.check(), 3);
    r.kill();
    rm(&["x"]);
}

fn single(dir: &Path) {
    round_trip(&small(dir), &[]);
}

fn huge(dir: &Path) {
    let w = Workload::start(&Options {
        mib: 64,
        huge: true,
        ..small(dir)
    });
    let said = json(&mut dump(w.pid, "x"));
    let shown = json(&mut vascriu(&["show", "x", "--json"]));
    let huge = shown["members"][0]["stat"]["huge_pages"]
        .as_u64()
        .expect("a number");
    assert!(
        huge >= 64 * 256,
        "{huge} of {} pages are huge",
        said["pages"]
    );
    let (r, _) = restore("x", &w, &[]);
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", r.pid)).expect("smaps");
    let kib = kib_of(&rollup, "AnonHugePages:");
    assert!(kib >= 64 << 10, "{kib} KiB in huge pages");
    r.check();
    r.kill();
    rm(&["x"]);
}

fn shared(dir: &Path) {
    let tree = Options {
        children: 2,
        shared: true,
        ..small(dir)
    };
    // Generation after generation; and each copy has its own.
    let w = Workload::start(&tree);
    w.check();
    w.dump("first", &["--leave-running"]);
    assert_eq!(w.check(), 2);
    let said = w.dump("x", &[]);
    let image_bytes = said["image_bytes"].as_u64().expect("a number");
    assert!(image_bytes < 160 << 10, "none of it written: {image_bytes}");
    for _ in 0..2 {
        let (r, _) = restore("x", &w, &[]);
        assert_eq!((r.check(), r.check()), (3, 4));
        r.dump("y", &[]);
        let (r, _) = restore("y", &w, &[]);
        assert_eq!(r.check(), 5);
        r.kill();
        rm(&["y"]);
    }
    let (r, _) = restore("first", &w, &[]);
    assert_eq!(r.check(), 2);
    r.kill();
    rm(&["first", "x"]);
}

fn again(dir: &Path) {
    let w = Workload::start(&small(dir));
    w.dump("x", &[]);
    for _ in 0..4 {
        let (r, said) = restore("x", &w, &[]);
        assert!(said["pages"].as_u64() >= Some(16 * 256), "{said}");
        assert_eq!(r.check(), 1, "every copy begins where the snapshot was");
        assert_eq!(r.check(), 2);
        r.kill();
    }
    rm(&["x"]);
}

fn isolated(dir: &Path) {
    let w = Workload::start(&Options {
        children: 1,
        ..small(dir)
    });
    w.check();
    w.dump("x", &[]);
    let (r, _) = restore("x", &w, &[]);
    // A debugger's write: into the pages that task and VAS share.
    for (pid, address) in w.addresses() {
        let memory = std::fs::File::options()
            .write(true)
            .open(format!("/proc/{pid}/mem"));
        let memory = memory.expect("a restored task has its old PID");
        for page in 0..16 {
            std::os::unix::fs::FileExt::write_all_at(&memory, b"scribble", address + page * 4096)
                .expect("write");
        }
    }
    r.kill();
    let (r, _) = restore("x", &w, &[]);
    assert_eq!(r.check(), 2);
    r.kill();
    rm(&["x"]);
}

fn chain(dir: &Path) {
    let w = Workload::start(&Options {
        huge: true,
        children: 2,
        ..small(dir)
    });
    w.dump("x0", &[]);
    for n in 0..3u64 {
        let (r, _) = restore(&format!("x{n}"), &w, &[]);
        assert_eq!(r.check(), n + 1);
        rm(&[&format!("x{n}")]);
        r.dump(&format!("x{}", n + 1), &[]);
    }
    let (r, _) = restore("x3", &w, &[]);
    assert_eq!(r.check(), 4);
    r.kill();
    rm(&["x3"]);
}

fn leave_running(dir: &Path) {
    let w = Workload::start(&small(dir));
    w.dump("x", &["--leave-running"]);
    assert_eq!(w.check(), 1, "it goes on as if nothing had happened");
    w.dump("y", &["-R"]);
    assert_eq!(w.check(), 2);
    w.kill();
    let (r, _) = restore("x", &w, &[]);
    assert_eq!(r.check(), 1);
    r.kill();
    let (r, _) = restore("y", &w, &[]);
    assert_eq!(r.check(), 2);
    r.kill();
    rm(&["x", "y"]);
}

fn threads(dir: &Path) {
    round_trip(
        &Options {
            threads: 32,
            ..small(dir)
        },
        &[],
    );
}

/// Of its own it has a stack, and nothing else yet.
fn just_begun(dir: &Path) {
    let done = dir.join("done");
    let mut command = Command::new("touch");
    command.arg(&done).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: both only make a system call.
    unsafe {
        command.pre_exec(|| {
            setsid()?;
            Ok(ptrace::traceme()?)
        });
    }
    let child = command.spawn().expect("touch");
    let pid = Pid::from_raw(child.id().cast_signed());
    let stopped = |signal| WaitStatus::Stopped(pid, signal);
    assert_eq!(waitpid(pid, None), Ok(stopped(Signal::SIGTRAP)));
    ptrace::detach(pid, Signal::SIGSTOP).expect("detach");
    let stop = Some(WaitPidFlag::WUNTRACED);
    assert_eq!(waitpid(pid, stop), Ok(stopped(Signal::SIGSTOP)));
    reap(child);

    json(&mut dump(pid.as_raw(), "x"));
    for _ in 0..2 {
        let said = json(&mut vascriu(&["restore", "x", "-d", "--json"]));
        assert!(!done.exists());
        good(Command::new("kill").args(["-CONT", &said["pid"].to_string()]));
        wait_until("it to go on", || done.exists());
        fs::remove_file(&done).expect("remove");
        let task = format!("/proc/{}", said["pid"]);
        wait_until("it to end", || !Path::new(&task).exists());
        good(&mut vascriu(&["drain", "x", "--sync"]));
        good(&mut vascriu(&["evict", "x"]));
    }
    rm(&["x"]);
}

/// A virtual machine may lose one, and a task then runs before its memory is back.
fn no_breakpoints(dir: &Path) {
    let w = Workload::start(&Options {
        threads: 2,
        ..small(dir)
    });
    let log = dir.join("criu.log");
    let options = ["-v4", "-o", log.to_str().expect("UTF-8")];
    let traced = |tasks| {
        let log = fs::read_to_string(&log).expect("CRIU's log");
        let said = log.matches("Force no-breakpoints restore").count();
        assert_eq!(said, tasks, "{log}");
    };
    w.dump("x", &options);
    traced(1);
    let (r, _) = restore("x", &w, &options);
    traced(3);
    assert_eq!(r.check(), 1);
    r.kill();
    rm(&["x"]);
}

fn files(dir: &Path) {
    round_trip(
        &Options {
            files: true,
            ..small(dir)
        },
        &[],
    );
}

fn tcp(dir: &Path) {
    round_trip(
        &Options {
            tcp: true,
            ..small(dir)
        },
        &["--tcp-established"],
    );
}

fn tree(dir: &Path) {
    let options = Options {
        children: 3,
        threads: 2,
        files: true,
        ..small(dir)
    };
    let shared = |w: &Workload| {
        let addresses = w.addresses();
        // The last eighth is nobody's own.
        let tail = |&(pid, at): &(i32, u64)| frames(pid, at + (14 << 20), 512);
        let all: Vec<_> = addresses.iter().map(tail).collect();
        assert_eq!(all.len(), 4);
        assert!(all[0].iter().all(|&f| f != 0), "present");
        all.iter().all(|f| *f == all[0])
    };
    let w = Workload::start(&options);
    assert_eq!(w.check(), 1);
    assert!(shared(&w), "fork shares");
    w.dump("x", &[]);
    let (r, _) = restore("x", &w, &[]);
    assert!(shared(&w), "and so does the restore");
    assert_eq!(r.check(), 2);
    r.kill();
    rm(&["x"]);
}

fn cgroup(dir: &Path) {
    let group = Path::new("/sys/fs/cgroup/vascriu-test");
    fs::create_dir_all(group).expect("group");
    let group_of = |w: &Workload| fs::read_to_string(format!("/proc/{}/cgroup", w.pid));
    let w = Workload::start(&small(dir));
    fs::write(group.join("cgroup.procs"), w.pid.to_string()).expect("move");
    w.dump("x", &[]);
    let (r, _) = restore("x", &w, &[]);
    assert_eq!(group_of(&r).expect("cgroup"), "0::/vascriu-test\n");
    assert_eq!(r.check(), 1);
    r.kill();
    rm(&["x"]);
    wait_until("the group to empty", || fs::remove_dir(group).is_ok());
}

fn referred(dir: &Path) {
    let w = Workload::start(&small(dir));
    let images = dir.join("deep/images");
    let path = images.to_str().expect("UTF-8");
    w.dump("x", &["-D", path]);
    let files: Vec<_> = images.read_dir().expect("directory").flatten().collect();
    assert_eq!(files.len(), 1, "a reference, and nothing else: {files:?}");
    assert_eq!(files[0].file_name(), "inventory.img");
    // Any copy of it will do.
    let copy = dir.join("copy");
    good(Command::new("cp").arg("-r").args([&images, &copy]));
    fs::remove_dir_all(&images).expect("remove");
    let said = json(vascriu(&["restore", "-d", "--json", "-D"]).arg(&copy));
    assert_eq!(said["name"], "x");
    assert_eq!(w.check(), 1);
    w.kill();
    let (r, _) = restore("x", &w, &[]);
    assert_eq!(r.check(), 1);
    r.kill();
    rm(&["x"]);
    assert!(
        copy.join("inventory.img").exists(),
        "a reference owns nothing, and nobody it"
    );
    bad(
        vascriu(&["restore", "-d", "-D"]).arg(&copy),
        &["(`x`)", "dumped on", "it was removed"],
    );
}

fn nameless(dir: &Path) {
    let w = Workload::start(&small(dir));
    let said = json(&mut vascriu(&["dump", "-t", &w.pid.to_string(), "--json"]));
    assert!(said["name"].is_null());
    let id = said["snapshot"].as_str().expect("an identity");
    for text in [id, &id[..8]] {
        let (r, _) = restore(text, &w, &[]);
        r.check();
        r.kill();
    }
    bad(&mut vascriu(&["restore", &id[..3]]), &["no snapshot"]);
    rm(&[&id[..12]]);
}

fn foreground(dir: &Path) {
    let w = Workload::start(&small(dir));
    w.dump("x", &[]);
    let mut waiting = vascriu(&["restore", "x"]).spawn().expect("vascriu");
    crate::harness::wait_until("the restore", || w.is_alive() && workloads().len() == 1);
    w.check();
    w.kill();
    assert_eq!(waiting.wait().expect("status").code(), Some(128 + 9));
    rm(&["x"]);
}

fn tell(dir: &Path) {
    let w = Workload::start(&Options {
        children: 1,
        ..small(dir)
    });
    assert_eq!(ls(), Vec::<Value>::new());
    w.dump("x", &["--guest-only", "--ttl", "1h"]);
    let rows = ls();
    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    assert_eq!((&row["name"], &row["series"]), (&"x".into(), &"x".into()));
    assert_eq!((&row["tasks"], &row["comm"]), (&2.into(), &"guest".into()));
    assert_eq!(
        (&row["origin"]["engine"], &row["parent"]),
        (&"process".into(), &Value::Null)
    );
    assert_eq!(row["state"], "hot");
    let number = |what: &str| {
        row[what]
            .as_u64()
            .unwrap_or_else(|| panic!("{what} of {row}"))
    };
    assert!(number("memory_bytes") >= 16 << 20 && number("own_bytes") > 0);
    assert!((3590..=3600).contains(&(number("expires") - number("created"))));
    let shown = json(&mut vascriu(&["show", "x", "--json"]));
    assert_eq!(shown["id"], row["id"]);
    let tasks = shown["members"].as_array().expect("tasks");
    let mut vpids: Vec<_> = tasks.iter().filter_map(|t| t["vpid"].as_i64()).collect();
    let mut want: Vec<_> = w
        .addresses()
        .iter()
        .map(|&(pid, _)| i64::from(pid))
        .collect();
    vpids.sort_unstable();
    want.sort_unstable();
    assert_eq!(vpids, want);
    for task in tasks {
        let ranges = task["ranges"].as_array().expect("ranges");
        let pages: u64 = ranges.iter().filter_map(|r| r["pages"].as_u64()).sum();
        assert_eq!(task["stat"]["pages"], pages);
        assert_eq!(task["stat"]["attaches"], 0);
    }
    let (r, _) = restore("x", &w, &[]);
    assert_eq!(
        json(&mut vascriu(&["show", "x", "--json"]))["members"][0]["stat"]["attaches"],
        1
    );
    assert_eq!(ls()[0]["restored"], 1);
    assert!(good(&mut vascriu(&["ls"])).contains("hot"));
    assert!(good(&mut vascriu(&["show", "x"])).contains("guest"));
    r.kill();
    rm(&["x"]);
}

fn pass_through(dir: &Path) {
    let w = Workload::start(&small(dir));
    let log = dir.join("criu.log");
    let log = log.to_str().expect("UTF-8");
    w.dump("x", &["-v4", "-o", log, "--", "--display-stats"]);
    let text = std::fs::read_to_string(log).expect("a log");
    assert!(text.contains("vas: captured"), "debug messages: {text}");
    rm(&["x"]);
}

fn criu(action: &str, images: &Path) -> Command {
    let mut command = Command::new("criu");
    command
        .arg(action)
        .arg("-D")
        .arg(images)
        .args(["-o", "log", "-v4"]);
    command
}

fn stock(dir: &Path) {
    let w = Workload::start(&small(dir));
    let images = dir.join("images");
    std::fs::create_dir(&images).expect("directory");
    good(criu("dump", &images).args(["-t", &w.pid.to_string()]));
    assert_eq!(vases(), Vec::<String>::new());
    good(criu("restore", &images).arg("-d"));
    assert_eq!(w.check(), 1);
    w.kill();
    // And with our plugin loaded, stock images are restored as ever.
    good(criu("restore", &images).args(["-d", "--libdir", "/usr/lib/vascriu"]));
    assert_eq!(w.check(), 1);
    w.kill();
}

fn without_plugin(dir: &Path) {
    let w = Workload::start(&small(dir));
    let images = dir.join("images");
    w.dump("x", &["-D", images.to_str().expect("UTF-8")]);
    bad(criu("restore", &images).arg("-d"), &[]);
    let log = std::fs::read_to_string(images.join("log")).expect("a log");
    assert!(
        log.contains("Magic doesn't match for inventory.img"),
        "{log}"
    );
    // Nor is the plugin alone enough.
    bad(
        criu("restore", &images).args(["-d", "--libdir", "/usr/lib/vascriu"]),
        &[],
    );
    assert_eq!(workloads(), Vec::<i32>::new());
    rm(&["x"]);
}
