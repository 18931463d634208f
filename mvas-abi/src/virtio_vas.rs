// SPDX-License-Identifier: GPL-2.0-only
//! Mirror of `<linux/virtio_vas.h>`: the device between guest and snapshot store.
//!
//! What the numbers mean is in `docs/VIRTIO-VAS.md`. All fields are little-endian, and the
//! structs have no alignment, so that they can be read in place from any bytes.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The device id; not assigned by OASIS.
pub const VIRTIO_VAS_DEVICE_ID: u32 = 0x8056;
/// Version of the interface.
pub const VIRTIO_VAS_VERSION: u32 = 3;
/// Queue for everything but RELEASE.
pub const VIRTIO_VAS_REQUESTQ: u32 = 0;
/// Queue for RELEASE.
pub const VIRTIO_VAS_RELEASEQ: u32 = 1;
/// Number of queues.
pub const VIRTIO_VAS_QUEUES: u32 = 2;
/// Bytes in a block.
pub const VIRTIO_VAS_BLOCK_SIZE: u32 = 1 << 21;
/// Bytes in a page.
pub const VIRTIO_VAS_PAGE_SIZE: u32 = 1 << 12;
/// Pages in a block.
pub const VIRTIO_VAS_BLOCK_PAGES: u32 = 512;
/// The most entries in a request's array.
pub const VIRTIO_VAS_MAX_ENTRIES: u32 = 65536;
/// The most bytes of one META or FETCH.
pub const VIRTIO_VAS_MAX_BYTES: u32 = 1 << 20;
/// The most open handles.
pub const VIRTIO_VAS_MAX_HANDLES: u32 = 64;
/// The most metadata of a snapshot, MiB.
pub const VIRTIO_VAS_MAX_META: u32 = 64;
/// Longest name in bytes, with its NUL.
pub const VIRTIO_VAS_NAME_MAX: usize = 128;
/// Length of a label's field, with its NUL: UTF-8 without control characters.
pub const VIRTIO_VAS_LABEL_MAX: usize = 1024;

/// Request: a new draft.
pub const VIRTIO_VAS_OP_CREATE: u32 = 1;
/// Request: blocks of guest memory become blocks of a draft.
pub const VIRTIO_VAS_OP_PUBLISH: u32 = 2;
/// Request: pages of guest memory are copied to a draft.
pub const VIRTIO_VAS_OP_COPY: u32 = 3;
/// Request: appends to a draft's metadata.
pub const VIRTIO_VAS_OP_META: u32 = 4;
/// Request: a draft becomes a complete snapshot.
pub const VIRTIO_VAS_OP_COMMIT: u32 = 5;
/// Request: opens a complete snapshot.
pub const VIRTIO_VAS_OP_OPEN: u32 = 6;
/// Request: reads metadata.
pub const VIRTIO_VAS_OP_FETCH: u32 = 7;
/// Request: guest blocks show blocks of a snapshot.
pub const VIRTIO_VAS_OP_MAP: u32 = 8;
/// Request: the guest has no use for these blocks now.
pub const VIRTIO_VAS_OP_RELEASE: u32 = 9;
/// Request: a handle is gone.
pub const VIRTIO_VAS_OP_CLOSE: u32 = 10;
/// Request: lists snapshots.
pub const VIRTIO_VAS_OP_LIST: u32 = 11;
/// Request: removes a snapshot from the store.
pub const VIRTIO_VAS_OP_DELETE: u32 = 12;
/// Request: gives a draft or a complete snapshot its label.
pub const VIRTIO_VAS_OP_LABEL: u32 = 13;

/// Status: done.
pub const VIRTIO_VAS_S_OK: u32 = 0;
/// Status: lengths, operation, count or reserved fields.
pub const VIRTIO_VAS_S_BAD_REQUEST: u32 = 1;
/// Status: not aligned, not in RAM, or twice in the request.
pub const VIRTIO_VAS_S_BAD_RANGE: u32 = 2;
/// Status: no such handle.
pub const VIRTIO_VAS_S_BAD_HANDLE: u32 = 3;
/// Status: no such snapshot, or not granted.
pub const VIRTIO_VAS_S_NOT_FOUND: u32 = 4;
/// Status: the name is taken.
pub const VIRTIO_VAS_S_EXISTS: u32 = 5;
/// Status: a draft where a complete snapshot is needed or the reverse, or published twice.
pub const VIRTIO_VAS_S_STATE: u32 = 6;
/// Status: the store is full.
pub const VIRTIO_VAS_S_NO_SPACE: u32 = 7;
/// Status: the metadata is wrong.
pub const VIRTIO_VAS_S_BAD_META: u32 = 8;
/// Status: too many handles, or too much metadata.
pub const VIRTIO_VAS_S_LIMIT: u32 = 9;
/// Status: the host failed.
pub const VIRTIO_VAS_S_HOST: u32 = 10;
/// Status: the label is not the one expected.
pub const VIRTIO_VAS_S_CHANGED: u32 = 11;

/// [`VirtioVasMap::kind`], [`VirtioVasMetaRun::kind`]: what PUBLISH made.
pub const VIRTIO_VAS_KIND_BLOCKS: u32 = 0;
/// [`VirtioVasMap::kind`], [`VirtioVasMetaRun::kind`]: what COPY made.
pub const VIRTIO_VAS_KIND_PACKED: u32 = 1;

/// [`VirtioVasMeta::magic`]: "VASM".
pub const VIRTIO_VAS_META_MAGIC: u32 = 0x4d53_4156;
/// [`VirtioVasMeta::version`].
pub const VIRTIO_VAS_META_VERSION: u32 = 2;
/// [`VirtioVasMetaVma::flags`]: accounted (VM_ACCOUNT).
pub const VIRTIO_VAS_VMA_ACCOUNT: u32 = 1 << 0;
/// [`VirtioVasMetaVma::flags`]: not reserved (VM_NORESERVE).
pub const VIRTIO_VAS_VMA_NORESERVE: u32 = 1 << 1;
/// [`VirtioVasMetaVma::flags`]: the kernel may drop its pages (VM_DROPPABLE); it has no runs.
pub const VIRTIO_VAS_VMA_DROPPABLE: u32 = 1 << 2;
/// [`VirtioVasMetaVma::flags`]: empty in a fork's child (VM_WIPEONFORK).
pub const VIRTIO_VAS_VMA_WIPEONFORK: u32 = 1 << 3;
/// [`VirtioVasMetaVma::flags`]: of a file's private mapping: it has no blocks, and where it has
/// no page there is the file's.
pub const VIRTIO_VAS_VMA_FILE: u32 = 1 << 4;

/// A struct of the interface.
macro_rules! wire {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)+ }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
        )]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)+ }
    };
}

wire! {
    /// `struct virtio_vas_config`: configuration space.
    VirtioVasConfig {
        /// [`VIRTIO_VAS_VERSION`].
        version: U32,
        /// The most entries in a request's array.
        max_entries: U32,
        /// The most metadata of a snapshot, MiB.
        max_meta: U32,
        /// Zero.
        reserved: U32,
    }
}

wire! {
    /// `struct virtio_vas_request`.
    VirtioVasRequest {
        /// `VIRTIO_VAS_OP_*`.
        op: U32,
        /// Entries or bytes of the payload, else 0.
        count: U32,
        /// Of a snapshot, else 0.
        handle: U64,
        /// As the operation says, else 0.
        arg: U64,
        /// Zero.
        reserved: U64,
    }
}

wire! {
    /// `struct virtio_vas_response`.
    VirtioVasResponse {
        /// `VIRTIO_VAS_S_*`.
        status: U32,
        /// Entries that took effect, bytes, or structs.
        done: U32,
        /// As the operation says, else 0.
        value: U64,
    }
}

wire! {
    /// `struct virtio_vas_name`.
    VirtioVasName {
        /// The name, zeroes after it.
        name: [u8; VIRTIO_VAS_NAME_MAX],
    }
}

wire! {
    /// `struct virtio_vas_label`.
    VirtioVasLabel {
        /// Name of a complete snapshot, zeroes after it; all zeroes for a draft.
        name: [u8; VIRTIO_VAS_NAME_MAX],
        /// The label, zeroes after it.
        label: [u8; VIRTIO_VAS_LABEL_MAX],
        /// The one that a complete snapshot has, zeroes after it; all zeroes for a draft.
        expected: [u8; VIRTIO_VAS_LABEL_MAX],
    }
}

wire! {
    /// `struct virtio_vas_map`: an entry of MAP.
    VirtioVasMap {
        /// Guest-physical address of a block.
        gpa: U64,
        /// Which block; of packed ones, pages from 512 times this on.
        index: U32,
        /// `VIRTIO_VAS_KIND_*`.
        kind: U32,
    }
}

wire! {
    /// `struct virtio_vas_range`: an entry of RELEASE, whole blocks.
    VirtioVasRange {
        /// Guest-physical address.
        gpa: U64,
        /// Length.
        bytes: U64,
    }
}

wire! {
    /// `struct virtio_vas_snapshot`.
    VirtioVasSnapshot {
        /// The name, zeroes after it.
        name: [u8; VIRTIO_VAS_NAME_MAX],
        /// When it was completed, nanoseconds of CLOCK_REALTIME.
        created_ns: U64,
        /// Length of its metadata, bytes.
        meta_bytes: U64,
        /// Blocks that PUBLISH made.
        blocks: U64,
        /// Pages that COPY made.
        packed_pages: U64,
        /// Host memory of all its blocks, bytes.
        bytes: U64,
        /// Zero.
        reserved: U64,
        /// Text that whoever made it gave it, zeroes after it.
        label: [u8; VIRTIO_VAS_LABEL_MAX],
    }
}

wire! {
    /// `struct virtio_vas_meta`: the beginning of a snapshot's metadata.
    VirtioVasMeta {
        /// [`VIRTIO_VAS_META_MAGIC`].
        magic: U32,
        /// [`VIRTIO_VAS_META_VERSION`].
        version: U32,
        /// How many VASes follow.
        vases: U32,
        /// Zero.
        reserved: U32,
    }
}

wire! {
    /// `struct virtio_vas_meta_vas`: its VMAs and then its runs follow.
    VirtioVasMetaVas {
        /// The name, zeroes after it.
        name: [u8; VIRTIO_VAS_NAME_MAX],
        /// Permission bits.
        mode: U32,
        /// How many VMAs.
        vmas: U32,
        /// How many runs.
        runs: U32,
        /// Zero.
        reserved: U32,
    }
}

wire! {
    /// `struct virtio_vas_meta_vma`.
    VirtioVasMetaVma {
        /// First address.
        start: U64,
        /// End, exclusive.
        end: U64,
        /// Page offset (`vm_pgoff`).
        pgoff: U64,
        /// `PROT_*`.
        prot: U32,
        /// `VIRTIO_VAS_VMA_*`.
        flags: U32,
    }
}

wire! {
    /// `struct virtio_vas_meta_run`: pages that lie together in VAS and snapshot.
    VirtioVasMetaRun {
        /// First address.
        start: U64,
        /// How many 4 KiB pages.
        pages: U32,
        /// `VIRTIO_VAS_KIND_*`.
        kind: U32,
        /// Its first block, or its first packed page.
        index: U64,
    }
}
