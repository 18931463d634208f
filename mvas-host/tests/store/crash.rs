// SPDX-License-Identifier: GPL-2.0-only
//! Monitors that are killed at any moment.
//!
//! A *worker* is this test binary again, running the ignored test [`worker`]. It does what a
//! monitor does, at random and for ever, and tells on standard output what it is about to do
//! and what it has done. So after a kill the parent knows which snapshots there must be.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use mvas_host::store::{BLOCK, Extent, OpenSnapshot, StoreError, StoreRun};

use crate::support::{
    Shm, blocks, fill, label, metadata, name, open, own, publish, ram_bytes, relabel, shows,
};

const STORE: &str = "MVAS_TEST_STORE";
const JOB: &str = "MVAS_TEST_JOB";
const SEED: &str = "MVAS_TEST_SEED";

/// Begins a worker: this binary, only the test `worker`.
pub fn start(store: &Path, job: &str, seed: u64) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--ignored", "--exact", "crash::worker", "--nocapture"])
        .env(STORE, store)
        .env(JOB, job)
        .env(SEED, seed.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "is run by other tests, as a process to be killed"]
fn worker() {
    let store = env::var(STORE).expect("only other tests run this");
    let seed = env::var(SEED).unwrap().parse().unwrap();
    match env::var(JOB).unwrap().as_str() {
        "compete" => crate::processes::compete(Path::new(&store), seed),
        "label" => crate::labels::relabel_for_ever(Path::new(&store)),
        "use" => crate::processes::use_until_told(Path::new(&store)),
        letter => work(Path::new(&store), letter, Rng::with_seed(seed)),
    }
}

/// In one write, so that a kill cannot cut it.
pub fn tell(text: &str) {
    let mut out = std::io::stdout();
    out.write_all(format!("{text}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// The bytes of a snapshot's blocks follow from its name.
fn byte_of(snapshot: &str) -> u8 {
    snapshot
        .bytes()
        .fold(7u8, |sum, b| sum.wrapping_mul(31).wrapping_add(b))
        | 1
}

/// One of a snapshot's labels: the beginning tells whose, the end whether it is whole.
fn label_of(snapshot: &str, len: usize) -> String {
    format!("{snapshot} {} {len}", "x".repeat(len % 900))
}

fn is_label_of(snapshot: &str, label: &str) -> bool {
    let len = label.rsplit(' ').next().and_then(|len| len.parse().ok());
    len.is_some_and(|len| label == label_of(snapshot, len))
}

/// A monitor's life: VM runs, snapshots, restores, removals.
fn work(path: &Path, letter: &str, mut random: Rng) {
    let mut count = 0;
    tell("\nbegun");
    loop {
        let store = open(path);
        let run = store.start_run(letter, 2 * BLOCK).unwrap();
        let mut opened: Vec<OpenSnapshot> = Vec::new();
        let mut seen: Vec<Extent> = Vec::new();
        let mut made: Vec<String> = Vec::new();
        for _ in 0..random.usize(..30) {
            match random.usize(..8) {
                0 | 1 => {
                    let snapshot = format!("{letter}-{}-{count}", run.id());
                    count += 1;
                    seen.extend(make(&run, &snapshot, 1 + random.usize(..3)));
                    made.push(snapshot);
                }
                2 => {
                    let entries = store.snapshots().unwrap();
                    if !entries.is_empty() {
                        // Another worker may remove it now.
                        let entry = &entries[random.usize(..entries.len())];
                        opened.extend(run.open(&entry.name));
                    }
                }
                3 if !opened.is_empty() => {
                    let snapshot = opened.swap_remove(random.usize(..opened.len()));
                    let extent = snapshot.blocks.get(0).unwrap();
                    run.use_extents(&[extent]).unwrap();
                    drop(snapshot);
                    seen.push(extent);
                }
                4 if !seen.is_empty() => {
                    let extent = seen.swap_remove(random.usize(..seen.len()));
                    run.release_extents(&[extent]).unwrap();
                }
                5 if !made.is_empty() => {
                    let snapshot = made.swap_remove(random.usize(..made.len()));
                    tell(&format!("removing {snapshot}"));
                    store.remove(&name(&snapshot)).unwrap();
                    tell(&format!("removed {snapshot}"));
                }
                6 | 7 if !made.is_empty() => {
                    let snapshot = &made[random.usize(..made.len())];
                    let text = label(&label_of(snapshot, random.usize(..1000)));
                    relabel(&store, snapshot, text.as_str()).unwrap();
                }
                _ => {}
            }
        }
    }
}

/// A snapshot of new blocks, which the guest then sees.
fn make(run: &StoreRun, snapshot: &str, count: usize) -> Vec<Extent> {
    let range = run.allocate(count as u64).unwrap();
    let first = range.start().0 / BLOCK;
    let numbers: Vec<u64> = (first..first + count as u64).collect();
    numbers
        .iter()
        .for_each(|block| fill(run, *block, byte_of(snapshot)));
    // Memory of the guest that no snapshot has.
    let other = run.allocate(1).unwrap();
    fill(run, other.start().0 / BLOCK, 0xee);
    let mut draft = publish(run, snapshot, &numbers).unwrap();
    // And packed pages, as COPY makes them: room first, content then.
    let packed = run.allocate(1).unwrap();
    run.reserve(&mut draft, 1, &[]).unwrap();
    draft.push_packed(packed).unwrap();
    fill(run, packed.start().0 / BLOCK, byte_of(snapshot));
    draft.packed_pages = 512;
    draft.meta = metadata(numbers.len() as u64, 512);
    draft.label = label(&label_of(snapshot, count));
    tell(&format!("committing {snapshot}"));
    drop(run.commit(&mut draft).unwrap());
    tell(&format!("committed {snapshot}"));
    run.discard(blocks(first, 1)).unwrap();
    numbers[1..].iter().map(|block| own(run, *block)).collect()
}

/// What a killed worker's words say must be there, and what may.
#[derive(Default)]
struct Expected {
    must: BTreeSet<String>,
    may: BTreeSet<String>,
}

impl Expected {
    fn read(&mut self, words: &str) {
        for line in words.lines() {
            let Some((verb, snapshot)) = line.split_once(' ') else {
                continue;
            };
            let snapshot = snapshot.to_owned();
            match verb {
                "committing" => {
                    self.may.insert(snapshot);
                }
                "committed" => {
                    self.may.remove(&snapshot);
                    self.must.insert(snapshot);
                }
                "removing" => {
                    self.must.remove(&snapshot);
                    self.may.insert(snapshot);
                }
                "removed" => {
                    self.may.remove(&snapshot);
                }
                _ => {}
            }
        }
    }

    /// Compares with the store, which nobody uses now; what may be there is known then.
    fn settle(&mut self, shm: &Shm) {
        let store = open(shm.path());
        shm.is_right();
        let entries = store.snapshots().unwrap();
        let found: BTreeSet<_> = entries.iter().map(|e| e.name.to_string()).collect();
        assert!(
            found.is_superset(&self.must),
            "lost: {:?}",
            &self.must - &found
        );
        let more = &found - &self.must;
        assert!(more.is_subset(&self.may), "made of nothing: {more:?}");
        for entry in &entries {
            let (name, label) = (entry.name.as_str(), entry.label.as_str());
            assert!(is_label_of(name, label), "{name}: {label:?}");
        }
        let mut extents = BTreeMap::new();
        let run = store.start_run("reader", BLOCK).unwrap();
        for snapshot in &found {
            let manifest = store.load(&name(snapshot)).unwrap();
            for extent in manifest.blocks.iter().chain(manifest.packed.iter()) {
                assert!(shows(&run, extent, byte_of(snapshot)), "{snapshot}");
                extents.insert(extent, snapshot);
            }
        }
        drop(run);
        assert_eq!(ram_bytes(shm.path()), extents.len() as u64 * BLOCK);
        (self.must, self.may) = (found, BTreeSet::new());
    }
}

/// Reads this many of the worker's lines.
fn hear(worker: &mut Child, lines: usize) -> String {
    let mut words = String::new();
    let out = worker.stdout.as_mut().unwrap();
    while words.matches('\n').count() < lines {
        let mut byte = [0];
        out.read_exact(&mut byte).expect("the worker goes on");
        words.push(byte[0].into());
    }
    words
}

/// Waits until the worker works.
pub fn wait_begun(worker: &mut Child) {
    while hear(worker, 1) != "begun\n" {}
}

/// Kills it, and reads what it said last; it must have been alive.
pub fn kill(mut worker: Child) -> String {
    worker.kill().unwrap();
    let mut words = String::new();
    let mut out = worker.stdout.take().unwrap();
    out.read_to_string(&mut words).unwrap();
    let status = worker.wait().unwrap();
    assert_eq!(status.code(), None, "it failed by itself: {words}");
    words
}

#[test]
fn whenever_a_monitor_is_killed_the_store_is_whole_and_gives_everything_back() {
    const KILLS: u64 = 100;
    let shm = Shm::new();
    let mut expected = Expected::default();
    let mut random = Rng::with_seed(0);
    let mut committed = 0;
    for round in 0..KILLS / 2 {
        // Two monitors at once: the first kill happens while the other goes on.
        let mut workers = ["a", "b"].map(|letter| start(shm.path(), letter, round * 2 + 1));
        workers.iter_mut().for_each(wait_begun);
        for mut worker in workers {
            // However slow this host is, it has done something by then.
            let mut words = hear(&mut worker, random.usize(..8));
            thread::sleep(Duration::from_micros(random.usize(..5000) as u64));
            words += &kill(worker);
            committed += words.matches("committed").count();
            expected.read(&words);
            // Whoever comes next sees nothing wrong, whatever the other is doing.
            drop(open(shm.path()));
            shm.is_right();
        }
        expected.settle(&shm);
        // Now and then begin anew, so that reading everything stays quick.
        if round % 10 == 9 {
            for snapshot in std::mem::take(&mut expected.must) {
                shm.store.remove(&name(&snapshot)).unwrap();
            }
            expected.settle(&shm);
            assert_eq!(shm.ram_bytes(), 0);
        }
    }
    assert!(committed >= 50, "the workers hardly worked: {committed}");
}

#[test]
fn a_removal_that_was_cut_off_is_finished() {
    let shm = Shm::new();
    let run = shm.store.start_run("vm", 2 * BLOCK).unwrap();
    (0..2).for_each(|block| fill(&run, block, 1));
    drop(crate::support::snapshot(&run, "s", &[0]).unwrap());
    run.discard(blocks(0, 1)).unwrap();
    // What `remove` does first; then it was killed. The run that has the memory lives on.
    let snapshots = shm.path().join("snapshots");
    std::fs::rename(snapshots.join("s.snap"), snapshots.join("1.gone")).unwrap();
    let found = shm.store.load(&name("s"));
    assert!(matches!(found, Err(StoreError::NotFound(_))));
    assert_eq!(
        shm.store.check().unwrap().problems.len(),
        2,
        "manifest and label"
    );
    drop(open(shm.path()));
    assert_eq!(shm.ram_bytes(), BLOCK);
    assert!(shows(&run, own(&run, 1), 1));
    shm.is_right();
}
