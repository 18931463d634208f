// SPDX-License-Identifier: GPL-2.0-only
//! Merges layers and makes an ext4 file of them.

use std::io::BufWriter;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use fs_err::File;
use nix::unistd::Uid;

use crate::cache::Cache;
use crate::rootfs::{self, Kind, Layer, Meta, Rules, Tree};
use crate::step::Steps;
use crate::tools;

/// Makes an ext4 file of a tar file; images of ours are made by it, too.
const PACK: &str = include_str!("../../recipe/pack");

/// Folders that the agent mounts on, or programs take for granted, and their modes.
const FOLDERS: [(&str, u32); 9] = [
    ("proc", 0o555),
    ("sys", 0o555),
    ("dev", 0o755),
    ("run", 0o755),
    ("mnt", 0o755),
    ("etc", 0o755),
    ("root", 0o700),
    ("tmp", 0o1777),
    ("var/tmp", 0o1777),
];
/// Names that every machine knows.
const HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost\n";

/// What a guest needs of ours, as a layer.
pub(super) fn tools(cache: &Cache) -> Result<Layer> {
    let path = cache.root().join("current").join(tools::FILE);
    let file = std::fs::File::open(&path).with_context(|| {
        format!(
            "there is no {}, which every guest needs: build it with `make image`",
            path.display()
        )
    })?;
    Ok(Layer {
        name: path.display().to_string(),
        file,
        rules: Rules::Plain,
    })
}

/// Makes the ext4 file `out` of layers, in which `workdir` is a folder; `work` is for files on the
/// way.
pub(super) fn pack(
    layers: &[Layer],
    workdir: Option<&str>,
    work: &Path,
    out: &Path,
    steps: &Steps,
) -> Result<()> {
    let mut tree = Tree::default();
    for (index, layer) in layers.iter().enumerate() {
        rootfs::add_layer(&mut tree, index, layer)?;
    }
    let last = layers.len();
    let workdir = workdir.map(|folder| (folder, 0o755));
    for (folder, mode) in FOLDERS.into_iter().chain(workdir) {
        tree.need_folder(folder.as_bytes(), mode, last)
            .with_context(|| format!("the guest needs a folder {folder}"))?;
    }
    let hosts = work.join("hosts");
    fs_err::write(&hosts, HOSTS)?;
    let hosts = Layer {
        name: "hosts".to_owned(),
        file: File::open(&hosts)?.into_parts().0,
        rules: Rules::Plain,
    };
    if !tree.has(b"etc/hosts")? {
        let content = rootfs::Content {
            layer: last,
            offset: 0,
            size: HOSTS.len() as u64,
        };
        let node = rootfs::Node {
            meta: Meta::of_root(0o644),
            kind: Kind::File(content),
        };
        tree.put(b"etc/hosts", node, last, Rules::Plain)?;
    }
    let merged = work.join("root.tar");
    let all: Vec<&Layer> = layers.iter().chain([&hosts]).collect();
    rootfs::write(&tree, &all, BufWriter::new(File::create(&merged)?))
        .with_context(|| format!("cannot write {}", merged.display()))?;
    // Only root may make files of other users; fakeroot lets anybody pretend to.
    let mut command = Command::new(if Uid::effective().is_root() {
        "sh"
    } else {
        "fakeroot"
    });
    if !Uid::effective().is_root() {
        command.arg("sh");
    }
    command
        .args(["-c", PACK, "pack"])
        .arg(work.join("tree"))
        .arg(out)
        .arg(&merged)
        .env("TAR_OPTIONS", "--xattrs --xattrs-include=*");
    Ok(steps.run("packing the image", &mut command)?)
}
