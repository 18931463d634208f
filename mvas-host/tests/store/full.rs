// SPDX-License-Identifier: GPL-2.0-only
//! A file system without room, at each step of making a snapshot.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

use mvas_host::store::{BLOCK, Draft, OpenSnapshot, StoreError, StoreRun};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;

use crate::support::{
    MIB, fill, label, metadata, name, open, own, private_folder, relabel, shows, snapshot,
};

/// Runs `test` where `path` is a tmpfs of this size, of which nobody else knows.
fn with_tmpfs(path: &Path, size: &str, test: impl FnOnce() + Send) -> bool {
    if !geteuid().is_root() {
        eprintln!("SKIPPED: only root can mount a small tmpfs");
        return false;
    }
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            let options = format!("size={size},mode=0700");
            let flags = MsFlags::empty();
            mount(
                Some("t"),
                path,
                Some("tmpfs"),
                flags,
                Some(options.as_str()),
            )
            .unwrap();
            test();
        });
        thread.join().unwrap();
    });
    true
}

/// Fills the file system but for `pages` pages.
fn fill_but(path: &Path, pages: u64) {
    let mut ballast = File::create(path).unwrap();
    let mut len = 0;
    loop {
        match ballast.write(&[1; 4096]) {
            Ok(n) => len += n as u64,
            Err(e) if e.kind() == ErrorKind::StorageFull => break,
            Err(e) => panic!("{e}"),
        }
    }
    ballast.set_len(len - pages * 4096).unwrap();
}

/// Gives the room back at once, even if a process that another test begins has the file
/// open until its `exec`.
fn remove(ballast: &Path) {
    File::create(ballast).unwrap();
    fs::remove_file(ballast).unwrap();
}

/// Everything that making a snapshot does once it has room; stops at the first that fails.
fn make(run: &StoreRun, mut draft: Draft) -> Result<OpenSnapshot, StoreError> {
    run.use_extents(&[own(run, 1)])?;
    draft.push_blocks(&[own(run, 1)])?;
    let packed = run.allocate(1)?;
    draft.push_packed(packed)?;
    let written = run.ram().file().write_all_at(&[2; 4096], packed.start().0);
    written.map_err(|_| StoreError::Full("the pages".into()))?;
    draft.packed_pages = 1;
    draft.meta = metadata(1, 1);
    draft.label = label("new");
    run.commit(&mut draft)
}

#[test]
fn without_room_a_snapshot_is_refused_and_nothing_else_happens() {
    let folder = private_folder("/tmp");
    let path = folder.path().to_owned();
    with_tmpfs(folder.path(), "24M", || {
        let store = open(&path);
        let run = store.start_run("vm", 4 * BLOCK).unwrap();
        (0..3).for_each(|block| fill(&run, block, 4));
        drop(snapshot(&run, "old", &[0]).unwrap());
        let ballast = path.join("ballast");
        let (mut refused, mut done) = (0, 0);
        for pages in 0..12 {
            // Somebody else takes the room that was kept.
            let mut draft = run.draft(name("new")).unwrap();
            run.reserve(&mut draft, 2, &[]).unwrap();
            fill_but(&ballast, pages);
            match make(&run, draft) {
                Ok(opened) => {
                    done += 1;
                    drop(opened);
                    store.remove(&name("new")).unwrap();
                }
                Err(StoreError::Full(_)) => refused += 1,
                Err(e) => panic!("{e}"),
            }
            remove(&ballast);
            assert!((0..3).all(|block| shows(&run, own(&run, block), 4)));
            assert!(store.load(&name("old")).is_ok());
            assert_eq!(store.check().unwrap().problems, []);
        }
        assert!(refused >= 3 && done > 0, "{refused} refused, {done} done");
        drop(run);
        assert_eq!(crate::support::ram_bytes(&path), BLOCK);
    });
}

#[test]
fn without_room_a_snapshot_keeps_the_label_it_has() {
    let folder = private_folder("/tmp");
    let path = folder.path().to_owned();
    with_tmpfs(folder.path(), "8M", || {
        let store = open(&path);
        let run = store.start_run("vm", BLOCK).unwrap();
        drop(snapshot(&run, "s", &[0]).unwrap());
        let set = |text: &str| relabel(&store, "s", text);
        set("old").unwrap();
        fill_but(&path.join("ballast"), 0);
        let refused = set("new").unwrap_err();
        assert!(matches!(refused, StoreError::Full(_)), "{refused}");
        assert_eq!(store.snapshots().unwrap()[0].label, label("old"));
        remove(&path.join("ballast"));
        assert_eq!(store.check().unwrap().problems, []);
        set("new").unwrap();
    });
}

#[test]
fn a_run_that_finds_no_room_for_its_files_leaves_none() {
    /// Files and folders of an empty store, and those of a run.
    const STORE: usize = 9;
    const RUN: usize = 3;
    for files in 0..=RUN {
        let folder = private_folder("/tmp");
        let path = folder.path().to_owned();
        let options = format!("8M,nr_inodes={}", STORE + files);
        with_tmpfs(folder.path(), &options, || {
            let store = open(&path);
            match store.start_run("vm", BLOCK) {
                Ok(_) => assert_eq!(files, RUN),
                Err(StoreError::Full(_) | StoreError::Ram(_)) => assert_ne!(files, RUN),
                Err(error) => panic!("{error}"),
            }
            for folder in ["uses", "held", "ram"] {
                assert_eq!(fs::read_dir(path.join(folder)).unwrap().count(), 0);
            }
            assert_eq!(store.check().unwrap().problems, []);
        });
    }
}

#[test]
fn what_vms_were_promised_is_given_to_no_other_vm() {
    let folder = private_folder("/tmp");
    let path = folder.path().to_owned();
    with_tmpfs(folder.path(), "32M", || {
        let store = open(&path);
        let one = store.start_run("one", 10 * MIB).unwrap();
        let two = store.start_run("two", 10 * MIB).unwrap();
        let refused = store.start_run("three", 12 * MIB).unwrap_err();
        let StoreError::Promised {
            free,
            promised,
            wanted,
            ..
        } = refused
        else {
            panic!("{refused}");
        };
        assert_eq!((promised, wanted), (20 * MIB, 12 * MIB));
        assert!(free < 32 * MIB);
        let text = refused.to_string();
        for words in [
            "12 MiB are needed",
            "20 are promised",
            "mvasvm snapshots rm",
            "remount",
        ] {
            assert!(text.contains(words), "{text}");
        }
        assert_eq!(fs::read_dir(path.join("ram")).unwrap().count(), 2);
        // What a guest has touched is not free any more, and not promised any more.
        (0..5).for_each(|block| fill(&one, block, 1));
        assert!(store.check_room(12 * MIB).is_err());
        store.check_room(10 * MIB).unwrap();
        drop(two);
        store.check_room(20 * MIB).unwrap();
        drop(store.start_run("three", 20 * MIB).unwrap());
    });
}

#[test]
fn a_snapshot_gets_only_what_was_promised_to_no_guest() {
    let folder = private_folder("/tmp");
    let path = folder.path().to_owned();
    with_tmpfs(folder.path(), "32M", || {
        let store = open(&path);
        let greedy = store.start_run("greedy", 10 * MIB).unwrap();
        let other = store.start_run("other", 10 * MIB).unwrap();
        (0..5).for_each(|block| fill(&greedy, block, 1));
        // 32 MiB, less twice 10: five blocks and what the store itself takes.
        drop(snapshot(&greedy, "a", &[0, 1, 2]).unwrap());
        let mut draft = greedy.draft(name("b")).unwrap();
        let refused = greedy.reserve(&mut draft, 3, &[]);
        assert!(
            matches!(refused, Err(StoreError::Promised { .. })),
            "{refused:?}"
        );
        greedy.reserve(&mut draft, 2, &[]).unwrap();
        // What one draft keeps no other has, but it may change its mind.
        let mut second = other.draft(name("c")).unwrap();
        let refused = other.reserve(&mut second, 1, &[]);
        assert!(
            matches!(refused, Err(StoreError::Promised { .. })),
            "{refused:?}"
        );
        greedy.reserve(&mut draft, 1, &[]).unwrap();
        other.reserve(&mut second, 1, &[]).unwrap();
        drop((draft, second));
        // So every guest gets what it was promised, whatever was published before.
        greedy
            .release_extents(&(0..3).map(|b| own(&greedy, b)).collect::<Vec<_>>())
            .unwrap();
        let again = greedy.allocate(3).unwrap();
        let blocks = again.start().0 / BLOCK..again.end().0 / BLOCK;
        blocks.for_each(|block| fill(&greedy, block, 2));
        (0..5).for_each(|block| fill(&other, block, 3));
        assert!(shows(&other, own(&other, 4), 3));
        assert_eq!(store.check().unwrap().problems, []);
    });
}
