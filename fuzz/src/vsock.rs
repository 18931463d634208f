// SPDX-License-Identifier: GPL-2.0-only
//! All streams of a guest that says anything, between the host's real Unix sockets. A stream
//! carries what was put into it, in order, and nothing of another; the guest never gets more
//! than it has room for; and in the end nothing is left.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mvasvm::memory::GuestMemory;
use mvasvm::virtio::chain::{Buffers, Chain};
use mvasvm::virtio::vsock::muxer::{LARGE_WINDOW, MAX_STREAMS, Muxer, SMALL_WINDOW};
use mvasvm::virtio::vsock::packet::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::input::Input;
use super::memory::{AVAIL, TABLE, WRITE, memory, put_descriptor, queue};

const CID: u64 = 3;
/// Where the one buffer is, and its length.
const BUFFER: u64 = 0x4000;
const BUFFER_LEN: u32 = 0x6000;
/// Sockets of the host at once: a byte's upper three bits tell whose it is.
const SOCKETS: usize = 8;
/// The host listens for these ports of the guest's peers.
const LISTENED: u32 = 2;

/// A byte of the stream of this number: whose, and which in order.
fn byte(whose: usize, at: usize) -> u8 {
    ((whose << 5) | (at % 32)) as u8
}

/// The host's end of a stream.
struct Socket {
    stream: UnixStream,
    written: usize,
    read: usize,
    /// The line that the muxer says first, if this end was a client's.
    line: Option<Vec<u8>>,
    /// Which guest port's bytes come here.
    tag: Option<u8>,
}

/// What the guest knows of a stream: (host port, guest port).
type Ports = (u32, u32);

#[derive(Default)]
struct Known {
    buf_alloc: u32,
    fwd_cnt: u32,
    sent: u32,
    /// Upper bits and place of the last byte.
    last: Option<u8>,
    open: bool,
}

struct Rig {
    _folder: tempfile::TempDir,
    path: PathBuf,
    muxer: Muxer,
    mem: GuestMemory,
    queue: Queue,
    available: u16,
    listeners: Vec<UnixListener>,
    sockets: [Option<Socket>; SOCKETS],
    known: HashMap<Ports, Known>,
    /// What the guest has to answer or to send to.
    ports: Vec<Ports>,
}

pub fn run(input: &[u8]) {
    let mut input = Input(input);
    let mut rig = Rig::new();
    while !input.is_empty() {
        rig.step(&mut input);
        assert!(rig.muxer.len() <= MAX_STREAMS);
    }
    rig.end();
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").expect("a tmpfs");
        let path = folder.path().join("v");
        let mut muxer = Muxer::new(&path, CID, Arc::default()).expect("a socket");
        muxer.start().expect("watched");
        let listen = |port| {
            let listener = UnixListener::bind(folder.path().join(format!("v_{port}")));
            let listener = listener.expect("a socket");
            listener.set_nonblocking(true).expect("a socket");
            listener
        };
        Self {
            listeners: (0..LISTENED).map(listen).collect(),
            _folder: folder,
            path,
            muxer,
            mem: memory(),
            queue: queue(16, false),
            available: 0,
            sockets: Default::default(),
            known: HashMap::new(),
            ports: vec![(0, 0), (1, 0), (1, 1)],
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let which = usize::from(input.byte());
        match which % 8 {
            0 | 1 => self.send(input),
            2 | 3 => {
                let room = 1 + u32::from(input.u16()) % BUFFER_LEN;
                self.fill(room);
            }
            4 => {
                for _ in 0..3 {
                    self.muxer.poll();
                }
            }
            5 => self.connect(input),
            6 => {
                let now = Instant::now() + Duration::from_secs(input.byte().into());
                self.muxer.tick(now);
            }
            _ => self.use_socket(usize::from(input.byte()) % SOCKETS, input),
        }
    }

    /// The buffer as a chain of one descriptor, checked as a device's chains are.
    fn with_buffer<T>(
        &mut self,
        len: u32,
        flags: u16,
        work: impl FnOnce(&mut Muxer, &Buffers<'_>) -> T,
    ) -> T {
        put_descriptor(&self.mem, TABLE, BUFFER, len, flags, 0);
        self.available = self.available.wrapping_add(1);
        let index = GuestAddress(AVAIL + 2);
        self.mem.write_obj(self.available, index).expect("memory");
        let chain = self.queue.pop_descriptor_chain(&self.mem).expect("a chain");
        let chain = Chain::new(&self.mem, chain).expect("a right one");
        let buffers = if flags == WRITE {
            chain.writable
        } else {
            chain.readable
        };
        work(&mut self.muxer, &buffers)
    }

    /// As the guest: a packet, mostly a right one.
    fn send(&mut self, input: &mut Input<'_>) {
        if !self.muxer.can_receive() {
            return;
        }
        let at = usize::from(input.byte()) % (self.ports.len() + 1);
        let ports = match self.ports.get(at) {
            Some(ports) => *ports,
            None => (input.byte().into(), input.byte().into()),
        };
        let op = input.byte();
        let len = match op {
            5 => u32::from(input.u16()) % BUFFER_LEN,
            _ => 0,
        };
        let tag = (ports.0 ^ ports.1) as u8;
        let known = self.known.entry(ports).or_default();
        let lies = input.byte();
        let mut header = Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: ports.1,
            dst_port: ports.0,
            len,
            kind: TYPE_STREAM,
            op: op.into(),
            flags: (lies & 3).into(),
            buf_alloc: u32::from(input.byte()) << 8,
            // The guest has taken all, or says something.
            fwd_cnt: if lies & 0x80 == 0 {
                known.sent
            } else {
                input.u32()
            },
        };
        match lies >> 2 & 0x1f {
            31 => header.src_cid = input.byte().into(),
            30 => header.dst_cid = input.byte().into(),
            29 => header.kind = input.byte().into(),
            28 => header.len = input.u32(),
            _ => {}
        }
        assert_eq!(Header::from_bytes(&header.to_bytes()), header);
        if header.src_cid == CID && header.dst_cid == HOST_CID && header.kind == TYPE_STREAM {
            (known.buf_alloc, known.fwd_cnt) = (header.buf_alloc, header.fwd_cnt);
        }
        let bytes = vec![tag; len as usize];
        self.mem
            .write_slice(&bytes, GuestAddress(BUFFER))
            .expect("memory");
        self.with_buffer(len, 0, |muxer, data| muxer.receive(&header, data.clone()));
    }

    /// As the guest: takes a packet; `false` if there is none.
    fn fill(&mut self, room: u32) -> bool {
        let Some(header) = self.with_buffer(room, WRITE, |muxer, room| muxer.fill(room)) else {
            return false;
        };
        assert_eq!(header.dst_cid, CID);
        assert!(header.len <= room);
        let ports = (header.src_port, header.dst_port);
        if !self.ports.contains(&ports) && self.ports.len() < 32 {
            self.ports.push(ports);
        }
        let known = self.known.entry(ports).or_default();
        match header.op {
            OP_REQUEST => {
                *known = Known::default();
                known.open = true;
            }
            OP_RESPONSE => {
                (known.sent, known.last, known.open) = (0, None, true);
            }
            // One for another address, or for another kind of socket, ends nothing.
            OP_RST if header.src_cid == HOST_CID && header.kind == TYPE_STREAM => {
                known.open = false;
            }
            OP_RST => {}
            _ => assert!(known.open, "{header:?}"),
        }
        if header.op != OP_RST {
            assert_eq!((header.src_cid, header.kind), (HOST_CID, TYPE_STREAM));
            assert!([SMALL_WINDOW, LARGE_WINDOW].contains(&header.buf_alloc));
        }
        assert_eq!(header.op == OP_RW, header.len > 0, "{header:?}");
        let on_the_way = known.sent.wrapping_sub(known.fwd_cnt);
        let credit = known.buf_alloc.saturating_sub(on_the_way);
        assert!(header.len <= credit, "{} bytes for {credit}", header.len);
        known.sent = known.sent.wrapping_add(header.len);
        let mut bytes = vec![0; header.len as usize];
        self.mem
            .read_slice(&mut bytes, GuestAddress(BUFFER))
            .expect("memory");
        for byte in bytes {
            let right = match known.last {
                None => byte % 32 == 0,
                Some(last) => byte == (last & 0xe0 | last.wrapping_add(1) & 0x1f),
            };
            assert!(right, "{byte:#x} after {:x?}", known.last);
            known.last = Some(byte);
        }
        true
    }

    /// As a client of the host: says where it wants to go, or nearly.
    fn connect(&mut self, input: &mut Input<'_>) {
        let Some(free) = self.sockets.iter().position(Option::is_none) else {
            return;
        };
        let Ok(stream) = UnixStream::connect(&self.path) else {
            return;
        };
        stream.set_nonblocking(true).expect("a socket");
        let line = match input.byte() {
            port @ 0..0xc0 => format!("CONNECT {}\n", port % 4).into_bytes(),
            _ => {
                let len = usize::from(input.byte() % 24);
                let line = input.take(len).split_inclusive(|byte| *byte == b'\n');
                // What follows is the stream's.
                line.take(1).collect::<Vec<_>>().concat()
            }
        };
        let _ = (&stream).write(&line);
        self.sockets[free] = Some(Socket {
            stream,
            written: 0,
            read: 0,
            line: Some(Vec::new()),
            tag: None,
        });
    }

    fn use_socket(&mut self, whose: usize, input: &mut Input<'_>) {
        let action = input.byte();
        let Some(socket) = &mut self.sockets[whose] else {
            let listener = &self.listeners[usize::from(action) % self.listeners.len()];
            if let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(true).expect("a socket");
                self.sockets[whose] = Some(Socket {
                    stream,
                    written: 0,
                    read: 0,
                    line: None,
                    tag: None,
                });
            }
            return;
        };
        match action % 8 {
            0..=2 => socket.write(whose, usize::from(input.u16())),
            3 | 4 => socket.read(usize::from(input.u16())),
            5 => drop(socket.stream.shutdown(Shutdown::Write)),
            6 => drop(socket.stream.shutdown(Shutdown::Read)),
            _ => self.sockets[whose] = None,
        }
    }

    /// All leave; nothing stays.
    fn end(&mut self) {
        for socket in self.sockets.iter_mut().flatten() {
            socket.read(1 << 20);
        }
        self.sockets = Default::default();
        self.listeners.clear();
        for _ in 0..4 {
            for _ in 0..8 {
                self.muxer.poll();
            }
            self.muxer.tick(Instant::now() + Duration::from_secs(300));
            let mut packets = 0;
            while self.fill(BUFFER_LEN) {
                packets += 1;
                assert!(packets < 10_000, "it speaks for ever");
            }
        }
        assert!(!self.muxer.has_output());
        assert!(self.muxer.is_empty(), "{} are left", self.muxer.len());
    }
}

impl Socket {
    /// A client's bytes go through only behind its line, whatever that was.
    fn write(&mut self, whose: usize, len: usize) {
        let bytes: Vec<u8> = (0..len).map(|i| byte(whose, self.written + i)).collect();
        self.written += self.stream.write(&bytes).unwrap_or(0);
    }

    fn read(&mut self, len: usize) {
        let mut bytes = vec![0; len];
        let got = match self.stream.read(&mut bytes) {
            Ok(got) => got,
            Err(error) => {
                assert!(error.kind() != ErrorKind::InvalidInput);
                return;
            }
        };
        for byte in &bytes[..got] {
            match &mut self.line {
                Some(line) if line.last() != Some(&b'\n') => {
                    line.push(*byte);
                    assert!(b"OK ".starts_with(&line[..line.len().min(3)]));
                    assert!(line.len() < 16);
                }
                _ => {
                    assert_eq!(*self.tag.get_or_insert(*byte), *byte, "of another stream");
                    self.read += 1;
                }
            }
        }
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let poll = vec![4];
    let take = vec![2, 0xff, 0x0f];
    // port, op, length of data, lies, buf_alloc
    let send = |at: u8, op: u8, len: u16| {
        let mut bytes = vec![0, at, op];
        if op == 5 {
            bytes.extend(len.to_le_bytes());
        }
        bytes.extend([3, 0x40]);
        bytes
    };
    let socket = |whose: u8, action: u8, len: u16| {
        let mut bytes = vec![7, whose, action];
        if action < 5 {
            bytes.extend(len.to_le_bytes());
        }
        bytes
    };
    // The host calls; both send; the host ends.
    let host = [
        vec![5, 1],
        poll.clone(),
        take.clone(),
        send(3, 2, 0),
        socket(0, 0, 3000),
        poll.clone(),
        take.clone(),
        send(3, 6, 0),
        take.clone(),
        send(3, 5, 500),
        socket(0, 3, 600),
        socket(0, 5, 0),
        poll.clone(),
        take.clone(),
        send(3, 4, 0),
        take.clone(),
    ];
    // The guest calls a port that is listened on, and one that is not.
    let guest = [
        send(1, 1, 0),
        take.clone(),
        socket(0, 1, 0),
        send(1, 5, 5000),
        socket(0, 3, 100),
        socket(0, 7, 0),
        poll,
        send(1, 5, 5000),
        take.clone(),
        vec![0, 255, 200, 1, 1, 3, 0x40],
        take,
        vec![6, 100],
    ];
    vec![host.concat(), guest.concat()]
}
