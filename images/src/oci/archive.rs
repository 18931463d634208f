// SPDX-License-Identifier: GPL-2.0-only
//! What `docker save` writes: a tar file with `manifest.json`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use tar::{Archive, EntryType};

use super::{Brought, MAX_MANIFEST, blob};
use crate::window::Window;

/// More files are in no archive of an image.
const MAX_FILES: usize = 100_000;
/// So often a link may lead to another.
const MAX_LINKS: u32 = 8;

/// One image of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Brings the only image of an archive.
pub(super) fn bring(path: &Path, work: &Path) -> Result<Brought> {
    let file = fs_err::File::open(path)?.into_parts().0;
    ensure!(file.metadata()?.is_file(), "it is no file");
    let index = Index::read(blob::plain(file, work)?)?;
    let saved = index.short("manifest.json")?;
    let mut saved: Vec<Saved> =
        serde_json::from_slice(&saved).context("manifest.json is damaged")?;
    let saved = match (saved.pop(), saved.is_empty()) {
        (Some(saved), true) => saved,
        (Some(last), false) => {
            let tags = saved.iter().chain([&last]);
            let tags: Vec<&str> = tags
                .flat_map(|saved| saved.repo_tags.iter().flatten().map(String::as_str))
                .collect();
            bail!(
                "it has several images, save one of them: {}",
                tags.join(", ")
            )
        }
        (None, _) => bail!("it has no image"),
    };
    let config = index.short(&saved.config)?;
    let layers = saved.layers.iter().map(|layer| {
        let mut out = tempfile::tempfile_in(work)?;
        io::copy(&mut index.open(layer)?, &mut out)?;
        io::Seek::rewind(&mut out)?;
        Ok(out)
    });
    let layers = layers.collect::<Result<_>>()?;
    Ok(Brought { config, layers })
}

/// Where a file of the archive lies, or where a link leads.
enum Place {
    File { offset: u64, size: u64 },
    Link(String),
}

/// The archive and where its files are.
struct Index {
    file: File,
    places: HashMap<String, Place>,
}

impl Index {
    fn read(file: File) -> Result<Self> {
        let mut places = HashMap::new();
        let mut archive = Archive::new(&file);
        for entry in archive.entries_with_seek()? {
            let entry = entry.context("it is no tar file, or a damaged one")?;
            ensure!(
                places.len() < MAX_FILES,
                "it has more than {MAX_FILES} files"
            );
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let link = entry.link_name_bytes();
            let link = link.map(|link| String::from_utf8_lossy(&link).into_owned());
            let place = match (entry.header().entry_type(), link) {
                (EntryType::Regular, _) => Place::File {
                    offset: entry.raw_file_position(),
                    size: entry.size(),
                },
                (EntryType::Link, Some(to)) => Place::Link(plain(&to)),
                (EntryType::Symlink, Some(to)) => {
                    let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
                    Place::Link(plain(&format!("{folder}/{to}")))
                }
                _ => continue,
            };
            places.insert(plain(&name), place);
        }
        Ok(Self { file, places })
    }

    /// Opens a file of the archive by its name there.
    fn open(&self, name: &str) -> Result<Window<'_>> {
        let mut place = self.places.get(&plain(name));
        for _ in 0..MAX_LINKS {
            match place {
                Some(Place::Link(to)) => place = self.places.get(to),
                Some(Place::File { offset, size }) => {
                    return Ok(Window::new(&self.file, *offset, *size));
                }
                None => break,
            }
        }
        bail!("it has no {name}: it is no archive of `docker save`, or a damaged one")
    }

    fn short(&self, name: &str) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        self.open(name)?
            .take(MAX_MANIFEST)
            .read_to_end(&mut content)?;
        Ok(content)
    }
}

/// A name without `.` and `..`.
fn plain(name: &str) -> String {
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}
