// SPDX-License-Identifier: GPL-2.0-only
//! The file that makes a snapshot: `snapshots/NAME.snap`. Bytes in, bytes out.

use std::fmt::Write;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

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
    /// More than a manifest may have.
    #[error("its head or its metadata would be longer than {MAX_PART} bytes")]
    TooLong,
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
    /// Worked out when it is asked for.
    #[serde(skip)]
    pub(super) needed: OnceLock<ExtentSet>,
}

impl Head {
    /// The blocks that the snapshot needs, each once.
    pub(super) fn needed(&self) -> &ExtentSet {
        self.needed.get_or_init(|| {
            let runs = self.blocks.runs().iter().chain(self.packed.runs());
            runs.copied().collect()
        })
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
    if json.len().max(meta.len()) as u64 > MAX_PART {
        return Err(ManifestError::TooLong);
    }
    let json_len = u32::try_from(json.len()).map_err(|_| ManifestError::TooLong)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ExtentRun;
    use proptest::prelude::*;

    fn list(runs: &[(u64, u64, u64)]) -> ExtentList {
        let run = |&(run, first, count): &(u64, u64, u64)| ExtentRun {
            run: RunId::new(run).unwrap(),
            first,
            count,
        };
        runs.iter().map(run).collect::<Vec<_>>().try_into().unwrap()
    }

    /// A head for metadata without address spaces.
    fn head(meta: &[u8]) -> Head {
        Head {
            name: "s".parse().unwrap(),
            vm: "vm".to_owned(),
            run: RunId::new(1).unwrap(),
            created_ns: 1,
            vases: 0,
            vmas: 0,
            pages: 0,
            blocks: list(&[(1, 5, 3), (2, 0, 1)]),
            packed: list(&[(1, 0, 1)]),
            packed_pages: 512,
            meta_bytes: meta.len() as u64,
            meta_sha256: digest(meta),
            needed: OnceLock::new(),
        }
    }

    fn empty_meta() -> Vec<u8> {
        [0x4d53_4156u32, 2, 0, 0]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect()
    }

    fn decode(bytes: &[u8]) -> Result<(Head, Vec<u8>), ManifestError> {
        let (head_len, meta_len) = lengths(bytes, bytes.len() as u64)?;
        let head = decode_head(&bytes[..head_len])?;
        let meta = bytes[head_len..].to_vec();
        assert_eq!(meta.len(), meta_len);
        check_meta(&head, &meta)?;
        Ok((head, meta))
    }

    /// Bytes whose lengths and checksum are right, around any JSON.
    fn sealed(json: &[u8], meta: &[u8]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(u32::try_from(json.len()).unwrap().to_le_bytes());
        bytes.extend((meta.len() as u64).to_le_bytes());
        bytes.extend(json);
        let sum = Sha256::digest(&bytes);
        bytes.extend(sum);
        bytes.extend(meta);
        bytes
    }

    #[test]
    fn what_is_written_is_read_back() {
        let meta = empty_meta();
        let bytes = encode(&head(&meta), &meta).unwrap();
        assert_eq!(decode(&bytes).unwrap(), (head(&meta), meta));
    }

    #[test]
    fn a_head_that_contradicts_its_content_is_refused() {
        let meta = empty_meta();
        let refuse = |change: fn(&mut Head)| {
            let mut head = head(&meta);
            change(&mut head);
            assert!(decode(&encode(&head, &meta).unwrap()).is_err(), "{head:?}");
        };
        refuse(|h| h.vases = 1);
        refuse(|h| h.vmas = 1);
        refuse(|h| h.pages = u64::MAX);
        refuse(|h| h.packed_pages = 513);
        refuse(|h| h.packed_pages = u64::MAX);
        refuse(|h| h.meta_bytes = 0);
        refuse(|h| h.meta_sha256 = h.meta_sha256.to_uppercase());
    }

    #[test]
    fn a_sealed_head_that_makes_no_sense_is_refused() {
        let meta = empty_meta();
        let json = serde_json::to_string(&head(&meta)).unwrap();
        assert!(decode(&sealed(json.as_bytes(), &meta)).is_ok());
        let run = |text: &str| format!(r#"[{{"run":"{text}}}]"#);
        let deep = "[".repeat(100_000);
        for (what, by) in [
            (r#""name":"s""#, r#""name":"../s""#.to_owned()),
            (r#""vm":"vm""#, r#""vm":"vm","more":1"#.to_owned()),
            (r#""first":5"#, r#""first":18446744073709551615"#.to_owned()),
            (r#""count":3"#, r#""count":18446744073709551615"#.to_owned()),
            (r#""count":3"#, r#""count":0"#.to_owned()),
            (r#""count":3"#, r#""count":-3"#.to_owned()),
            (r#""packed_pages":512"#, r#""packed_pages":1e99"#.to_owned()),
            (
                r#""run":"0000000000000002""#,
                r#""run":"0000000000000000""#.to_owned(),
            ),
            (r#""blocks":["#, format!(r#""blocks":[{deep}"#)),
            ("{", String::new()),
            (&json.clone(), run("x")),
        ] {
            let changed = json.replacen(what, &by, 1);
            assert_ne!(changed, json, "{what}");
            assert!(
                decode(&sealed(changed.as_bytes(), &meta)).is_err(),
                "{changed:.300}"
            );
        }
        assert!(decode(&sealed(b"\xff", &meta)).is_err());
    }

    #[test]
    fn huge_lengths_are_refused_before_they_are_believed() {
        let meta = empty_meta();
        let bytes = encode(&head(&meta), &meta).unwrap();
        for (at, len) in [(12, 4), (16, 8)] {
            let mut huge = bytes.clone();
            huge[at..at + len].fill(0xff);
            for file_len in [bytes.len() as u64, u64::MAX, 1 << 62] {
                let read = lengths(&huge, file_len);
                assert!(
                    matches!(read, Err(ManifestError::Length { .. })),
                    "{read:?}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), json: String) {
            prop_assert!(decode(&bytes).is_err());
            prop_assert!(decode(&sealed(json.as_bytes(), &bytes)).is_err());
            let magic = [&MAGIC[..], &VERSION.to_le_bytes(), &bytes].concat();
            prop_assert!(decode(&magic).is_err());
        }
    }
}
