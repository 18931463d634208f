// SPDX-License-Identifier: GPL-2.0-only
//! The sandbox of a monitor that runs.

use std::collections::BTreeMap;
use std::fs;

use nix::sys::signal::Signal;

use super::exit_code;
use super::records::{Home, signal};

/// Each thread's name, whether it has a filter, and whether it can gain privileges.
fn threads(pid: u32) -> Vec<(String, bool, bool)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).ok();
    let texts = tasks.filter_map(|task| status(task.ok()?));
    let of = |text: String| {
        let fields: BTreeMap<_, _> = text.lines().filter_map(|l| l.split_once(":\t")).collect();
        (
            fields["Name"].to_owned(),
            fields["Seccomp"] == "2",
            fields["NoNewPrivs"] == "1",
        )
    };
    texts.map(of).collect()
}

#[test]
fn every_thread_of_a_monitor_is_confined_when_the_guest_runs_unless_the_user_says_no() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(4096).unwrap();
    let disk = ["--disk", image.path().to_str().unwrap()];
    for (more, confined) in [(&[][..], true), (&["--no-sandbox"], false)] {
        let home = Home::new();
        let child = home.spin_with("box", &[&disk[..], more].concat());
        let threads = threads(child.id());
        let all = [
            "mvasvm", "metrics", "vm", "disk0", "vas0", "vas1", "vcpu0", "vcpu1",
        ];
        for name in all {
            assert!(
                threads.iter().any(|(n, ..)| n == name),
                "{name}: {threads:?}"
            );
        }
        for (name, filter, no_new_privs) in threads {
            assert_eq!((filter, no_new_privs), (confined, confined), "{name}");
        }
        // It tells its counters, and ends in order.
        home.good(&["metrics", "box"]);
        signal(&child, Signal::SIGTERM);
        assert_eq!(exit_code(child), Some(143));
        assert_eq!(home.end()["cause"], "stopped");
        let log = home.good(&["logs", "--monitor", "box"]);
        assert_eq!(log.contains("--no-sandbox"), !confined, "{log}");
    }
}

#[test]
fn a_monitor_that_its_sandbox_ended_has_a_record_that_says_so() {
    let home = Home::new();
    let child = home.spin_with("box", &[]);
    // As the kernel does for a system call that is on no list.
    signal(&child, Signal::SIGSYS);
    assert_eq!(exit_code(child), Some(125));
    let end = home.end();
    assert_eq!(
        (&end["cause"], &end["exit_code"]),
        (&"failed".into(), &125.into())
    );
    let text = end["text"].as_str().unwrap();
    assert!(
        text.contains("sandbox") && text.contains("thread main"),
        "{text}"
    );
    assert_eq!(home.ram_files(), 0, "its memory comes back");
    assert!(!home.folder("box").join("refused").exists());
}
