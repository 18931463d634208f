// SPDX-License-Identifier: GPL-2.0-only
//! A folder with an image layout.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use fs_err::File;
use oci_spec::image::{ANNOTATION_REF_NAME, Descriptor, ImageIndex};

use super::blob::{Sha256Digest, stored, verified};
use super::manifest::{self, Blobs};
use super::{Brought, MAX_MANIFEST};

/// Brings the image with this tag, or the only one.
pub(super) fn bring(folder: &Path, tag: Option<&str>, work: &Path) -> Result<Brought> {
    let mut index = Vec::new();
    let file = File::open(folder.join("index.json"))?;
    file.take(MAX_MANIFEST).read_to_end(&mut index)?;
    let index = ImageIndex::from_reader(&index[..]).context("index.json is damaged")?;
    let found = choose(index.manifests(), tag)?;
    let digest = Sha256Digest::parse(found.digest().as_ref())?;
    let blobs = Folder(folder);
    let size = found.size().min(MAX_MANIFEST);
    let manifest = blobs.manifest(&digest, size).context("its manifest")?;
    manifest::bring(manifest, &blobs, work)
}

fn choose<'a>(manifests: &'a [Descriptor], tag: Option<&str>) -> Result<&'a Descriptor> {
    let tag_of = |descriptor: &'a Descriptor| -> Option<&'a str> {
        let annotations = descriptor.annotations().as_ref()?;
        annotations.get(ANNOTATION_REF_NAME).map(String::as_str)
    };
    let all: Vec<&Descriptor> = match tag {
        Some(tag) => manifests
            .iter()
            .filter(|d| tag_of(d) == Some(tag))
            .collect(),
        None => manifests.iter().collect(),
    };
    let tags: BTreeSet<&str> = manifests.iter().filter_map(tag_of).collect();
    let tags: Vec<&str> = tags.into_iter().collect();
    match (&all[..], tag) {
        ([], Some(tag)) => bail!("it has no image {tag:?}, but {}", tags.join(", ")),
        ([], None) => bail!("it has no image"),
        ([one], _) => Ok(one),
        _ if tag.is_none() && tags.len() > 1 => {
            bail!("it has several images, say which: {}", tags.join(", "))
        }
        (several, _) => manifest::for_this_machine(several),
    }
}

struct Folder<'a>(&'a Path);

impl Folder<'_> {
    fn open(&self, digest: &Sha256Digest) -> Result<File> {
        Ok(File::open(
            self.0.join("blobs/sha256").join(digest.digits()),
        )?)
    }
}

impl Blobs for Folder<'_> {
    fn manifest(&self, digest: &Sha256Digest, size: u64) -> Result<Vec<u8>> {
        verified(self.open(digest)?, size, digest)
    }

    fn config(&self, digest: &Sha256Digest, size: u64) -> Result<Vec<u8>> {
        verified(self.open(digest)?, size, digest)
    }

    fn layer(&self, digest: &Sha256Digest, size: u64, work: &Path) -> Result<std::fs::File> {
        stored(self.open(digest)?, size, digest, work)
    }
}
