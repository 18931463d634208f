// SPDX-License-Identifier: GPL-2.0-only
//! Monitors that are killed in the middle of requests: the store stays right, and what was
//! complete is there with its data.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use mvas_abi::virtio_vas::*;
use mvas_host::server::{BLOCK, Grant, PAGE};
use mvas_host::store::{Store, StoreOptions};

use crate::vm::{Setup, Vm, done, meta, ram_files, store};

const STORE: &str = "MVAS_TEST_CRASH_STORE";
const SEED: &str = "MVAS_TEST_CRASH_SEED";

/// Blocks that a snapshot publishes at most; as many are beside them for MAP.
const MOST: u64 = 6;
const PAGES: u64 = BLOCK / PAGE;
/// Pages that a snapshot copies.
const COPIED: u64 = 700;

/// What a worker may be killed in. It says so before each of them.
const OPS: [&str; 7] = ["publish", "copy", "commit", "label", "map", "release", "rm"];

/// What page `page` of a snapshot holds; packed pages are numbered on after the blocks.
fn content(snapshot: &str, page: u64) -> u64 {
    let name = snapshot
        .bytes()
        .fold(7u64, |sum, b| sum.wrapping_mul(0x100_0193) ^ u64::from(b));
    (name << 32) + page + 1
}

/// One of a snapshot's labels: it begins with its name, and tells its length.
fn label_of(snapshot: &str, len: usize) -> String {
    format!("{snapshot} {} {len}", "x".repeat(len))
}

fn guest(store: &Store, name: &str) -> Vm {
    let setup = Setup {
        grant: Grant::All,
        ..Setup::default()
    };
    Vm::with(store, name, setup)
}

/// In one write, so that a kill cannot cut it.
fn tell(text: &str) {
    let mut out = std::io::stdout();
    out.write_all(format!("{text}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

#[test]
#[ignore = "is run by another test, as a process to be killed"]
fn worker() {
    let store = env::var(STORE).expect("only another test runs this");
    let seed = env::var(SEED).unwrap().parse().unwrap();
    let store = Store::open(Path::new(&store), StoreOptions::default()).unwrap();
    let mut random = Rng::with_seed(seed);
    tell("\nbegun");
    loop {
        let vm = guest(&store, "worker");
        let mut made = Vec::new();
        for count in 0..2 + random.u64(..6) {
            let snapshot = format!("s-{}-{count}", vm.run.id());
            make(&vm, &snapshot, 1 + random.u64(..MOST));
            made.push(snapshot);
            if random.u64(..2) == 0 {
                let one = random.usize(..made.len());
                let snapshot = made.swap_remove(one);
                tell(&format!("rm {snapshot}"));
                done(vm.named(VIRTIO_VAS_OP_DELETE, &snapshot));
                tell(&format!("removed {snapshot}"));
            }
        }
    }
}

/// A snapshot of the guest's first blocks and of some of its pages; then others are mapped
/// in their place.
fn make(vm: &Vm, snapshot: &str, blocks: u64) {
    let copied = 2 * MOST * PAGES..2 * MOST * PAGES + COPIED;
    for page in 0..blocks * PAGES {
        vm.write(page * PAGE, content(snapshot, page));
    }
    for (page, number) in copied.clone().zip(blocks * PAGES..) {
        vm.write(page * PAGE, content(snapshot, number));
    }
    let handle = vm.create(snapshot);
    tell(&format!("publish {snapshot}"));
    let numbers: Vec<u64> = (0..blocks).collect();
    done(vm.publish(handle, &numbers));
    tell(&format!("copy {snapshot}"));
    done(vm.copy(handle, &copied.collect::<Vec<_>>()));
    done(vm.meta(handle, 0, &meta(blocks, COPIED)));
    done(vm.label(handle, "", &label_of(snapshot, 300)));
    tell(&format!("commit {snapshot}"));
    done(vm.commit(handle));
    tell(&format!("committed {snapshot}"));
    tell(&format!("label {snapshot}"));
    for len in [900, 0, 20] {
        done(vm.label(0, snapshot, &label_of(snapshot, len)));
    }
    tell(&format!("map {snapshot}"));
    let entries: Vec<_> = (0..)
        .zip(MOST..MOST + blocks)
        .map(|(index, block)| (block, index, VIRTIO_VAS_KIND_BLOCKS))
        .collect();
    done(vm.map(handle, &entries));
    done(vm.close(handle));
    // The guest goes on writing to what it published and to what it mapped.
    vm.write(0, 1);
    vm.write(MOST * BLOCK, 2);
    tell(&format!("release {snapshot}"));
    done(vm.release(&[(MOST, blocks), (0, blocks)]));
}

/// What a killed worker's words say must be there, what may be, and in what it was killed.
#[derive(Default)]
struct Expected {
    must: BTreeSet<String>,
    may: BTreeSet<String>,
}

impl Expected {
    fn read(&mut self, words: &str) -> Option<&'static str> {
        let mut last = None;
        for line in words.lines() {
            let Some((verb, snapshot)) = line.split_once(' ') else {
                continue;
            };
            let snapshot = snapshot.to_owned();
            match verb {
                "commit" => drop(self.may.insert(snapshot)),
                "committed" => {
                    self.may.remove(&snapshot);
                    self.must.insert(snapshot);
                }
                "rm" => {
                    self.must.remove(&snapshot);
                    self.may.insert(snapshot);
                }
                "removed" => drop(self.may.remove(&snapshot)),
                _ => {}
            }
            last = OPS.into_iter().find(|op| *op == verb);
        }
        last
    }

    /// Compares with the store, which nobody uses now; what may be there is known then.
    fn settle(&mut self, path: &Path) {
        let store = Store::open(path, StoreOptions::default()).unwrap();
        assert_eq!(store.check().unwrap().problems, []);
        let heads = store.labelled(|_| true).unwrap();
        let found: BTreeSet<_> = heads.iter().map(|(h, _)| h.name.to_string()).collect();
        let lost = &self.must - &found;
        assert!(lost.is_empty(), "lost: {lost:?}");
        let more = &found - &self.must;
        assert!(more.is_subset(&self.may), "made of nothing: {more:?}");
        let vm = guest(&store, "reader");
        for (head, label) in heads {
            let name = head.name.as_str();
            let is_one = |len| label.as_str() == label_of(name, len);
            assert!([300, 900, 0, 20].into_iter().any(is_one), "{label:?}");
            shows(&vm, name, head.blocks.len());
        }
        (self.must, self.may) = (found, BTreeSet::new());
    }
}

/// Wants every page of a snapshot to come back, in another VM.
#[track_caller]
fn shows(vm: &Vm, snapshot: &str, blocks: u64) {
    let handle = vm.open(snapshot);
    let of = |kind, blocks: u64, at: u64| -> Vec<_> {
        let block = |index: u64| (at + index, u32::try_from(index).unwrap(), kind);
        (0..blocks).map(block).collect()
    };
    let mut entries = of(VIRTIO_VAS_KIND_BLOCKS, blocks, 0);
    let packed = COPIED.div_ceil(PAGES);
    entries.extend(of(VIRTIO_VAS_KIND_PACKED, packed, blocks));
    done(vm.map(handle, &entries));
    for page in 0..blocks * PAGES + COPIED {
        let (seen, expected) = (vm.read(page * PAGE), content(snapshot, page));
        assert_eq!(seen, expected, "page {page} of {snapshot}");
    }
    done(vm.close(handle));
    done(vm.release(&[(0, blocks + packed)]));
}

fn start(store: &Path, seed: u64) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "crash::worker", "--ignored", "--nocapture"])
        .env(STORE, store)
        .env(SEED, seed.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Reads what the worker says up to its next line that begins so.
fn hear(worker: &mut Child, until: &str, words: &mut String) {
    let out = worker.stdout.as_mut().unwrap();
    let mut line = String::new();
    loop {
        let mut byte = [0];
        out.read_exact(&mut byte).expect("the worker goes on");
        line.push(byte[0].into());
        if byte == *b"\n" {
            words.push_str(&line);
            if line.starts_with(until) {
                return;
            }
            line.clear();
        }
    }
}

#[test]
fn a_monitor_killed_in_any_request_leaves_snapshots_whole_or_absent() {
    const KILLS: usize = 100;
    let (folder, first) = store();
    let path = folder.path().join("store");
    drop(first);
    let mut expected = Expected::default();
    let mut random = Rng::with_seed(0);
    let mut killed_in: BTreeMap<&str, usize> = BTreeMap::new();
    for kill in 0..KILLS {
        let mut worker = start(&path, kill as u64 + 1);
        let mut words = String::new();
        hear(&mut worker, "begun", &mut words);
        // However slow this host is, it has come to that request.
        for _ in 0..=random.u64(..3) {
            let begins = format!("{} ", OPS[kill % OPS.len()]);
            hear(&mut worker, &begins, &mut words);
        }
        thread::sleep(Duration::from_micros(random.u64(..800)));
        worker.kill().unwrap();
        let mut out = worker.stdout.take().unwrap();
        out.read_to_string(&mut words).unwrap();
        let status = worker.wait().unwrap();
        assert_eq!(status.code(), None, "it failed by itself: {words}");
        if let Some(op) = expected.read(&words) {
            *killed_in.entry(op).or_default() += 1;
        }
        expected.settle(&path);
        // Now and then begin anew, so that reading everything stays quick.
        if kill % 10 == 9 {
            let store = Store::open(&path, StoreOptions::default()).unwrap();
            for snapshot in std::mem::take(&mut expected.must) {
                store.remove(&snapshot.parse().unwrap()).unwrap();
            }
            assert_eq!(ram_files(&path), 0);
        }
    }
    println!("killed in {killed_in:?}");
    let all: usize = killed_in.values().sum();
    assert!(all >= KILLS / 4, "hardly ever in a request: {killed_in:?}");
}
