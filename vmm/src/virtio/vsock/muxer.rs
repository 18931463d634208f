// SPDX-License-Identifier: GPL-2.0-only
//! All streams of a guest: which packet is for which, and who speaks next.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::timerfd::TimerFd;

use super::connection::{CONNECT_TIMEOUT, Connection};
use super::listener::{ListenError, MAX_LINE, connect, listen, parse_connect};
use super::metrics::VsockMetrics;
use super::packet::{HOST_CID, Header, OP_REQUEST, OP_RST, TYPE_STREAM};
use crate::virtio::chain::Buffers;

/// The most streams at once, those that still say where they want to go included.
pub const MAX_STREAMS: usize = 512;
/// How many streams may have a large window.
pub const LARGE_WINDOWS: usize = 64;
/// Bytes that the guest may be ahead of the host's reader.
pub const LARGE_WINDOW: u32 = 256 << 10;
/// The same, when there are many streams.
pub const SMALL_WINDOW: u32 = 32 << 10;
/// The most resets that wait for the guest to make room; beyond, its packets wait too.
const MAX_RESETS: usize = 256;
/// How exactly deadlines are kept.
const TICK: Duration = Duration::from_millis(500);
/// Host ports are given out from here on, as far from well-known ones as Firecracker's.
const FIRST_HOST_PORT: u32 = 1 << 30;

const LISTENER: u64 = 0;
const TIMER: u64 = 1;
const FIRST_ID: u64 = 2;

/// The two ports of a stream; both addresses are always the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Ports {
    host: u32,
    guest: u32,
}

/// A host client that has not yet said which port it wants.
#[derive(Debug)]
struct Client {
    socket: UnixStream,
    line: Vec<u8>,
    deadline: Instant,
}

#[derive(Debug)]
struct Stream {
    ports: Ports,
    connection: Connection,
    /// It is in `ready`.
    queued: bool,
}

#[derive(Debug)]
enum Entry {
    Client(Client),
    Stream(Stream),
}

/// All streams.
#[derive(Debug)]
pub struct Muxer {
    guest_cid: u64,
    path: PathBuf,
    listener: UnixListener,
    epoll: Epoll,
    timer: TimerFd,
    ticking: bool,
    entries: HashMap<u64, Entry>,
    by_ports: HashMap<Ports, u64>,
    /// Streams that have something for the guest, in the order in which they may speak.
    ready: VecDeque<u64>,
    /// Answers to packets that belong to no stream.
    resets: VecDeque<Header>,
    next_id: u64,
    next_port: u32,
    metrics: Arc<VsockMetrics>,
}

impl Muxer {
    /// Listens at `path`, for a guest with the address `guest_cid`.
    ///
    /// # Errors
    /// The socket is in use, or cannot be made.
    pub fn new(
        path: &Path,
        guest_cid: u64,
        metrics: Arc<VsockMetrics>,
    ) -> Result<Self, ListenError> {
        let listener = listen(path)?;
        let watch = || -> io::Result<(Epoll, TimerFd)> {
            listener.set_nonblocking(true)?;
            let (epoll, timer) = (Epoll::new()?, TimerFd::new()?);
            add(&epoll, timer.as_raw_fd(), EventSet::IN, TIMER)?;
            Ok((epoll, timer))
        };
        let (epoll, timer) = watch().map_err(ListenError::Watch)?;
        Ok(Self {
            guest_cid,
            path: path.to_owned(),
            listener,
            epoll,
            timer,
            ticking: false,
            entries: HashMap::new(),
            by_ports: HashMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            next_id: FIRST_ID,
            next_port: FIRST_HOST_PORT,
            metrics,
        })
    }

    /// Begins to accept connections of the host. Those made before have waited.
    ///
    /// # Errors
    /// The listener cannot be watched.
    pub fn start(&mut self) -> io::Result<()> {
        let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
        add(&self.epoll, self.listener.as_raw_fd(), events, LISTENER)
    }

    /// Ends all streams without a word to the guest.
    pub fn stop(&mut self) {
        let fd = self.listener.as_raw_fd();
        // An error means that it was not started.
        let _ = self
            .epoll
            .ctl(ControlOperation::Delete, fd, EpollEvent::default());
        self.entries.clear();
        self.by_ports.clear();
        self.ready.clear();
        self.resets.clear();
    }

    /// Whether [`Self::fill`] has something to say.
    pub fn has_output(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// Whether [`Self::receive`] may be called: there is room for its answer.
    pub fn can_receive(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    /// How many streams and clients there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Makes the next packet for the guest, its bytes in `room`.
    pub fn fill(&mut self, room: &Buffers<'_>) -> Option<Header> {
        let header = self
            .resets
            .pop_front()
            .or_else(|| self.fill_from_streams(room))?;
        self.metrics.tx_packets.inc();
        self.metrics.tx_bytes.add(header.len.into());
        Some(header)
    }

    fn fill_from_streams(&mut self, room: &Buffers<'_>) -> Option<Header> {
        let now = Instant::now();
        while let Some(id) = self.ready.pop_front() {
            let Some(Entry::Stream(stream)) = self.entries.get_mut(&id) else {
                continue;
            };
            stream.queued = false;
            let ports = stream.ports;
            let Some(output) = stream.connection.fill(room, now) else {
                continue;
            };
            self.settle(id);
            return Some(Header {
                src_cid: HOST_CID,
                dst_cid: self.guest_cid,
                src_port: ports.host,
                dst_port: ports.guest,
                len: output.len,
                kind: TYPE_STREAM,
                op: output.op,
                flags: output.flags,
                buf_alloc: output.buf_alloc,
                fwd_cnt: output.fwd_cnt,
            });
        }
        None
    }

    /// Takes a packet of the guest; `data` is all that came with its header.
    pub fn receive(&mut self, header: &Header, data: Buffers<'_>) {
        self.metrics.rx_packets.inc();
        let len = header.len as usize;
        let ports = Ports {
            host: header.dst_port,
            guest: header.src_port,
        };
        let addressed = header.src_cid == self.guest_cid && header.kind == TYPE_STREAM;
        if !addressed || len > data.len() {
            self.metrics.bad_packets.inc();
        }
        if header.src_cid != self.guest_cid {
            // Whoever the guest pretends to be gets no answer.
        } else if header.kind != TYPE_STREAM || header.dst_cid != HOST_CID {
            self.refuse(header);
        } else if let Some(id) = self.by_ports.get(&ports).copied() {
            let Some(Entry::Stream(stream)) = self.entries.get_mut(&id) else {
                return;
            };
            if len > data.len() {
                stream.connection.abort();
            } else {
                let (data, _) = data.split_at(len);
                if !stream.connection.receive(header, &data, ports.host) {
                    self.metrics.bad_packets.inc();
                }
                self.metrics.rx_bytes.add(header.len.into());
            }
            self.settle(id);
        } else if header.op != OP_REQUEST {
            self.refuse(header);
        } else if let Some(socket) = self.connect_to_host(header.dst_port) {
            let connection = Connection::requested_by_guest(socket, self.window(), header);
            self.insert_stream(ports, connection);
        } else {
            self.metrics.refused.inc();
            self.refuse(header);
        }
    }

    /// Answers with a reset, unless it is one.
    fn refuse(&mut self, header: &Header) {
        if header.op != OP_RST {
            self.resets.push_back(header.reset_reply());
        }
    }

    fn connect_to_host(&self, port: u32) -> Option<UnixStream> {
        if self.entries.len() >= MAX_STREAMS {
            return None;
        }
        connect(&self.path, port).ok()
    }

    /// Works on what happened on the host's side. Call it when [`Self::as_raw_fd`] is readable.
    pub fn poll(&mut self) {
        let mut events = [EpollEvent::default(); 128];
        let count = match self.epoll.wait(0, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => return,
            Err(error) => {
                tracing::error!(%error, "cannot watch vsock streams");
                return;
            }
        };
        for event in &events[..count] {
            match event.data() {
                LISTENER => self.accept(),
                TIMER => {
                    // An error means that it was read already.
                    let _ = self.timer.wait();
                    self.tick(Instant::now());
                }
                id => self.on_socket_event(id, event.event_set()),
            }
        }
    }

    fn on_socket_event(&mut self, id: u64, events: EventSet) {
        match self.entries.get_mut(&id) {
            Some(Entry::Stream(stream)) => {
                stream.connection.on_socket_event(events);
                self.settle(id);
            }
            Some(Entry::Client(_)) => self.read_line(id, events),
            // Ended by an earlier event of this batch.
            None => {}
        }
    }

    /// Ends what took too long, and accepts again if that failed before.
    pub fn tick(&mut self, now: Instant) {
        let due = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        let expired: Vec<u64> = self
            .entries
            .iter()
            .filter(|(_, entry)| due(entry.deadline()))
            .map(|(id, _)| *id)
            .collect();
        for id in expired {
            self.metrics.timeouts.inc();
            match self.entries.get_mut(&id) {
                Some(Entry::Stream(stream)) => {
                    stream.connection.expire();
                    self.settle(id);
                }
                _ => self.remove(id),
            }
        }
        if !self
            .entries
            .values()
            .any(|entry| entry.deadline().is_some())
        {
            self.ticking = false;
            // An error leaves it ticking, which does no harm.
            let _ = self.timer.clear();
        }
        self.accept();
    }

    fn keep_time(&mut self) {
        if !self.ticking {
            match self.timer.reset(TICK, Some(TICK)) {
                Ok(()) => self.ticking = true,
                Err(error) => tracing::error!(%error, "vsock streams have no time-outs"),
            }
        }
    }

    fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((socket, _)) if self.entries.len() < MAX_STREAMS => self.insert_client(socket),
                Ok(_) => self.metrics.refused.inc(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a vsock connection, will try again");
                    self.keep_time();
                    return;
                }
            }
        }
    }

    fn insert_client(&mut self, socket: UnixStream) {
        let id = self.next_id;
        self.next_id += 1;
        if socket.set_nonblocking(true).is_err() || self.watch(&socket, id).is_err() {
            self.metrics.refused.inc();
            return;
        }
        let client = Client {
            socket,
            line: Vec::with_capacity(MAX_LINE),
            deadline: Instant::now() + CONNECT_TIMEOUT,
        };
        self.entries.insert(id, Entry::Client(client));
        self.keep_time();
    }

    fn insert_stream(&mut self, ports: Ports, connection: Connection) {
        let id = self.next_id;
        self.next_id += 1;
        let watched = self.watch(connection.socket(), id);
        let stream = Stream {
            ports,
            connection,
            queued: false,
        };
        self.add_stream(id, stream);
        if watched.is_err() {
            self.abort(id);
        }
    }

    fn add_stream(&mut self, id: u64, stream: Stream) {
        self.metrics.opened.inc();
        self.by_ports.insert(stream.ports, id);
        self.entries.insert(id, Entry::Stream(stream));
        self.settle(id);
    }

    fn abort(&mut self, id: u64) {
        if let Some(Entry::Stream(stream)) = self.entries.get_mut(&id) {
            stream.connection.abort();
            self.settle(id);
        }
    }

    fn watch(&self, socket: &UnixStream, id: u64) -> io::Result<()> {
        let events =
            EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        add(&self.epoll, socket.as_raw_fd(), events, id)
    }

    /// Reads where a client wants to go, byte by byte: what follows the line is the stream's.
    fn read_line(&mut self, id: u64, events: EventSet) {
        let Some(Entry::Client(client)) = self.entries.get_mut(&id) else {
            return;
        };
        let mut byte = [0];
        let port = loop {
            match client.socket.read(&mut byte) {
                Ok(1) if byte == *b"\n" => break parse_connect(&client.line),
                Ok(1) if client.line.len() < MAX_LINE => client.line.push(byte[0]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => break None,
            }
        };
        let (Some(guest), Some(Entry::Client(client))) = (port, self.entries.remove(&id)) else {
            self.metrics.refused.inc();
            self.remove(id);
            return;
        };
        let ports = Ports {
            host: self.free_port(guest),
            guest,
        };
        let mut connection =
            Connection::requested_by_host(client.socket, self.window(), Instant::now());
        // The edge was taken by the line; what follows it may be here already.
        connection.on_socket_event(events | EventSet::IN);
        let stream = Stream {
            ports,
            connection,
            queued: false,
        };
        self.add_stream(id, stream);
    }

    /// A host port that is free for a stream to the port `guest`; there are more of them than
    /// streams.
    fn free_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port = FIRST_HOST_PORT | host.wrapping_add(1) & (FIRST_HOST_PORT - 1);
            if !self.by_ports.contains_key(&Ports { host, guest }) {
                return host;
            }
        }
    }

    fn window(&self) -> u32 {
        if self.entries.len() < LARGE_WINDOWS {
            LARGE_WINDOW
        } else {
            SMALL_WINDOW
        }
    }

    /// After anything happened to a stream: queues it if it has something for the guest,
    /// forgets it if it is over.
    fn settle(&mut self, id: u64) {
        let Some(Entry::Stream(stream)) = self.entries.get_mut(&id) else {
            return;
        };
        let known = stream.connection.is_known_to_guest();
        if !known && self.by_ports.get(&stream.ports) == Some(&id) {
            self.by_ports.remove(&stream.ports);
        }
        if stream.connection.is_over() {
            self.remove(id);
            return;
        }
        if !stream.queued && stream.connection.has_output() {
            stream.queued = true;
            self.ready.push_back(id);
        }
        if stream.connection.deadline().is_some() {
            self.keep_time();
        }
    }

    /// Closing its socket ends its being watched.
    fn remove(&mut self, id: u64) {
        self.entries.remove(&id);
    }
}

impl AsRawFd for Muxer {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

impl Drop for Muxer {
    fn drop(&mut self) {
        // Somebody else's cleaning of the folder is no error.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Entry {
    fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Client(client) => Some(client.deadline),
            Self::Stream(stream) => stream.connection.deadline(),
        }
    }
}

fn add(epoll: &Epoll, fd: RawFd, events: EventSet, data: u64) -> io::Result<()> {
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, data))
}
