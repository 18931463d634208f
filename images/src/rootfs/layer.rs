// SPDX-License-Identifier: GPL-2.0-only
//! Reads a layer into a tree.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};

use anyhow::{Context, Result};
use tar::{Archive, Entry, EntryType};

use super::tree::{Kind, Meta, Node, Rules, Tree, Xattrs, shown};
use super::{Content, Layer, Refused};

/// The most bytes of headers that one entry may have: the reader keeps them in memory.
const MAX_HEADERS: u64 = 16 << 20;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names that begin so are notes of a storage driver.
const NOTES: &[u8] = b".wh..wh.";
/// Extended attributes in a tar file.
const XATTR: &str = "SCHILY.xattr.";

/// Reads layer number `index` into the tree.
///
/// # Errors
/// It cannot be read, is no tar file, or has entries that are [`Refused`].
pub fn add_layer(tree: &mut Tree, index: usize, layer: &Layer) -> Result<()> {
    add(tree, index, layer).with_context(|| format!("{} cannot be used", layer.name))
}

fn add(tree: &mut Tree, index: usize, layer: &Layer) -> Result<()> {
    let left = Cell::new(MAX_HEADERS);
    let mut file = &layer.file;
    let length = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    let mut archive = Archive::new(Headers { file, left: &left });
    for entry in archive.entries_with_seek()? {
        let mut entry = entry.context("it is no tar file, or a damaged one")?;
        add_entry(tree, &mut entry, index, layer.rules, length)?;
        left.set(MAX_HEADERS);
    }
    Ok(())
}

/// Reads headers only, and not without end; contents are skipped by seeking.
struct Headers<'a, R> {
    file: R,
    left: &'a Cell<u64>,
}

impl<R: Read> Read for Headers<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        let left = self.left.get().checked_sub(n as u64);
        self.left
            .set(left.ok_or_else(|| io::Error::other("an entry has too long headers"))?);
        Ok(n)
    }
}

impl<R: Seek> Seek for Headers<'_, R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

fn add_entry<R: Read>(
    tree: &mut Tree,
    entry: &mut Entry<'_, R>,
    layer: usize,
    rules: Rules,
    length: u64,
) -> Result<()> {
    let path = entry.path_bytes().into_owned();
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(&path);
    if rules == Rules::Oci && name.starts_with(WHITEOUT) {
        return Ok(whiteout(tree, &path, name, layer)?);
    }
    let unknown = |what: &str| Refused::Unknown(shown(&path), what.to_owned());
    let link = entry.link_name_bytes().map(|name| name.into_owned());
    let link = || {
        let link = link.filter(|link| !link.is_empty() && !link.contains(&0));
        link.ok_or_else(|| unknown("a link to nothing"))
    };
    let (xattrs, is_sparse) = extensions(entry)?;
    let kind = match entry.header().entry_type() {
        EntryType::Directory => Kind::Folder(BTreeMap::new()),
        EntryType::Symlink => Kind::Symlink(link()?),
        EntryType::Link => return Ok(tree.link(&path, &link()?, layer)?),
        EntryType::Fifo => Kind::Fifo,
        // The guest's kernel makes its devices.
        EntryType::Char | EntryType::Block => return Ok(tree.remove_older(&path, layer)?),
        EntryType::XGlobalHeader => return Ok(()),
        EntryType::GNUSparse => Err(unknown("sparse: pack it without tar's --sparse"))?,
        _ if is_sparse => Err(unknown("sparse: pack it without tar's --sparse"))?,
        EntryType::Regular | EntryType::Continuous => {
            let (offset, size) = (entry.raw_file_position(), entry.size());
            if offset.checked_add(size).is_none_or(|end| end > length) {
                Err(Refused::CutShort(shown(&path)))?;
            }
            Kind::File(Content {
                layer,
                offset,
                size,
            })
        }
        other => Err(unknown(&format!("of an unknown kind ({other:?})")))?,
    };
    let header = entry.header();
    let meta = Meta {
        mode: header.mode()? & 0o7777,
        uid: header.uid()?,
        gid: header.gid()?,
        mtime: header.mtime().unwrap_or(0),
        xattrs,
    };
    Ok(tree.put(&path, Node { meta, kind }, layer, rules)?)
}

fn whiteout(tree: &mut Tree, path: &[u8], name: &[u8], layer: usize) -> Result<(), Refused> {
    let folder = &path[..path.len() - name.len()];
    if name == OPAQUE {
        return tree.remove_older_in(folder, layer);
    }
    if name.starts_with(NOTES) {
        return Ok(());
    }
    let hidden = &name[WHITEOUT.len()..];
    if hidden.is_empty() || hidden == b"." {
        return Err(Refused::Name(shown(path)));
    }
    tree.remove_older(&[folder, hidden].concat(), layer)
}

/// The extended attributes that a guest's root may have, and whether the entry is sparse.
fn extensions<R: Read>(entry: &mut Entry<'_, R>) -> Result<(Xattrs, bool)> {
    let mut xattrs = Vec::new();
    let mut is_sparse = false;
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension.context("its extended headers are damaged")?;
        let Ok(key) = extension.key() else { continue };
        is_sparse |= key.starts_with("GNU.sparse.");
        if let Some(name) = key.strip_prefix(XATTR)
            && (name.starts_with("user.") || name == "security.capability")
        {
            xattrs.push((name.to_owned(), extension.value_bytes().to_vec()));
        }
    }
    Ok((xattrs, is_sparse))
}
