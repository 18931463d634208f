// SPDX-License-Identifier: GPL-2.0-only
//! What a guest sends as an archive when something is copied out of it. All that comes of it
//! is one file or folder at the destination, or nothing; nothing else on this machine changes.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use mvas_agent::archive::{Trust, pack, unpack};
use tar::Header;

/// Where an entry's data begins.
const BLOCK: usize = 512;

pub fn run(input: &[u8]) {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a tmpfs");
    let (inside, outside) = (folder.path().join("in"), folder.path().join("out"));
    fs::create_dir(&inside).expect("a folder");
    fs::create_dir(&outside).expect("a folder");
    fs::write(outside.join("secret"), "secret").expect("a file");
    fs::set_permissions(&outside, PermissionsExt::from_mode(0o751)).expect("a mode");
    let before = tree(&outside);

    let mut archive = input.to_vec();
    seal(&mut archive);
    let destination = inside.join("x");
    let made = unpack(
        archive.as_slice(),
        &destination,
        OsStr::new("x"),
        Trust::PermissionsOnly,
    );
    assert_eq!(tree(&outside), before);
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 2);
    let there: Vec<_> = fs::read_dir(&inside).expect("a folder").collect();
    match made {
        Err(_) => assert!(there.is_empty(), "{there:?}"),
        Ok(path) => {
            assert_eq!((path.as_path(), there.len()), (destination.as_path(), 1));
            harmless(&path, true);
        }
    }
}

/// Only files, folders and links; no power but the permissions; links only below the root.
fn harmless(path: &Path, root: bool) {
    let meta = fs::symlink_metadata(path).expect("a file");
    let kind = meta.file_type();
    assert!(kind.is_file() || kind.is_dir() || (kind.is_symlink() && !root));
    assert!(
        kind.is_symlink() || meta.mode() & 0o7000 == 0,
        "{:o}",
        meta.mode()
    );
    if kind.is_dir() {
        for entry in fs::read_dir(path).expect("a folder") {
            harmless(&entry.expect("an entry").path(), false);
        }
    }
}

/// Name, mode, links, owner and content of the folder and all that is in it.
fn tree(path: &Path) -> Vec<(String, u32, u64, u32, Vec<u8>)> {
    let mut tree = Vec::new();
    let mut next = vec![path.to_owned()];
    while let Some(path) = next.pop() {
        let meta = fs::symlink_metadata(&path).expect("a file");
        if meta.is_dir() {
            next.extend(
                fs::read_dir(&path)
                    .expect("a folder")
                    .map(|e| e.expect("an entry").path()),
            );
        }
        let content = fs::read(&path).unwrap_or_default();
        let name = path.display().to_string();
        tree.push((name, meta.mode(), meta.nlink(), meta.uid(), content));
    }
    tree.sort();
    tree
}

/// Makes the checksums right, wherever a header is.
fn seal(archive: &mut [u8]) {
    let mut at = 0;
    while let Some(block) = archive.get_mut(at..at + BLOCK) {
        at += BLOCK;
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        let mut header = Header::new_old();
        header.as_mut_bytes().copy_from_slice(block);
        header.set_cksum();
        block.copy_from_slice(header.as_bytes());
        let size = header.entry_size().unwrap_or(0);
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        at = at.saturating_add(size.div_ceil(BLOCK).saturating_mul(BLOCK));
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a tmpfs");
    let packed = |make: &dyn Fn(&Path)| {
        let path = folder.path().join("source");
        make(&path);
        let mut bytes = Vec::new();
        pack(&path, &mut bytes).expect("an archive");
        let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
        bytes
    };
    let entry = |kind: u8, name: &str, link: &str| {
        let mut header = Header::new_gnu();
        header.set_size(0);
        header.set_mode(0o4755);
        let bytes = header.as_mut_bytes();
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        bytes[156] = kind;
        bytes[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    vec![
        packed(&|path| fs::write(path, "some text").expect("a file")),
        packed(&|path| {
            fs::create_dir_all(path.join("a/b")).expect("folders");
            fs::write(path.join("a/b/file"), [7; 600]).expect("a file");
            fs::write(path.join("a").join("n".repeat(120)), "").expect("a file");
            symlink("a/b/file", path.join("link")).expect("a link");
        }),
        packed(&|path| {
            let file = fs::File::create(path).expect("a file");
            std::os::unix::fs::FileExt::write_at(&file, b"end", 1 << 20).expect("written");
        }),
        [
            entry(b'5', "root", ""),
            entry(b'2', "root/l", "../../../out"),
            entry(b'5', "root/l", ""),
            entry(b'0', "root/l/secret", ""),
            entry(b'1', "root/h", "root/l/secret"),
            entry(b'1', "root/h", "../../out/secret"),
        ]
        .concat(),
    ]
}
