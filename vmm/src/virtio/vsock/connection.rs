// SPDX-License-Identifier: GPL-2.0-only
//! One stream: its state, its flow control, and its Unix socket.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::EventSet;

use super::packet::{
    Header, OP_CREDIT_REQUEST, OP_CREDIT_UPDATE, OP_REQUEST, OP_RESPONSE, OP_RST, OP_RW,
    OP_SHUTDOWN, SHUTDOWN_BOTH, SHUTDOWN_RCV, SHUTDOWN_SEND,
};
use crate::virtio::chain::Buffers;

/// How long the guest may take to answer a request.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the guest may take to confirm the end of a stream.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the guest may let the last bytes of a host that has gone wait, each time.
pub const LINGER_TIMEOUT: Duration = Duration::from_secs(60);

/// What a stream is to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    /// The host wants it; the guest has not answered.
    Requested,
    /// Both want it.
    Established,
    /// It is over; the guest must be told.
    Resetting,
    /// The guest has closed it; the host has not read all of it.
    Draining,
    /// It is over.
    Over,
}

/// A packet for the guest, but for the addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// One of `OP_*`.
    pub op: u16,
    /// Of `OP_SHUTDOWN`.
    pub flags: u32,
    /// Bytes that were put into the packet.
    pub len: u32,
    /// Size of the receive buffer.
    pub buf_alloc: u32,
    /// Bytes taken out of it.
    pub fwd_cnt: u32,
}

/// A stream.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    link: Link,
    /// REQUEST or RESPONSE has still to be sent.
    opening: bool,
    deadline: Option<Instant>,

    /// The socket may have bytes, or its end. (It is watched edge-triggered.)
    readable: bool,
    /// It had its end.
    host_eof: bool,
    /// Nobody is at its other end.
    host_gone: bool,
    /// What SHUTDOWN told the guest.
    shutdown_sent: u32,
    /// Bytes sent to the guest.
    sent: Wrapping<u32>,
    /// What the guest said of its buffer.
    guest_buf_alloc: u32,
    guest_fwd_cnt: Wrapping<u32>,
    /// CREDIT_REQUEST was sent since the guest's buffer became full.
    credit_requested: bool,

    /// Bytes from the guest that the socket did not take yet.
    buffer: VecDeque<u8>,
    /// The most that `buffer` may hold.
    window: u32,
    /// Bytes from the guest that the socket took, and what of it the guest knows.
    forwarded: Wrapping<u32>,
    told_forwarded: Wrapping<u32>,
    /// The guest asked for our credit.
    credit_asked: bool,
    /// What SHUTDOWN told us.
    guest_shutdown: u32,
    /// The socket was told that there will be no more bytes.
    write_closed: bool,
}

impl Connection {
    /// A stream that the host wants; `socket` is non-blocking and watched.
    pub fn requested_by_host(socket: UnixStream, window: u32, now: Instant) -> Self {
        let mut connection = Self::new(socket, window, Link::Requested);
        connection.deadline = Some(now + CONNECT_TIMEOUT);
        connection
    }

    /// A stream that the guest asked for with `request`, and that the host accepts.
    pub fn requested_by_guest(socket: UnixStream, window: u32, request: &Header) -> Self {
        let mut connection = Self::new(socket, window, Link::Established);
        connection.learn_credit(request);
        connection
    }

    fn new(socket: UnixStream, window: u32, link: Link) -> Self {
        Self {
            socket,
            link,
            opening: true,
            deadline: None,
            readable: false,
            host_eof: false,
            host_gone: false,
            shutdown_sent: 0,
            sent: Wrapping(0),
            guest_buf_alloc: 0,
            guest_fwd_cnt: Wrapping(0),
            credit_requested: false,
            buffer: VecDeque::new(),
            window,
            forwarded: Wrapping(0),
            told_forwarded: Wrapping(0),
            credit_asked: false,
            guest_shutdown: 0,
            write_closed: false,
        }
    }

    /// Its Unix socket.
    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Whether nothing is left to do.
    pub fn is_over(&self) -> bool {
        self.link == Link::Over
    }

    /// Whether the guest still knows it.
    pub fn is_known_to_guest(&self) -> bool {
        !matches!(self.link, Link::Draining | Link::Over)
    }

    /// When [`Self::expire`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Ends a stream whose deadline has passed.
    pub fn expire(&mut self) {
        self.abort();
    }

    /// Ends the stream at once, and will tell the guest.
    pub fn abort(&mut self) {
        // An error means that the other end is gone already.
        let _ = self.socket.shutdown(Shutdown::Both);
        self.deadline = None;
        self.buffer = VecDeque::new();
        let told = self.is_known_to_guest() && !(self.link == Link::Requested && self.opening);
        self.link = if told { Link::Resetting } else { Link::Over };
    }

    /// Takes a packet of the guest. `data` are the `header.len` bytes that came with it, and
    /// `host_port` is what the host is told when the guest accepts.
    ///
    /// Returns false if the guest broke the protocol; the stream is then being reset.
    pub fn receive(&mut self, header: &Header, data: &Buffers<'_>, host_port: u32) -> bool {
        if self.link == Link::Resetting {
            // The reset crosses what the guest sent before it knew.
            if header.op == OP_RST {
                self.link = Link::Over;
            }
            return true;
        }
        self.learn_credit(header);
        let fine = match (self.link, header.op) {
            (_, OP_RST) => {
                self.reset_by_guest();
                true
            }
            (Link::Requested, OP_RESPONSE) if !self.opening => self.accepted_by_guest(host_port),
            (Link::Established, OP_RW) => self.take(data),
            (Link::Established, OP_SHUTDOWN) => {
                self.shut_down_by_guest(header.flags & SHUTDOWN_BOTH);
                true
            }
            (Link::Established, OP_CREDIT_UPDATE) => true,
            (Link::Established, OP_CREDIT_REQUEST) => {
                self.credit_asked = true;
                true
            }
            _ => false,
        };
        if !fine {
            self.abort();
        }
        fine
    }

    fn learn_credit(&mut self, header: &Header) {
        self.guest_buf_alloc = header.buf_alloc;
        self.guest_fwd_cnt = Wrapping(header.fwd_cnt);
        if self.guest_credit() > 0 {
            self.credit_requested = false;
        }
    }

    fn accepted_by_guest(&mut self, host_port: u32) -> bool {
        self.link = Link::Established;
        self.deadline = None;
        // The first bytes ever written to this socket: it has room for them.
        if self
            .socket
            .write_all(format!("OK {host_port}\n").as_bytes())
            .is_err()
        {
            self.lose_host();
        }
        true
    }

    fn reset_by_guest(&mut self) {
        self.deadline = None;
        let orderly = self.guest_shutdown & SHUTDOWN_SEND != 0;
        self.link = if orderly && !self.buffer.is_empty() {
            Link::Draining
        } else {
            Link::Over
        };
    }

    fn shut_down_by_guest(&mut self, flags: u32) {
        self.guest_shutdown |= flags;
        if self.guest_shutdown & SHUTDOWN_RCV != 0 {
            self.readable = false;
            // An error means that the other end is gone already.
            let _ = self.socket.shutdown(Shutdown::Read);
        }
        self.after_flush();
    }

    fn take(&mut self, data: &Buffers<'_>) -> bool {
        let room = (self.window as usize).saturating_sub(self.buffer.len());
        if data.len() > room || self.guest_shutdown & SHUTDOWN_SEND != 0 {
            return false;
        }
        let mut written = 0;
        if self.host_gone {
            written = data.len();
        } else if self.buffer.is_empty() && !data.is_empty() {
            match retry(|| data.send_to(self.socket.as_fd())) {
                Ok(len) => written = len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => {
                    self.lose_host();
                    written = data.len();
                }
            }
        }
        self.count_forwarded(written);
        if written < data.len() {
            let mut rest = vec![0; data.len() - written];
            data.clone().split_at(written).1.copy_to(&mut rest);
            self.buffer.extend(rest);
        }
        true
    }

    /// What happened to the socket.
    pub fn on_socket_event(&mut self, events: EventSet) {
        if events.contains(EventSet::OUT) {
            self.flush();
        }
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            self.lose_host();
        }
        let ended = EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR;
        if events.intersects(EventSet::IN | ended)
            && !self.host_eof
            && self.guest_shutdown & SHUTDOWN_RCV == 0
        {
            self.readable = true;
        }
        if self.link == Link::Requested && self.host_gone {
            self.abort();
        }
    }

    /// Writes what the socket did not take before.
    fn flush(&mut self) {
        while !self.buffer.is_empty() {
            match retry(|| self.socket.write(self.buffer.as_slices().0)) {
                Ok(len) => {
                    self.buffer.drain(..len);
                    self.count_forwarded(len);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.lose_host(),
            }
        }
        // Give the memory back: most streams never need it again.
        self.buffer = VecDeque::new();
        self.after_flush();
    }

    fn after_flush(&mut self) {
        if !self.buffer.is_empty() {
            return;
        }
        if self.guest_shutdown & SHUTDOWN_SEND != 0 && !self.write_closed {
            self.write_closed = true;
            // An error means that the other end is gone already.
            let _ = self.socket.shutdown(Shutdown::Write);
        }
        match self.link {
            // A reset confirms the end (virtio 1.2, 5.10.6.5).
            Link::Established if self.guest_shutdown == SHUTDOWN_BOTH => {
                self.link = Link::Resetting;
            }
            Link::Draining => self.link = Link::Over,
            _ => {}
        }
    }

    fn lose_host(&mut self) {
        self.host_gone = true;
        let lost = self.buffer.len();
        self.buffer = VecDeque::new();
        self.count_forwarded(lost);
        self.after_flush();
    }

    fn count_forwarded(&mut self, bytes: usize) {
        // At most a window, so it fits.
        self.forwarded += u32::try_from(bytes).unwrap_or(u32::MAX);
    }

    /// Bytes that the guest can take now. One that claims to have taken more than it got has
    /// none.
    fn guest_credit(&self) -> u32 {
        let in_flight = (self.sent - self.guest_fwd_cnt).0;
        self.guest_buf_alloc.saturating_sub(in_flight)
    }

    fn shutdown_due(&self) -> u32 {
        let send = if self.host_eof { SHUTDOWN_SEND } else { 0 };
        let rcv = if self.host_gone { SHUTDOWN_RCV } else { 0 };
        let due = send | rcv;
        if due & !self.shutdown_sent == 0 {
            0
        } else {
            due
        }
    }

    fn credit_update_due(&self) -> bool {
        // Half a window: the guest always has the other half to go on with.
        self.credit_asked || (self.forwarded - self.told_forwarded).0 >= self.window / 2
    }

    /// Whether [`Self::fill`] has something to say, as far as is known.
    pub fn has_output(&self) -> bool {
        match self.link {
            Link::Resetting => true,
            Link::Requested => self.opening,
            Link::Established => {
                self.opening
                    || self.readable && (self.guest_credit() > 0 || !self.credit_requested)
                    || self.shutdown_due() != 0
                    || self.credit_update_due()
            }
            Link::Draining | Link::Over => false,
        }
    }

    /// Makes the next packet for the guest, with up to `room` bytes read from the socket.
    pub fn fill(&mut self, room: &Buffers<'_>, now: Instant) -> Option<Output> {
        match self.link {
            Link::Resetting => {
                self.link = Link::Over;
                Some(self.output(OP_RST, 0, 0))
            }
            Link::Requested | Link::Established if self.opening => {
                self.opening = false;
                let host_asks = self.link == Link::Requested;
                let op = if host_asks { OP_REQUEST } else { OP_RESPONSE };
                Some(self.output(op, 0, 0))
            }
            Link::Established => self
                .fill_data(room, now)
                .or_else(|| self.fill_shutdown(now))
                .or_else(|| self.fill_credit()),
            Link::Requested | Link::Draining | Link::Over => None,
        }
    }

    fn fill_data(&mut self, room: &Buffers<'_>, now: Instant) -> Option<Output> {
        let credit = self.guest_credit() as usize;
        if !self.readable || credit == 0 || room.is_empty() {
            return None;
        }
        let result = if room.len() > credit {
            let (room, _) = room.clone().split_at(credit);
            retry(|| room.read_from(self.socket.as_fd()))
        } else {
            retry(|| room.read_from(self.socket.as_fd()))
        };
        match result {
            Ok(len @ 1..) => {
                // At most the credit, which is a u32.
                let len = u32::try_from(len).unwrap_or(u32::MAX);
                self.sent += len;
                if self.host_gone {
                    self.deadline = Some(now + LINGER_TIMEOUT);
                }
                return Some(self.output(OP_RW, 0, len));
            }
            Ok(0) => self.host_eof = true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => {
                self.host_eof = true;
                self.lose_host();
            }
        }
        self.readable = false;
        None
    }

    fn fill_shutdown(&mut self, now: Instant) -> Option<Output> {
        let flags = self.shutdown_due();
        if flags == 0 {
            return None;
        }
        self.shutdown_sent = flags;
        if flags & SHUTDOWN_RCV != 0 {
            let all_sent = flags & SHUTDOWN_SEND != 0;
            self.deadline = Some(
                now + if all_sent {
                    CLOSE_TIMEOUT
                } else {
                    LINGER_TIMEOUT
                },
            );
        }
        Some(self.output(OP_SHUTDOWN, flags, 0))
    }

    fn fill_credit(&mut self) -> Option<Output> {
        if self.readable && self.guest_credit() == 0 && !self.credit_requested {
            self.credit_requested = true;
            Some(self.output(OP_CREDIT_REQUEST, 0, 0))
        } else if self.credit_update_due() {
            Some(self.output(OP_CREDIT_UPDATE, 0, 0))
        } else {
            None
        }
    }

    fn output(&mut self, op: u16, flags: u32, len: u32) -> Output {
        // Every packet tells the credit.
        self.credit_asked = false;
        self.told_forwarded = self.forwarded;
        Output {
            op,
            flags,
            len,
            buf_alloc: self.window,
            fwd_cnt: self.forwarded.0,
        }
    }
}

fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
