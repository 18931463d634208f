// SPDX-License-Identifier: GPL-2.0-only
//! From a manifest, or an index of them, to the parts of an image.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use oci_spec::image::{Arch, Descriptor, ImageIndex, ImageManifest, Os};
use serde::Deserialize;

use super::blob::Sha256Digest;
use super::{Brought, MAX_MANIFEST};

/// So often an index may lead to another.
const MAX_DEPTH: u32 = 4;

/// Where blobs come from. Each is verified against its descriptor.
pub(super) trait Blobs {
    /// A manifest or an index.
    fn manifest(&self, digest: &Sha256Digest, size: u64) -> Result<Vec<u8>>;
    /// A configuration.
    fn config(&self, digest: &Sha256Digest, size: u64) -> Result<Vec<u8>>;
    /// A layer, in a file of its own.
    fn layer(&self, digest: &Sha256Digest, size: u64, work: &Path) -> Result<File>;
}

/// What tells a manifest from an index.
#[derive(Deserialize)]
struct Either {
    manifests: Option<serde::de::IgnoredAny>,
}

/// The digest of what a descriptor names, and its size, if that is sane.
fn named(descriptor: &Descriptor, limit: u64) -> Result<(Sha256Digest, u64)> {
    let digest = Sha256Digest::parse(descriptor.digest().as_ref())?;
    let size = descriptor.size();
    ensure!(
        size <= limit,
        "{} is too long: {size} bytes",
        digest.digits()
    );
    Ok((digest, size))
}

/// Brings the image that a manifest, or the one for this machine in an index, describes.
pub(super) fn bring(mut manifest: Vec<u8>, blobs: &impl Blobs, work: &Path) -> Result<Brought> {
    for _ in 0..MAX_DEPTH {
        let damaged = "its manifest is damaged";
        let either: Either = serde_json::from_slice(&manifest).context(damaged)?;
        if either.manifests.is_none() {
            let manifest = ImageManifest::from_reader(&manifest[..]).context(damaged)?;
            return parts(&manifest, blobs, work);
        }
        let index = ImageIndex::from_reader(&manifest[..]).context(damaged)?;
        let all: Vec<&Descriptor> = index.manifests().iter().collect();
        let (digest, size) = named(for_this_machine(&all)?, MAX_MANIFEST)?;
        manifest = blobs.manifest(&digest, size).context("its manifest")?;
    }
    bail!("its indexes lead to each other")
}

/// The image of an index that a guest can run.
pub(super) fn for_this_machine<'a>(manifests: &[&'a Descriptor]) -> Result<&'a Descriptor> {
    let fits = |descriptor: &&&Descriptor| match descriptor.platform() {
        Some(p) => *p.os() == Os::Linux && *p.architecture() == Arch::Amd64,
        None => manifests.len() == 1,
    };
    let found = manifests.iter().find(fits).copied();
    found.context("it has no image for linux/amd64")
}

fn parts(manifest: &ImageManifest, blobs: &impl Blobs, work: &Path) -> Result<Brought> {
    let (digest, size) = named(manifest.config(), MAX_MANIFEST)?;
    let config = blobs.config(&digest, size).context("its configuration")?;
    let count = manifest.layers().len();
    let mut layers = Vec::new();
    for (index, descriptor) in manifest.layers().iter().enumerate() {
        let (digest, size) = named(descriptor, u64::MAX)?;
        eprintln!(
            "  layer {} of {count}: {} MiB …",
            index + 1,
            size.div_ceil(1 << 20)
        );
        let layer = blobs.layer(&digest, size, work);
        layers.push(layer.with_context(|| format!("layer {}", index + 1))?);
    }
    Ok(Brought { config, layers })
}
