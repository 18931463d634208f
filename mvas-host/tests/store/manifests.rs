// SPDX-License-Identifier: GPL-2.0-only
//! Damaged manifests.

use std::fs;

use mvas_host::store::{BLOCK, SnapshotState, StoreError};

use crate::support::{MIB, Shm, fill, name, own, shows, snapshot};

/// A store whose maker is dead: snapshots "bad" of block 0 and "good" of block 1.
fn two_snapshots() -> Shm {
    let shm = Shm::new();
    let run = shm.store.start_run("vm", 8 * MIB).unwrap();
    (0..2).for_each(|block| fill(&run, block, 3));
    drop(snapshot(&run, "bad", &[0]).unwrap());
    drop(snapshot(&run, "good", &[1]).unwrap());
    shm
}

fn is_refused(shm: &Shm, bytes: &[u8]) {
    fs::write(shm.path().join("snapshots/bad.snap"), bytes).unwrap();
    let error = shm.store.load(&name("bad")).unwrap_err();
    assert!(matches!(error, StoreError::Broken { .. }), "{error}");
    assert_eq!(shm.store.check().unwrap().problems.len(), 1);
}

#[test]
fn a_manifest_cut_short_anywhere_is_refused() {
    let shm = two_snapshots();
    let bytes = fs::read(shm.path().join("snapshots/bad.snap")).unwrap();
    (0..bytes.len()).for_each(|len| is_refused(&shm, &bytes[..len]));
    is_refused(&shm, &[&bytes[..], b"x"].concat());
    fs::write(shm.path().join("snapshots/bad.snap"), &bytes).unwrap();
    assert!(shm.store.load(&name("bad")).is_ok());
}

#[test]
fn a_manifest_with_any_byte_changed_is_refused() {
    let shm = two_snapshots();
    let bytes = fs::read(shm.path().join("snapshots/bad.snap")).unwrap();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        is_refused(&shm, &changed);
    }
}

#[test]
fn a_broken_manifest_keeps_all_memory_until_it_is_removed() {
    let shm = two_snapshots();
    fs::write(shm.path().join("snapshots/bad.snap"), "rubbish".repeat(9)).unwrap();
    let entries = shm.store.snapshots().unwrap();
    assert!(
        matches!(&entries[0].state, SnapshotState::Broken { reason } if reason.contains("MVASSNAP"))
    );
    assert!(matches!(entries[1].state, SnapshotState::Complete(_)));
    let freed = shm.store.remove(&name("good")).unwrap();
    assert_eq!((freed.bytes, freed.blocked_by.len()), (0, 1));
    assert_eq!(shm.ram_bytes(), 2 * BLOCK);
    // It cannot be restored, but it can be removed; so goes what waited for it.
    let freed = shm.store.remove(&name("bad")).unwrap();
    assert!(
        freed.bytes >= 2 * BLOCK && freed.blocked_by.is_empty(),
        "{freed:?}"
    );
    assert_eq!(shm.ram_bytes(), 0);
    shm.is_right();
}

#[test]
fn a_broken_manifest_protects_what_living_runs_let_go() {
    let shm = Shm::new();
    let run = shm.store.start_run("vm", 8 * MIB).unwrap();
    (0..4).for_each(|block| fill(&run, block, 3));
    drop(snapshot(&run, "bad", &[0]).unwrap());
    fs::write(shm.path().join("snapshots/bad.snap"), "rubbish".repeat(9)).unwrap();
    let all: Vec<_> = (0..3).map(|block| own(&run, block)).collect();
    run.release_extents(&all).unwrap();
    assert!(shows(&run, own(&run, 0), 3));
    drop(run);
    assert_eq!(
        shm.ram_bytes(),
        BLOCK,
        "what never was published is no snapshot's"
    );
    assert_eq!(shm.store.gc(false).unwrap().blocked_by.len(), 1);
    assert!(shm.store.gc(true).unwrap().bytes >= BLOCK);
    assert_eq!(shm.ram_bytes(), 0);
}

#[test]
fn a_manifest_under_another_name_is_refused() {
    let shm = two_snapshots();
    let (bad, worse) = ("snapshots/bad.snap", "snapshots/worse.snap");
    fs::rename(shm.path().join(bad), shm.path().join(worse)).unwrap();
    let error = shm.store.load(&name("worse")).unwrap_err();
    assert!(matches!(error, StoreError::Broken { .. }), "{error}");
    assert_eq!(
        shm.ram_bytes(),
        2 * BLOCK,
        "what it names is still protected"
    );
}

#[test]
fn a_snapshot_whose_memory_is_gone_is_refused() {
    let shm = two_snapshots();
    let file = fs::read_dir(shm.path().join("ram"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    let file = fs::OpenOptions::new()
        .write(true)
        .open(file.path())
        .unwrap();
    file.set_len(2 * BLOCK - 1).unwrap();
    assert!(shm.store.load(&name("bad")).is_ok());
    let error = shm.store.load(&name("good")).unwrap_err();
    assert!(matches!(error, StoreError::Broken { .. }), "{error}");
    let report = shm.store.check().unwrap();
    assert_eq!(
        (report.snapshots, report.problems.len()),
        (1, 1),
        "{report:?}"
    );
}
