// SPDX-License-Identifier: GPL-2.0-only
//! A snapshot store of a test's own, and VMs that use it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Output;

use serde_json::Value;

use crate::host::{Vm, output, show, text};

/// The tests of vascriu; other words make it the guest's half of these tests.
pub const GUEST: &str = "/usr/lib/mvas/tests/guest";

/// A store. Declared before the VMs that use it, it goes after them.
pub struct Shelf(tempfile::TempDir);

impl Shelf {
    pub fn new() -> Self {
        Self(tempfile::tempdir_in("/dev/shm").expect("a folder in a tmpfs"))
    }

    pub fn path(&self) -> PathBuf {
        self.0.path().join("store")
    }

    fn text(&self) -> String {
        self.path().to_str().expect("UTF-8").to_owned()
    }

    /// A VM that has its memory there.
    pub fn vm(&self, name: &str, more: &[&str]) -> Vm {
        let store = self.text();
        Vm::start(name, &[&["--store", &store][..], more].concat())
    }

    /// `mvasvm WORDS --store … --json`, whatever its exit code.
    pub fn json(&self, words: &[&str]) -> Value {
        let store = self.text();
        let ran = output(&[words, &["--json", "--store", &store]].concat());
        serde_json::from_slice(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {}", show(&ran)))
    }

    /// Wants nothing to be wrong in it.
    #[track_caller]
    pub fn is_right(&self) {
        let found = self.json(&["store", "check"]);
        assert_eq!(found["problems"], Value::Array(Vec::new()), "{found}");
    }

    /// Name and identity of all snapshots, by name.
    fn snapshots(&self) -> Vec<(String, String)> {
        let text = |v: &Value| v.as_str().expect("text").to_owned();
        let both = |s: &Value| (text(&s["label"]["name"]), text(&s["name"]));
        let list = self.json(&["snapshots", "ls"]);
        list.as_array().expect("a list").iter().map(both).collect()
    }

    /// Names of all snapshots.
    pub fn names(&self) -> Vec<String> {
        self.snapshots().into_iter().map(|(name, _)| name).collect()
    }

    /// The identity of the snapshot of this name.
    pub fn identity(&self, name: &str) -> String {
        let snapshots = self.snapshots();
        let found = snapshots.iter().find(|(of, _)| of == name);
        let (_, identity) = found.unwrap_or_else(|| panic!("no {name}: {snapshots:?}"));
        identity.clone()
    }

    /// The manifest of the snapshot of this name.
    pub fn manifest(&self, name: &str) -> PathBuf {
        let identity = self.identity(name);
        self.path().join(format!("snapshots/{identity}.snap"))
    }

    /// Bytes of all RAM files.
    pub fn ram_bytes(&self) -> u64 {
        let files = fs::read_dir(self.path().join("ram")).expect("a store");
        let bytes = files.map(|f| f.expect("a file").metadata().expect("stat").blocks() * 512);
        bytes.sum()
    }

    /// Wants no memory to be left in it: no snapshot, and no VM.
    #[track_caller]
    pub fn is_empty(&self) {
        self.is_right();
        for folder in ["ram", "uses", "snapshots", "drafts", "labels"] {
            let left = fs::read_dir(self.path().join(folder)).expect("a store");
            assert_eq!(left.count(), 0, "left in {folder}");
        }
    }
}

impl Vm {
    /// Runs a command there, and wants success.
    #[track_caller]
    pub fn good(&self, command: &[&str]) -> String {
        let ran = self.exec(command);
        assert!(ran.status.success(), "{command:?}: {}", show(&ran));
        text(&ran.stdout)
    }

    /// Runs a command there, and wants it to fail with an error that holds all of `words`.
    #[track_caller]
    pub fn bad(&self, command: &[&str], words: &[&str]) {
        let ran = self.exec(command);
        let said = text(&ran.stderr);
        assert!(ran.status.code() == Some(1), "{command:?}: {}", show(&ran));
        for word in words {
            assert!(
                said.contains(word),
                "{command:?} did not say {word:?}: {said}"
            );
        }
    }

    #[track_caller]
    pub fn json(&self, command: &[&str]) -> Value {
        let said = self.good(&[command, &["--json"]].concat());
        serde_json::from_str(&said).unwrap_or_else(|e| panic!("{command:?}: {e}: {said}"))
    }

    /// Where vascriu says that a snapshot is.
    #[track_caller]
    pub fn kept(&self, name: &str) -> Value {
        let list = self.json(&["vascriu", "ls"]);
        let rows = list["snapshots"].as_array().expect("snapshots");
        let row = rows.iter().find(|row| row["name"] == name);
        row.map_or(Value::Null, |row| row["state"].clone())
    }
}

/// A workload in a guest, perhaps a restored one.
pub struct Job {
    pub pid: String,
    seed: String,
}

impl Job {
    /// One with so many MiB in huge pages.
    #[track_caller]
    pub fn start(vm: &Vm, seed: u32, mib: u32) -> Self {
        let words = [format!("seed={seed}"), format!("mib={mib}")];
        let said = vm.good(&[GUEST, "start", &words[0], &words[1], "huge"]);
        Self {
            pid: said.trim().to_owned(),
            seed: seed.to_string(),
        }
    }

    /// `vascriu dump` of it, which ends it.
    pub fn dump(&self, vm: &Vm, name: &str, more: &[&str]) -> Output {
        let words = ["vascriu", "dump", "-t", &self.pid, "--name", name];
        vm.exec(&[&words[..], more].concat())
    }

    #[track_caller]
    pub fn dumped(&self, vm: &Vm, name: &str, more: &[&str]) {
        let ran = self.dump(vm, name, more);
        assert!(ran.status.success(), "{}", show(&ran));
    }

    /// Restores it in any guest, wants exactly its data, and ends it again.
    #[track_caller]
    pub fn comes_back(&self, vm: &Vm, name: &str) {
        vm.good(&["vascriu", "restore", name, "-d"]);
        self.is_right(vm);
    }

    /// Wants it to have its data, and ends it.
    #[track_caller]
    pub fn is_right(&self, vm: &Vm) {
        let answer = vm.good(&[GUEST, "ask", &self.pid, &self.seed]);
        assert_eq!(answer, format!("ok 1 of {}\n", self.seed));
        let end = format!(
            "kill -9 {0}; while [ -e /proc/{0} ]; do sleep 0.05; done",
            self.pid
        );
        vm.good(&["sh", "-c", &end]);
    }
}
