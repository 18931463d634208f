// SPDX-License-Identifier: GPL-2.0-only
//! Reads requests: bytes that a guest chose become checked values, or a status.

use std::ffi::CStr;

use mvas_abi::virtio_vas::*;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::error::ServerError;
use super::memory::{BLOCK, GuestBlock, GuestPage};
use crate::store::{Label, SnapshotName};

/// Names an open snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Handle(pub u64);

/// Which blocks of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Those that PUBLISH made.
    Blocks,
    /// Those that COPY made.
    Packed,
}

/// An entry of MAP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapEntry {
    /// Where.
    pub at: GuestBlock,
    /// Which list of the snapshot.
    pub kind: Kind,
    /// Which block in it.
    pub index: u64,
}

/// An entry of RELEASE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRange {
    /// The first block.
    pub first: GuestBlock,
    /// How many; the end does not overflow.
    pub blocks: u64,
}

/// A request that is well-formed. Whether its blocks are RAM and its handle is open is not
/// known yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request<'a> {
    /// Makes a draft.
    Create(SnapshotName),
    /// Blocks of guest memory, none twice, become blocks of a draft.
    Publish(Handle, Vec<GuestBlock>),
    /// Pages of guest memory, none twice, are copied to a draft.
    Copy(Handle, Vec<GuestPage>),
    /// Appends to a draft's metadata, at an offset.
    Meta(Handle, u64, &'a [u8]),
    /// Completes a draft.
    Commit(Handle),
    /// Opens a complete snapshot.
    Open(SnapshotName),
    /// Reads metadata from an offset on.
    Fetch(Handle, u64),
    /// Guest blocks, none twice, show blocks of a snapshot.
    Map(Handle, Vec<MapEntry>),
    /// Guest blocks, none twice, are of no use now.
    Release(Vec<BlockRange>),
    /// Gives a handle up.
    Close(Handle),
    /// Lists snapshots, less so many.
    List(u64),
    /// Removes a snapshot; unless 0, only one that was created then.
    Delete(SnapshotName, u64),
    /// Gives a draft its label.
    LabelDraft(Handle, Label),
    /// Gives a complete snapshot another label than the one that it has.
    Relabel {
        /// The snapshot.
        name: SnapshotName,
        /// The label that it has.
        from: Label,
        /// The label that it gets.
        to: Label,
    },
}

/// Reads a request and its payload.
///
/// # Errors
/// The request is malformed, or its addresses are not aligned or come twice.
pub fn decode(bytes: &[u8]) -> Result<Request<'_>, ServerError> {
    use ServerError::BadRequest;
    let (head, payload) = VirtioVasRequest::read_from_prefix(bytes)
        .map_err(|_| BadRequest("it is shorter than its head"))?;
    let (op, count, arg) = (head.op.get(), head.count.get(), head.arg.get());
    let handle = Handle(head.handle.get());
    if head.reserved != 0 {
        return Err(BadRequest("a reserved field is not 0"));
    }
    let unused = |is_unused: bool| match is_unused {
        true => Ok(()),
        false => Err(BadRequest(
            "a field that the operation does not use is not 0",
        )),
    };
    let uses_handle = !matches!(
        op,
        VIRTIO_VAS_OP_CREATE
            | VIRTIO_VAS_OP_OPEN
            | VIRTIO_VAS_OP_RELEASE
            | VIRTIO_VAS_OP_LIST
            | VIRTIO_VAS_OP_DELETE
    );
    let uses_arg = matches!(
        op,
        VIRTIO_VAS_OP_META | VIRTIO_VAS_OP_FETCH | VIRTIO_VAS_OP_LIST | VIRTIO_VAS_OP_DELETE
    );
    let uses_count = matches!(
        op,
        VIRTIO_VAS_OP_PUBLISH
            | VIRTIO_VAS_OP_COPY
            | VIRTIO_VAS_OP_META
            | VIRTIO_VAS_OP_MAP
            | VIRTIO_VAS_OP_RELEASE
    );
    unused(uses_handle || handle.0 == 0)?;
    unused(uses_arg || arg == 0)?;
    unused(uses_count || count == 0)?;
    match op {
        VIRTIO_VAS_OP_CREATE => Ok(Request::Create(name(payload)?)),
        VIRTIO_VAS_OP_OPEN => Ok(Request::Open(name(payload)?)),
        VIRTIO_VAS_OP_DELETE => Ok(Request::Delete(name(payload)?, arg)),
        VIRTIO_VAS_OP_PUBLISH => Ok(Request::Publish(handle, blocks(payload, count)?)),
        VIRTIO_VAS_OP_COPY => Ok(Request::Copy(handle, pages(payload, count)?)),
        VIRTIO_VAS_OP_MAP => Ok(Request::Map(handle, map_entries(payload, count)?)),
        VIRTIO_VAS_OP_RELEASE => Ok(Request::Release(ranges(payload, count)?)),
        VIRTIO_VAS_OP_META if count > VIRTIO_VAS_MAX_BYTES => {
            Err(BadRequest("more bytes than one request may have"))
        }
        VIRTIO_VAS_OP_META => Ok(Request::Meta(handle, arg, array::<u8>(payload, count)?)),
        VIRTIO_VAS_OP_COMMIT => no_payload(payload, Request::Commit(handle)),
        VIRTIO_VAS_OP_FETCH => no_payload(payload, Request::Fetch(handle, arg)),
        VIRTIO_VAS_OP_CLOSE => no_payload(payload, Request::Close(handle)),
        VIRTIO_VAS_OP_LIST => no_payload(payload, Request::List(arg)),
        VIRTIO_VAS_OP_LABEL => label(payload, handle),
        _ => Err(BadRequest("there is no such operation")),
    }
}

fn no_payload<'a>(payload: &[u8], request: Request<'a>) -> Result<Request<'a>, ServerError> {
    match payload {
        [] => Ok(request),
        _ => Err(ServerError::BadRequest("it is longer than it should be")),
    }
}

/// A payload that is exactly `count` items.
fn array<T>(payload: &[u8], count: u32) -> Result<&[T], ServerError>
where
    T: FromBytes + Immutable + KnownLayout + Unaligned,
{
    usize::try_from(count)
        .ok()
        .and_then(|count| <[T]>::ref_from_bytes_with_elems(payload, count).ok())
        .ok_or(ServerError::BadRequest(
            "its length is not what its count says",
        ))
}

fn entries<T>(payload: &[u8], count: u32) -> Result<&[T], ServerError>
where
    T: FromBytes + Immutable + KnownLayout + Unaligned,
{
    if count > VIRTIO_VAS_MAX_ENTRIES {
        return Err(ServerError::BadRequest("more entries than it may have"));
    }
    array(payload, count)
}

fn name(payload: &[u8]) -> Result<SnapshotName, ServerError> {
    let named = VirtioVasName::read_from_bytes(payload)
        .map_err(|_| ServerError::BadRequest("its length is not that of a name"))?;
    snapshot_name(&named.name)
}

fn snapshot_name(field: &[u8]) -> Result<SnapshotName, ServerError> {
    padded(field)?
        .parse()
        .map_err(|_| ServerError::BadRequest("a snapshot cannot have that name"))
}

/// Text with zeroes after it, one at least.
fn padded(field: &[u8]) -> Result<&str, ServerError> {
    CStr::from_bytes_until_nul(field)
        .ok()
        .filter(|text| field[text.to_bytes().len()..].iter().all(|byte| *byte == 0))
        .and_then(|text| text.to_str().ok())
        .ok_or(ServerError::BadRequest(
            "a text is no UTF-8 with zeroes after it",
        ))
}

fn label<'a>(payload: &[u8], handle: Handle) -> Result<Request<'a>, ServerError> {
    let sent = VirtioVasLabel::ref_from_bytes(payload)
        .map_err(|_| ServerError::BadRequest("its length is not that of a label"))?;
    let text = |field| {
        let text: Label = padded(field)?
            .parse()
            .map_err(|_| ServerError::BadRequest("a label has no control characters"))?;
        Ok::<_, ServerError>(text)
    };
    let (to, from) = (text(&sent.label)?, text(&sent.expected)?);
    if handle == Handle(0) {
        let name = snapshot_name(&sent.name)?;
        return Ok(Request::Relabel { name, from, to });
    }
    match sent
        .name
        .iter()
        .chain(&sent.expected)
        .all(|byte| *byte == 0)
    {
        true => Ok(Request::LabelDraft(handle, to)),
        false => Err(ServerError::BadRequest("it is for a draft and a snapshot")),
    }
}

fn blocks(payload: &[u8], count: u32) -> Result<Vec<GuestBlock>, ServerError> {
    let gpas: &[U64] = entries(payload, count)?;
    let blocks: Option<Vec<_>> = gpas.iter().map(|gpa| GuestBlock::at(gpa.get())).collect();
    let blocks = blocks.ok_or(NOT_ALIGNED)?;
    check_distinct(blocks.iter().map(|block| block.0).collect())?;
    Ok(blocks)
}

fn pages(payload: &[u8], count: u32) -> Result<Vec<GuestPage>, ServerError> {
    let gpas: &[U64] = entries(payload, count)?;
    let pages: Option<Vec<_>> = gpas.iter().map(|gpa| GuestPage::at(gpa.get())).collect();
    let pages = pages.ok_or(NOT_ALIGNED)?;
    check_distinct(pages.iter().map(|page| page.0).collect())?;
    Ok(pages)
}

fn map_entries(payload: &[u8], count: u32) -> Result<Vec<MapEntry>, ServerError> {
    let maps: &[VirtioVasMap] = entries(payload, count)?;
    let entry = |map: &VirtioVasMap| {
        Ok(MapEntry {
            at: GuestBlock::at(map.gpa.get()).ok_or(NOT_ALIGNED)?,
            kind: match map.kind.get() {
                VIRTIO_VAS_KIND_BLOCKS => Kind::Blocks,
                VIRTIO_VAS_KIND_PACKED => Kind::Packed,
                _ => return Err(ServerError::BadRequest("there is no such kind of block")),
            },
            index: map.index.get().into(),
        })
    };
    let entries = maps.iter().map(entry).collect::<Result<Vec<_>, _>>()?;
    check_distinct(entries.iter().map(|entry| entry.at.0).collect())?;
    Ok(entries)
}

fn ranges(payload: &[u8], count: u32) -> Result<Vec<BlockRange>, ServerError> {
    let ranges: &[VirtioVasRange] = entries(payload, count)?;
    let range = |range: &VirtioVasRange| {
        let (gpa, bytes) = (range.gpa.get(), range.bytes.get());
        let in_range = gpa.checked_add(bytes).is_some() && bytes.is_multiple_of(BLOCK);
        Some(BlockRange {
            first: GuestBlock::at(gpa).filter(|_| in_range)?,
            blocks: bytes / BLOCK,
        })
    };
    let ranges: Option<Vec<_>> = ranges.iter().map(range).collect();
    let ranges = ranges.ok_or(NOT_ALIGNED)?;
    let mut sorted: Vec<_> = ranges
        .iter()
        .map(|range| (range.first.0, range.first.0 + range.blocks))
        .collect();
    sorted.sort_unstable();
    match sorted.windows(2).all(|pair| pair[0].1 <= pair[1].0) {
        true => Ok(ranges),
        false => Err(TWICE),
    }
}

const NOT_ALIGNED: ServerError = ServerError::BadRange("an address or a length is not aligned");
const TWICE: ServerError = ServerError::BadRange("memory comes twice");

fn check_distinct(mut numbers: Vec<u64>) -> Result<(), ServerError> {
    numbers.sort_unstable();
    match numbers.windows(2).all(|pair| pair[0] != pair[1]) {
        true => Ok(()),
        false => Err(TWICE),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    use super::super::error::Status;
    use super::super::test_utils::{label_field, name_field, request};
    use super::*;

    fn status(bytes: &[u8]) -> Status {
        decode(bytes).map_or_else(|error| error.status(), |_| Status::Ok)
    }

    fn gpas(gpas: &[u64]) -> Vec<u8> {
        gpas.iter().flat_map(|gpa| gpa.to_le_bytes()).collect()
    }

    fn map(gpa: u64, index: u32, kind: u32) -> Vec<u8> {
        let (gpa, index, kind) = (gpa.into(), index.into(), kind.into());
        VirtioVasMap { gpa, index, kind }.as_bytes().to_vec()
    }

    #[test]
    fn each_operation_is_read() {
        let name: SnapshotName = "db".parse().unwrap();
        let named = name_field("db");
        let cases = [
            (request(1, 0, 0, 0, &named), Request::Create(name.clone())),
            (
                request(2, 1, 7, 0, &gpas(&[BLOCK])),
                Request::Publish(Handle(7), vec![GuestBlock(1)]),
            ),
            (
                request(3, 1, 7, 0, &gpas(&[4096])),
                Request::Copy(Handle(7), vec![GuestPage(1)]),
            ),
            (
                request(4, 2, 7, 9, b"ab"),
                Request::Meta(Handle(7), 9, b"ab"),
            ),
            (request(5, 0, 7, 0, &[]), Request::Commit(Handle(7))),
            (request(6, 0, 0, 0, &named), Request::Open(name.clone())),
            (request(7, 0, 7, 9, &[]), Request::Fetch(Handle(7), 9)),
            (
                request(8, 1, 7, 0, &map(BLOCK, 3, 1)),
                Request::Map(
                    Handle(7),
                    vec![MapEntry {
                        at: GuestBlock(1),
                        kind: Kind::Packed,
                        index: 3,
                    }],
                ),
            ),
            (
                request(9, 1, 0, 0, &gpas(&[BLOCK, 2 * BLOCK])),
                Request::Release(vec![BlockRange {
                    first: GuestBlock(1),
                    blocks: 2,
                }]),
            ),
            (request(10, 0, 7, 0, &[]), Request::Close(Handle(7))),
            (request(11, 0, 0, 9, &[]), Request::List(9)),
            (
                request(12, 0, 0, 9, &named),
                Request::Delete(name.clone(), 9),
            ),
            (
                request(13, 0, 7, 0, &label_field("", "{}")),
                Request::LabelDraft(Handle(7), "{}".parse().unwrap()),
            ),
            (
                request(13, 0, 0, 0, &label_field("db", "")),
                Request::Relabel {
                    name,
                    from: Label::default(),
                    to: Label::default(),
                },
            ),
        ];
        for (bytes, expected) in cases {
            assert_eq!(decode(&bytes).unwrap(), expected);
            // One byte more or less is another request.
            assert_eq!(
                status(&bytes[..bytes.len() - 1]),
                Status::BadRequest,
                "{expected:?}"
            );
            let mut longer = bytes.clone();
            longer.push(0);
            assert_eq!(status(&longer), Status::BadRequest, "{expected:?}");
            // The reserved field.
            let mut reserved = bytes;
            reserved[24] = 1;
            assert_eq!(status(&reserved), Status::BadRequest, "{expected:?}");
        }
    }

    #[test]
    fn fields_that_an_operation_does_not_use_must_be_zero() {
        let named = name_field("db");
        for bytes in [
            request(1, 1, 0, 0, &named),
            request(1, 0, 1, 0, &named),
            request(1, 0, 0, 1, &named),
            request(2, 0, 1, 1, &[]),
            request(5, 1, 1, 0, &[]),
            request(7, 1, 1, 0, &[]),
            request(9, 0, 1, 0, &[]),
            request(11, 0, 1, 0, &[]),
            request(0, 0, 0, 0, &[]),
            request(13, 1, 1, 0, &label_field("", "x")),
            request(13, 0, 1, 1, &label_field("", "x")),
            request(14, 0, 0, 0, &[]),
        ] {
            assert_eq!(status(&bytes), Status::BadRequest);
        }
    }

    #[test]
    fn addresses_that_are_not_aligned_or_come_twice_or_overflow_are_bad_ranges() {
        for bytes in [
            request(2, 1, 1, 0, &gpas(&[4096])),
            request(2, 2, 1, 0, &gpas(&[BLOCK, BLOCK])),
            request(3, 1, 1, 0, &gpas(&[1])),
            request(3, 3, 1, 0, &gpas(&[8192, 4096, 8192])),
            request(8, 1, 1, 0, &map(4096, 0, 0)),
            request(8, 2, 1, 0, &[map(BLOCK, 0, 0), map(BLOCK, 1, 0)].concat()),
            request(9, 1, 0, 0, &gpas(&[BLOCK, 4096])),
            request(9, 1, 0, 0, &gpas(&[4096, BLOCK])),
            request(9, 1, 0, 0, &gpas(&[u64::MAX - BLOCK + 1, BLOCK])),
            request(9, 2, 0, 0, &gpas(&[2 * BLOCK, BLOCK, BLOCK, 2 * BLOCK])),
        ] {
            assert_eq!(status(&bytes), Status::BadRange);
        }
        assert_eq!(
            status(&request(8, 1, 1, 0, &map(BLOCK, 0, 2))),
            Status::BadRequest
        );
    }

    #[test]
    fn names_are_zero_terminated_and_padded_and_of_the_allowed_characters() {
        let mut padded_with_junk = name_field("db");
        padded_with_junk[100] = b'x';
        for name in [
            vec![b'a'; 128],
            padded_with_junk,
            name_field(""),
            name_field("../x"),
            name_field(".x"),
        ] {
            assert_eq!(status(&request(1, 0, 0, 0, &name)), Status::BadRequest);
        }
        assert_eq!(
            status(&request(1, 0, 0, 0, &name_field(&"a".repeat(127)))),
            Status::Ok
        );
    }

    #[test]
    fn a_label_is_text_with_zeroes_after_it_of_a_draft_or_of_a_named_snapshot() {
        let padded_with = |at: usize, byte| {
            let mut field = label_field("", "x");
            field[at] = byte;
            field
        };
        let (name, label) = (0, VIRTIO_VAS_NAME_MAX);
        let expected = label + VIRTIO_VAS_LABEL_MAX;
        for (handle, payload) in [
            (1, label_field("db", "x")),
            (0, label_field("", "x")),
            (0, label_field("../db", "x")),
            (1, padded_with(name + 127, 1)),
            (1, padded_with(label + 1023, b'x')),
            (1, padded_with(label, 0xff)),
            (1, padded_with(expected, b'x')),
            (0, padded_with(expected, 0xff)),
            (0, padded_with(expected, b'\n')),
            (1, padded_with(label, 0xed)),
            (1, label_field("", "a\nb")),
            (1, label_field("", "\x1b[2J")),
            (1, label_field("", "\x7f")),
            (1, label_field("", "\u{9b}2J")),
            (1, padded_with(expected + 1023, b'x')),
        ] {
            let bytes = request(13, 0, handle, 0, &payload);
            assert_eq!(status(&bytes), Status::BadRequest, "{handle} {payload:?}");
        }
        for (handle, name, label) in [(0, "db", "größe"), (1, "", &"x".repeat(1023))] {
            let bytes = request(13, 0, handle, 0, &label_field(name, label));
            assert_eq!(status(&bytes), Status::Ok, "{label}");
        }
    }

    #[test]
    fn too_many_entries_or_bytes_are_refused() {
        let most = VIRTIO_VAS_MAX_ENTRIES;
        let addresses =
            |count: u32| gpas(&(0..u64::from(count)).map(|i| i * 4096).collect::<Vec<_>>());
        assert_eq!(
            status(&request(3, most, 1, 0, &addresses(most))),
            Status::Ok
        );
        assert_eq!(
            status(&request(3, most + 1, 1, 0, &addresses(most + 1))),
            Status::BadRequest
        );
        assert_eq!(status(&request(3, u32::MAX, 1, 0, &[])), Status::BadRequest);
        let most = VIRTIO_VAS_MAX_BYTES;
        let bytes = vec![0; 1 + (1 << 20)];
        assert_eq!(status(&request(4, most, 1, 0, &bytes[1..])), Status::Ok);
        assert_eq!(
            status(&request(4, most + 1, 1, 0, &bytes)),
            Status::BadRequest
        );
    }

    proptest! {
        /// Nonsense is refused without a panic; what is taken keeps what its type promises.
        #[test]
        fn any_bytes_are_a_request_or_an_error(
            op in 0u32..15, count in 0u32..4, handle in 0u64..2, arg in 0u64..2,
            numbers in proptest::collection::vec(prop_oneof![
                (0u64..4).prop_map(|i| i * BLOCK), (0u64..4).prop_map(|i| i * 4096), any::<u64>(),
            ], 0..8),
            cut in 0usize..10,
        ) {
            let mut bytes = request(op, count, handle, arg, &gpas(&numbers));
            bytes.truncate(bytes.len() - cut.min(bytes.len()));
            match decode(&bytes) {
                Ok(Request::Publish(_, blocks)) => {
                    let distinct: std::collections::BTreeSet<_> = blocks.iter().collect();
                    prop_assert_eq!(distinct.len(), blocks.len());
                }
                Ok(Request::Release(ranges)) => {
                    for range in ranges {
                        prop_assert!((range.first.0 + range.blocks).checked_mul(BLOCK).is_some());
                    }
                }
                Ok(_) => {}
                Err(error) => prop_assert!(matches!(error.status(), Status::BadRequest | Status::BadRange)),
            }
        }
    }
}
