// SPDX-License-Identifier: GPL-2.0-only
//! The process that removes what an experiment leaves.

use std::fs;
use std::process::{Command, Stdio};

#[test]
fn a_store_goes_when_its_experiment_ends() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = dir.path().join("store");
    fs::create_dir_all(store.join("ram")).unwrap();
    fs::write(store.join("ram/file"), b"memory").unwrap();
    let mut janitor = Command::new(env!("CARGO_BIN_EXE_mvas-exp"))
        .arg("janitor")
        .arg(&store)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    // As long as the experiment has the other end.
    assert!(store.join("ram/file").exists());
    assert!(janitor.try_wait().unwrap().is_none());
    drop(janitor.stdin.take());
    assert!(janitor.wait().unwrap().success());
    assert!(!store.exists() && dir.path().exists());
}
