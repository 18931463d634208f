// SPDX-License-Identifier: GPL-2.0-only
//! The workload: a process with a known pattern in its memory, and perhaps [many](Many) of
//! something else, that can tell at any time whether all is as it left it, and does more on
//! [request](Request).
//!
//! It holds no pipe and no socket: on SIGUSR1 it reads a file and answers in another.

mod many;
mod pattern;

use std::ffi::c_void;
use std::fs::{self, File};
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
use nix::unistd::{ForkResult, fork};
use serde::{Deserialize, Serialize};

pub use many::Many;
pub(crate) use pattern::Patterned;
pub use pattern::{Access, EVERY, Touch};

/// Size and alignment of a huge page.
const HUGE: usize = 2 << 20;

/// What pages the workload asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
pub enum Pages {
    /// 2 MiB pages, by `MADV_HUGEPAGE`.
    #[serde(rename = "huge")]
    Huge,
    /// 4 KiB pages, by `MADV_NOHUGEPAGE`.
    #[serde(rename = "4k")]
    #[value(name = "4k")]
    Small,
}

impl std::fmt::Display for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Huge => "huge",
            Self::Small => "4k",
        })
    }
}

impl std::str::FromStr for Pages {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        <Self as ValueEnum>::from_str(text, false).map_err(anyhow::Error::msg)
    }
}

/// What its memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Memory {
    /// Private and anonymous.
    Private,
    /// A private mapping of a file, all of which is written to.
    File,
    /// Shared and anonymous.
    Shared,
    /// Shared, of `memfd_create`.
    Memfd,
}

/// What a workload holds.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Its memory, in MiB
    #[arg(long)]
    pub size_mib: usize,
    /// The pages of its memory
    #[arg(long)]
    pub pages: Pages,
    /// What that memory is
    #[arg(long, value_enum, default_value_t = Memory::Private)]
    pub memory: Memory,
    /// Decides on the pattern in its memory
    #[arg(long, default_value_t = 2019)]
    pub seed: u64,
    /// What it has many of
    #[arg(long)]
    pub many: Option<Many>,
    /// How many
    #[arg(long, default_value_t = 0)]
    pub count: usize,
    /// The file it answers in; a request is in the file `request` beside it
    #[arg(long)]
    pub answer: PathBuf,
}

/// What a workload can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The number of pages, and of what else it has many of, that are not as it left them.
    CountBad,
    /// To write to pages all over, with a pattern that no other copy of it writes: how many.
    Scatter,
    /// A random number.
    Random,
    /// To touch pages: how many nanoseconds that took.
    Touch(Touch),
    /// To fork: the PID of the child, which is a workload of its own.
    Fork,
    /// To do the next step of a computation: the state after it.
    Step,
    /// The state after the last step.
    State,
}

/// Leaves a request for who answers in `answer`.
///
/// # Errors
/// When the file cannot be written.
pub fn leave(request: &impl Serialize, answer: &Path) -> Result<()> {
    Ok(fs::write(
        request_beside(answer),
        serde_json::to_string(request)?,
    )?)
}

fn read_request(answer: &Path) -> Result<Request> {
    Ok(serde_json::from_slice(&fs::read(request_beside(answer))?)?)
}

fn request_beside(answer: &Path) -> PathBuf {
    answer.with_file_name("request")
}

/// Runs the workload: fills its memory, writes `0` into its answer when ready, and from then on
/// does at each SIGUSR1 what is requested. SIGTERM ends it.
///
/// # Errors
/// When memory cannot be mapped or the answer not be written.
pub fn run(options: &Options) -> Result<()> {
    // Of those who are asked, and of those who answer.
    let mut all = SigSet::empty();
    for signal in many::ANSWERS
        .into_iter()
        .chain([Signal::SIGUSR1, Signal::SIGTERM])
    {
        all.add(signal);
    }
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&all), None)?;
    // SAFETY: this installs no handler. Children that end leave no zombies.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
    // Children, if there are any, do not share the memory.
    let mut holding = many::Holding::new(options)?;
    let file = options.answer.with_file_name("mapped");
    let memory = map_as(options.memory, &file, options.size_mib, options.pages)?;
    let mut memory = Patterned::new(memory, options.seed);
    // From now on the C library has random numbers in stock.
    random()?;
    reply(&options.answer, 0)?;
    let mut asked = SigSet::empty();
    asked.add(Signal::SIGUSR1);
    asked.add(Signal::SIGTERM);
    while asked.wait()? == Signal::SIGUSR1 {
        let answer = match read_request(&options.answer)? {
            Request::CountBad => memory.count_bad() + holding.count_bad(),
            Request::Scatter => memory.scatter(now()?),
            Request::Random => random()?,
            Request::Touch(touch) => u64::try_from(memory.touch(touch).as_nanos())?,
            Request::Step => memory.step(),
            Request::State => memory.state(),
            // SAFETY: this process has no other threads, or nobody asks it to fork.
            Request::Fork => match unsafe { fork() }? {
                ForkResult::Parent { child } => u64::try_from(child.as_raw())?,
                ForkResult::Child => continue,
            },
        };
        reply(&options.answer, answer)?;
    }
    Ok(())
}

/// From the C library, as programs draw the numbers for their keys.
fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    // SAFETY: the buffer is live and has that length.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got == 8 {
        Ok(u64::from_ne_bytes(bytes))
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A seed that copies of one process do not have in common.
fn now() -> Result<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(u64::try_from(since.as_nanos())?)
}

/// A new mapping, of this file if it is of one.
fn map_room(memory: Memory, file: &Path, room: NonZeroUsize) -> Result<NonNull<c_void>> {
    let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let file = match memory {
        Memory::Private | Memory::Shared => None,
        Memory::File => Some(
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(file)?,
        ),
        Memory::Memfd => Some(memfd_create(c"workload", MFdFlags::MFD_CLOEXEC)?.into()),
    };
    let sharing = match memory {
        Memory::Private | Memory::File => MapFlags::MAP_PRIVATE,
        Memory::Shared | Memory::Memfd => MapFlags::MAP_SHARED,
    };
    let flags = sharing | MapFlags::MAP_NORESERVE;
    Ok(match file {
        // SAFETY: a new mapping at an address that the kernel chooses overlaps nothing that this
        // process uses.
        None => unsafe { mmap_anonymous(None, room, rights, flags) }?,
        Some(file) => {
            file.set_len(room.get() as u64)?;
            // SAFETY: as above.
            unsafe { mmap(None, room, rights, flags, file, 0) }?
        }
    })
}

/// Maps private memory for the rest of the process's life.
pub(crate) fn map(size_mib: usize, pages: Pages) -> Result<&'static mut [u64]> {
    map_as(Memory::Private, Path::new(""), size_mib, pages)
}

fn map_as(
    memory: Memory,
    file: &Path,
    size_mib: usize,
    pages: Pages,
) -> Result<&'static mut [u64]> {
    let bytes = size_mib
        .checked_mul(1 << 20)
        .and_then(|bytes| bytes.checked_next_multiple_of(HUGE))
        .context("that many MiB are more than the address space")?;
    let room = (bytes + HUGE)
        .try_into()
        .context("no memory was asked for")?;
    let base = map_room(memory, file, room);
    let base = base.with_context(|| format!("cannot map {size_mib} MiB"))?;
    let start = base.as_ptr().addr().next_multiple_of(HUGE);
    let aligned = base.with_addr(start.try_into().context("a mapping at 0")?);
    let advice = match pages {
        Pages::Huge => MmapAdvise::MADV_HUGEPAGE,
        Pages::Small => MmapAdvise::MADV_NOHUGEPAGE,
    };
    // SAFETY: the range lies in the mapping made above; this advice does not
    // change its content.
    unsafe { madvise(aligned, bytes, advice) }.context("madvise")?;
    // SAFETY: the range lies in the mapping made above, is zeroed by the kernel, as the file is
    // all holes, aligned to 2 MiB, never unmapped, and this is the only reference to it.
    Ok(unsafe { std::slice::from_raw_parts_mut(aligned.cast::<u64>().as_ptr(), bytes / 8) })
}

/// Writes an answer that a reader sees whole or not at all.
fn reply(answer: &Path, count: u64) -> io::Result<()> {
    let temporary = answer.with_extension("tmp");
    fs::write(&temporary, count.to_string())?;
    fs::rename(&temporary, answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_mapped_is_of_the_asked_size_and_aligned_to_huge_pages() {
        for pages in [Pages::Huge, Pages::Small] {
            let memory = map(4, pages).unwrap();
            assert_eq!(memory.as_ptr().addr() % HUGE, 0);
            let patterned = Patterned::new(memory, 7);
            assert_eq!(patterned.bytes().len(), 4 << 20);
            assert_eq!(patterned.count_bad(), 0);
        }
    }

    #[test]
    fn an_absurd_size_is_an_error() {
        assert!(map(usize::MAX, Pages::Huge).is_err());
        assert!(map(1 << 40, Pages::Huge).is_err());
    }
}
