// SPDX-License-Identifier: GPL-2.0-only
//! CRIU's `stats-dump` and `stats-restore` images: two magic numbers, a length,
//! and one small protobuf message of varints (CRIU's `images/stats.proto`).

use std::path::Path;

use protobuf::well_known_types::empty::Empty;
use protobuf::{Message, UnknownValueRef};

/// What CRIU measured of a dump, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DumpStats {
    /// How long it took to stop the tasks.
    pub freezing_us: u64,
    /// How long they were stopped.
    pub frozen_us: u64,
    /// Finding the pages and writing them.
    pub memdump_us: u64,
    /// Writing them alone: a part of `memdump_us`.
    pub memwrite_us: u64,
    /// Pages written to image files.
    pub pages_written: u64,
}

/// What CRIU measured of a restore, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RestoreStats {
    /// Forking the tasks.
    pub forking_us: u64,
    /// Until the tasks were ready to go.
    pub restore_us: u64,
    /// Pages read from image files.
    pub pages_restored: u64,
}

/// The numbers of the message in field `which` of the image's only entry.
fn entry(image: &[u8], which: u32) -> Option<impl Fn(u32) -> u64 + use<>> {
    // Before it are IMG_SERVICE_MAGIC, STATS_MAGIC and its size. Without a definition all of
    // its fields are unknown ones.
    let entry = Empty::parse_from_bytes(image.get(12..)?).ok()?;
    let Some(UnknownValueRef::LengthDelimited(inner)) = entry.unknown_fields().get(which) else {
        return None;
    };
    let inner = Empty::parse_from_bytes(inner).ok()?;
    Some(move |number| match inner.unknown_fields().get(number) {
        Some(UnknownValueRef::Varint(value)) => value,
        _ => 0,
    })
}

/// Decodes a `stats-dump` image.
#[must_use]
pub fn decode_dump(image: &[u8]) -> Option<DumpStats> {
    let get = entry(image, 1)?;
    Some(DumpStats {
        freezing_us: get(1),
        frozen_us: get(2),
        memdump_us: get(3),
        memwrite_us: get(4),
        pages_written: get(7),
    })
}

/// Decodes a `stats-restore` image.
#[must_use]
pub fn decode_restore(image: &[u8]) -> Option<RestoreStats> {
    let get = entry(image, 2)?;
    Some(RestoreStats {
        forking_us: get(3),
        restore_us: get(4),
        pages_restored: get(5),
    })
}

/// Reads `stats-dump` in `dir`; zeros where there is none.
#[must_use]
pub fn dump(dir: &Path) -> DumpStats {
    std::fs::read(dir.join("stats-dump"))
        .ok()
        .and_then(|i| decode_dump(&i))
        .unwrap_or_default()
}

/// Reads `stats-restore` in `dir`; zeros where there is none.
#[must_use]
pub fn restore(dir: &Path) -> RestoreStats {
    let image = std::fs::read(dir.join("stats-restore")).ok();
    image.and_then(|i| decode_restore(&i)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn put(out: &mut Vec<u8>, mut v: u64) {
        while v >= 0x80 {
            out.push(u8::try_from(v & 0x7f | 0x80).expect("a byte"));
            v >>= 7;
        }
        out.push(u8::try_from(v).expect("a byte"));
    }

    fn image(which: u64, fields: &[(u64, u64)]) -> Vec<u8> {
        let mut inner = Vec::new();
        for &(n, v) in fields {
            put(&mut inner, n << 3);
            put(&mut inner, v);
        }
        let mut out = vec![0x29, 0x41, 0x45, 0x55, 0x12, 0x34, 0x56, 0x57, 0, 0, 0, 0];
        put(&mut out, which << 3 | 2);
        put(&mut out, inner.len() as u64);
        out.extend(inner);
        out
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(a: u32, b: u32, c: u32, d: u32, pages: u64) {
            let fields = [(1, a.into()), (2, b.into()), (3, c.into()), (4, d.into()), (5, 9), (7, pages)];
            let want = DumpStats {
                freezing_us: a.into(), frozen_us: b.into(), memdump_us: c.into(),
                memwrite_us: d.into(), pages_written: pages,
            };
            prop_assert_eq!(decode_dump(&image(1, &fields)), Some(want));
            prop_assert_eq!(decode_restore(&image(1, &fields)), None);
        }

        #[test]
        fn junk_is_no_panic(junk in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (decode_dump(&junk), decode_restore(&junk));
        }

        #[test]
        fn a_cut_image_is_no_panic(cut in 0usize..40) {
            let mut whole = image(2, &[(1, 1), (2, 2), (3, 1 << 30), (4, 5), (5, 1 << 40)]);
            whole.truncate(cut);
            let _ = decode_restore(&whole);
        }
    }
}
