//! CRIU's `stats-dump` image: how long the tasks were frozen and how long the
//! memory took.
//!
//! The file is two magic numbers, a length, and a `stats_entry` of CRIU's
//! `images/stats.proto`; of protobuf only numbers and nested messages occur.

use std::time::Duration;

/// What `stats-dump` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DumpStats {
    /// From the first task seized to the last one let go or killed.
    pub frozen: Duration,
    /// Finding the pages and taking them into pipes.
    pub memory_dump: Duration,
    /// Writing the pages to the image.
    pub memory_write: Duration,
    /// Pages written.
    pub pages_written: u64,
}

/// What is wrong with a stats image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The magic numbers are others.
    #[error("not a stats image of CRIU (wrong magic numbers)")]
    Magic,
    /// It ends early or is not protobuf.
    #[error("a truncated or damaged stats image")]
    Damaged,
    /// It is of a restore, or lacks a number.
    #[error("a stats image without the numbers of a dump")]
    NoDump,
}

/// `IMG_SERVICE_MAGIC` and `STATS_MAGIC` of CRIU's `magic.h`.
const MAGIC: [u32; 2] = [0x5510_5940, 0x5709_3306];

/// A field of a protobuf message: its number and value.
enum Value<'a> {
    Number(u64),
    Message(&'a [u8]),
}

/// Decodes the content of `stats-dump`.
///
/// # Errors
/// When it is not a whole stats image of a dump.
pub fn decode(image: &[u8]) -> Result<DumpStats, Error> {
    let word = |i: usize| {
        let bytes = image.get(4 * i..4 * i + 4)?;
        bytes.try_into().ok().map(u32::from_le_bytes)
    };
    if word(0) != Some(MAGIC[0]) || word(1) != Some(MAGIC[1]) {
        return Err(Error::Magic);
    }
    let length = word(2)
        .and_then(|l| usize::try_from(l).ok())
        .ok_or(Error::Damaged)?;
    let entry = image[12..].get(..length).ok_or(Error::Damaged)?;
    let dump = fields(entry)?
        .into_iter()
        .find_map(|(number, value)| match value {
            Value::Message(dump) if number == 1 => Some(dump),
            _ => None,
        });
    let dump = fields(dump.ok_or(Error::NoDump)?)?;
    let number = |wanted: u64| {
        let found = dump.iter().find_map(|(number, value)| match value {
            Value::Number(n) if *number == wanted => Some(*n),
            _ => None,
        });
        found.ok_or(Error::NoDump)
    };
    Ok(DumpStats {
        frozen: Duration::from_micros(number(2)?),
        memory_dump: Duration::from_micros(number(3)?),
        memory_write: Duration::from_micros(number(4)?),
        pages_written: number(7)?,
    })
}

fn fields(mut bytes: &[u8]) -> Result<Vec<(u64, Value<'_>)>, Error> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let value = match tag & 7 {
            0 => Value::Number(varint(&mut bytes)?),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).map_err(|_| Error::Damaged)?;
                let (message, rest) = bytes.split_at_checked(length).ok_or(Error::Damaged)?;
                bytes = rest;
                Value::Message(message)
            }
            _ => return Err(Error::Damaged),
        };
        fields.push((tag >> 3, value));
    }
    Ok(fields)
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Error> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or(Error::Damaged)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Error::Damaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn put_varint(out: &mut Vec<u8>, mut value: u64) {
        while value >= 0x80 {
            out.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
            value >>= 7;
        }
        out.push(u8::try_from(value).unwrap());
    }

    fn image(entry: u64, numbers: &[(u64, u64)]) -> Vec<u8> {
        let mut message = Vec::new();
        for (field, value) in numbers {
            put_varint(&mut message, field << 3);
            put_varint(&mut message, *value);
        }
        let mut body = Vec::new();
        put_varint(&mut body, entry << 3 | 2);
        put_varint(&mut body, message.len() as u64);
        body.extend(message);
        let mut image: Vec<u8> = MAGIC.iter().flat_map(|m| m.to_le_bytes()).collect();
        image.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
        image.extend(body);
        image
    }

    proptest! {
        #[test]
        fn the_numbers_of_a_dump_are_read(frozen: u32, dump: u32, write: u32, pages: u64) {
            let (frozen, dump, write) = (u64::from(frozen), u64::from(dump), u64::from(write));
            let image = image(1, &[(1, 9), (2, frozen), (3, dump), (4, write), (5, 7), (6, 0), (7, pages)]);
            prop_assert_eq!(decode(&image), Ok(DumpStats {
                frozen: Duration::from_micros(frozen),
                memory_dump: Duration::from_micros(dump),
                memory_write: Duration::from_micros(write),
                pages_written: pages,
            }));
        }

        #[test]
        fn a_truncated_image_is_an_error(cut in 1usize..20) {
            let image = image(1, &[(2, 1), (3, 2), (4, 3), (7, 4)]);
            prop_assert!(decode(&image[..image.len().saturating_sub(cut)]).is_err());
        }

        #[test]
        fn no_content_panics(tail in proptest::collection::vec(any::<u8>(), 0..60)) {
            let mut image: Vec<u8> = MAGIC.iter().flat_map(|m| m.to_le_bytes()).collect();
            image.extend(tail);
            let _any = decode(&image);
        }
    }

    #[test]
    fn an_image_of_a_restore_and_a_foreign_file_are_errors() {
        assert_eq!(decode(&image(2, &[(3, 1), (4, 1)])), Err(Error::NoDump));
        assert_eq!(decode(&image(1, &[(2, 1)])), Err(Error::NoDump));
        assert_eq!(decode(b"# a text file, not an image"), Err(Error::Magic));
        assert_eq!(decode(b""), Err(Error::Magic));
    }
}
