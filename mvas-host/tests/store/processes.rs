// SPDX-License-Identifier: GPL-2.0-only
//! Several processes, one store.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mvas_host::store::{BLOCK, Store, StoreError, StoreOptions};

use crate::crash::{start, tell};
use crate::support::{
    Shm, fill, folder, metadata, name, open, own, publish, ram_bytes, shows, snapshot,
};

const NAMES: usize = 40;

/// A worker's job: wants each name, with blocks full of its own number.
pub fn compete(path: &Path, seed: u64) {
    let store = open(path);
    let run = store.start_run("vm", BLOCK).unwrap();
    tell("\nready");
    wait_for_line();
    let number = u8::try_from(seed).unwrap();
    for i in 0..NAMES {
        let block = run.allocate(1).unwrap().start().0 / BLOCK;
        fill(&run, block, number);
        match publish(&run, &format!("n{i}"), &[block]) {
            Ok(mut draft) => {
                drop(run.commit(&mut draft).unwrap());
                tell(&format!("won n{i}"));
            }
            Err(StoreError::Exists(_) | StoreError::Drafted(_)) => {}
            Err(e) => panic!("{e}"),
        }
    }
}

/// A worker's job: sees the snapshot "s" until it is told to stop.
pub fn use_until_told(path: &Path) {
    let store = open(path);
    let run = store.start_run("user", BLOCK).unwrap();
    let opened = run.open(&name("s")).unwrap();
    let seen: Vec<_> = opened.blocks.iter().collect();
    run.use_extents(&seen).unwrap();
    drop(opened);
    tell("\nready");
    wait_for_line();
    assert!(seen.iter().all(|extent| shows(&run, *extent, 6)));
    run.release_extents(&seen[..1]).unwrap();
    tell("released");
    wait_for_line();
    assert!(shows(&run, seen[1], 6));
}

fn wait_for_line() {
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

#[test]
fn each_name_is_won_by_one_process_with_its_own_data() {
    let shm = Shm::new();
    let mut workers = [1, 2].map(|number| start(shm.path(), "compete", number));
    let mut outs = Vec::new();
    for worker in &mut workers {
        let mut out = BufReader::new(worker.stdout.take().unwrap());
        wait_for(&mut out, "ready");
        outs.push(out);
    }
    for worker in &mut workers {
        worker.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }
    let mut winners = BTreeMap::new();
    for ((mut worker, mut out), number) in workers.into_iter().zip(outs).zip(1..) {
        let mut words = String::new();
        out.read_to_string(&mut words).unwrap();
        assert!(worker.wait().unwrap().success(), "{words}");
        for won in words.lines().filter_map(|line| line.strip_prefix("won ")) {
            assert_eq!(winners.insert(won.to_owned(), number), None, "{won}");
        }
    }
    assert_eq!(winners.len(), NAMES);
    let run = shm.store.start_run("vm", BLOCK).unwrap();
    for (won, number) in winners {
        let manifest = shm.store.load(&name(&won)).unwrap();
        assert!(
            shows(&run, manifest.blocks.get(0).unwrap(), number),
            "{won}"
        );
    }
    drop(run);
    assert_eq!(shm.ram_bytes(), NAMES as u64 * BLOCK);
    shm.is_right();
}

#[test]
fn what_another_process_sees_is_kept_until_it_lets_go() {
    let shm = Shm::new();
    let run = shm.store.start_run("vm", 4 * BLOCK).unwrap();
    (0..3).for_each(|block| fill(&run, block, 6));
    drop(snapshot(&run, "s", &[0, 1, 2]).unwrap());
    assert!(shows(&run, own(&run, 0), 6));
    drop(run);
    let mut worker = start(shm.path(), "use", 1);
    let mut out = BufReader::new(worker.stdout.take().unwrap());
    wait_for(&mut out, "ready");
    let used_by = format!("{:?}", shm.store.snapshots().unwrap());
    assert!(
        used_by.contains(r#"used_by: [User { vm: "user", extents: "#),
        "{used_by}"
    );

    shm.store.remove(&name("s")).unwrap();
    assert_eq!(shm.ram_bytes(), 3 * BLOCK);
    let input = worker.stdin.as_mut().unwrap();
    input.write_all(b"\n").unwrap();
    wait_for(&mut out, "released");
    assert_eq!(shm.ram_bytes(), 2 * BLOCK);
    input.write_all(b"\n").unwrap();
    assert!(worker.wait().unwrap().success());
    assert_eq!(shm.ram_bytes(), 0);
    shm.is_right();
}

#[test]
fn a_snapshot_that_comes_and_goes_is_whole_for_who_opened_it() {
    const ROUNDS: u8 = 100;
    let shm = Shm::new();
    let (makers, users) = (AtomicU32::new(1), AtomicU32::new(2));
    let is_gone = |store: &Store| match store.load(&name("s")) {
        Ok(_) => false,
        Err(StoreError::NotFound(_)) => true,
        Err(e) => panic!("{e}"),
    };
    let opened = AtomicU32::new(0);
    let make = || {
        let _leaves = Leaves(&makers);
        let store = open(shm.path());
        let run = store.start_run("maker", BLOCK).unwrap();
        let mut byte = 1;
        while byte <= ROUNDS {
            let range = run.allocate(1).unwrap();
            let block = range.start().0 / BLOCK;
            fill(&run, block, byte);
            let before = opened.load(Ordering::Relaxed);
            drop(snapshot(&run, "s", &[block]).unwrap());
            run.discard(range).unwrap();
            // Now and then somebody shall have seen it; else who removes it first is open.
            let is_seen =
                || opened.load(Ordering::Relaxed) > before || users.load(Ordering::Relaxed) == 0;
            while byte % 10 == 0 && !is_seen() && !is_gone(&store) {
                thread::yield_now();
            }
            match store.remove(&name("s")) {
                Ok(_) | Err(StoreError::NotFound(_)) => {}
                Err(e) => panic!("{e}"),
            }
            // Who opened an older one may have removed it unseen: then once more.
            if byte % 10 != 0 || is_seen() {
                byte += 1;
            }
        }
    };
    let restore_and_remove = || {
        let _leaves = Leaves(&users);
        let store = open(shm.path());
        let run = store.start_run("user", BLOCK).unwrap();
        while makers.load(Ordering::Relaxed) > 0 {
            let s = match run.open(&name("s")) {
                Ok(s) => s,
                Err(StoreError::NotFound(_)) => continue,
                Err(e) => panic!("{e}"),
            };
            opened.fetch_add(1, Ordering::Relaxed);
            let extent = s.blocks.get(0).unwrap();
            let mut first = [0];
            let file = run.file_of(extent.run).unwrap();
            file.read_exact_at(&mut first, extent.range().start().0)
                .unwrap();
            assert!(
                first[0] > 0 && shows(&run, extent, first[0]),
                "half a block"
            );
            let _ = store.remove(&name("s"));
            run.use_extents(&[extent]).unwrap();
            drop(s);
            assert!(shows(&run, extent, first[0]), "it went while it was seen");
            run.release_extents(&[extent]).unwrap();
        }
    };
    thread::scope(|scope| {
        scope.spawn(make);
        scope.spawn(restore_and_remove);
        scope.spawn(restore_and_remove);
    });
    assert!(opened.load(Ordering::Relaxed) >= u32::from(ROUNDS) / 10);
    assert_eq!(shm.ram_bytes(), 0);
    shm.is_right();
}

/// Counts a thread out, also one that panics: the others do not wait for it.
struct Leaves<'a>(&'a AtomicU32);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn wait_for(out: &mut impl BufRead, word: &str) {
    let mut line = String::new();
    while line.trim_end() != word {
        line.clear();
        assert_ne!(
            out.read_line(&mut line).unwrap(),
            0,
            "it ended before {word}"
        );
    }
}

/// What is known of the manifests, and need not be read again, is known until another
/// process changes them.
#[test]
fn what_another_process_makes_of_a_block_is_known_when_it_is_given_back() {
    let shm = Shm::new();
    let run = shm.store.start_run("vm", 4 * BLOCK).unwrap();
    // As another process sees it.
    let elsewhere = open(shm.path());
    let other = elsewhere.start_run("other", BLOCK).unwrap();
    (0..4).for_each(|block| fill(&run, block, 6));
    drop(snapshot(&run, "first", &[0]).unwrap());
    let opened = other.open(&name("first")).unwrap();
    shm.store.remove(&name("first")).unwrap();
    // This reads that no snapshot needs block 0.
    drop(snapshot(&run, "gone", &[1]).unwrap());
    shm.store.remove(&name("gone")).unwrap();
    run.release_extents(&[own(&run, 1)]).unwrap();

    let blocks: Vec<_> = opened.blocks.iter().collect();
    let mut draft = other.draft(name("second")).unwrap();
    other.reserve(&mut draft, 1, &blocks).unwrap();
    draft.push_blocks(&blocks).unwrap();
    draft.meta = metadata(1, 0);
    drop(other.commit(&mut draft).unwrap());
    drop((draft, opened));
    run.release_extents(&[own(&run, 0)]).unwrap();
    assert!(shows(&run, own(&run, 0), 6), "a snapshot of another VM");

    // And that it is needed no longer.
    drop(snapshot(&run, "third", &[2]).unwrap());
    elsewhere.remove(&name("second")).unwrap();
    elsewhere.remove(&name("third")).unwrap();
    let before = shm.ram_bytes();
    run.release_extents(&[own(&run, 2)]).unwrap();
    assert_eq!(before - shm.ram_bytes(), BLOCK);
    shm.is_right();
}

#[test]
fn who_stops_with_the_store_locked_does_not_stop_the_others_for_ever() {
    let folder = folder();
    let options = StoreOptions {
        patience: Duration::from_millis(200),
        ..StoreOptions::default()
    };
    let store = Store::open(folder.path(), options).unwrap();
    let run = store.start_run("vm", 4 * BLOCK).unwrap();
    (0..2).for_each(|block| fill(&run, block, 6));
    let opened = snapshot(&run, "s", &[0]).unwrap();
    let stopped = File::open(folder.path().join("lock")).unwrap();
    stopped.lock().unwrap();

    let begun = Instant::now();
    let error = snapshot(&run, "t", &[1]).unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
    assert!(begun.elapsed() >= options.patience);
    // All who come then know that it is in vain, and wait for a moment only.
    let begun = Instant::now();
    drop(opened);
    (0..50).for_each(|_| assert!(run.open(&name("s")).is_err()));
    assert!(begun.elapsed() < 25 * options.patience);
    let error = Store::open(folder.path(), options).unwrap_err();
    assert!(error.to_string().contains("stopped or hangs"), "{error}");

    drop(stopped);
    drop(snapshot(&run, "t", &[1]).unwrap());
    assert_eq!(store.snapshots().unwrap().len(), 2);
    assert!(store.check().unwrap().problems.is_empty());
    drop(run);
    assert_eq!(ram_bytes(folder.path()), 2 * BLOCK);
    for snapshot in ["s", "t"] {
        store.remove(&name(snapshot)).unwrap();
    }
    assert_eq!(ram_bytes(folder.path()), 0);
}
