// SPDX-License-Identifier: GPL-2.0-only
//! Mirror of `<linux/vas.h>`.

/// Version of the interface that this crate speaks.
pub const VAS_ABI_VERSION: u32 = 5;
/// Longest VAS name in bytes, with its terminating NUL.
pub const VAS_NAME_MAX: usize = 128;
/// Longest label in bytes, with its terminating NUL.
pub const VAS_LABEL_MAX: usize = 1024;

/// `VasInfo::features`: captured memory can be hidden from PAGEMAP_SCAN and smaps.
pub const VAS_FEATURE_PAGEMAP_HIDE: u64 = 1 << 0;
/// `VasInfo::features`: the snapshot store is there now.
pub const VAS_FEATURE_STORE: u64 = 1 << 1;
/// `VasOpen::access`: stat, ranges, attach.
pub const VAS_ACCESS_READ: u32 = 1 << 0;
/// `VasOpen::access`: capture, delete.
pub const VAS_ACCESS_WRITE: u32 = 1 << 1;
/// `VasCapture::flags`: hide the captured memory from this process's PAGEMAP_SCAN and smaps.
pub const VAS_CAPTURE_HIDE: u32 = 1 << 0;
/// `VasCapture::flags`: fail where a thread of the process runs.
pub const VAS_CAPTURE_STOPPED: u32 = 1 << 1;
/// `VasAttach::flags`: others go on from this memory, too: what is to be wiped on fork is empty.
pub const VAS_ATTACH_CLONE: u32 = 1 << 0;
/// `VasAttach::flags`: fail where a thread of the process runs.
pub const VAS_ATTACH_STOPPED: u32 = 1 << 1;
/// `VasStat::state`: created, nothing captured yet.
pub const VAS_STATE_EMPTY: u32 = 0;
/// `VasStat::state`: captured, goes with its session.
pub const VAS_STATE_TRANSIENT: u32 = 1;
/// `VasStat::state`: lives until it is deleted.
pub const VAS_STATE_COMMITTED: u32 = 2;
/// `VasStat::store`: in this machine's memory only.
pub const VAS_STORE_HOT: u32 = 0;
/// `VasStat::store`: on its way to the store; usable as ever.
pub const VAS_STORE_DRAINING: u32 = 1;
/// `VasStat::store`: in memory and in the store.
pub const VAS_STORE_STORED: u32 = 2;
/// `VasStat::store`: in the store only.
pub const VAS_STORE_COLD: u32 = 3;
/// `VasDrain::flags`: wait until it is in the store.
pub const VAS_DRAIN_SYNC: u32 = 1 << 0;
/// The most VASes of a snapshot.
pub const VAS_DRAIN_MAX: u32 = 4096;
/// `VasRange::flags`: holds PMD-mapped pages.
pub const VAS_RANGE_HUGE: u32 = 1 << 0;
/// `VasDelete::flags`: delete even while others have it open.
pub const VAS_DELETE_FORCE: u32 = 1 << 0;

/// `struct vas_info`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VasInfo {
    /// Version that the kernel speaks.
    pub abi_version: u32,
    /// Zero.
    pub reserved: u32,
    /// `VAS_FEATURE_*`.
    pub features: u64,
}

/// `struct vas_create`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VasCreate {
    /// NUL-terminated name.
    pub name: [u8; VAS_NAME_MAX],
    /// Permission bits.
    pub mode: u32,
    /// Zero.
    pub flags: u32,
    /// Out: the new id.
    pub id: u64,
}

/// `struct vas_open`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VasOpen {
    /// Id, or 0 to look up by name.
    pub id: u64,
    /// NUL-terminated name.
    pub name: [u8; VAS_NAME_MAX],
    /// `VAS_ACCESS_*`.
    pub access: u32,
    /// Zero.
    pub flags: u32,
}

/// `struct vas_capture`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VasCapture {
    /// The task.
    pub pidfd: i32,
    /// `VAS_CAPTURE_*`.
    pub flags: u32,
    /// Out: captured VMAs.
    pub vmas: u64,
    /// Out: resident 4 KiB pages now shared.
    pub pages: u64,
    /// Out: of these, PMD-mapped (counted in 4 KiB pages).
    pub huge_pages: u64,
    /// Out: swap entries now shared.
    pub swap_pages: u64,
    /// Out: pinned pages that had to be copied.
    pub copied_pages: u64,
    /// First address to capture; 0 where `len` is 0.
    pub start: u64,
    /// Length in bytes of what to capture; 0 for all. Not with `VAS_CAPTURE_HIDE`.
    pub len: u64,
}

/// `struct vas_attach`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VasAttach {
    /// The task.
    pub pidfd: i32,
    /// `VAS_ATTACH_*`.
    pub flags: u32,
    /// Start in the VAS.
    pub src: u64,
    /// Length in bytes; 0 for the whole VAS in place.
    pub len: u64,
    /// Start in the target.
    pub dst: u64,
    /// Out: attached VMAs.
    pub vmas: u64,
    /// Out: resident pages now shared.
    pub pages: u64,
    /// Identity of the snapshot that `/proc/PID/vas` shall tell, or zeroes.
    pub snapshot: [u8; 16],
}

/// `struct vas_stat`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VasStat {
    /// Id.
    pub id: u64,
    /// NUL-terminated name.
    pub name: [u8; VAS_NAME_MAX],
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
    /// `VAS_STATE_*`.
    pub state: u32,
    /// Creation time, nanoseconds of CLOCK_REALTIME.
    pub created_ns: u64,
    /// VMAs.
    pub vmas: u64,
    /// Sum of the lengths of its VMAs, in bytes.
    pub bytes: u64,
    /// Resident 4 KiB pages.
    pub pages: u64,
    /// Of these, PMD-mapped (counted in 4 KiB pages).
    pub huge_pages: u64,
    /// Swap entries.
    pub swap_pages: u64,
    /// Attaches since it was created.
    pub attaches: u64,
    /// Open VAS files.
    pub users: u64,
    /// `VAS_STORE_*`.
    pub store: u32,
    /// errno of the last drain that failed, else 0.
    pub drain_error: i32,
    /// 4 KiB pages that are in the store.
    pub drained_pages: u64,
    /// `created_ns` of its snapshot in the store, while it is there; else 0.
    pub stored_ns: u64,
    /// Zero.
    pub reserved: u64,
}

/// `struct vas_range`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VasRange {
    /// First address.
    pub start: u64,
    /// End, exclusive.
    pub end: u64,
    /// Resident 4 KiB pages; of a cold VAS, pages in the store.
    pub pages: u64,
    /// `PROT_*` at the time of the capture.
    pub prot: u32,
    /// `VAS_RANGE_*`.
    pub flags: u32,
}

/// `struct vas_ranges`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VasRanges {
    /// First address of interest; out: where to go on, 0 at the end.
    pub start: u64,
    /// Address of an array of `VasRange`.
    pub ranges: u64,
    /// Capacity of the array; out: entries filled.
    pub count: u32,
    /// Zero.
    pub reserved: u32,
}

/// `struct vas_delete`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VasDelete {
    /// `VAS_DELETE_*`.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

/// `struct vas_drain`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VasDrain {
    /// NUL-terminated name of the snapshot.
    pub name: [u8; VAS_NAME_MAX],
    /// Address of an array of VAS ids, `u64` each.
    pub ids: u64,
    /// Length of the array.
    pub count: u32,
    /// `VAS_DRAIN_*`.
    pub flags: u32,
    /// Zero.
    pub reserved: [u64; 2],
}

/// `struct vas_evict`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VasEvict {
    /// Zero.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
    /// Out: resident 4 KiB pages that it had.
    pub pages: u64,
}

/// `struct vas_store_snapshot`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VasStoreSnapshot {
    /// NUL-terminated name.
    pub name: [u8; VAS_NAME_MAX],
    /// Creation time, nanoseconds of the host's CLOCK_REALTIME.
    pub created_ns: u64,
    /// Bytes of its description.
    pub meta_bytes: u64,
    /// Blocks of 2 MiB that were huge pages.
    pub blocks: u64,
    /// 4 KiB pages that were copied.
    pub packed_pages: u64,
    /// Bytes of the store.
    pub bytes: u64,
    /// Zero.
    pub reserved: u64,
    /// NUL-terminated text that whoever made it gave it.
    pub label: [u8; VAS_LABEL_MAX],
}

/// `struct vas_store_list`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VasStoreList {
    /// How many to leave out.
    pub skip: u64,
    /// Address of an array of `VasStoreSnapshot`.
    pub snapshots: u64,
    /// Capacity of the array; out: entries filled.
    pub count: u32,
    /// Zero.
    pub reserved: u32,
    /// Out: how many there are.
    pub total: u64,
}

/// `struct vas_store_load`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VasStoreLoad {
    /// NUL-terminated name of the snapshot.
    pub name: [u8; VAS_NAME_MAX],
    /// Address of an array of `u64`; out: ids of the VASes.
    pub ids: u64,
    /// Capacity of the array; out: how many VASes there are.
    pub count: u32,
    /// Zero.
    pub flags: u32,
    /// Zero.
    pub reserved: [u64; 2],
}

/// `struct vas_store_delete`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VasStoreDelete {
    /// NUL-terminated name of the snapshot.
    pub name: [u8; VAS_NAME_MAX],
    /// Only the one that was made then; 0: whichever it is.
    pub created_ns: u64,
    /// Zero.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

/// Most bytes of memory in one `VasGuard`.
pub const VAS_GUARD_MAX: u32 = 64;

/// `struct vas_usage`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VasUsage {
    /// Out: resident 4 KiB pages that only this VAS maps.
    pub own_pages: u64,
    /// Out: resident 4 KiB pages that others map, too.
    pub shared_pages: u64,
}

/// `struct vas_label`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VasLabel {
    /// NUL-terminated text.
    pub label: [u8; VAS_LABEL_MAX],
}

/// `struct vas_store_label`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VasStoreLabel {
    /// NUL-terminated name of the snapshot.
    pub name: [u8; VAS_NAME_MAX],
    /// NUL-terminated text.
    pub label: [u8; VAS_LABEL_MAX],
    /// NUL-terminated text: the label that it has.
    pub expected: [u8; VAS_LABEL_MAX],
}

/// `struct vas_guard`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VasGuard {
    /// A thread that the caller traces and has stopped.
    pub tid: i32,
    /// Zero.
    pub flags: u32,
    /// Memory that will be changed, too.
    pub addr: u64,
    /// Of it; up to `VAS_GUARD_MAX`.
    pub len: u32,
    /// Zero.
    pub reserved: u32,
}

const MAGIC: u32 = 0xD7;
const WRITE: u32 = 1;
const READ: u32 = 2;

/// Encodes an ioctl number as `_IOC()` of `<asm-generic/ioctl.h>` does.
const fn ioc(dir: u32, nr: u32, size: usize) -> u32 {
    assert!(size < 1 << 14);
    #[allow(clippy::cast_possible_truncation)] // asserted above
    let size = size as u32;
    dir << 30 | size << 16 | MAGIC << 8 | nr
}

/// On a session: version and features.
pub const VAS_IOC_INFO: u32 = ioc(READ, 0x00, size_of::<VasInfo>());
/// On a session: a new VAS; returns its file.
pub const VAS_IOC_CREATE: u32 = ioc(READ | WRITE, 0x01, size_of::<VasCreate>());
/// On a session: an existing VAS; returns its file.
pub const VAS_IOC_OPEN: u32 = ioc(READ | WRITE, 0x02, size_of::<VasOpen>());
/// On a session: makes all of its VASes permanent.
pub const VAS_IOC_COMMIT: u32 = ioc(0, 0x03, 0);
/// On a session: puts VASes into the store as one snapshot.
pub const VAS_IOC_DRAIN: u32 = ioc(WRITE, 0x04, size_of::<VasDrain>());
/// On a session: the snapshots in the store.
pub const VAS_IOC_STORE_LIST: u32 = ioc(READ | WRITE, 0x05, size_of::<VasStoreList>());
/// On a session: makes the VASes of a snapshot in the store.
pub const VAS_IOC_STORE_LOAD: u32 = ioc(READ | WRITE, 0x06, size_of::<VasStoreLoad>());
/// On a session: removes a snapshot from the store.
pub const VAS_IOC_STORE_DELETE: u32 = ioc(WRITE, 0x07, size_of::<VasStoreDelete>());
/// On a session: saves the state of a task for the case that its tracer dies.
pub const VAS_IOC_GUARD: u32 = ioc(WRITE, 0x08, size_of::<VasGuard>());
/// On a session: gives a snapshot in the store another label.
pub const VAS_IOC_STORE_LABEL: u32 = ioc(WRITE, 0x09, size_of::<VasStoreLabel>());
/// On a VAS file: shares a task's memory with it.
pub const VAS_IOC_CAPTURE: u32 = ioc(READ | WRITE, 0x10, size_of::<VasCapture>());
/// On a VAS file: shares its memory with a task.
pub const VAS_IOC_ATTACH: u32 = ioc(READ | WRITE, 0x11, size_of::<VasAttach>());
/// On a VAS file: what it is.
pub const VAS_IOC_STAT: u32 = ioc(READ, 0x12, size_of::<VasStat>());
/// On a VAS file: its VMAs.
pub const VAS_IOC_RANGES: u32 = ioc(READ | WRITE, 0x13, size_of::<VasRanges>());
/// On a VAS file: deletes it.
pub const VAS_IOC_DELETE: u32 = ioc(WRITE, 0x14, size_of::<VasDelete>());
/// On a VAS file: turns it cold.
pub const VAS_IOC_EVICT: u32 = ioc(READ | WRITE, 0x15, size_of::<VasEvict>());
/// On a VAS file: its label.
pub const VAS_IOC_GET_LABEL: u32 = ioc(READ, 0x16, size_of::<VasLabel>());
/// On a VAS file: gives it another label.
pub const VAS_IOC_SET_LABEL: u32 = ioc(WRITE, 0x17, size_of::<VasLabel>());
/// On a VAS file: which of its pages are its own.
pub const VAS_IOC_USAGE: u32 = ioc(READ, 0x18, size_of::<VasUsage>());
