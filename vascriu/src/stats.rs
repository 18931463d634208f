//! CRIU's `stats-dump` and `stats-restore` images: two magic numbers, a length,
//! and one small protobuf message of varints (CRIU's `images/stats.proto`).

use std::path::Path;

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

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// One field of a message.
enum Field<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
}

/// The next field and its number; none at the end or at damage.
fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let key = varint(bytes)?;
    let value = match key & 7 {
        0 => Field::Varint(varint(bytes)?),
        2 => {
            let len = usize::try_from(varint(bytes)?).ok()?;
            let (value, rest) = bytes.split_at_checked(len)?;
            *bytes = rest;
            Field::Bytes(value)
        }
        _ => return None,
    };
    Some((key >> 3, value))
}

/// The varints of the message in field `which` of the image's only entry.
fn entry(image: &[u8], which: u64) -> Option<impl Fn(u64) -> u64 + use<>> {
    let mut entry = image.get(12..)?; // IMG_SERVICE_MAGIC, STATS_MAGIC, size
    let mut inner = loop {
        match field(&mut entry)? {
            (n, Field::Bytes(b)) if n == which => break b,
            _ => {}
        }
    };
    let mut values = Vec::new();
    while let Some((n, Field::Varint(v))) = field(&mut inner) {
        values.push((n, v));
    }
    Some(move |n| values.iter().find(|(m, _)| *m == n).map_or(0, |(_, v)| *v))
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
