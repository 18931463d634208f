// SPDX-License-Identifier: GPL-2.0-only
//! `mvasvm snapshots` and `mvasvm store`, on stores that hold real snapshots.
#![allow(clippy::unwrap_used)] // in helpers, too, a failure is the test's failure

mod mount;
mod names;

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use mvas_host::store::{BLOCK, Extent, Store, StoreOptions, StoreRun};
use serde_json::Value;
use tempfile::TempDir;

/// A folder in the tmpfs that every host has, with a store or without.
struct Shm(TempDir);

impl Shm {
    fn new() -> Self {
        Self(tempfile::tempdir_in("/dev/shm").unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("store")
    }

    fn store(&self) -> Store {
        Store::open(&self.path(), StoreOptions::default()).unwrap()
    }

    /// A store with snapshots "one" (blocks 0, 1) and "two" (1, 2) of a VM that is gone.
    fn with_snapshots() -> Self {
        let shm = Self::new();
        let run = shm.store().start_run("maker", 4 * BLOCK).unwrap();
        snapshot(&run, "one", &[0, 1]);
        snapshot(&run, "two", &[1, 2]);
        shm
    }

    fn run(&self, words: &[&str]) -> Output {
        let store = self.path();
        Command::new(env!("CARGO_BIN_EXE_mvasvm"))
            .args(words)
            .args(["--store", store.to_str().unwrap()])
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Wants this exit code; returns both outputs.
    fn ends(&self, words: &[&str], code: i32) -> (String, String) {
        let output = self.run(words);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (out, err) = (text(output.stdout), text(output.stderr));
        assert_eq!(output.status.code(), Some(code), "{words:?}: {out}{err}");
        (out, err)
    }

    fn json(&self, words: &[&str], code: i32) -> Value {
        let (out, _) = self.ends(&[words, &["--json"]].concat(), code);
        serde_json::from_str(&out).unwrap()
    }

    /// What `snapshots ls` says of one.
    fn listed(&self, name: &str) -> Value {
        let list = self.json(&["snapshots", "ls"], 0);
        let listed = list.as_array().unwrap().iter().find(|s| s["name"] == name);
        listed.unwrap_or_else(|| panic!("{name}: {list}")).clone()
    }

    fn break_manifest(&self, name: &str) {
        let path = self.path().join(format!("snapshots/{name}.snap"));
        let mut bytes = fs::read(&path).unwrap();
        bytes[30] ^= 1;
        fs::write(path, bytes).unwrap();
    }
}

/// Writes to the blocks and makes a snapshot of them.
fn snapshot(run: &StoreRun, name: &str, blocks: &[u64]) {
    labelled(run, name, "", blocks);
}

/// One with a label.
fn labelled(run: &StoreRun, name: &str, label: &str, blocks: &[u64]) {
    let own = |block: &u64| Extent {
        run: run.id(),
        block: *block,
    };
    let extents: Vec<_> = blocks.iter().map(own).collect();
    for extent in &extents {
        let file = run.ram().file();
        let data = vec![1; 2 << 20];
        file.write_all_at(&data, extent.range().start().0).unwrap();
    }
    run.use_extents(&extents).unwrap();
    let mut draft = run.draft(name.parse().unwrap()).unwrap();
    draft.push_blocks(&extents).unwrap();
    draft.meta = metadata(blocks.len());
    draft.label = label.parse().unwrap();
    run.commit(&mut draft).unwrap();
}

/// One VAS "redis:7" with one VMA that is one run of all blocks (docs/VIRTIO-VAS.md).
fn metadata(blocks: usize) -> Vec<u8> {
    let blocks = u32::try_from(blocks).unwrap();
    let u32s =
        |values: &[u32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
    let u64s =
        |values: &[u64]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
    let mut name = b"redis:7".to_vec();
    name.resize(128, 0);
    let (start, end) = (1 << 32, (1 << 32) + u64::from(blocks) * BLOCK);
    [
        u32s(&[0x4d53_4156, 2, 1, 0]),
        name,
        u32s(&[0o600, 1, 1, 0]),
        u64s(&[start, end, 0]),
        u32s(&[3, 0]),
        u64s(&[start]),
        u32s(&[blocks * 512, 0]),
        u64s(&[0]),
    ]
    .concat()
}

#[test]
fn ls_tells_what_each_snapshot_has_and_who_uses_it() {
    let shm = Shm::with_snapshots();
    let user = shm.store().start_run("user", BLOCK).unwrap();
    let _seen = user.open(&"two".parse().unwrap()).unwrap();
    let one = shm.listed("one");
    assert_eq!(one["label"], Value::Null);
    assert_eq!(one["state"], "complete");
    assert_eq!(one["vm"], "maker");
    assert_eq!(one["vases"], 1);
    assert_eq!(one["memory_bytes"], 2 * BLOCK);
    assert_eq!(one["own_bytes"], BLOCK);
    assert_eq!(one["shared_bytes"], BLOCK);
    assert_eq!(one["extents"], 2);
    // Of its two blocks, "user" has the one that "two" has as well.
    assert_eq!(one["kept"], "hot");
    let used = serde_json::json!([{"vm": "user", "extents": 1}]);
    assert_eq!(one["used_by"], used);

    let (table, _) = shm.ends(&["snapshots", "ls"], 0);
    let line = table.lines().find(|line| line.starts_with("two")).unwrap();
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(words[1..7], ["-", "1", "4M", "2M", "2M", "2"], "{table}");
    assert_eq!(words[8..], ["hot", "maker", "-", "user"], "{table}");
    assert!(table.contains("user (1 of 2)\n"), "{table}");
}

#[test]
fn a_snapshot_is_cold_when_no_running_vm_uses_it() {
    let shm = Shm::with_snapshots();
    let two = || shm.listed("two");
    assert_eq!(
        (&two()["kept"], &two()["used_by"]),
        (&"cold".into(), &Value::Array(vec![]))
    );
    let user = shm.store().start_run("user", BLOCK).unwrap();
    let seen = user.open(&"two".parse().unwrap()).unwrap();
    assert_eq!(two()["kept"], "hot");
    // As a guest does that evicts the snapshot.
    drop(seen);
    assert_eq!(two()["kept"], "cold");
    let (text, _) = shm.ends(&["snapshots", "show", "two"], 0);
    assert!(text.contains("kept:       cold\n"), "{text}");
    assert!(text.contains("used by:    no running VM\n"), "{text}");
}

#[test]
fn show_lists_the_address_spaces() {
    let shm = Shm::with_snapshots();
    let one = shm.json(&["snapshots", "show", "one"], 0);
    assert_eq!(one["vm"], "maker");
    assert_eq!(one["address_spaces"][0]["name"], "redis:7");
    assert_eq!(one["address_spaces"][0]["pages"], 1024);
    let (text, _) = shm.ends(&["snapshots", "show", "one"], 0);
    for word in ["maker (run ", "redis:7", "no running VM"] {
        assert!(text.contains(word), "{text}");
    }
    let (_, err) = shm.ends(&["snapshots", "show", "three"], 125);
    assert!(err.contains("no snapshot three"), "{err}");
}

#[test]
fn rm_gives_back_what_nobody_else_has() {
    let shm = Shm::with_snapshots();
    let (out, err) = shm.ends(&["snapshots", "rm", "one"], 0);
    assert!(out.contains("one removed: 3M given back"), "{out}"); // 2 MiB, and its manifest
    assert!(err.is_empty(), "{err}");
    let removed = shm.json(&["snapshots", "rm", "two"], 0);
    assert!(removed[0]["bytes"].as_u64().unwrap() >= 2 * BLOCK);
    assert_eq!(fs::read_dir(shm.path().join("ram")).unwrap().count(), 0);
    let (_, err) = shm.ends(&["snapshots", "rm", "two"], 125);
    assert!(err.contains("no snapshot two"), "{err}");
    assert_eq!(shm.json(&["snapshots", "ls"], 0), Value::Array(Vec::new()));
}

#[test]
fn a_broken_snapshot_is_told_everywhere_and_can_be_removed() {
    let shm = Shm::with_snapshots();
    assert_eq!(shm.json(&["store", "check"], 0)["snapshots"], 2);
    shm.break_manifest("one");
    let report = shm.json(&["store", "check"], 1);
    assert_eq!(report["snapshots"], 1);
    assert_eq!(report["problems"].as_array().unwrap().len(), 1);
    let (out, _) = shm.ends(&["store", "check"], 1);
    assert!(
        out.contains("one.snap: the checksum of its head is wrong"),
        "{out}"
    );
    let (out, _) = shm.ends(&["snapshots", "ls"], 0);
    assert!(out.contains("BROKEN: the checksum"), "{out}");
    assert_eq!(shm.listed("one")["state"], "broken");
    let (_, err) = shm.ends(&["snapshots", "show", "one"], 125);
    assert!(err.contains("broken") && err.contains("checksum"), "{err}");

    let (out, err) = shm.ends(&["snapshots", "rm", "two"], 0);
    assert!(out.contains("0M given back"), "{out}");
    assert!(err.contains("the snapshot one is broken"), "{err}");
    let (_, err) = shm.ends(&["store", "gc"], 1);
    assert!(err.contains("snapshots rm one"), "{err}");
    let (out, _) = shm.ends(&["snapshots", "rm", "one"], 0);
    assert!(out.contains("7M given back"), "{out}"); // 6 MiB, and manifests
    shm.ends(&["store", "check"], 0);
}

#[test]
fn gc_says_what_a_killed_vm_left() {
    let shm = Shm::with_snapshots();
    // All that is left of a killed VM is a RAM file that nobody has locked.
    let left = shm.path().join("ram/00000000000000aa.ram");
    fs::write(&left, vec![1; 3 << 20]).unwrap();
    fs::write(shm.path().join("uses/00000000000000aa"), "").unwrap();
    let (out, _) = shm.ends(&["store", "gc"], 0);
    assert_eq!(out, "3M given back\n");
    assert!(!left.exists());
    assert_eq!(shm.json(&["store", "gc"], 0)["bytes"], 0);
    assert_eq!(shm.json(&["store", "check"], 0)["snapshots"], 2);
}

#[test]
fn finding_a_killed_vm_gives_its_memory_back() {
    let shm = Shm::with_snapshots();
    let left = shm.path().join("ram/00000000000000aa.ram");
    fs::write(&left, vec![1; 3 << 20]).unwrap();
    let vm = shm.0.path().join("mvas/dead");
    fs::create_dir_all(&vm).unwrap();
    for dir in [shm.0.path().join("mvas"), vm.clone()] {
        fs::set_permissions(dir, Permissions::from_mode(0o700)).unwrap();
    }
    fs::write(vm.join("lock"), "").unwrap();
    let info = format!(
        r#"{{"name":"dead","pid":1,"hw":"kvm","mem_bytes":1,"cpus":1,"kernel":"k","started":1,"store":{:?}}}"#,
        shm.path()
    );
    fs::write(vm.join("vm.json"), info).unwrap();
    let listed = Command::new(env!("CARGO_BIN_EXE_mvasvm"))
        .args(["ls", "--all", "--json"])
        .env("XDG_RUNTIME_DIR", shm.0.path())
        .output()
        .unwrap();
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed[0]["end"]["cause"], "monitor-killed", "{listed}");
    assert!(!left.exists());
    assert_eq!(
        shm.json(&["snapshots", "ls"], 0).as_array().unwrap().len(),
        2
    );
}

#[test]
fn gc_with_force_does_without_broken_snapshots() {
    let shm = Shm::with_snapshots();
    shm.break_manifest("one");
    let freed = shm.json(&["store", "gc", "--force"], 0);
    assert_eq!(freed["bytes"], BLOCK, "{freed}");
    assert!(shm.store().load(&"two".parse().unwrap()).is_ok());
}

#[test]
fn without_a_store_there_is_nothing_and_looking_makes_none() {
    let shm = Shm::new();
    for words in [
        &["snapshots", "ls"][..],
        &["snapshots", "show", "x"],
        &["snapshots", "rm", "x"],
        &["store", "gc"],
        &["store", "check"],
    ] {
        let (out, err) = shm.ends(words, 125);
        assert!(
            err.contains("there is no store at") && out.is_empty(),
            "{out}{err}"
        );
    }
    assert!(!shm.path().exists());
}

#[test]
fn directories_that_cannot_be_a_store_are_refused() {
    let shm = Shm::new();
    let refuses = |says: &str| {
        let (_, err) = shm.ends(&["snapshots", "ls"], 125);
        assert!(err.contains(says), "{err}");
    };
    symlink("/dev/shm", shm.path()).unwrap();
    refuses("symbolic links are not followed");
    fs::remove_file(shm.path()).unwrap();
    fs::create_dir(shm.path()).unwrap();
    fs::set_permissions(shm.path(), Permissions::from_mode(0o755)).unwrap();
    refuses("chmod 700");
    fs::set_permissions(shm.path(), Permissions::from_mode(0o700)).unwrap();
    fs::write(shm.path().join("diary"), "").unwrap();
    refuses("diary");
}

#[test]
fn a_file_system_on_disk_needs_force() {
    let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    fs::set_permissions(disk.path(), Permissions::from_mode(0o700)).unwrap();
    let store = disk.path().to_str().unwrap();
    let run = |more: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_mvasvm"))
            .args(["store", "check", "--store", store])
            .args(more)
            .output()
            .unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), err)
    };
    let (code, err) = run(&[]);
    assert!(code == Some(125) && err.contains("tmpfs"), "{err}");
    assert_eq!(run(&["--store-force"]), (Some(0), String::new()));
}

#[test]
fn names_that_cannot_be_are_refused() {
    for name in ["../x", "", ".x", "a/b", "a b"] {
        let (_, err) = Shm::new().ends(&["snapshots", "rm", name], 2);
        assert!(err.contains("cannot name a snapshot"), "{err}");
    }
}
