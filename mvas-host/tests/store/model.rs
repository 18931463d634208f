// SPDX-License-Identifier: GPL-2.0-only
//! Random operations against a model that says who needs which block: what has memory is
//! exactly what is needed, and it has the bytes that were written.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use mvas_host::store::{BLOCK, Draft, Extent, OpenSnapshot, StoreError, StoreRun};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::support::{Shm, blocks, label, metadata, name, open, own, relabel};

const NAMES: [&str; 3] = ["a", "b", "c"];
/// Blocks of guest memory.
const GUEST: u64 = 3;

#[derive(Debug, Clone)]
enum Op {
    Start,
    End(Index),
    Allocate(Index),
    Discard(Index, Index),
    Draft(Index, Index),
    /// The guest's own block, or one that it sees: named by a draft.
    Publish(Index, Index, Index),
    Commit(Index, Index),
    GiveUp(Index, Index),
    Open(Index, Index),
    Map(Index, Index, Index),
    Close(Index, Index),
    Release(Index, Index),
    Label(Index, u8),
    Remove(Index),
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    use Op::*;
    let i = any::<Index>;
    prop_oneof![
        2 => Just(Start),
        1 => i().prop_map(End),
        1 => i().prop_map(Allocate),
        2 => (i(), i()).prop_map(|(r, b)| Discard(r, b)),
        4 => (i(), i()).prop_map(|(r, n)| Draft(r, n)),
        8 => (i(), i(), i()).prop_map(|(r, d, b)| Publish(r, d, b)),
        4 => (i(), i()).prop_map(|(r, d)| Commit(r, d)),
        1 => (i(), i()).prop_map(|(r, d)| GiveUp(r, d)),
        4 => (i(), i()).prop_map(|(r, n)| Open(r, n)),
        6 => (i(), i(), i()).prop_map(|(r, o, b)| Map(r, o, b)),
        3 => (i(), i()).prop_map(|(r, o)| Close(r, o)),
        4 => (i(), i()).prop_map(|(r, s)| Release(r, s)),
        3 => (i(), 0..3u8).prop_map(|(n, l)| Label(n, l)),
        2 => i().prop_map(Remove),
        1 => Just(Reopen),
    ]
}

/// A run and what the model knows of it.
struct Vm {
    run: StoreRun,
    live: BTreeSet<Extent>,
    /// Extents that the guest sees, each as often as it does.
    seen: Vec<Extent>,
    drafts: Vec<Draft>,
    opened: Vec<OpenSnapshot>,
}

struct World {
    shm: Shm,
    vms: Vec<Vm>,
    /// RAM files stay open, so that their memory can be looked at when they are removed.
    files: BTreeMap<u64, File>,
    snapshots: BTreeMap<&'static str, Vec<Extent>>,
    labels: BTreeMap<&'static str, String>,
    /// What was written to a block.
    written: BTreeMap<Extent, u64>,
}

fn pick<T>(items: &[T], index: Index) -> Option<usize> {
    (!items.is_empty()).then(|| index.index(items.len()))
}

impl World {
    fn new() -> Self {
        Self {
            shm: Shm::new(),
            vms: Vec::new(),
            files: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            labels: BTreeMap::new(),
            written: BTreeMap::new(),
        }
    }

    fn write(&mut self, extent: Extent) {
        let stamp = self.written.len() as u64 + 1;
        let file = &self.files[&extent.run.get()];
        let at = extent.range().start().0;
        file.write_all_at(&stamp.to_le_bytes(), at).unwrap();
        self.written.insert(extent, stamp);
    }

    fn start(&mut self) {
        let run = self.shm.store.start_run("vm", GUEST * BLOCK).unwrap();
        let path = self.shm.path().join(format!("ram/{}.ram", run.id()));
        let file = File::options().read(true).write(true).open(path).unwrap();
        self.files.insert(run.id().get(), file);
        let live: BTreeSet<_> = (0..GUEST).map(|block| own(&run, block)).collect();
        live.iter().for_each(|extent| self.write(*extent));
        self.vms.push(Vm {
            run,
            live,
            seen: Vec::new(),
            drafts: Vec::new(),
            opened: Vec::new(),
        });
    }

    /// Does it, if it can be done now.
    fn step(&mut self, op: Op) -> Option<()> {
        let vm = |world: &Self, index| pick(&world.vms, index);
        match op {
            Op::Start => self.start(),
            Op::End(i) => {
                let at = vm(self, i)?;
                self.vms.swap_remove(at);
            }
            Op::Allocate(i) => {
                let at = vm(self, i)?;
                let range = self.vms[at].run.allocate(1).unwrap();
                let extent = own(&self.vms[at].run, range.start().0 / BLOCK);
                self.vms[at].live.insert(extent);
                self.write(extent);
            }
            Op::Discard(i, b) => {
                let at = vm(self, i)?;
                let vm = &mut self.vms[at];
                let live: Vec<_> = vm.live.iter().copied().collect();
                let extent = live[pick(&live, b)?];
                vm.run.discard(blocks(extent.block, 1)).unwrap();
                vm.live.remove(&extent);
            }
            Op::Draft(i, n) => {
                let at = vm(self, i)?;
                let snapshot = NAMES[n.index(NAMES.len())];
                let mut drafts = self.vms.iter().flat_map(|vm| &vm.drafts);
                let drafted = drafts.any(|draft| draft.name().as_str() == snapshot);
                match self.vms[at].run.draft(name(snapshot)) {
                    Ok(draft) => {
                        assert!(!drafted && !self.snapshots.contains_key(snapshot));
                        self.vms[at].drafts.push(draft);
                    }
                    Err(StoreError::Drafted(_)) => assert!(drafted),
                    Err(StoreError::Exists(_)) => assert!(self.snapshots.contains_key(snapshot)),
                    Err(e) => panic!("{e}"),
                }
            }
            Op::Publish(i, d, b) => {
                let at = vm(self, i)?;
                let vm = &mut self.vms[at];
                let draft = pick(&vm.drafts, d)?;
                let mut choice: Vec<_> = vm.live.iter().chain(&vm.seen).copied().collect();
                choice.dedup();
                let extent = choice[pick(&choice, b)?];
                if vm.live.remove(&extent) {
                    vm.run.use_extents(&[extent]).unwrap();
                    vm.seen.push(extent);
                }
                vm.drafts[draft].push_blocks(&[extent]).unwrap();
            }
            Op::Commit(i, d) => {
                let at = vm(self, i)?;
                let vm = &mut self.vms[at];
                let draft = pick(&vm.drafts, d)?;
                let mut draft = vm.drafts.swap_remove(draft);
                draft.meta = metadata(draft.blocks().len() as u64, 0);
                let extents = draft.blocks().to_vec();
                let text = format!("made {}", self.written.len());
                draft.label = label(&text);
                let opened = vm.run.commit(&mut draft).unwrap();
                let snapshot = NAMES.iter().find(|n| **n == draft.name().as_str())?;
                self.labels.insert(snapshot, text);
                vm.opened.push(opened);
                assert!(self.snapshots.insert(snapshot, extents).is_none());
            }
            Op::GiveUp(i, d) => {
                let at = vm(self, i)?;
                let draft = pick(&self.vms[at].drafts, d)?;
                self.vms[at].drafts.swap_remove(draft);
            }
            Op::Open(i, n) => {
                let at = vm(self, i)?;
                let snapshot = NAMES[n.index(NAMES.len())];
                match (
                    self.vms[at].run.open(&name(snapshot)),
                    self.snapshots.get(snapshot),
                ) {
                    (Ok(opened), Some(extents)) => {
                        assert_eq!(&opened.blocks.iter().collect::<Vec<_>>(), extents);
                        self.vms[at].opened.push(opened);
                    }
                    (Err(StoreError::NotFound(_)), None) => {}
                    (result, _) => panic!("{result:?}"),
                }
            }
            Op::Map(i, o, b) => {
                let at = vm(self, i)?;
                let vm = &mut self.vms[at];
                let opened = &vm.opened[pick(&vm.opened, o)?];
                let extents: Vec<_> = opened.blocks.iter().collect();
                let extent = extents[pick(&extents, b)?];
                vm.run.use_extents(&[extent]).unwrap();
                vm.seen.push(extent);
            }
            Op::Close(i, o) => {
                let at = vm(self, i)?;
                let opened = pick(&self.vms[at].opened, o)?;
                self.vms[at].opened.swap_remove(opened);
            }
            Op::Release(i, s) => {
                let at = vm(self, i)?;
                let vm = &mut self.vms[at];
                let seen = pick(&vm.seen, s)?;
                let extent = vm.seen.swap_remove(seen);
                vm.run.release_extents(&[extent]).unwrap();
            }
            Op::Remove(n) => {
                let snapshot = NAMES[n.index(NAMES.len())];
                let removed = self.shm.store.remove(&name(snapshot));
                assert_eq!(removed.is_ok(), self.snapshots.remove(snapshot).is_some());
                self.labels.remove(snapshot);
            }
            Op::Label(n, l) => {
                let snapshot = NAMES[n.index(NAMES.len())];
                let text = "x".repeat(l.into());
                let store = &self.shm.store;
                let set = relabel(store, snapshot, &text);
                assert_eq!(set.is_ok(), self.snapshots.contains_key(snapshot));
                if set.is_ok() {
                    self.labels.insert(snapshot, text);
                }
            }
            Op::Reopen => self.shm.store = open(self.shm.path()),
        }
        Some(())
    }

    fn needed(&self) -> BTreeSet<Extent> {
        let mut needed: BTreeSet<_> = self.snapshots.values().flatten().copied().collect();
        for vm in &self.vms {
            needed.extend(vm.live.iter().chain(&vm.seen));
            needed.extend(vm.drafts.iter().flat_map(|draft| draft.blocks()));
            needed.extend(vm.opened.iter().flat_map(|opened| opened.blocks.iter()));
        }
        needed
    }

    /// What has memory is what is needed, and it has the right bytes.
    fn is_right(&self) {
        let needed = self.needed();
        for (extent, stamp) in &self.written {
            let mut bytes = [0; 8];
            let file = &self.files[&extent.run.get()];
            let read = file.read_at(&mut bytes, extent.range().start().0).unwrap();
            let expected = if needed.contains(extent) { *stamp } else { 0 };
            let found = if read == 8 {
                u64::from_le_bytes(bytes)
            } else {
                0
            };
            assert_eq!(found, expected, "{extent:?}");
        }
        // A page was written to each; no more may be left than that. Huge pages allow more.
        let bytes: u64 = self
            .files
            .values()
            .map(|f| f.metadata().unwrap().blocks() * 512)
            .sum();
        let most = needed.len() as u64 * BLOCK;
        assert!(
            (needed.len() as u64 * 4096..=most).contains(&bytes),
            "{bytes}"
        );
        let entries = self.shm.store.snapshots().unwrap();
        let labels = entries
            .iter()
            .map(|e| (e.name.as_str(), e.label.as_str().to_owned()));
        assert_eq!(labels.collect::<BTreeMap<_, _>>(), self.labels);
        self.shm.is_right();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn exactly_what_somebody_needs_has_memory(ops in prop::collection::vec(op(), 1..60)) {
        let mut world = World::new();
        world.start();
        for op in ops {
            world.step(op);
            world.is_right();
        }
        world.vms.clear();
        world.is_right();
        for snapshot in std::mem::take(&mut world.snapshots).into_keys() {
            world.shm.store.remove(&name(snapshot)).unwrap();
            world.labels.remove(snapshot);
        }
        world.is_right();
        let left = std::fs::read_dir(world.shm.path().join("ram")).unwrap().count();
        prop_assert_eq!(left, 0);
    }
}
