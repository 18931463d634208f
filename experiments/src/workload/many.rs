// SPDX-License-Identifier: GPL-2.0-only
//! What a process can have many of besides memory.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{Seek, SeekFrom};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use anyhow::{Context, Result};
use clap::ValueEnum;
use nix::sys::mman::{ProtFlags, mprotect};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{ForkResult, Pid, fork, getppid};

use super::pattern::PAGE_WORDS;
use super::{Options, Pages, map};

/// Something that a process can have many of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Many {
    /// Threads, each with a number on its stack.
    Threads,
    /// Descriptors of open files, each at a position of its own.
    Descriptors,
    /// VMAs of one page each, every second one read-only.
    Vmas,
    /// Child processes, each with a page of its own.
    Processes,
}

impl std::fmt::Display for Many {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.to_possible_value();
        f.pad(name.as_ref().map_or("", |name| name.get_name()))
    }
}

impl std::str::FromStr for Many {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        <Self as ValueEnum>::from_str(text, false).map_err(anyhow::Error::msg)
    }
}

/// That many of something, which know what they should hold.
pub(super) enum Holding {
    Nothing,
    Threads(Threads),
    Descriptors(Vec<File>),
    Vmas(Vec<&'static u64>),
    Processes(Vec<Pid>),
}

impl Holding {
    /// What the options ask for.
    pub fn new(options: &Options) -> Result<Self> {
        let count = options.count;
        Ok(match options.many {
            None => Self::Nothing,
            Some(Many::Threads) => Self::Threads(Threads::start(count)?),
            Some(Many::Descriptors) => Self::Descriptors(descriptors(options)?),
            Some(Many::Vmas) => Self::Vmas(vmas(count)?),
            Some(Many::Processes) => {
                // SAFETY: this process has no other threads yet.
                let one = |number| unsafe { process(number) };
                Self::Processes((0..count as u64).map(one).collect::<Result<_>>()?)
            }
        })
    }

    /// How many of them are not as they were left.
    pub fn count_bad(&mut self) -> u64 {
        let is_bad: Vec<bool> = match self {
            Self::Nothing => Vec::new(),
            Self::Threads(threads) => return threads.count_bad(),
            Self::Descriptors(files) => {
                let at = files.iter_mut().map(Seek::stream_position);
                at.zip(0..).map(|(at, n)| at.ok() != Some(n)).collect()
            }
            Self::Vmas(words) => words.iter().zip(0..).map(|(word, n)| **word != n).collect(),
            Self::Processes(children) => children.iter().map(|child| !is_good(*child)).collect(),
        };
        is_bad.into_iter().map(u64::from).sum()
    }
}

/// Threads that look at what is on their stacks when they are asked to.
pub(super) struct Threads {
    turn: Arc<Barrier>,
    bad: Arc<AtomicU64>,
}

impl Threads {
    fn start(count: usize) -> Result<Self> {
        let turn = Arc::new(Barrier::new(count + 1));
        let bad = Arc::new(AtomicU64::new(0));
        for number in 0..count {
            let (turn, bad) = (turn.clone(), bad.clone());
            let look = move || {
                let held = [number; 64];
                loop {
                    turn.wait();
                    let good = black_box(&held).iter().all(|n| *n == number);
                    bad.fetch_add(u64::from(!good), Ordering::SeqCst);
                    turn.wait();
                }
            };
            let thread = thread::Builder::new().stack_size(64 << 10).spawn(look);
            thread.with_context(|| format!("cannot start thread {number}"))?;
        }
        Ok(Self { turn, bad })
    }

    /// Does not return if one is gone.
    fn count_bad(&self) -> u64 {
        self.turn.wait();
        self.turn.wait();
        self.bad.swap(0, Ordering::SeqCst)
    }
}

/// Descriptors of one file, the `n`th at position `n`.
fn descriptors(options: &Options) -> Result<Vec<File>> {
    let path = options.answer.with_file_name("held");
    fs::write(&path, vec![0; options.count])?;
    let open = |n| {
        let mut file = File::open(&path)?;
        file.seek(SeekFrom::Start(n))?;
        Ok(file)
    };
    (0..options.count as u64).map(open).collect()
}

/// The first words of VMAs of one page each, the `n`th of which is `n`.
fn vmas(count: usize) -> Result<Vec<&'static u64>> {
    let memory = map(count.div_ceil(256).max(1), Pages::Small)?;
    let mut words = Vec::new();
    for (page, n) in memory.chunks_exact_mut(PAGE_WORDS).zip(0..count) {
        page[0] = n as u64;
        if n % 2 == 1 {
            let (start, len) = (std::ptr::from_mut(page), size_of_val(page));
            let start = std::ptr::NonNull::new(start.cast()).context("a page at 0")?;
            // SAFETY: the page is a whole one, and from now on it is only read.
            unsafe { mprotect(start, len, ProtFlags::PROT_READ) }
                .with_context(|| format!("cannot make {count} VMAs"))?;
        }
        words.push(&page[0]);
    }
    Ok(words)
}

/// What a child answers: that it is as it should be, that it is not.
pub(super) const ANSWERS: [Signal; 2] = [Signal::SIGUSR2, Signal::SIGALRM];

/// Starts a child, which answers each SIGUSR1 by one of [`ANSWERS`].
///
/// # Safety
/// This process must have no other threads.
unsafe fn process(number: u64) -> Result<Pid> {
    let held = vec![number; PAGE_WORDS];
    // SAFETY: there are no other threads, as the caller guarantees.
    if let ForkResult::Parent { child } = unsafe { fork() }.context("cannot fork")? {
        return Ok(child);
    }
    let mut held = held;
    // Now they are its own.
    black_box(&mut held).fill(number);
    let mut asked = SigSet::empty();
    asked.add(Signal::SIGUSR1);
    while asked.wait().is_ok() {
        let good = black_box(&held).iter().all(|n| *n == number);
        if kill(getppid(), ANSWERS[usize::from(!good)]).is_err() {
            break;
        }
    }
    std::process::exit(1)
}

/// Asks a child whether it is as it should be.
fn is_good(child: Pid) -> bool {
    let answers: SigSet = ANSWERS.into_iter().collect();
    kill(child, Signal::SIGUSR1).is_ok() && answers.wait() == Ok(ANSWERS[0])
}
