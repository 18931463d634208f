// SPDX-License-Identifier: GPL-2.0-only
//! Images of containers as the Open Container Initiative has them, and as `docker save` writes them.
//!
//! Whatever is read was written by others: manifests are short, each blob has the size and the
//! digest that its descriptor says, each layer the digest that the configuration says, and of a
//! layer nothing is unpacked on this machine ([`crate::rootfs`]).

mod archive;
pub(crate) mod blob;
mod layout;
mod manifest;
mod registry;
mod source;

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use oci_spec::image::ImageConfiguration;

use crate::own::Settings;
use crate::rootfs::{Layer, Rules};
use blob::Sha256Digest;

pub use source::Source;

/// The most bytes of a manifest, an index or a configuration.
const MAX_MANIFEST: u64 = 4 << 20;

/// An image as it was brought: its configuration, and its layers as they came, the lowest first.
struct Brought {
    config: Vec<u8>,
    layers: Vec<File>,
}

impl Brought {
    /// Unpacks the layers' compression and verifies them.
    fn open(self, work: &Path) -> Result<(Vec<Layer>, Settings)> {
        let config = ImageConfiguration::from_reader(&self.config[..])
            .context("its configuration is damaged")?;
        let digests = config.rootfs().diff_ids();
        ensure!(
            digests.len() == self.layers.len(),
            "its configuration has {} layers, its manifest {}",
            digests.len(),
            self.layers.len()
        );
        let mut layers = Vec::new();
        for (index, (file, digest)) in self.layers.into_iter().zip(digests).enumerate() {
            let name = format!("layer {}", index + 1);
            let file = Sha256Digest::parse(digest)
                .and_then(|digest| blob::layer(file, &digest, work))
                .with_context(|| format!("{name} cannot be used"))?;
            layers.push(Layer {
                name,
                file,
                rules: Rules::Oci,
            });
        }
        Ok((layers, settings(&config)))
    }
}

fn settings(config: &ImageConfiguration) -> Settings {
    let Some(config) = config.config() else {
        return Settings::default();
    };
    let some = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let env = config.env().iter().flatten();
    Settings {
        entrypoint: config.entrypoint().clone().unwrap_or_default(),
        cmd: config.cmd().clone().unwrap_or_default(),
        env: env
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        workdir: some(config.working_dir()).or_else(|| Some("/".to_owned())),
        user: some(config.user()),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
