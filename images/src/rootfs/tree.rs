// SPDX-License-Identifier: GPL-2.0-only
//! The merged layers.
//!
//! Invariants: node 0 is the root and a folder; a name of a folder is neither empty nor `.` nor
//! `..`, and has no slash; nodes of a folder are reached by one name only, nodes of files by as
//! many as they have hard links.

use std::collections::BTreeMap;

use super::{Content, Refused};

/// Linux's limits, bytes.
const MAX_NAME: usize = 255;
const MAX_PATH: usize = 4095;
/// As many symbolic links are followed on the way to a file.
const MAX_LINKS: u32 = 40;
/// More nodes are refused: each takes memory here.
const MAX_NODES: usize = if cfg!(test) { 200_000 } else { 4_000_000 };

const ROOT: usize = 0;

/// How the entries of a layer are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// As a layer of an OCI image: `.wh.NAME` removes NAME of earlier layers, `.wh..wh..opq` what
    /// they have in its folder; a folder takes the place of a symbolic link.
    Oci,
    /// As they are; a symbolic link to a folder stays where the layer has a folder.
    Plain,
}

/// Extended attributes: their names and values.
pub type Xattrs = Vec<(String, Vec<u8>)>;

/// What a file has besides its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// When its content changed, seconds since 1970.
    pub mtime: u64,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

impl Meta {
    /// Of root, and nothing special.
    #[must_use]
    pub fn of_root(mode: u32) -> Self {
        Self {
            mode,
            uid: 0,
            gid: 0,
            mtime: 0,
            xattrs: Vec::new(),
        }
    }
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Folder(BTreeMap<Vec<u8>, Child>),
    /// A file.
    File(Content),
    /// A symbolic link.
    Symlink(Vec<u8>),
    /// A named pipe.
    Fifo,
}

/// An entry of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Child {
    /// Index of its node.
    pub node: usize,
    /// The last layer that has it.
    layer: usize,
}

/// A file or folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Owner and the like.
    pub meta: Meta,
    /// What it is.
    pub kind: Kind,
}

/// A root file system in memory, without the content of its files.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
}

impl Default for Tree {
    fn default() -> Self {
        Self {
            nodes: vec![Node {
                meta: Meta::of_root(0o755),
                kind: Kind::Folder(BTreeMap::new()),
            }],
        }
    }
}

/// For messages.
pub(super) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// The parts of a path; one that begins with a slash begins at the root all the same.
fn parts(path: &[u8]) -> Result<Vec<&[u8]>, Refused> {
    let parts: Vec<&[u8]> = path
        .split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .collect();
    let wrong = |part: &&[u8]| *part == b".." || part.len() > MAX_NAME || part.contains(&0);
    if path.len() > MAX_PATH || parts.iter().any(wrong) {
        return Err(Refused::Name(shown(path)));
    }
    Ok(parts)
}

impl Tree {
    /// The root.
    #[must_use]
    pub fn root(&self) -> &Node {
        &self.nodes[ROOT]
    }

    /// A node by its index in a [`Child`].
    #[must_use]
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    fn children(&mut self, folder: usize) -> &mut BTreeMap<Vec<u8>, Child> {
        match &mut self.nodes[folder].kind {
            Kind::Folder(children) => children,
            _ => unreachable!("only folders are walked"),
        }
    }

    fn child(&self, folder: usize, name: &[u8]) -> Option<usize> {
        match &self.nodes[folder].kind {
            Kind::Folder(children) => children.get(name).map(|child| child.node),
            _ => None,
        }
    }

    fn add_node(&mut self, node: Node) -> Result<usize, Refused> {
        if self.nodes.len() >= MAX_NODES {
            return Err(Refused::TooMany(MAX_NODES));
        }
        self.nodes.push(node);
        Ok(self.nodes.len() - 1)
    }

    /// The folder that `parts` lead to, symbolic links followed within the tree. Folders that are
    /// missing are made as `layer`'s, or the answer is `None` without one.
    fn folder(&mut self, path: &[u8], layer: Option<usize>) -> Result<Option<usize>, Refused> {
        let mut todo: Vec<Vec<u8>> = parts(path)?.into_iter().rev().map(<[u8]>::to_vec).collect();
        let mut way = vec![ROOT];
        let mut links = 0;
        while let Some(part) = todo.pop() {
            let here = way.last().copied().unwrap_or(ROOT);
            if part == b".." {
                // Only of a link: above the root is the root.
                way.truncate((way.len() - 1).max(1));
                continue;
            }
            let Some(node) = self.child(here, &part) else {
                let Some(layer) = layer else { return Ok(None) };
                let kind = Kind::Folder(BTreeMap::new());
                let meta = Meta::of_root(0o755);
                let node = self.add_node(Node { meta, kind })?;
                self.children(here).insert(part, Child { node, layer });
                way.push(node);
                continue;
            };
            match &self.nodes[node].kind {
                Kind::Folder(_) => way.push(node),
                Kind::Symlink(target) => {
                    links += 1;
                    if links > MAX_LINKS || target.len() > MAX_PATH {
                        return Err(Refused::Loop(shown(path)));
                    }
                    if target.first() == Some(&b'/') {
                        way.truncate(1);
                    }
                    let target = target.split(|byte| *byte == b'/');
                    let target = target.filter(|part| !part.is_empty() && *part != b".");
                    let mut target: Vec<Vec<u8>> = target.map(<[u8]>::to_vec).collect();
                    if target.iter().any(|part| part.len() > MAX_NAME) {
                        return Err(Refused::Name(shown(path)));
                    }
                    target.reverse();
                    todo.extend(target);
                }
                _ => return Err(Refused::BelowFile(shown(path))),
            }
        }
        Ok(way.last().copied())
    }

    /// The folder of a path, made if it is missing, and its last part; `None` for the root.
    fn place<'a>(
        &mut self,
        path: &'a [u8],
        layer: usize,
    ) -> Result<Option<(usize, &'a [u8])>, Refused> {
        let parts = parts(path)?;
        let Some((name, before)) = parts.split_last() else {
            return Ok(None);
        };
        let folder = self.folder(&before.join(&b'/'), Some(layer))?;
        Ok(folder.map(|folder| (folder, *name)))
    }

    /// Puts a node at `path`; what lay there goes, but a folder that was one stays with what is
    /// in it.
    ///
    /// # Errors
    /// The path leads out of the tree or below a file, or there is no room for more nodes.
    pub fn put(
        &mut self,
        path: &[u8],
        node: Node,
        layer: usize,
        rules: Rules,
    ) -> Result<(), Refused> {
        let is_folder = matches!(node.kind, Kind::Folder(_));
        let Some((folder, name)) = self.place(path, layer)? else {
            if is_folder {
                self.nodes[ROOT].meta = node.meta;
                return Ok(());
            }
            return Err(Refused::Name(shown(path)));
        };
        if is_folder && let Some(there) = self.child(folder, name) {
            let stays = match &self.nodes[there].kind {
                Kind::Folder(_) => {
                    self.nodes[there].meta = node.meta.clone();
                    true
                }
                Kind::Symlink(_) => {
                    rules == Rules::Plain && matches!(self.folder(path, None), Ok(Some(_)))
                }
                _ => false,
            };
            if stays {
                let child = Child { node: there, layer };
                self.children(folder).insert(name.to_vec(), child);
                return Ok(());
            }
        }
        let node = self.add_node(node)?;
        self.children(folder)
            .insert(name.to_vec(), Child { node, layer });
        Ok(())
    }

    /// Makes `path` another name of the file `target`.
    ///
    /// # Errors
    /// There is no such file, or as of [`Self::put`].
    pub fn link(&mut self, path: &[u8], target: &[u8], layer: usize) -> Result<(), Refused> {
        let refused = || Refused::Link(shown(path), shown(target));
        let to = parts(target)?;
        let (name, before) = to.split_last().ok_or_else(refused)?;
        let folder = self.folder(&before.join(&b'/'), None)?;
        let node = folder
            .and_then(|folder| self.child(folder, name))
            .filter(|node| !matches!(self.nodes[*node].kind, Kind::Folder(_)))
            .ok_or_else(refused)?;
        let (folder, name) = self.place(path, layer)?.ok_or_else(refused)?;
        self.children(folder)
            .insert(name.to_vec(), Child { node, layer });
        Ok(())
    }

    /// Removes what is at `path`, but what `layer` has there.
    ///
    /// # Errors
    /// The path leads out of the tree or below a file.
    pub fn remove_older(&mut self, path: &[u8], layer: usize) -> Result<(), Refused> {
        let parts = parts(path)?;
        let (name, before) = parts
            .split_last()
            .ok_or_else(|| Refused::Name(shown(path)))?;
        let Some(folder) = self.folder(&before.join(&b'/'), None)? else {
            return Ok(());
        };
        match self.children(folder).get(*name).copied() {
            Some(child) if child.layer < layer => {
                self.children(folder).remove(*name);
            }
            Some(child) => self.clear_older(child.node, layer),
            None => {}
        }
        Ok(())
    }

    /// Removes what is in the folder `path`, but what `layer` has there.
    ///
    /// # Errors
    /// The path leads out of the tree or below a file.
    pub fn remove_older_in(&mut self, path: &[u8], layer: usize) -> Result<(), Refused> {
        if let Some(folder) = self.folder(path, None)? {
            self.clear_older(folder, layer);
        }
        Ok(())
    }

    fn clear_older(&mut self, node: usize, layer: usize) {
        let mut folders = vec![node];
        while let Some(folder) = folders.pop() {
            if let Kind::Folder(children) = &mut self.nodes[folder].kind {
                children.retain(|_, child| child.layer >= layer);
                folders.extend(children.values().map(|child| child.node));
            }
        }
    }

    /// Whether something is at `path`, itself not followed if it is a symbolic link.
    ///
    /// # Errors
    /// The path leads out of the tree or below a file.
    pub fn has(&mut self, path: &[u8]) -> Result<bool, Refused> {
        let parts = parts(path)?;
        let Some((name, before)) = parts.split_last() else {
            return Ok(true);
        };
        let folder = self.folder(&before.join(&b'/'), None)?;
        Ok(folder.is_some_and(|folder| self.child(folder, name).is_some()))
    }

    /// Has a folder at `path`, or what leads to one.
    ///
    /// # Errors
    /// A file lies there, or a link that leads nowhere useful.
    pub fn need_folder(&mut self, path: &[u8], mode: u32, layer: usize) -> Result<(), Refused> {
        if !self.has(path)? {
            let kind = Kind::Folder(BTreeMap::new());
            let meta = Meta::of_root(mode);
            return self.put(path, Node { meta, kind }, layer, Rules::Plain);
        }
        self.folder(path, Some(layer)).map(drop)
    }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
