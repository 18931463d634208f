// SPDX-License-Identifier: GPL-2.0-only
//! Any sequence of requests against a model of what every block must show.
//!
//! Two VMs of 16 blocks share a store; the second may see everything in it. The body of the
//! fuzz target `vas`, and of a property test. Panics where model and guest disagree.

use std::collections::{BTreeMap, BTreeSet};

use mvas_abi::virtio_vas::VirtioVasSnapshot;
use mvas_host::server::{Answer, BLOCK, Grant, PAGE, Status};
use zerocopy::FromBytes;

use crate::vm::{Setup, Vm, meta, ram_files, store, text};

const BLOCKS: u64 = 16;
/// The pages of a block that are looked at.
const PAGES: [u64; 4] = [0, 1, 255, 511];

/// What a block shows in each of [`PAGES`].
type Block = [u8; 4];

#[derive(Clone, Default)]
struct Snapshot {
    blocks: Vec<Block>,
    packed: Vec<u8>,
}

impl Snapshot {
    /// What a block of the snapshot shows.
    fn block(&self, index: u64, packed: bool) -> Option<Block> {
        if !packed {
            return self.blocks.get(usize::try_from(index).ok()?).copied();
        }
        let first = index * 512;
        (first < self.packed.len() as u64).then(|| {
            PAGES.map(|page| {
                let at = usize::try_from(first + page).unwrap();
                self.packed.get(at).copied().unwrap_or(0)
            })
        })
    }
}

struct Draft {
    name: u8,
    snapshot: Snapshot,
    published: BTreeSet<u64>,
    meta: usize,
    label: String,
}

enum Open {
    Draft(Draft),
    Complete(Snapshot),
}

struct Guest {
    vm: Vm,
    sees_all: bool,
    blocks: Vec<Block>,
    open: BTreeMap<u64, Open>,
}

impl Guest {
    /// Mostly a handle of a draft, or of a complete snapshot, if there is one; now and then
    /// any, or one that is not.
    fn pick(&self, input: &mut Input<'_>, draft: bool) -> Option<u64> {
        let fits = match input.below(16) {
            0 => return Some(9999),
            1 => |_: &Open, _| true,
            _ => |open: &Open, draft| matches!(open, Open::Draft(_)) == draft,
        };
        let fitting = self.open.iter().filter(|(_, open)| fits(open, draft));
        let handles: Vec<u64> = fitting.map(|(handle, _)| *handle).collect();
        let at = usize::try_from(input.below(handles.len() as u64)).unwrap();
        handles.get(at).copied()
    }

    fn drafts(&self, wanted: u8) -> bool {
        let is = |open: &Open| matches!(open, Open::Draft(draft) if draft.name == wanted);
        self.open.values().any(is)
    }
}

/// Complete snapshots by name.
type Complete = BTreeMap<u8, Whole>;

struct Whole {
    /// The number of the guest that made it.
    by: usize,
    snapshot: Snapshot,
    label: String,
}

/// Takes numbers from the input; zeroes after its end.
struct Input<'a>(std::slice::Iter<'a, u8>);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        self.0.next().copied().unwrap_or(0)
    }

    fn below(&mut self, n: u64) -> u64 {
        u64::from(self.byte()).checked_rem(n).unwrap_or(0)
    }

    /// Mostly one of a few blocks, so that much happens to each; now and then any, or none.
    fn block(&mut self) -> u64 {
        match self.byte() {
            255 => BLOCKS,
            byte @ 200..255 => u64::from(byte) % BLOCKS,
            byte => u64::from(byte) % 5,
        }
    }

    fn label(&mut self) -> String {
        "ß".repeat(usize::from(self.byte()))
    }

    /// Blocks, none twice.
    fn blocks(&mut self) -> Vec<u64> {
        let mut blocks = Vec::new();
        for _ in 0..=self.below(6) {
            let block = self.block();
            if !blocks.contains(&block) {
                blocks.push(block);
            }
        }
        blocks
    }
}

/// Runs what `input` says; panics if anything is not as it should be.
pub fn fuzz_one(input: &[u8]) {
    let mut input = Input(input.iter());
    let (folder, store) = store();
    // Few, so that copying instead is tried, too.
    let max_mappings = 3 + input.below(12);
    let guest = |name, sees_all| {
        let grant = if sees_all { Grant::All } else { Grant::Own };
        let setup = Setup {
            grant,
            max_mappings,
            ..Setup::default()
        };
        Guest {
            vm: Vm::with(&store, name, setup),
            sees_all,
            blocks: vec![[0; 4]; usize::try_from(BLOCKS).unwrap()],
            open: BTreeMap::new(),
        }
    };
    let mut guests = [guest("a", false), guest("b", true)];
    let mut complete = Complete::new();
    let mut left = 200;
    while input.0.len() > 0 && left > 0 {
        left -= 1;
        let who = usize::try_from(input.below(2)).unwrap();
        step(&mut input, &mut guests, who, &mut complete);
        for guest in &guests {
            check(guest);
        }
    }
    let listed = store.labelled(|_| true).unwrap();
    let found = listed
        .iter()
        .map(|(head, label)| (head.name.to_string(), label.as_str().to_owned()));
    let expected = complete
        .iter()
        .map(|(name, whole)| (format!("s{name}"), whole.label.clone()));
    assert_eq!(found.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    assert_eq!(store.check().unwrap().problems, []);
    drop(guests);
    assert_eq!(store.check().unwrap().problems, []);
    for (head, _) in listed {
        store.remove(&head.name).unwrap();
    }
    assert_eq!(ram_files(&folder.path().join("store")), 0);
}

fn check(guest: &Guest) {
    for (block, expected) in (0..).zip(&guest.blocks) {
        let seen = PAGES.map(|page| {
            let value = guest.vm.read(block * BLOCK + page * PAGE);
            u8::try_from(value).expect("only bytes are written")
        });
        assert_eq!(seen, *expected, "block {block} of {}", guest.vm.run.vm());
    }
}

fn expect(answer: &Answer, expected: Status) {
    assert_eq!(answer.status(), expected, "{:?}", answer.error);
}

fn step(input: &mut Input<'_>, guests: &mut [Guest; 2], who: usize, complete: &mut Complete) {
    let op = input.below(17);
    let for_draft = (3..8).contains(&op) || op == 14;
    let (op, handle) = match guests[who].pick(input, for_draft) {
        Some(handle) => (op, handle),
        // First there must be one.
        None if for_draft => (2, 0),
        None => (8, 0),
    };
    let name = u8::try_from(input.below(6)).unwrap();
    let taken = complete.contains_key(&name) || guests.iter().any(|guest| guest.drafts(name));
    let guest = &mut guests[who];
    let granted = complete
        .get(&name)
        .filter(|whole| guest.sees_all || whole.by == who);
    let snapshot = format!("s{name}");
    match op {
        0 | 1 => {
            let (block, page) = (input.block() % BLOCKS, input.below(4));
            let (at, value) = (usize::try_from(page).unwrap(), input.byte());
            guest
                .vm
                .write(block * BLOCK + PAGES[at] * PAGE, value.into());
            guest.blocks[usize::try_from(block).unwrap()][at] = value;
        }
        2 => {
            let answer = guest.vm.named(1, &snapshot);
            expect(&answer, if taken { Status::Exists } else { Status::Ok });
            if !taken {
                let draft = Draft {
                    name,
                    snapshot: Snapshot::default(),
                    published: BTreeSet::new(),
                    meta: 0,
                    label: String::new(),
                };
                guest.open.insert(answer.value, Open::Draft(draft));
            }
        }
        3 | 4 => publish(input, guest, handle),
        5 => copy(input, guest, handle),
        6 | 7 => commit(guest, who, handle, complete),
        8 => {
            let answer = guest.vm.named(6, &snapshot);
            expect(&answer, granted.map_or(Status::NotFound, |_| Status::Ok));
            if let Some(whole) = granted {
                let described = VirtioVasSnapshot::read_from_bytes(&answer.payload).unwrap();
                assert_eq!(text(&described.label), whole.label);
                guest
                    .open
                    .insert(answer.value, Open::Complete(whole.snapshot.clone()));
            }
        }
        9 | 10 | 13 => map(input, guest, handle),
        11 => {
            let blocks = input.blocks();
            let ranges: Vec<_> = blocks.iter().map(|block| (*block, 1)).collect();
            let in_ram = blocks.iter().all(|block| *block < BLOCKS);
            let answer = guest.vm.release(&ranges);
            expect(&answer, if in_ram { Status::Ok } else { Status::BadRange });
            for block in blocks.into_iter().filter(|_| in_ram) {
                guest.blocks[usize::try_from(block).unwrap()] = [0; 4];
            }
        }
        12 => {
            let known = guest.open.remove(&handle).is_some();
            let answer = guest.vm.close(handle);
            expect(&answer, if known { Status::Ok } else { Status::BadHandle });
        }
        14 => label_draft(input, guest, handle),
        15 => {
            let label = input.label();
            let answer = guest.vm.label(0, &snapshot, &label);
            expect(&answer, granted.map_or(Status::NotFound, |_| Status::Ok));
            if let Some(whole) = complete.get_mut(&name)
                && answer.status() == Status::Ok
            {
                whole.label = label;
            }
        }
        _ => {
            let answer = guest.vm.named(12, &snapshot);
            expect(&answer, granted.map_or(Status::NotFound, |_| Status::Ok));
            if answer.status() == Status::Ok {
                complete.remove(&name);
            }
            // Anything at all.
            let garbage: Vec<u8> = (0..input.below(64)).map(|_| input.byte()).collect();
            let count = input.byte().into();
            let answer = guest.vm.call(input.byte().into(), count, 9999, 0, &garbage);
            assert!(answer.status() != Status::Host, "{:?}", answer.error);
        }
    }
}

fn publish(input: &mut Input<'_>, guest: &mut Guest, handle: u64) {
    let blocks = input.blocks();
    let answer = guest.vm.publish(handle, &blocks);
    let draft = match guest.open.get_mut(&handle) {
        None => return expect(&answer, Status::BadHandle),
        Some(Open::Complete(_)) => return expect(&answer, Status::State),
        Some(Open::Draft(draft)) => draft,
    };
    if blocks.iter().any(|block| *block >= BLOCKS) {
        return expect(&answer, Status::BadRange);
    }
    if blocks.iter().any(|block| draft.published.contains(block)) {
        return expect(&answer, Status::State);
    }
    expect(&answer, Status::Ok);
    assert_eq!(answer.value, draft.snapshot.blocks.len() as u64);
    for block in blocks {
        let shows = guest.blocks[usize::try_from(block).unwrap()];
        draft.snapshot.blocks.push(shows);
        draft.published.insert(block);
    }
}

fn copy(input: &mut Input<'_>, guest: &mut Guest, handle: u64) {
    let mut pages = Vec::new();
    // Many at once, so that packed blocks get full.
    let repeat = 1 + input.below(2) * 15;
    for block in input.blocks() {
        for i in 0..4 * repeat {
            pages.push((block + i / 4 * 3) % BLOCKS * 512 + PAGES[usize::try_from(i % 4).unwrap()]);
        }
    }
    pages.sort_unstable();
    pages.dedup();
    let answer = guest.vm.copy(handle, &pages);
    match guest.open.get_mut(&handle) {
        None => expect(&answer, Status::BadHandle),
        Some(Open::Complete(_)) => expect(&answer, Status::State),
        Some(Open::Draft(draft)) => {
            expect(&answer, Status::Ok);
            assert_eq!(answer.value, draft.snapshot.packed.len() as u64);
            for page in pages {
                let at = PAGES.iter().position(|p| *p == page % 512).unwrap();
                let block = usize::try_from(page / 512).unwrap();
                draft.snapshot.packed.push(guest.blocks[block][at]);
            }
        }
    }
}

fn label_draft(input: &mut Input<'_>, guest: &mut Guest, handle: u64) {
    let label = input.label();
    let answer = guest.vm.label(handle, "", &label);
    match guest.open.get_mut(&handle) {
        None => expect(&answer, Status::BadHandle),
        Some(Open::Complete(_)) => expect(&answer, Status::State),
        Some(Open::Draft(draft)) => {
            expect(&answer, Status::Ok);
            draft.label = label;
        }
    }
}

fn commit(guest: &mut Guest, who: usize, handle: u64, complete: &mut Complete) {
    let Some(Open::Draft(draft)) = guest.open.get_mut(&handle) else {
        let known = guest.open.contains_key(&handle);
        let status = if known {
            Status::State
        } else {
            Status::BadHandle
        };
        return expect(&guest.vm.commit(handle), status);
    };
    let snapshot = draft.snapshot.clone();
    if draft.meta == 0 {
        let bytes = meta(snapshot.blocks.len() as u64, snapshot.packed.len() as u64);
        expect(&guest.vm.meta(handle, 0, &bytes), Status::Ok);
        draft.meta = bytes.len();
    }
    expect(&guest.vm.commit(handle), Status::Ok);
    let whole = Whole {
        by: who,
        snapshot: snapshot.clone(),
        label: draft.label.clone(),
    };
    complete.insert(draft.name, whole);
    guest.open.insert(handle, Open::Complete(snapshot));
}

fn map(input: &mut Input<'_>, guest: &mut Guest, handle: u64) {
    let packed = input.below(4) == 0;
    let entries: Vec<_> = input
        .blocks()
        .into_iter()
        .map(|block| (block, u32::from(input.byte() % 4), u32::from(packed)))
        .collect();
    let answer = guest.vm.map(handle, &entries);
    let snapshot = match guest.open.get(&handle) {
        None => return expect(&answer, Status::BadHandle),
        Some(Open::Draft(_)) => return expect(&answer, Status::State),
        Some(Open::Complete(snapshot)) => snapshot,
    };
    let shows = |(block, index, _): &(u64, u32, u32)| {
        let shown = snapshot.block(u64::from(*index), packed)?;
        (*block < BLOCKS).then_some((*block, shown))
    };
    let Some(all) = entries.iter().map(shows).collect::<Option<Vec<_>>>() else {
        return expect(&answer, Status::BadRange);
    };
    expect(&answer, Status::Ok);
    for (block, shown) in all {
        guest.blocks[usize::try_from(block).unwrap()] = shown;
    }
}
