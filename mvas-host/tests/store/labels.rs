// SPDX-License-Identifier: GPL-2.0-only
//! Labels: set with the snapshot or later, replaced at once, gone with it.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use mvas_host::store::{BLOCK, Label, StoreError};

use crate::crash::{kill, start, tell, wait_begun};
use crate::support::{MIB, Shm, fill, label, name, open, publish, relabel, snapshot};

/// The label that a reader sees.
fn seen(shm: &Shm, snapshot: &str) -> String {
    let entries = open(shm.path()).snapshots().unwrap();
    let entry = entries.iter().find(|e| e.name.as_str() == snapshot);
    entry.unwrap().label.as_str().to_owned()
}

/// Files of labels.
fn files(shm: &Shm) -> usize {
    fs::read_dir(shm.path().join("labels")).unwrap().count()
}

fn set(shm: &Shm, snapshot: &str, text: &str) -> Result<(), StoreError> {
    relabel(&shm.store, snapshot, text)
}

#[test]
fn a_label_is_there_with_its_snapshot_and_goes_with_it() {
    let shm = Shm::new();
    let run = shm.store.start_run("vm", 4 * MIB).unwrap();
    fill(&run, 0, 1);
    let mut draft = publish(&run, "s", &[0]).unwrap();
    draft.label = label(r#"{"name":"redis"}"#);
    assert_eq!(files(&shm), 0, "a draft's label is in memory");
    let opened = run.commit(&mut draft).unwrap();
    assert_eq!(opened.label().as_str(), r#"{"name":"redis"}"#);
    assert_eq!(seen(&shm, "s"), r#"{"name":"redis"}"#);

    set(&shm, "s", "another").unwrap();
    assert_eq!(seen(&shm, "s"), "another");
    assert_eq!(run.open(&name("s")).unwrap().label().as_str(), "another");
    let listed = shm.store.labelled(|_| true).unwrap();
    assert_eq!(listed[0].1, label("another"));
    set(&shm, "s", "").unwrap();
    assert_eq!(seen(&shm, "s"), "");
    shm.is_right();

    shm.store.remove(&name("s")).unwrap();
    assert_eq!(files(&shm), 0);
    shm.is_right();
}

#[test]
fn only_a_complete_snapshot_that_may_be_labelled_gets_a_label() {
    let shm = Shm::new();
    let run = shm.store.start_run("vm", 4 * MIB).unwrap();
    let draft = publish(&run, "draft", &[0]).unwrap();
    for snapshot in ["draft", "none"] {
        let refused = set(&shm, snapshot, "x");
        assert!(matches!(refused, Err(StoreError::NotFound(_))));
    }
    drop(draft);
    drop(snapshot(&run, "s", &[0]).unwrap());
    let refused = shm
        .store
        .set_label(&name("s"), &label(""), &label("x"), |head| {
            head.vm == "other"
        });
    assert!(matches!(refused, Err(StoreError::NotFound(_))));
    assert_eq!(seen(&shm, "s"), "");
    shm.is_right();
}

/// Whoever changes what he has read knows that nobody has changed it meanwhile.
#[test]
fn of_many_who_count_in_a_label_none_is_lost() {
    const EACH: u32 = 50;
    let shm = Shm::new();
    let run = shm.store.start_run("vm", 4 * MIB).unwrap();
    drop(snapshot(&run, "s", &[0]).unwrap());
    let refused = shm
        .store
        .set_label(&name("s"), &label("x"), &label("y"), |_| true);
    assert!(matches!(refused, Err(StoreError::Relabelled(_))));
    assert_eq!(seen(&shm, "s"), "");

    let count = || {
        let store = open(shm.path());
        let mut counted = 0;
        while counted < EACH {
            let (_, from) = store.labelled(|_| true).unwrap().remove(0);
            let count: u32 = from.as_str().parse().unwrap_or_default();
            let to = label(&(count + 1).to_string());
            match store.set_label(&name("s"), &from, &to, |_| true) {
                Err(StoreError::Relabelled(_)) => {}
                set => {
                    set.unwrap();
                    counted += 1;
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(count);
        }
    });
    assert_eq!(seen(&shm, "s"), (4 * EACH).to_string());
}

#[test]
fn a_label_survives_its_monitor_and_a_broken_manifest() {
    let shm = Shm::new();
    let run = shm.store.start_run("vm", 4 * MIB).unwrap();
    fill(&run, 0, 1);
    let mut draft = publish(&run, "s", &[0]).unwrap();
    draft.label = label("kept");
    drop(run.commit(&mut draft).unwrap());
    drop((draft, run));
    let manifest = shm.path().join("snapshots/s.snap");
    let len = fs::metadata(&manifest).unwrap().len();
    let file = fs::File::options().write(true).open(&manifest).unwrap();
    file.set_len(len / 2).unwrap();
    assert_eq!(seen(&shm, "s"), "kept");
    shm.store.remove(&name("s")).unwrap();
    assert_eq!(files(&shm), 0);
}

#[test]
fn labels_are_not_counted_by_the_limit() {
    let shm = Shm::with_limit(BLOCK + 4096);
    let run = shm.store.start_run("vm", 4 * MIB).unwrap();
    drop(snapshot(&run, "s", &[0]).unwrap());
    // The rest is less than another snapshot needs.
    assert!(matches!(
        snapshot(&run, "t", &[1]),
        Err(StoreError::Limit { .. })
    ));
    set(&shm, "s", &"x".repeat(Label::MAX)).unwrap();
}

const LABELS: [usize; 3] = [900, 0, 20];

/// Gives a snapshot one label after the other, for ever.
pub fn relabel_for_ever(store: &Path) {
    let store = open(store);
    tell("\nbegun");
    for len in LABELS.into_iter().cycle() {
        let text = label(&format!("{len} {}", "x".repeat(len)));
        relabel(&store, "s", text.as_str()).unwrap();
    }
}

#[test]
fn a_writer_that_is_killed_leaves_the_label_that_was_there_or_its_own() {
    const KILLS: u64 = 100;
    let shm = Shm::new();
    let run = shm.store.start_run("vm", 4 * MIB).unwrap();
    drop(snapshot(&run, "s", &[0]).unwrap());
    set(&shm, "s", "900 ").unwrap();
    let mut random = Rng::with_seed(0);
    for _ in 0..KILLS {
        let mut worker = start(shm.path(), "label", 0);
        wait_begun(&mut worker);
        thread::sleep(Duration::from_micros(random.u64(..300)));
        kill(worker);
        let seen = seen(&shm, "s");
        let is_whole = |len: &usize| seen == format!("{len} {}", "x".repeat(*len));
        assert!(seen == "900 " || LABELS.iter().any(is_whole), "{seen:?}");
        shm.is_right();
    }
}

/// What a kill leaves between a label and its manifest, before a label takes its name, and
/// between the end of a manifest and that of its label.
#[test]
fn what_killed_writers_leave_of_labels_is_swept() {
    let shm = Shm::new();
    let run = shm.store.start_run("vm", 4 * MIB).unwrap();
    drop(snapshot(&run, "s", &[0]).unwrap());
    set(&shm, "s", "kept").unwrap();
    let labels = shm.path().join("labels");
    fs::write(labels.join("early"), "x").unwrap();
    fs::write(labels.join(".new"), "unfinish").unwrap();
    assert_eq!(shm.store.check().unwrap().problems.len(), 2);
    assert_eq!(seen(&shm, "s"), "kept");
    assert_eq!(files(&shm), 1);
    shm.is_right();
    // And a snapshot that comes before the sweep has none but its own.
    fs::write(labels.join("t"), "another's").unwrap();
    drop(snapshot(&run, "t", &[1]).unwrap());
    assert_eq!(seen(&shm, "t"), "");
}

#[test]
fn a_commit_over_a_snapshot_of_that_name_leaves_it_its_label() {
    let shm = Shm::new();
    let run = shm.store.start_run("vm", 4 * MIB).unwrap();
    let mut draft = publish(&run, "s", &[0]).unwrap();
    draft.label = label("new");
    // Somebody puts a manifest there, which the store itself would not do.
    drop(snapshot(&run, "other", &[1]).unwrap());
    set(&shm, "other", "old").unwrap();
    for (folder, suffix) in [("snapshots", ".snap"), ("labels", "")] {
        let folder = shm.path().join(folder);
        let from = folder.join(format!("other{suffix}"));
        fs::copy(from, folder.join(format!("s{suffix}"))).unwrap();
    }
    let refused = run.commit(&mut draft);
    assert!(matches!(refused, Err(StoreError::Exists(_))));
    assert_eq!(seen(&shm, "s"), "old");
}

#[test]
fn a_damaged_label_is_reported_and_shown_as_none() {
    let shm = Shm::new();
    let run = shm.store.start_run("vm", 4 * MIB).unwrap();
    drop(snapshot(&run, "s", &[0]).unwrap());
    for bytes in [&b"a\nb"[..], b"\xff", &[b'x'; 1024]] {
        fs::write(shm.path().join("labels/s"), bytes).unwrap();
        assert_eq!(seen(&shm, "s"), "");
        assert_eq!(run.open(&name("s")).unwrap().label(), &Label::default());
        assert_eq!(shm.store.check().unwrap().problems.len(), 1);
    }
    set(&shm, "s", "mended").unwrap();
    assert_eq!(seen(&shm, "s"), "mended");
    shm.is_right();
}
