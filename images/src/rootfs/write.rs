// SPDX-License-Identifier: GPL-2.0-only
//! Writes a tree as one tar file.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use tar::{Builder, EntryType, Header};

use super::Layer;
use super::tree::{Kind, Node, Tree};
use crate::window::Window;

/// So much of a name fits in a plain header.
const SHORT: usize = 99;

/// Writes the tree: folders before what is in them, a file before its other names.
///
/// # Errors
/// A layer cannot be read, or `out` not be written.
pub fn write(tree: &Tree, layers: &[&Layer], out: impl Write) -> io::Result<()> {
    let mut builder = Builder::new(out);
    let mut written = HashMap::new();
    append(&mut builder, b"./", tree.root(), layers)?;
    let mut todo = vec![(b"./".to_vec(), tree.root())];
    while let Some((path, node)) = todo.pop() {
        let Kind::Folder(children) = &node.kind else {
            continue;
        };
        for (name, child) in children {
            let node = tree.node(child.node);
            let mut path = [&path, &name[..]].concat();
            if matches!(node.kind, Kind::Folder(_)) {
                path.push(b'/');
                append(&mut builder, &path, node, layers)?;
                todo.push((path, node));
            } else if let Some(first) = written.get(&child.node) {
                let mut header = header_of(node, EntryType::Link);
                append_header(&mut builder, &mut header, &path, Some(first), node, &[][..])?;
            } else {
                append(&mut builder, &path, node, layers)?;
                written.insert(child.node, path);
            }
        }
    }
    builder.into_inner()?.flush()
}

fn header_of(node: &Node, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(node.meta.mode);
    header.set_uid(node.meta.uid);
    header.set_gid(node.meta.gid);
    header.set_mtime(node.meta.mtime);
    header.set_size(0);
    header
}

fn append<W: Write>(
    builder: &mut Builder<W>,
    path: &[u8],
    node: &Node,
    layers: &[&Layer],
) -> io::Result<()> {
    let kind = match &node.kind {
        Kind::Folder(_) => EntryType::Directory,
        Kind::File(_) => EntryType::Regular,
        Kind::Symlink(_) => EntryType::Symlink,
        Kind::Fifo => EntryType::Fifo,
    };
    let mut header = header_of(node, kind);
    match &node.kind {
        Kind::File(content) => {
            header.set_size(content.size);
            let data = Window::new(&layers[content.layer].file, content.offset, content.size);
            append_header(builder, &mut header, path, None, node, data)
        }
        Kind::Symlink(to) => append_header(builder, &mut header, path, Some(to), node, &[][..]),
        _ => append_header(builder, &mut header, path, None, node, &[][..]),
    }
}

/// An entry; what does not fit in its header goes before it.
fn append_header<W: Write>(
    builder: &mut Builder<W>,
    header: &mut Header,
    path: &[u8],
    link: Option<&Vec<u8>>,
    node: &Node,
    data: impl Read,
) -> io::Result<()> {
    let mut extensions: Vec<(String, &[u8])> = Vec::new();
    if path.len() > SHORT {
        extensions.push(("path".to_owned(), path));
    }
    if let Some(link) = link.filter(|link| link.len() > SHORT) {
        extensions.push(("linkpath".to_owned(), link));
    }
    for (name, value) in &node.meta.xattrs {
        extensions.push((format!("SCHILY.xattr.{name}"), value));
    }
    if !extensions.is_empty() {
        let extensions = extensions.iter().map(|(key, value)| (key.as_str(), *value));
        builder.append_pax_extensions(extensions)?;
    }
    let raw = header.as_old_mut();
    fill(&mut raw.name, path);
    fill(&mut raw.linkname, link.map_or(&[], |link| link));
    header.set_cksum();
    builder.append(header, data)
}

fn fill(field: &mut [u8; 100], text: &[u8]) {
    let length = text.len().min(SHORT);
    field.fill(0);
    field[..length].copy_from_slice(&text[..length]);
}
