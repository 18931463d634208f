// SPDX-License-Identifier: GPL-2.0-only
//! A store with a file that says that it is a snapshot. What is right of it is found, and is
//! all there; what is not is reported; nothing of it is believed before.

use std::fs;

use mvas_host::store::{SnapshotName, SnapshotState, Store, StoreOptions, meta};
use sha2::{Digest, Sha256};

use super::meta::of;

/// Blocks of the one RAM file.
const BLOCKS: u64 = 8;

pub fn run(input: &[u8]) {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a tmpfs");
    let store =
        Store::open(&folder.path().join("store"), StoreOptions::default()).expect("a store");
    let run = store.start_run("vm", BLOCKS << 21).expect("a run");
    let bytes = file(input, &run.id().to_string());
    let name: SnapshotName = "s".parse().expect("a name");
    let path = folder.path().join("store/snapshots/s.snap");
    fs::write(&path, &bytes).expect("a file");

    let loaded = store.load(&name);
    let entries = store
        .snapshots()
        .expect("a store with a bad file is a store");
    let check = store.check().expect("a store");
    assert_eq!(entries.len(), 1);
    match &loaded {
        Ok(manifest) => {
            assert_eq!(manifest.name, name);
            assert!(bytes.ends_with(&manifest.meta));
            for list in [&manifest.blocks, &manifest.packed] {
                let mut extents = 0;
                for part in list.runs() {
                    assert_eq!(part.run, run.id());
                    assert!(
                        part.first + part.count <= BLOCKS,
                        "memory that is not there"
                    );
                    extents += part.count;
                }
                assert_eq!(extents, list.len());
            }
            let sum = meta::check(&manifest.meta, manifest.blocks.len(), manifest.packed_pages);
            assert_eq!(sum.map(|sum| sum.pages), Ok(manifest.pages));
            assert!(matches!(entries[0].state, SnapshotState::Complete(_)));
            assert!(check.problems.is_empty(), "{:?}", check.problems);
        }
        Err(_) => {
            assert!(matches!(entries[0].state, SnapshotState::Broken { .. }));
            assert!(!check.problems.is_empty());
        }
    }
    // Whoever opens the store cleans up, and leaves a snapshot alone however bad it is.
    let again = Store::open(store.path(), StoreOptions::default()).expect("a store");
    assert_eq!(again.load(&name).is_ok(), loaded.is_ok());
    assert!(path.exists());
}

/// A file as it is (even first byte), or one with the right lengths and checksum: the length
/// of the head's JSON, its JSON, the metadata. In the JSON, `@RUN@`, `@SHA@` and `@LEN@` stand for
/// what cannot be guessed.
fn file(input: &[u8], run: &str) -> Vec<u8> {
    let Some((form, rest)) = input.split_first() else {
        return Vec::new();
    };
    if form % 2 == 0 {
        return rest.to_vec();
    }
    let Some((len, rest)) = rest.split_first_chunk() else {
        return Vec::new();
    };
    let (json, meta) = rest.split_at(usize::from(u16::from_le_bytes(*len)).min(rest.len()));
    let json = fill_in(json, "@RUN@", run);
    let json = fill_in(&json, "@SHA@", &format!("{:x}", Sha256::digest(meta)));
    let json = fill_in(&json, "@LEN@", &meta.len().to_string());
    let mut file = b"MVASSNAP\x01\0\0\0".to_vec();
    file.extend((json.len() as u32).to_le_bytes());
    file.extend((meta.len() as u64).to_le_bytes());
    file.extend(&json);
    let sum = Sha256::digest(&file);
    file.extend(sum);
    file.extend(meta);
    file
}

fn fill_in(text: &[u8], what: &str, by: &str) -> Vec<u8> {
    let mut filled = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.windows(what.len()).position(|w| w == what.as_bytes()) {
        filled.extend(&rest[..at]);
        filled.extend(by.as_bytes());
        rest = &rest[at + what.len()..];
    }
    filled.extend(rest);
    filled
}

pub fn seeds() -> Vec<Vec<u8>> {
    let sealed = |(count, vmas): (u32, u32)| {
        let (vases, all) = (u64::from(count), u64::from(count * vmas));
        let json = format!(
            r#"{{"name":"s","vm":"vm","run":"@RUN@","created_ns":1,"vases":{vases},"vmas":{all},"pages":{},"blocks":[{{"run":"@RUN@","first":0,"count":2}},{{"run":"@RUN@","first":3,"count":1}}],"packed":[{{"run":"@RUN@","first":7,"count":1}}],"packed_pages":9,"meta_bytes":@LEN@,"meta_sha256":"@SHA@"}}"#,
            all * 515
        );
        let mut seed = vec![1];
        seed.extend((json.len() as u16).to_le_bytes());
        seed.extend(json.as_bytes());
        seed.extend(of(count, vmas));
        seed
    };
    let mut seeds = [(0, 0), (1, 1), (2, 3)].map(sealed).to_vec();
    seeds.push([&[0], file(&seeds[0], "0000000000000001").as_slice()].concat());
    seeds
}
