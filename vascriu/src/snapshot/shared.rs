// SPDX-License-Identifier: GPL-2.0-only
//! Shared memory that tasks map: anonymous, of `memfd_create` or System V's, all of which are
//! files of a tmpfs that the kernel has for itself.
//!
//! CRIU would write its pages to images and read them back. Instead it is copied in large
//! pieces, once at the dump, into a VAS of its own, and once at each restore. A snapshot from
//! another microVM may say anything of it: nothing in that is taken for granted.

use std::fs::{self, File};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use memmap2::{Advice, MmapMut, MmapOptions};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::uio::{RemoteIoVec, process_vm_writev};
use nix::unistd::{Pid, Whence, lseek};
use serde::{Deserialize, Serialize};

use crate::device::{self, VasFile};
use crate::process::{self, PidFd, Vpid};

/// Each begins at such an address, so that it may be in huge pages.
const HUGE: u64 = 2 << 20;
/// A hole that is shorter is copied: it is not worth an entry in the list.
const GAP: u64 = 64 << 10;
/// More than one has: 16 TiB.
const MAX_BYTES: u64 = 16 << 40;
/// Written at a time.
const PIECE: usize = 1 << 20;

/// Why shared memory cannot be dumped or restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is not there, or fails.
    #[error("shared memory at {start:#x} of task {pid}")]
    Io {
        /// The task.
        pid: i32,
        /// Where it maps it.
        start: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The task has something else there.
    #[error("task {pid} has no shared memory at {start:#x}, as it had when it was dumped")]
    Unmapped {
        /// The task.
        pid: i32,
        /// Where.
        start: u64,
    },
    /// The kernel tells nothing of shared memory.
    #[error("cannot find out about shared memory")]
    Look(#[source] io::Error),
    /// No memory for a copy.
    #[error("no memory for a copy of {0} bytes of shared memory")]
    NoMemory(u64, #[source] io::Error),
    /// What was read makes no sense.
    #[error("the snapshot's list of shared memory is damaged")]
    Damaged,
    /// Its VAS.
    #[error(transparent)]
    Device(#[from] device::Error),
    /// This process.
    #[error(transparent)]
    Process(#[from] process::Error),
}

/// One piece of shared memory in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// A task that maps it,
    pub vpid: Vpid,
    /// from this address on.
    pub start: u64,
    /// Its length.
    pub bytes: u64,
    /// Where in the VAS it begins.
    pub at: u64,
    /// Where it has data; elsewhere it is zero. Offsets, ascending.
    pub data: Vec<Range<u64>>,
}

impl Segment {
    /// Pages of data.
    #[must_use]
    pub fn pages(&self) -> u64 {
        let len = |r: &Range<u64>| r.end.saturating_sub(r.start);
        self.data.iter().map(len).fold(0, u64::saturating_add) / 4096
    }

    fn is_sane(&self) -> bool {
        let last = self.data.iter().try_fold(0, |last, r| {
            (last <= r.start && r.start < r.end).then_some(r.end)
        });
        self.bytes <= MAX_BYTES
            && self.at.checked_add(self.bytes).is_some()
            && last.is_some_and(|last| last <= self.bytes)
    }
}

/// A mapping of shared memory, by a line of `/proc/PID/maps`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mapping {
    range: Range<u64>,
    offset: u64,
    writable: bool,
    inode: u64,
}

impl Mapping {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(6, ' ');
        let (start, end) = words.next()?.split_once('-')?;
        let rights = words.next()?.as_bytes();
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let offset = hex(words.next()?)?;
        let inode = words.nth(1)?.parse().ok()?;
        let name = words.next()?.trim_start();
        let kinds = ["/dev/zero (deleted)", "/memfd:", "/SYSV"];
        let is_shared = rights.get(3) == Some(&b's') && kinds.iter().any(|k| name.starts_with(k));
        is_shared.then_some(Self {
            range: hex(start)?..hex(end)?,
            offset,
            writable: rights[1] == b'w',
            inode,
        })
    }

    fn path(&self, pid: i32) -> String {
        let Range { start, end } = self.range;
        format!("/proc/{pid}/map_files/{start:x}-{end:x}")
    }
}

fn mappings(pid: i32) -> Result<Vec<Mapping>, Error> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).map_err(Error::Look)?;
    Ok(maps.lines().filter_map(Mapping::parse).collect())
}

/// Shared memory of a task that is dumped.
#[derive(Debug)]
pub struct Source {
    pid: i32,
    vpid: Vpid,
    start: u64,
    file: File,
    /// Its number in the file system of [`device()`].
    pub inode: u64,
}

/// The device of the file system that all shared memory is in.
///
/// # Errors
/// The kernel's.
pub fn device() -> Result<u64, Error> {
    let look = |e: Errno| Error::Look(e.into());
    let file = File::from(memfd_create(c"vascriu", MFdFlags::MFD_CLOEXEC).map_err(look)?);
    Ok(file.metadata().map_err(Error::Look)?.dev())
}

/// The shared memory that the stopped task `pid` maps, on the device `dev`, but for what a
/// restore could not write to, and for empty files.
///
/// # Errors
/// See [`Error`].
pub fn of(pid: i32, vpid: Vpid, dev: u64) -> Result<Vec<Source>, Error> {
    let mut found: Vec<Source> = Vec::new();
    for mapping in mappings(pid)? {
        if found.iter().any(|s| s.inode == mapping.inode) {
            continue;
        }
        let start = mapping.range.start;
        let open = || {
            let file = File::open(mapping.path(pid))?;
            let there = file.metadata()?;
            // Without seals where it is none of memfd_create.
            let seals = fcntl(&file, FcntlArg::F_GET_SEALS).unwrap_or(0);
            let seals = SealFlag::from_bits_truncate(seals);
            let sealed = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_FUTURE_WRITE;
            let is_ours = there.dev() == dev && there.len() > 0 && !seals.intersects(sealed);
            Ok(is_ours.then_some((file, there.ino())))
        };
        let opened = open().map_err(|source| Error::Io { pid, start, source })?;
        found.extend(opened.map(|(file, inode)| Source {
            pid,
            vpid,
            start,
            file,
            inode,
        }));
    }
    Ok(found)
}

impl Source {
    fn failed(&self, source: io::Error) -> Error {
        Error::Io {
            pid: self.pid,
            start: self.start,
            source,
        }
    }

    /// Where it has data.
    fn data(&self, bytes: u64) -> io::Result<Vec<Range<u64>>> {
        let mut data: Vec<Range<u64>> = Vec::new();
        let mut at = 0;
        while at < bytes {
            let seek = |from: u64, whence| {
                let from = i64::try_from(from).map_err(io::Error::other)?;
                Ok::<_, io::Error>(lseek(self.file.as_fd(), from, whence)?.cast_unsigned())
            };
            let start = match seek(at, Whence::SeekData) {
                Err(e) if e.raw_os_error() == Some(libc::ENXIO) => break,
                start => start?,
            };
            at = seek(start, Whence::SeekHole)?.min(bytes);
            match data.last_mut() {
                Some(last) if start - last.end < GAP => last.end = at,
                _ if start < at => data.push(start..at),
                _ => {}
            }
        }
        Ok(data)
    }

    fn segment(&self, at: u64) -> io::Result<Segment> {
        let bytes = self.file.metadata()?.len();
        Ok(Segment {
            vpid: self.vpid,
            start: self.start,
            bytes,
            at,
            data: self.data(bytes)?,
        })
    }
}

fn memory(bytes: u64) -> Result<MmapMut, Error> {
    let len = usize::try_from(bytes).map_err(|_| Error::Damaged)?;
    // Much of it may be holes.
    let memory = MmapOptions::new().len(len).no_reserve_swap().map_anon();
    let memory = memory.map_err(|e| Error::NoMemory(bytes, e))?;
    // Where there are none it is in small ones.
    let _ = memory.advise(Advice::HugePage);
    Ok(memory)
}

fn slice<'a>(memory: &'a mut [u8], from: u64, range: &Range<u64>) -> Result<&'a mut [u8], Error> {
    let place = |at: u64| usize::try_from(from + at).ok();
    let range = place(range.start).zip(place(range.end));
    let slice = range.and_then(|(start, end)| memory.get_mut(start..end));
    slice.ok_or(Error::Damaged)
}

/// Copies all of them into an empty VAS.
///
/// # Errors
/// See [`Error`].
pub fn capture(sources: &[Source], vas: &VasFile) -> Result<Vec<Segment>, Error> {
    let mut segments = Vec::new();
    let mut all = 0;
    for source in sources {
        let segment = source.segment(all).map_err(|e| source.failed(e))?;
        all += segment.bytes.next_multiple_of(HUGE);
        segments.push(segment);
    }
    let mut memory = memory(all)?;
    for (segment, source) in segments.iter().zip(sources) {
        for range in &segment.data {
            let to = slice(&mut memory, segment.at, range)?;
            let read = source.file.read_exact_at(to, range.start);
            read.map_err(|e| source.failed(e))?;
        }
    }
    vas.capture_own(PidFd::own()?.as_fd(), &memory)?;
    for segment in &mut segments {
        segment.at += memory.as_ptr() as u64;
    }
    Ok(segments)
}

impl Segment {
    /// Puts it where the restored, stopped task `pid` maps it.
    ///
    /// # Errors
    /// See [`Error`]; some of it may be there.
    pub fn restore(&self, pid: i32, vas: &VasFile) -> Result<(), Error> {
        if !self.is_sane() {
            return Err(Error::Damaged);
        }
        if self.data.is_empty() {
            return Ok(());
        }
        let start = self.start;
        let mapping = mappings(pid)?
            .into_iter()
            .find(|m| m.range.contains(&start));
        let mapping = mapping.ok_or(Error::Unmapped { pid, start })?;
        let mut memory = memory(self.bytes.next_multiple_of(HUGE))?;
        vas.attach_own(PidFd::own()?.as_fd(), self.at, &mut memory)?;
        let failed = |source| Error::Io { pid, start, source };
        let open = File::options().write(true).open(mapping.path(pid));
        let file = open.map_err(failed)?;
        // What nobody maps at its end CRIU leaves out.
        let end = file.metadata().map_err(failed)?.len();
        for range in &self.data {
            let range = range.start..range.end.min(end);
            if range.is_empty() {
                break;
            }
            let from = slice(&mut memory, 0, &range)?;
            write(&mapping, pid, &file, range.start, from).map_err(failed)?;
        }
        Ok(())
    }
}

/// Through the task, where it may write, so that its memory cgroup pays.
fn write(mapping: &Mapping, pid: i32, file: &File, at: u64, from: &[u8]) -> io::Result<()> {
    let len = mapping.range.end - mapping.range.start;
    let mapped = mapping.offset..mapping.offset.saturating_add(len);
    for (n, piece) in from.chunks(PIECE).enumerate() {
        let at = at + (n * PIECE) as u64;
        let is_mapped = mapped.contains(&at) && at + piece.len() as u64 <= mapped.end;
        if mapping.writable && is_mapped {
            write_through(pid, mapping.range.start + (at - mapping.offset), piece)?;
        } else {
            file.write_all_at(piece, at)?;
        }
    }
    Ok(())
}

fn write_through(pid: i32, mut base: u64, mut piece: &[u8]) -> io::Result<()> {
    while !piece.is_empty() {
        let remote = RemoteIoVec {
            base: usize::try_from(base).map_err(io::Error::other)?,
            len: piece.len(),
        };
        let done = process_vm_writev(Pid::from_raw(pid), &[IoSlice::new(piece)], &[remote])?;
        if done == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        piece = &piece[done..];
        base += done as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_is_told_from_other_mappings() {
        let line = "7f00a000-7f00c000 rw-s 00001000 00:01 1025   /dev/zero (deleted)";
        let mapping = Mapping::parse(line).expect("shared memory");
        assert_eq!(
            mapping,
            Mapping {
                range: 0x7f00_a000..0x7f00_c000,
                offset: 0x1000,
                writable: true,
                inode: 1025,
            }
        );
        assert_eq!(mapping.path(7), "/proc/7/map_files/7f00a000-7f00c000");
        for line in [
            "7f00a000-7f00c000 r--s 00000000 00:01 9  /memfd:a b (deleted)",
            "7f00a000-7f00c000 r--s 00000000 00:01 9  /SYSV00000000 (deleted)",
        ] {
            assert!(!Mapping::parse(line).expect("shared memory").writable);
        }
        for line in [
            "7f00a000-7f00c000 rw-p 00000000 00:01 9  /dev/zero (deleted)",
            "7f00a000-7f00c000 rw-s 00000000 00:16 9  /dev/shm/x",
            "7f00a000-7f00c000 rw-p 00000000 00:00 0 ",
            "7f00a000-7f00c000 rw-p 00000000 00:00 0  [heap]",
            "",
        ] {
            assert_eq!(Mapping::parse(line), None, "{line}");
        }
    }

    fn source(len: u64) -> Source {
        let file = File::from(memfd_create(c"test", MFdFlags::MFD_CLOEXEC).expect("memfd"));
        file.set_len(len).expect("length");
        let inode = file.metadata().expect("stat").ino();
        Source {
            pid: 1,
            vpid: Vpid(1),
            start: 0,
            file,
            inode,
        }
    }

    #[test]
    fn holes_are_left_out_but_for_short_ones() {
        let source = source(16 << 20);
        for at in [0, 32 << 10, 1 << 20, (16 << 20) - 4096] {
            source.file.write_all_at(&[1], at).expect("write");
        }
        let segment = source.segment(0).expect("segment");
        let end = 16 << 20;
        let data = [0..36 << 10, 1 << 20..(1 << 20) + 4096, end - 4096..end];
        assert_eq!(segment.data, data);
        assert_eq!(segment.pages(), 9 + 1 + 1);
        assert!(segment.is_sane());
    }

    #[test]
    fn a_list_that_makes_no_sense_is_damaged() {
        let good = Segment {
            vpid: Vpid(1),
            start: 0,
            bytes: 8192,
            at: 1 << 40,
            data: vec![0..4096, 4096..8192],
        };
        assert!(good.is_sane());
        let bad = |change: fn(&mut Segment)| {
            let mut segment = good.clone();
            change(&mut segment);
            assert!(!segment.is_sane(), "{segment:?}");
        };
        bad(|s| s.bytes = 8191);
        bad(|s| s.bytes = u64::MAX);
        bad(|s| s.at = u64::MAX);
        bad(|s| s.data[0] = 0..4097);
        bad(|s| s.data[0].end = 0);
        bad(|s| s.data.swap(0, 1));
    }

    #[test]
    fn this_process_has_its_shared_memory_found() {
        let mapped = MmapMut::map_anon(4096).expect("private");
        let source = source(8192);
        // SAFETY: nobody shortens the file while it is mapped.
        let shared = unsafe { MmapMut::map_mut(&source.file) }.expect("shared");
        let empty = self::source(0);
        // SAFETY: nobody reads it: there is nothing.
        let behind = unsafe { MmapOptions::new().len(4096).map_mut(&empty.file) };
        let behind = behind.expect("a mapping behind the end");
        let pid = std::process::id().cast_signed();
        let dev = device().expect("device");
        match of(pid, Vpid(pid), dev) {
            // map_files needs rights.
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {}
            found => {
                let found = found.expect("a look");
                let it = found.iter().find(|s| s.inode == source.inode);
                assert_eq!(it.expect("found").start, shared.as_ptr() as u64);
                assert!(found.iter().all(|s| s.inode != empty.inode));
            }
        }
        drop((mapped, behind));
    }
}
