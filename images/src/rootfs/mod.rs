// SPDX-License-Identifier: GPL-2.0-only
//! A root file system made of layers, each a tar file that lies over those before it.
//!
//! The layers may come from anybody. They are merged in memory ([`Tree`]), where a name leads
//! nowhere but into the tree; of it one tar file is written that has each file once, below folders
//! only. So nothing of a layer touches this machine's files, and no program that unpacks the
//! result has to follow a link.

mod layer;
mod tree;
mod write;

use std::fs::File;

pub use layer::add_layer;
pub use tree::{Kind, Meta, Node, Rules, Tree, Xattrs};
pub use write::write;

/// Where the content of a file lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// Index of the layer.
    pub layer: usize,
    /// Where it begins in the layer's file, bytes.
    pub offset: u64,
    /// How long it is, bytes.
    pub size: u64,
}

/// A layer: a tar file that is not compressed, and how it is read.
#[derive(Debug)]
pub struct Layer {
    /// What it is, for messages.
    pub name: String,
    /// The file, which can be read at any place.
    pub file: File,
    /// What its entries mean.
    pub rules: Rules,
}

/// A layer that cannot be part of a root file system.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refused {
    /// A name has a part `..`, a NUL, or is too long.
    #[error("the name {0:?} leads out of it, or is none that Linux can have")]
    Name(String),
    /// A file lies where a folder would have to.
    #[error("{0:?} would lie below what is no folder")]
    BelowFile(String),
    /// Symbolic links that lead to each other.
    #[error("{0:?} lies behind too many symbolic links")]
    Loop(String),
    /// A hard link without the file.
    #[error("{0:?} is a hard link to {1:?}, which is no file in it")]
    Link(String, String),
    /// A kind of entry that we do not unpack.
    #[error("{0:?} is {1}")]
    Unknown(String, String),
    /// More than anybody needs.
    #[error("it has more than {0} files")]
    TooMany(usize),
    /// The file ends before its last entry does.
    #[error("it ends within {0:?}")]
    CutShort(String),
}
