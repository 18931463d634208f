// SPDX-License-Identifier: GPL-2.0-only
//! Content that is known by its digest, and what is compressed in it.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

/// The most bytes that a layer may have when it is not compressed any more.
const MAX_LAYER: u64 = if cfg!(test) { 64 << 20 } else { 64 << 30 };

/// A digest by SHA-256: 64 hexadecimal digits, so it leads nowhere as a file's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sha256Digest(String);

impl Sha256Digest {
    /// `sha256:DIGITS`.
    pub fn parse(text: &str) -> Result<Self> {
        let digits = text.strip_prefix("sha256:").unwrap_or_default();
        let plain = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        ensure!(
            digits.len() == 64 && digits.bytes().all(plain),
            "{text:?} is no digest by SHA-256"
        );
        Ok(Self(digits.to_owned()))
    }

    pub fn digits(&self) -> &str {
        &self.0
    }

    fn check(&self, sum: Sha256) -> Result<()> {
        let sum: String = sum.finalize().iter().map(|b| format!("{b:02x}")).collect();
        ensure!(
            sum == self.0,
            "its content is not what its digest says: damaged, or changed by somebody"
        );
        Ok(())
    }
}

/// Copies at most `limit` bytes, and what they hash to.
fn copy(mut from: impl Read, mut to: impl Write, limit: u64) -> Result<(u64, Sha256)> {
    let mut sum = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let mut copied = 0;
    loop {
        let n = match from.read(&mut buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            n => n.context("cannot read it: it is damaged, or ends too early")?,
        };
        if n == 0 {
            return Ok((copied, sum));
        }
        copied += n as u64;
        ensure!(copied <= limit, "it is longer than {limit} bytes");
        sum.update(&buffer[..n]);
        to.write_all(&buffer[..n]).context("cannot write it")?;
    }
}

/// Reads content that has this size and digest.
pub(crate) fn verified(from: impl Read, size: u64, digest: &Sha256Digest) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    let (copied, sum) = copy(from, &mut content, size)?;
    ensure!(copied == size, "it has {copied} bytes instead of {size}");
    digest.check(sum)?;
    Ok(content)
}

/// Has content of this size and digest in a file of its own, in `work`.
pub(crate) fn stored(
    from: impl Read,
    size: u64,
    digest: &Sha256Digest,
    work: &Path,
) -> Result<File> {
    let mut file = tempfile::tempfile_in(work)?;
    let (copied, sum) = copy(from, &mut file, size)?;
    ensure!(copied == size, "it has {copied} bytes instead of {size}");
    digest.check(sum)?;
    file.rewind()?;
    Ok(file)
}

/// A tar file as it is, or unpacked from gzip or zstd into a file of its own, in `work`.
pub(crate) fn plain(file: File, work: &Path) -> Result<File> {
    Ok(unpack(file, work)?.0)
}

/// The same of a layer whose digest is known.
pub(crate) fn layer(file: File, digest: &Sha256Digest, work: &Path) -> Result<File> {
    let (mut file, sum) = unpack(file, work)?;
    let sum = match sum {
        Some(sum) => sum,
        None => copy(&file, io::sink(), MAX_LAYER)?.1,
    };
    digest.check(sum)?;
    file.rewind()?;
    Ok(file)
}

fn unpack(mut file: File, work: &Path) -> Result<(File, Option<Sha256>)> {
    let mut magic = Vec::new();
    (&file).take(4).read_to_end(&mut magic)?;
    file.rewind()?;
    let mut out = tempfile::tempfile_in(work)?;
    let sum = match magic[..] {
        [0x1f, 0x8b, ..] => {
            copy(
                flate2::read::MultiGzDecoder::new(io::BufReader::new(&file)),
                &mut out,
                MAX_LAYER,
            )?
            .1
        }
        [0x28, 0xb5, 0x2f, 0xfd] => copy(zstd::Decoder::new(&file)?, &mut out, MAX_LAYER)?.1,
        [b'B', b'Z', b'h', _] | [0xfd, b'7', b'z', b'X'] => {
            bail!("it is compressed by bzip2 or xz: only gzip and zstd are known")
        }
        _ => return Ok((file, None)),
    };
    out.rewind()?;
    Ok((out, Some(sum)))
}

#[cfg(test)]
#[path = "blob_tests.rs"]
mod tests;
