// SPDX-License-Identifier: GPL-2.0-only
//! One process: what is kept, and what is given back.

use std::fs;
use std::os::unix::fs::FileExt;

use mvas_host::store::{BLOCK, Draft, Extent, SnapshotState, StoreError};

use crate::support::{MIB, Shm, blocks, fill, metadata, name, open, own, publish, shows, snapshot};

#[test]
fn a_snapshot_outlives_its_run_and_nothing_else_does() {
    let shm = Shm::new();
    let run = shm.store.start_run("vm", 16 * MIB).unwrap();
    (0..5u8).for_each(|block| fill(&run, block.into(), 10 + block));
    drop(snapshot(&run, "s", &[3, 1]).unwrap());
    assert_eq!(shm.ram_bytes(), 5 * BLOCK);
    drop(run);
    assert_eq!(shm.ram_bytes(), 2 * BLOCK);
    shm.is_right();

    let other = open(shm.path()).start_run("other", 2 * MIB).unwrap();
    let s = other.open(&name("s")).unwrap();
    assert_eq!(
        (s.vm.as_str(), s.vases, s.vmas, s.pages),
        ("vm", 1, 1, 1024)
    );
    assert_eq!(&*s.manifest().meta, metadata(2, 0));
    assert!(shows(&other, s.blocks.get(0).unwrap(), 13));
    assert!(shows(&other, s.blocks.get(1).unwrap(), 11));
}

#[test]
fn removing_the_last_snapshot_of_a_dead_run_leaves_nothing() {
    let shm = Shm::new();
    let run = shm.store.start_run("vm", 8 * MIB).unwrap();
    (0..4).for_each(|block| fill(&run, block, 1));
    drop(snapshot(&run, "a", &[0, 1]).unwrap());
    drop(snapshot(&run, "b", &[1, 2]).unwrap());
    drop(run);
    let freed = shm.store.remove(&name("a")).unwrap();
    assert!((BLOCK..BLOCK + MIB).contains(&freed.bytes), "{freed:?}");
    assert_eq!(shm.ram_bytes(), 2 * BLOCK);
    shm.store.remove(&name("b")).unwrap();
    for folder in ["ram", "uses", "snapshots", "drafts", "labels"] {
        let left = fs::read_dir(shm.path().join(folder)).unwrap().count();
        assert_eq!(left, 0, "{folder}");
    }
    shm.is_right();
}

#[test]
fn who_means_one_snapshot_does_not_remove_a_later_one_of_that_name() {
    let shm = Shm::new();
    let run = shm.store.start_run("vm", 8 * MIB).unwrap();
    (0..2).for_each(|block| fill(&run, block, 1));
    let seen = snapshot(&run, "s", &[0]).unwrap().created_ns;
    shm.store.remove(&name("s")).unwrap();
    let later = snapshot(&run, "s", &[1]).unwrap().created_ns;
    let refused = shm.store.remove_made_at(&name("s"), seen);
    assert!(matches!(refused, Err(StoreError::NotFound(_))));
    assert_eq!(shm.store.load(&name("s")).unwrap().created_ns, later);
    shm.store.remove_made_at(&name("s"), later).unwrap();
    assert!(shm.store.load(&name("s")).is_err());
}

#[test]
fn what_a_guest_sees_survives_the_removal_of_its_snapshot() {
    let shm = Shm::new();
    let maker = shm.store.start_run("maker", 8 * MIB).unwrap();
    (0..3).for_each(|block| fill(&maker, block, 7));
    drop(snapshot(&maker, "s", &[0, 1, 2]).unwrap());
    drop(maker);
    let user = shm.store.start_run("user", 2 * MIB).unwrap();
    let s = user.open(&name("s")).unwrap();
    let seen = s.blocks.get(1).unwrap();
    user.use_extents(&[seen, seen]).unwrap();

    shm.store.remove(&name("s")).unwrap();
    assert_eq!(shm.ram_bytes(), 3 * BLOCK, "an open snapshot keeps all");
    assert!(matches!(
        user.open(&name("s")),
        Err(StoreError::NotFound(_))
    ));
    drop(s);
    assert_eq!(shm.ram_bytes(), BLOCK);
    assert!(shows(&user, seen, 7));
    user.release_extents(&[seen]).unwrap();
    assert!(shows(&user, seen, 7), "seen twice, released once");
    user.release_extents(&[seen]).unwrap();
    assert_eq!(shm.ram_bytes(), 0);
    let again = user.use_extents(&[seen]);
    assert!(matches!(again, Err(StoreError::NotInUse(_))));
    shm.is_right();
}

#[test]
fn what_only_an_ended_run_used_of_a_living_ones_memory_is_given_back() {
    let shm = Shm::new();
    let maker = shm.store.start_run("maker", 8 * MIB).unwrap();
    fill(&maker, 0, 7);
    drop(snapshot(&maker, "s", &[0]).unwrap());
    let user = shm.store.start_run("user", 2 * MIB).unwrap();
    let s = user.open(&name("s")).unwrap();
    shm.store.remove(&name("s")).unwrap();
    maker.release_extents(&[own(&maker, 0)]).unwrap();
    assert_eq!(shm.ram_bytes(), BLOCK, "the user has it");
    drop(user);
    assert_eq!(shm.ram_bytes(), BLOCK, "its snapshot is a part of it");
    drop(s);
    assert_eq!(shm.ram_bytes(), 0);
    shm.is_right();
}

#[test]
fn a_guest_keeps_what_it_published_when_the_snapshot_goes() {
    let shm = Shm::new();
    let run = shm.store.start_run("vm", 8 * MIB).unwrap();
    (0..2).for_each(|block| fill(&run, block, 5));
    drop(snapshot(&run, "s", &[0, 1]).unwrap());
    shm.store.remove(&name("s")).unwrap();
    assert!(shows(&run, own(&run, 0), 5) && shows(&run, own(&run, 1), 5));
    run.discard(blocks(0, 1)).unwrap();
    assert_eq!(shm.ram_bytes(), BLOCK);
    assert!(shows(&run, own(&run, 1), 5));
}

#[test]
fn a_released_block_stays_for_its_snapshot_and_goes_with_it() {
    let shm = Shm::new();
    let run = shm.store.start_run("vm", 8 * MIB).unwrap();
    (0..2).for_each(|block| fill(&run, block, 5));
    drop(snapshot(&run, "s", &[0]).unwrap());
    run.discard(blocks(0, 2)).unwrap();
    assert_eq!(shm.ram_bytes(), BLOCK);
    assert!(shows(&run, own(&run, 0), 5));
    shm.store.remove(&name("s")).unwrap();
    assert_eq!(shm.ram_bytes(), 0, "given back while its run lives");
}

#[test]
fn a_draft_that_is_given_up_leaves_the_guest_its_memory() {
    let shm = Shm::new();
    let run = shm.store.start_run("vm", 8 * MIB).unwrap();
    (0..2).for_each(|block| fill(&run, block, 5));
    let mut draft = publish(&run, "s", &[0, 1]).unwrap();
    let packed = run.allocate(1).unwrap();
    run.ram()
        .file()
        .write_all_at(b"page", packed.start().0)
        .unwrap();
    draft.push_packed(packed).unwrap();
    run.discard(blocks(1, 1)).unwrap();
    assert!(shows(&run, own(&run, 1), 5), "the draft needs it");
    assert!((2 * BLOCK + 4096..=3 * BLOCK).contains(&shm.ram_bytes()));
    drop(draft);
    assert_eq!(shm.ram_bytes(), BLOCK);
    assert!(shows(&run, own(&run, 0), 5));
    shm.is_right();
}

#[test]
fn packed_pages_are_kept_with_their_snapshot() {
    let shm = Shm::new();
    let run = shm.store.start_run("vm", 2 * MIB).unwrap();
    let mut draft = run.draft(name("s")).unwrap();
    let range = run.allocate(2).unwrap();
    assert_eq!(range.start().0, BLOCK, "beyond the guest's memory");
    run.ram()
        .file()
        .write_all_at(&[9; 4096], range.start().0 + 4096)
        .unwrap();
    draft.push_packed(range).unwrap();
    draft.packed_pages = 600;
    draft.meta = metadata(0, 600);
    drop(run.commit(&mut draft).unwrap());
    drop((draft, run));
    let s = shm.store.load(&name("s")).unwrap();
    assert_eq!((s.packed.len(), s.packed_pages, s.pages), (2, 600, 600));
    let run = shm.store.start_run("vm", 2 * MIB).unwrap();
    let mut page = [0; 4096];
    let at = s.packed.get(0).unwrap();
    let file = run.file_of(at.run).unwrap();
    file.read_exact_at(&mut page, at.range().start().0 + 4096)
        .unwrap();
    assert_eq!(page, [9; 4096]);
    shm.is_right();
}

#[test]
fn an_extent_named_by_two_snapshots_goes_with_the_last() {
    let shm = Shm::new();
    let run = shm.store.start_run("a", 4 * MIB).unwrap();
    fill(&run, 0, 1);
    drop(snapshot(&run, "one", &[0]).unwrap());
    drop(run);
    // Another VM restores it and snapshots the same memory again.
    let other = shm.store.start_run("b", 4 * MIB).unwrap();
    let one = other.open(&name("one")).unwrap();
    let extent = one.blocks.get(0).unwrap();
    let mut draft = other.draft(name("two")).unwrap();
    draft.push_blocks(&[extent]).unwrap();
    draft.meta = metadata(1, 0);
    drop(other.commit(&mut draft).unwrap());
    drop((one, draft, other));
    let freed = shm.store.remove(&name("one")).unwrap();
    assert!(freed.bytes < MIB, "{freed:?}");
    assert_eq!(shm.ram_bytes(), BLOCK);
    let entries = shm.store.snapshots().unwrap();
    let SnapshotState::Complete(facts) = &entries[0].state else {
        panic!("{entries:?}");
    };
    assert_eq!(
        (facts.own_bytes, facts.shared_bytes, facts.extents),
        (BLOCK, 0, 1)
    );
    shm.store.remove(&name("two")).unwrap();
    assert_eq!(shm.ram_bytes(), 0);
}

#[test]
fn names_are_taken_by_snapshots_and_by_drafts_of_the_living() {
    let shm = Shm::new();
    let run = shm.store.start_run("vm", 4 * MIB).unwrap();
    let other = open(shm.path()).start_run("other", 4 * MIB).unwrap();
    let mut draft = publish(&run, "s", &[0]).unwrap();
    assert!(matches!(
        other.draft(name("s")),
        Err(StoreError::Drafted(_))
    ));
    drop(run.commit(&mut draft).unwrap());
    assert!(matches!(other.draft(name("s")), Err(StoreError::Exists(_))));
    drop(draft);
    assert!(matches!(other.draft(name("s")), Err(StoreError::Exists(_))));
    shm.store.remove(&name("s")).unwrap();
    assert!(other.draft(name("s")).is_ok());
    assert!(other.draft(name("s")).is_ok(), "given up, so free again");
}

#[test]
fn a_commit_that_is_refused_leaves_the_draft() {
    let shm = Shm::new();
    let run = shm.store.start_run("vm", 4 * MIB).unwrap();
    fill(&run, 0, 1);
    let mut draft = publish(&run, "s", &[0]).unwrap();
    draft.meta = metadata(2, 0);
    assert!(matches!(
        run.commit(&mut draft),
        Err(StoreError::BadMeta(_))
    ));
    draft.meta.clear();
    assert!(matches!(
        run.commit(&mut draft),
        Err(StoreError::BadMeta(_))
    ));
    assert!(matches!(
        shm.store.load(&name("s")),
        Err(StoreError::NotFound(_))
    ));
    draft.meta = metadata(1, 0);
    assert_eq!(run.commit(&mut draft).unwrap().pages, 512);
    assert!(
        matches!(run.commit(&mut draft), Err(StoreError::BadMeta(_))),
        "empty now"
    );
}

#[test]
fn the_limit_counts_each_extent_once_and_what_drafts_keep() {
    let shm = Shm::with_limit(5 * BLOCK);
    let run = shm.store.start_run("vm", 16 * MIB).unwrap();
    let one = snapshot(&run, "one", &[0, 1]).unwrap();
    let mut two = run.draft(name("two")).unwrap();
    run.reserve(&mut two, 2, &[]).unwrap();
    let mut three = run.draft(name("three")).unwrap();
    let refused = run.reserve(&mut three, 1, &[]);
    assert!(
        matches!(refused, Err(StoreError::Limit { .. })),
        "{refused:?}"
    );
    drop(two);
    run.reserve(&mut three, 1, &[]).unwrap();
    drop(three);
    // The same blocks again cost a manifest; new ones beyond the limit are refused.
    drop(snapshot(&run, "again", &[1, 0]).unwrap());
    let mut big = run.draft(name("big")).unwrap();
    let extents: Vec<_> = (2..5).map(|block| own(&run, block)).collect();
    run.use_extents(&extents).unwrap();
    big.push_blocks(&extents).unwrap();
    big.meta = metadata(3, 0);
    assert!(matches!(
        run.commit(&mut big),
        Err(StoreError::Limit { .. })
    ));
    drop(one);
    shm.store.remove(&name("one")).unwrap();
    shm.store.remove(&name("again")).unwrap();
    run.commit(&mut big).unwrap();
    shm.is_right();
}

#[test]
fn the_limit_counts_what_drafts_and_open_snapshots_keep_of_what_is_gone() {
    let shm = Shm::with_limit(3 * BLOCK);
    let run = shm.store.start_run("vm", 16 * MIB).unwrap();
    let full = |draft: &mut Draft, blocks: u64, shown: &[Extent]| {
        let refused = run.reserve(draft, blocks, shown);
        assert!(
            matches!(refused, Err(StoreError::Limit { .. })),
            "{refused:?}"
        );
    };
    // One block in two drafts: whichever has it is charged, and once.
    let a = publish(&run, "a", &[0]).unwrap();
    let mut b = run.draft(name("b")).unwrap();
    run.reserve(&mut b, 0, &[own(&run, 0)]).unwrap();
    b.push_blocks(&[own(&run, 0)]).unwrap();
    let mut c = run.draft(name("c")).unwrap();
    full(&mut c, 3, &[]);
    drop(a);
    run.release_extents(&[own(&run, 0)]).unwrap();
    full(&mut c, 3, &[]);
    run.reserve(&mut c, 2, &[]).unwrap();
    drop((b, c));
    // So is a removed snapshot that is open, or in a draft, until it is let go.
    let open = snapshot(&run, "d", &[1, 2]).unwrap();
    shm.store.remove(&name("d")).unwrap();
    let mut e = run.draft(name("e")).unwrap();
    full(&mut e, 2, &[]);
    e.push_blocks(&[own(&run, 1)]).unwrap();
    drop(open);
    full(&mut e, 3, &[]);
    // What only the guest sees is its memory, and is charged once a draft gets it.
    full(&mut e, 2, &[own(&run, 2)]);
    run.reserve(&mut e, 1, &[own(&run, 2), own(&run, 1)])
        .unwrap();
    drop(e);
    let mut f = run.draft(name("f")).unwrap();
    run.reserve(&mut f, 3, &[]).unwrap();
    shm.is_right();
}

#[test]
fn who_may_not_open_a_snapshot_does_not_make_the_host_read_it() {
    let shm = Shm::with_limit(2 * BLOCK);
    let run = shm.store.start_run("vm", 16 * MIB).unwrap();
    drop(snapshot(&run, "s", &[0]).unwrap());
    // Its metadata, which comes last, is damaged.
    let path = shm.path().join("snapshots/s.snap");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let open = |may: bool| {
        let opened = run.open_if(&name("s"), |head| {
            assert_eq!(head.vm, "vm");
            may
        });
        opened.unwrap_err()
    };
    assert!(matches!(open(false), StoreError::NotFound(_)));
    assert!(matches!(open(true), StoreError::Broken { .. }));
    // What could not be opened is not held.
    shm.store.remove(&name("s")).unwrap();
    let mut draft = run.draft(name("t")).unwrap();
    run.reserve(&mut draft, 2, &[]).unwrap();
    shm.is_right();
}

#[test]
fn only_what_is_the_runs_own_can_be_used_or_given_back() {
    let shm = Shm::new();
    let run = shm.store.start_run("vm", 4 * MIB).unwrap();
    let other = shm.store.start_run("other", 4 * MIB).unwrap();
    fill(&other, 0, 1);
    let foreign = own(&other, 0);
    for extents in [
        vec![foreign],
        vec![own(&run, 0), foreign],
        vec![own(&run, 2)],
    ] {
        let used = run.use_extents(&extents);
        assert!(matches!(used, Err(StoreError::NotInUse(_))));
        let released = run.release_extents(&extents);
        assert!(matches!(released, Err(StoreError::NotInUse(_))));
        let mut draft = run.draft(name("s")).unwrap();
        assert!(draft.push_blocks(&extents).is_err());
    }
    assert!(shows(&run, foreign, 1));
    for range in [blocks(1, 2), blocks(2, 1)] {
        assert!(matches!(run.discard(range), Err(StoreError::Range(_))));
    }
    run.discard(blocks(0, 1)).unwrap();
    assert!(run.discard(blocks(0, 1)).is_err(), "given back once");
    assert!(
        run.use_extents(&[own(&run, 0)]).is_err(),
        "never used again"
    );
    assert!(run.allocate(0).is_err() && run.allocate(u64::MAX).is_err());
}

#[test]
fn blocks_are_never_handed_out_twice() {
    let shm = Shm::new();
    let run = shm.store.start_run("vm", 3 * MIB).unwrap();
    let first = run.allocate(2).unwrap();
    assert_eq!((first.start().0, first.len()), (2 * BLOCK, 2 * BLOCK));
    run.discard(first).unwrap();
    assert_eq!(run.allocate(1).unwrap().start().0, 4 * BLOCK);
}
