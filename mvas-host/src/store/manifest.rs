//! The file that makes a snapshot: `snapshots/NAME.snap`. Bytes in, bytes out.

use std::fmt::Write;
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::extent::{ExtentList, ExtentSet};
use super::id::{RunId, SnapshotName};
use super::meta::{self, MetaError};

const MAGIC: [u8; 8] = *b"MVASSNAP";
const VERSION: u32 = 1;
/// Magic, version, and both lengths.
pub(super) const FIXED: usize = 24;
const DIGEST: usize = 32;
/// The most bytes of a head's JSON, and of metadata.
const MAX_PART: u64 = 1 << 30;

/// What is wrong with a manifest.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// It does not begin like one.
    #[error("it does not begin with {:?}: it is no manifest", "MVASSNAP")]
    Magic,
    /// Of another version.
    #[error("its format is version {0}; this program knows version {VERSION}")]
    Version(u32),
    /// Its length is not what it says.
    #[error("it should have {expected} bytes and has {found}: it was cut short, or is damaged")]
    Length {
        /// What its lengths add up to; the least there must be if that is unknown.
        expected: u64,
        /// What there is.
        found: u64,
    },
    /// Some byte of the head is not what was written.
    #[error("the checksum of its head is wrong: it is damaged")]
    HeadDigest,
    /// Some byte of the metadata is not what was written.
    #[error("the checksum of its metadata is wrong: it is damaged")]
    MetaDigest,
    /// The head is whole and makes no sense.
    #[error("its head makes no sense")]
    Head(#[from] serde_json::Error),
    /// The head and what it describes disagree.
    #[error("its head and its content disagree on {0}")]
    Disagrees(&'static str),
    /// The metadata is whole and makes no sense.
    #[error("its metadata makes no sense")]
    Meta(#[from] MetaError),
    /// It names memory that is not there.
    #[error("it names block {block} of RAM file {run}, which is not there")]
    NoExtent {
        /// Whose RAM file.
        run: RunId,
        /// Which block.
        block: u64,
    },
}

/// A manifest without its metadata: what a snapshot is and which blocks it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Name of the snapshot.
    pub name: SnapshotName,
    /// Name of the VM that made it.
    pub vm: String,
    /// That VM's run.
    pub run: RunId,
    /// When it was completed, nanoseconds since 1970.
    pub created_ns: u64,
    /// Virtual address spaces: one for each task, and one for CRIU's images.
    pub vases: u64,
    /// Their VMAs.
    pub vmas: u64,
    /// Their pages of 4 KiB that are not zero.
    pub pages: u64,
    /// Blocks of guest memory (kind 0).
    pub blocks: ExtentList,
    /// Blocks of packed pages (kind 1).
    pub packed: ExtentList,
    /// How many pages are packed.
    pub packed_pages: u64,
    /// Length of the metadata, bytes.
    pub meta_bytes: u64,
    /// SHA-256 of the metadata, hexadecimal.
    pub meta_sha256: String,
}

impl Head {
    /// The blocks that the snapshot needs.
    pub(super) fn needs(&self) -> impl Iterator<Item = super::ExtentRun> + '_ {
        self.blocks.runs().iter().chain(self.packed.runs()).copied()
    }

    /// The blocks that the snapshot needs, each once.
    pub(super) fn needed(&self) -> ExtentSet {
        self.needs().collect()
    }
}

/// A complete snapshot. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// What it is.
    pub head: Arc<Head>,
    /// What its pages mean; checked.
    pub meta: Arc<[u8]>,
}

impl Deref for Manifest {
    type Target = Head;

    fn deref(&self) -> &Head {
        &self.head
    }
}

pub(super) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}"); // a String takes everything
            text
        })
}

/// The bytes of a manifest.
///
/// # Errors
/// A part is longer than a manifest may have.
pub(super) fn encode(head: &Head, meta: &[u8]) -> Result<Vec<u8>, ManifestError> {
    let json = serde_json::to_vec(head)?;
    let too_long = |_| ManifestError::Disagrees("its length");
    let json_len = u32::try_from(json.len()).map_err(too_long)?;
    let mut bytes = Vec::with_capacity(FIXED + json.len() + DIGEST + meta.len());
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(json_len.to_le_bytes());
    bytes.extend((meta.len() as u64).to_le_bytes());
    bytes.extend(json);
    let head_digest = Sha256::digest(&bytes);
    bytes.extend(head_digest);
    bytes.extend(meta);
    Ok(bytes)
}

/// The lengths that the first [`FIXED`] bytes of a file of `file_len` bytes announce: of the
/// head with its checksum, and of the metadata.
pub(super) fn lengths(fixed: &[u8], file_len: u64) -> Result<(usize, usize), ManifestError> {
    let short = ManifestError::Length {
        expected: FIXED as u64,
        found: file_len,
    };
    let Some(fixed) = fixed.first_chunk::<FIXED>() else {
        return Err(short);
    };
    let u32_at =
        |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
    if fixed[..8] != MAGIC {
        return Err(ManifestError::Magic);
    }
    if u32_at(8) != VERSION {
        return Err(ManifestError::Version(u32_at(8)));
    }
    let json = u64::from(u32_at(12));
    let meta = u64::from(u32_at(16)) | u64::from(u32_at(20)) << 32;
    let head = json + (FIXED + DIGEST) as u64;
    let expected = head.saturating_add(meta);
    if expected != file_len || json > MAX_PART || meta > MAX_PART {
        return Err(ManifestError::Length {
            expected,
            found: file_len,
        });
    }
    match (usize::try_from(head), usize::try_from(meta)) {
        (Ok(head), Ok(meta)) => Ok((head, meta)),
        _ => Err(short),
    }
}

/// Reads the head from its bytes, its checksum included.
pub(super) fn decode_head(bytes: &[u8]) -> Result<Head, ManifestError> {
    let (covered, written) = bytes
        .split_last_chunk::<DIGEST>()
        .ok_or(ManifestError::HeadDigest)?;
    if Sha256::digest(covered).as_slice() != written {
        return Err(ManifestError::HeadDigest);
    }
    let json = covered.get(FIXED..).ok_or(ManifestError::HeadDigest)?;
    Ok(serde_json::from_slice(json)?)
}

/// Checks that the metadata is what was written, makes sense, and is what the head says.
pub(super) fn check_meta(head: &Head, meta: &[u8]) -> Result<(), ManifestError> {
    if head.meta_bytes != meta.len() as u64 {
        return Err(ManifestError::Disagrees("the length of the metadata"));
    }
    if digest(meta) != head.meta_sha256 {
        return Err(ManifestError::MetaDigest);
    }
    let summary = meta::check(meta, head.blocks.len(), head.packed_pages)?;
    if (summary.vases, summary.vmas, summary.pages) != (head.vases, head.vmas, head.pages) {
        return Err(ManifestError::Disagrees("its sizes"));
    }
    if head.packed_pages.div_ceil(super::PAGES) > head.packed.len() {
        return Err(ManifestError::Disagrees("the packed pages"));
    }
    Ok(())
}
