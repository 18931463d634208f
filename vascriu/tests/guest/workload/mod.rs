// SPDX-License-Identifier: GPL-2.0-only
//! The processes that the tests dump: memory with a known content, threads, a
//! copy-on-write tree, files, pipes and sockets, checked on a signal.
//!
//! On SIGUSR1 a workload checks everything it holds, moves its generation on by
//! one, and writes `ack-PID` (its own, innermost PID) into its directory:
//! `ok GENERATION`, for one with a seed `ok GENERATION of SEED`, or what is wrong.

mod memory;

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{ForkResult, Pid, fork, getpid, setsid};

use self::memory::{Mapped, Memory, Shared};

/// What a workload holds, as its command line says.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Where acknowledgements and files go.
    pub dir: PathBuf,
    /// Memory with a pattern, in MiB.
    pub mib: usize,
    /// Addresses kept free without access, in GiB, as runtimes do.
    pub reserved_gib: usize,
    /// Tells its pattern, and what it answers, from those of others.
    pub seed: u64,
    /// In huge pages; else 4 KiB pages.
    pub huge: bool,
    /// Threads besides the first.
    pub threads: usize,
    /// Children, which share the memory but for a part of their own.
    pub children: usize,
    /// A file, a pipe and a socket pair with data under way.
    pub files: bool,
    /// A TCP connection over the loopback.
    pub tcp: bool,
    /// Memory that it shares with its children, anonymous and of `memfd_create`.
    pub shared: bool,
    /// None of all that, but the program of `randomness.rs`.
    pub random: bool,
}

impl Options {
    /// The command line of this workload.
    pub fn args(&self) -> Vec<String> {
        let mut args = vec![
            "workload".into(),
            format!("dir={}", self.dir.display()),
            format!("mib={}", self.mib),
            format!("reserved_gib={}", self.reserved_gib),
            format!("seed={}", self.seed),
            format!("threads={}", self.threads),
            format!("children={}", self.children),
        ];
        for (on, name) in [
            (self.huge, "huge"),
            (self.files, "files"),
            (self.tcp, "tcp"),
            (self.shared, "shared"),
            (self.random, "random"),
        ] {
            if on {
                args.push(name.into());
            }
        }
        args
    }

    /// Reads what [`Options::args`] wrote, less its first word.
    pub fn parse(args: &[String]) -> Self {
        let mut o = Self::default();
        for arg in args {
            let (name, value) = arg.split_once('=').unwrap_or((arg, ""));
            let number = || value.parse().expect("a number");
            match name {
                "dir" => o.dir = value.into(),
                "seed" => o.seed = value.parse().expect("a number"),
                "mib" => o.mib = number(),
                "reserved_gib" => o.reserved_gib = number(),
                "threads" => o.threads = number(),
                "children" => o.children = number(),
                "huge" => o.huge = true,
                "files" => o.files = true,
                "tcp" => o.tcp = true,
                "shared" => o.shared = true,
                "random" => o.random = true,
                _ => panic!("unknown option {name}"),
            }
        }
        o
    }
}

/// Keeps so many addresses free, or none.
fn reserve(gib: usize) {
    let (none, flags) = (libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new anonymous mapping, which nothing uses.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), gib << 30, none, flags, -1, 0) };
    assert!(gib == 0 || at != libc::MAP_FAILED, "mmap");
}

/// Threads that check their own stacks when they are asked to.
struct Threads {
    barrier: Arc<Barrier>,
    bad: Arc<AtomicU64>,
}

impl Threads {
    fn start(count: usize) -> Self {
        let barrier = Arc::new(Barrier::new(count + 1));
        let bad = Arc::new(AtomicU64::new(0));
        for n in 0..count {
            let (barrier, bad) = (barrier.clone(), bad.clone());
            thread::spawn(move || {
                let mut local = [n as u64; 512];
                let heap = vec![n as u64; 4096];
                for round in 0.. {
                    barrier.wait();
                    let good = local.iter().all(|&v| v == n as u64 + round)
                        && heap.iter().all(|&v| v == n as u64);
                    bad.fetch_add(u64::from(!good), Ordering::SeqCst);
                    local.iter_mut().for_each(|v| *v += 1);
                    barrier.wait();
                }
            });
        }
        Self { barrier, bad }
    }

    fn check(&self) -> Result<(), String> {
        self.barrier.wait();
        self.barrier.wait();
        match self.bad.load(Ordering::SeqCst) {
            0 => Ok(()),
            n => Err(format!("{n} thread(s) lost their stack or heap")),
        }
    }
}

/// A file with a position, a pipe and a socket pair with data under way.
struct Files {
    file: fs::File,
    pipe: (fs::File, fs::File),
    pair: (UnixStream, UnixStream),
}

const UNDER_WAY: &[u8; 9] = b"under way";

impl Files {
    fn open(dir: &Path) -> Self {
        let path = dir.join("data");
        let mut file = fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .expect("file");
        file.write_all(b"0123456789").expect("write");
        file.seek(SeekFrom::Start(4)).expect("seek");
        let (read, write) = nix::unistd::pipe().expect("pipe");
        let pair = UnixStream::pair().expect("socket pair");
        let mut files = Self {
            file,
            pipe: (read.into(), write.into()),
            pair,
        };
        files.send();
        files
    }

    fn send(&mut self) {
        self.pipe.1.write_all(UNDER_WAY).expect("pipe");
        self.pair.0.write_all(UNDER_WAY).expect("socket");
    }

    fn check(&mut self) -> Result<(), String> {
        let mut got = [0; UNDER_WAY.len()];
        self.pipe
            .0
            .read_exact(&mut got)
            .map_err(|e| format!("pipe: {e}"))?;
        if got != *UNDER_WAY {
            return Err(format!("pipe held {got:?}"));
        }
        self.pair
            .1
            .read_exact(&mut got)
            .map_err(|e| format!("socket pair: {e}"))?;
        if got != *UNDER_WAY {
            return Err(format!("socket pair held {got:?}"));
        }
        let position = self
            .file
            .stream_position()
            .map_err(|e| format!("file: {e}"))?;
        if position != 4 {
            return Err(format!("file at {position}"));
        }
        self.send();
        Ok(())
    }
}

/// Both ends of a TCP connection, with data under way.
struct Tcp {
    _listener: TcpListener,
    client: TcpStream,
    server: TcpStream,
}

impl Tcp {
    fn connect() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        let (server, _) = listener.accept().expect("accept");
        for end in [&client, &server] {
            end.set_read_timeout(Some(Duration::from_secs(20)))
                .expect("timeout");
        }
        let mut tcp = Self {
            _listener: listener,
            client,
            server,
        };
        tcp.client.write_all(UNDER_WAY).expect("send");
        tcp
    }

    fn check(&mut self) -> Result<(), String> {
        let mut got = [0; UNDER_WAY.len()];
        self.server
            .read_exact(&mut got)
            .map_err(|e| format!("TCP receive: {e}"))?;
        if got != *UNDER_WAY {
            return Err(format!("TCP held {got:?}"));
        }
        self.server
            .write_all(UNDER_WAY)
            .map_err(|e| format!("TCP reply: {e}"))?;
        self.client
            .read_exact(&mut got)
            .map_err(|e| format!("TCP reply received: {e}"))?;
        self.client
            .write_all(UNDER_WAY)
            .map_err(|e| format!("TCP send: {e}"))?;
        Ok(())
    }
}

/// Where `pid`, by its own name, acknowledges.
pub fn ack(dir: &Path, pid: i32) -> PathBuf {
    dir.join(format!("ack-{pid}"))
}

/// Writes a file at once.
pub fn put(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).expect("write");
    fs::rename(new, path).expect("rename");
}

/// Waits for what `pid` writes to `path`.
fn wait_for(path: &Path, pid: Pid) -> Result<String, String> {
    let begun = Instant::now();
    loop {
        if let Ok(text) = fs::read_to_string(path) {
            return Ok(text);
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat
            .rsplit_once(") ")
            .map_or("gone", |(_, rest)| &rest[..1]);
        if matches!(state, "Z" | "X" | "gone") || begun.elapsed() > Duration::from_secs(60) {
            return Err(format!("no answer, its state is {state}"));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn check_child(dir: &Path, child: Pid) -> Result<(), String> {
    let path = ack(dir, child.as_raw());
    let _ = fs::remove_file(&path);
    kill(child, Signal::SIGUSR1).map_err(|e| format!("child {child}: {e}"))?;
    let answer = wait_for(&path, child).map_err(|e| format!("child {child}: {e}"))?;
    if answer.starts_with("ok ") {
        Ok(())
    } else {
        Err(format!("child {child}: {answer}"))
    }
}

/// Runs a workload until it is killed.
pub fn main(args: &[String]) {
    let o = Options::parse(args);
    if o.random {
        return crate::randomness::main(&o.dir);
    }
    let _ = setsid();
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGUSR1);
    signals.thread_block().expect("block");
    // Room for the patterns of children.
    let mut memory = Memory::new(o.mib, o.huge, o.seed << 8);
    let mut mapped = Mapped::new(o.seed << 8);
    let mut shared = o.shared.then(|| Shared::new(o.seed << 8));
    reserve(o.reserved_gib);
    let mut children = Vec::new();
    for nth in 0..o.children {
        // SAFETY: there are no other threads yet.
        match unsafe { fork() }.expect("fork") {
            ForkResult::Parent { child } => children.push(child),
            ForkResult::Child => {
                children.clear();
                memory.take(nth);
                mapped.write((o.seed << 8) + 1 + nth as u64);
                break;
            }
        }
    }
    let root = children.len() == o.children;
    let threads = Threads::start(if root { o.threads } else { 0 });
    let mut files = (root && o.files).then(|| Files::open(&o.dir));
    let mut tcp = (root && o.tcp).then(Tcp::connect);
    let at = memory.address();
    put(&o.dir.join(format!("ready-{}", getpid())), &at.to_string());
    for generation in 1u64.. {
        signals.wait().expect("signal");
        let mut good = memory.check().and_then(|()| mapped.check());
        good = good.and_then(|()| threads.check());
        if let Some(shared) = &mut shared {
            good = good.and_then(|()| shared.check(generation, root));
        }
        if let Some(files) = &mut files {
            good = good.and_then(|()| files.check());
        }
        if let Some(tcp) = &mut tcp {
            good = good.and_then(|()| tcp.check());
        }
        for &child in &children {
            good = good.and_then(|()| check_child(&o.dir, child));
        }
        let of = match o.seed {
            0 => String::new(),
            seed => format!(" of {seed}"),
        };
        let answer = good.map_or_else(|e| e, |()| format!("ok {generation}{of}"));
        put(&ack(&o.dir, getpid().as_raw()), &answer);
    }
}
