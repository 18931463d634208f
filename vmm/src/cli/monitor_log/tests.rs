// SPDX-License-Identifier: GPL-2.0-only
use std::env;
use std::fs;
use std::process::Command;
use std::thread;

use super::*;
use crate::cli::note;

/// Where the child keeps its log.
const FILE: &str = "MVAS_TEST_MONITOR_LOG";

/// Not a test of its own: the process of
/// [`what_a_detached_monitor_says_is_kept_and_its_last_words_too`].
#[test]
fn child() {
    let Some(path) = env::var_os(FILE) else {
        return;
    };
    start();
    note("before");
    keep(path.into()).expect("keep");
    note("both");
    tracing::warn!("an event");
    let panics = || thread::spawn(|| panic!("a panic that a test wants")).join();
    assert!(panics().is_err());
    leave_stderr().expect("leave");
    note("alone");
    assert!(panics().is_err());
    // As libc does before it aborts.
    io::stderr().write_all(b"last words\n").expect("write");
}

#[test]
fn what_a_detached_monitor_says_is_kept_and_its_last_words_too() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("monitor.log");
    let child = Command::new(env::current_exe().expect("this program"))
        .args(["--exact", "cli::monitor_log::tests::child", "--nocapture"])
        .env(FILE, &path)
        .output()
        .expect("the child starts");
    assert!(child.status.success(), "{child:?}");
    let heard = String::from_utf8_lossy(&child.stderr);
    let kept = fs::read_to_string(&path).expect("a log");
    let count = |text: &str, words: &str| text.matches(words).count();
    for (words, is_heard, is_kept) in [
        ("mvasvm: before\n", 1, 0),
        ("mvasvm: both\n", 1, 1),
        ("an event\n", 1, 1),
        ("a panic that a test wants\n", 1, 2),
        ("mvasvm: alone\n", 0, 1),
        ("last words\n", 0, 1),
    ] {
        assert_eq!(count(&heard, words), is_heard, "{words:?} in {heard}");
        assert_eq!(count(&kept, words), is_kept, "{words:?} in {kept}");
    }
    assert!(
        kept.lines().filter(|line| line.starts_with("[ ")).count() >= 4,
        "{kept}"
    );
}
