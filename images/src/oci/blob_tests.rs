// SPDX-License-Identifier: GPL-2.0-only

use super::*;

fn digest(content: &[u8]) -> Sha256Digest {
    let sum = Sha256::digest(content);
    let digits: String = sum.iter().map(|b| format!("{b:02x}")).collect();
    Sha256Digest::parse(&format!("sha256:{digits}")).unwrap()
}

fn file(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file.rewind().unwrap();
    file
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(content).unwrap();
    gzip.finish().unwrap()
}

#[test]
fn a_digest_is_64_digits_and_nothing_else() {
    let digits = "0".repeat(64);
    assert!(Sha256Digest::parse(&format!("sha256:{digits}")).is_ok());
    for bad in [
        digits.clone(),
        format!("sha512:{digits}"),
        format!("sha256:{}", &digits[1..]),
        format!("sha256:../{}", &digits[3..]),
        format!("sha256:{}", "A".repeat(64)),
    ] {
        assert!(Sha256Digest::parse(&bad).is_err(), "{bad}");
    }
}

#[test]
fn content_of_another_size_or_digest_is_refused() {
    let sum = digest(b"hello");
    assert_eq!(verified(&b"hello"[..], 5, &sum).unwrap(), b"hello");
    for (content, size) in [
        (&b"hellx"[..], 5),
        (b"hell", 5),
        (b"hello!", 5),
        (b"hello", 6),
    ] {
        assert!(verified(content, size, &sum).is_err(), "{content:?}");
    }
}

#[test]
fn layers_are_unpacked_and_verified_however_they_are_compressed() {
    let work = tempfile::tempdir().unwrap();
    let content = b"content ".repeat(1000);
    let zstd = zstd::encode_all(&content[..], 1).unwrap();
    for packed in [content.clone(), gzip(&content), zstd] {
        let mut unpacked = Vec::new();
        let mut opened = layer(file(&packed), &digest(&content), work.path()).unwrap();
        opened.read_to_end(&mut unpacked).unwrap();
        assert_eq!(unpacked, content);
        assert!(layer(file(&packed), &digest(b"other"), work.path()).is_err());
        let cut = &packed[..packed.len() - 9];
        assert!(layer(file(cut), &digest(&content), work.path()).is_err());
    }
    for other in [&b"BZh91AY"[..], &[0xfd, b'7', b'z', b'X', b'Z', 0]] {
        let error = layer(file(other), &digest(other), work.path()).unwrap_err();
        assert!(error.to_string().contains("only gzip and zstd"), "{error}");
    }
}

#[test]
fn what_unpacks_without_end_is_refused() {
    let work = tempfile::tempdir().unwrap();
    let long = vec![0; usize::try_from(MAX_LAYER).unwrap() + 1];
    let error = plain(file(&gzip(&long)), work.path()).unwrap_err();
    assert!(error.to_string().contains("longer than"), "{error}");
}
