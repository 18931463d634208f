// SPDX-License-Identifier: GPL-2.0-only
//! Where engines keep checkpoints, and which of our snapshots these refer to.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::Root;
use crate::snapshot::id::SnapshotId;
use crate::snapshot::images::INVENTORY;
use crate::snapshot::reference::Reference;

/// More than a reference has.
const LEN_MAX: u64 = 16 << 10;

/// A place could not be searched, so nobody knows what it refers to.
#[derive(Debug, thiserror::Error)]
#[error("cannot search {path} for checkpoints")]
pub struct Error {
    /// The place.
    path: PathBuf,
    /// Why.
    #[source]
    source: io::Error,
}

/// The engines whose checkpoints [`referenced_ids`] finds. Those of others, runc's among
/// them, are wherever the user has put them.
pub const KNOWN: [super::Engine; 3] = [
    super::Engine::Docker,
    super::Engine::Podman,
    super::Engine::Containerd,
];

/// The snapshots that checkpoints of Docker, Podman and containerd on this machine refer to.
/// Not found is what was exported into a file.
///
/// # Errors
/// A place is there, but cannot be searched: what is not found then is not unreferenced.
pub fn referenced_ids() -> Result<HashSet<SnapshotId>, Error> {
    find(&Root::default())
}

fn find(root: &Root) -> Result<HashSet<SnapshotId>, Error> {
    let mut ids = HashSet::new();
    let podman = root.podman();
    let mut directories = below(
        &root.docker().join("containers"),
        &["*", "checkpoints", "*"],
    )?;
    for driver in below(&podman, &["*"])? {
        // Containers' own checkpoints, and those that were made an image.
        directories.extend(below(&driver, &["*", "userdata", "checkpoint"])?);
        directories.extend(below(&driver, &["*", "diff", "checkpoint"])?);
    }
    for dir in directories {
        let path = dir.join(INVENTORY);
        match File::open(&path).and_then(identity) {
            Ok(id) => ids.extend(id),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error { path, source }),
        }
    }
    let content = root.containerd().join("io.containerd.content.v1.content");
    for blob in below(&content, &["blobs", "*", "*"])? {
        let found = File::open(&blob).and_then(in_archive);
        let found = found.map_err(|source| Error { path: blob, source })?;
        ids.extend(found);
    }
    Ok(ids)
}

/// The files and directories that match; `*` is any name.
fn below(dir: &Path, pattern: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let Some((first, rest)) = pattern.split_first() else {
        return Ok(vec![dir.to_owned()]);
    };
    let next = if *first == "*" {
        match fs::read_dir(dir) {
            Ok(entries) => entries
                .collect::<Result<Vec<_>, _>>()
                .map_err(|source| Error {
                    path: dir.into(),
                    source,
                })?,
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                vec![]
            }
            Err(source) => {
                return Err(Error {
                    path: dir.into(),
                    source,
                });
            }
        }
        .into_iter()
        .map(|e| e.path())
        .collect()
    } else {
        vec![dir.join(first)]
    };
    let mut found = Vec::new();
    for path in next {
        found.extend(below(&path, rest)?);
    }
    Ok(found)
}

/// Which snapshot a reference names; none, where it is none. One that we cannot read may
/// name any.
fn identity(file: impl Read) -> io::Result<Option<SnapshotId>> {
    let mut text = Vec::new();
    file.take(LEN_MAX).read_to_end(&mut text)?;
    let reference = Reference::parse(&text).map_err(io::Error::other)?;
    Ok(reference.map(|r| r.snapshot))
}

/// containerd keeps a checkpoint as a plain tar file among its blobs. Others, such as the
/// compressed layers of images, are left after their first bytes.
fn in_archive(mut file: File) -> io::Result<Option<SnapshotId>> {
    let mut head = [0; 512];
    if file.read_exact(&mut head).is_err() || &head[257..262] != b"ustar" {
        return Ok(None);
    }
    file.seek(SeekFrom::Start(0))?;
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries_with_seek()? {
        let Ok(entry) = entry else {
            return Ok(None); // no whole archive, so no checkpoint
        };
        let path = entry.path()?;
        if path.file_name().is_some_and(|n| n == INVENTORY) {
            return identity(entry);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::label::{Label, Origin};

    fn reference() -> (SnapshotId, Vec<u8>) {
        let label = Label::new(None, Origin::process());
        let reference = Reference::new(SnapshotId::random(), &label, "0".repeat(64));
        (
            reference.snapshot,
            serde_json::to_vec(&reference).expect("JSON"),
        )
    }

    fn put(dir: &tempfile::TempDir, path: &str, bytes: &[u8]) {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("directory");
        fs::write(path, bytes).expect("write");
    }

    fn archive(name: &str, bytes: &[u8]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, bytes) in [("./descriptors.json", &b"[]"[..]), (name, bytes)] {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_cksum();
            archive
                .append_data(&mut header, name, bytes)
                .expect("appended");
        }
        archive.into_inner().expect("an archive")
    }

    #[test]
    fn references_are_found_wherever_engines_keep_checkpoints() {
        let dir = tempfile::tempdir().expect("temp dir");
        let podman = "var/lib/containers/storage";
        let blobs = "var/lib/containerd/io.containerd.content.v1.content/blobs/sha256";
        let mut ids = HashSet::new();
        for place in [
            "var/lib/docker/containers/4f5e/checkpoints/one".to_owned(),
            "var/lib/docker/containers/4f5e/checkpoints/two".to_owned(),
            format!("{podman}/overlay-containers/4f5e/userdata/checkpoint"),
            format!("{podman}/overlay/77aa/diff/checkpoint"),
        ] {
            let (id, text) = reference();
            put(&dir, &format!("{place}/{INVENTORY}"), &text);
            ids.insert(id);
        }
        let (id, text) = reference();
        put(
            &dir,
            &format!("{blobs}/aa"),
            &archive("./inventory.img", &text),
        );
        ids.insert(id);
        put(&dir, &format!("{blobs}/bb"), b"\x1f\x8b a compressed layer");
        put(
            &dir,
            &format!("{blobs}/cc"),
            &archive("./pages-1.img", b"x"),
        );
        assert_eq!(find(&Root(dir.path().into())).expect("searched"), ids);
    }

    #[test]
    fn stock_checkpoints_and_empty_places_refer_to_nothing() {
        let dir = tempfile::tempdir().expect("temp dir");
        let stock = "var/lib/docker/containers/4f5e/checkpoints/one/inventory.img";
        put(&dir, stock, b"\x16\x31\x31\x58 stock");
        let found = find(&Root(dir.path().into())).expect("searched");
        assert!(found.is_empty());
    }

    #[test]
    fn a_place_that_cannot_be_searched_is_an_error() {
        let dir = tempfile::tempdir().expect("temp dir");
        let checkpoint = dir
            .path()
            .join("var/lib/docker/containers/4f5e/checkpoints/one");
        fs::create_dir_all(&checkpoint).expect("directory");
        std::os::unix::fs::symlink(INVENTORY, checkpoint.join(INVENTORY)).expect("a loop");
        assert!(find(&Root(dir.path().into())).is_err());
    }

    #[test]
    fn a_reference_that_cannot_be_read_is_an_error() {
        let dir = tempfile::tempdir().expect("temp dir");
        let damaged = "var/lib/docker/containers/4f5e/checkpoints/one/inventory.img";
        put(&dir, damaged, b"{\"vascriu\":9}");
        assert!(find(&Root(dir.path().into())).is_err());
    }
}
