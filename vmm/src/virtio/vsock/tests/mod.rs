// SPDX-License-Identifier: GPL-2.0-only
//! The vsock device between a guest's driver (its queues) and the host's real Unix sockets.

mod flow;
mod hostile_guest;
mod streams;

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::device::{RX, TX, Vsock};
use super::muxer::{LARGE_WINDOW, MAX_STREAMS};
use super::packet::*;
use crate::virtio::device::VirtioDevice;
use crate::virtio::test_utils::{Driver, Piece, Sent, hostile_queue_tests};

const CID: u64 = 3;
const GUEST_PORT: u32 = 52;
const RX_BUFFER: u32 = 4096;

struct Rig {
    dir: tempfile::TempDir,
    device: Vsock,
    driver: Driver,
    posted: VecDeque<Sent>,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut device = Vsock::new(&dir.path().join("vsock.sock"), CID).unwrap();
        let driver = Driver::start(&mut device);
        let mut rig = Self {
            dir,
            device,
            driver,
            posted: VecDeque::new(),
        };
        rig.post(128);
        rig
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("vsock.sock")
    }

    /// Gives the device room for `count` packets.
    fn post(&mut self, count: usize) {
        for _ in 0..count {
            let sent = self.driver.send(RX, &[Piece::write(RX_BUFFER)]);
            self.posted.push_back(sent);
        }
    }

    /// The packets that the device has for the guest.
    fn packets(&mut self) -> Vec<(Header, Vec<u8>)> {
        poll(&mut self.device);
        self.device.process_queues(true);
        let used = self.driver.used(RX);
        let packets = used.iter().map(|(head, len)| {
            let sent = self.posted.pop_front().unwrap();
            assert_eq!(sent.head, *head);
            let bytes = self.driver.read(&sent, 0);
            let header = Header::from_bytes(bytes[..HEADER_LEN].try_into().unwrap());
            assert_eq!(header.len + 44, *len);
            assert_eq!(header.dst_cid, CID);
            (header, bytes[HEADER_LEN..*len as usize].to_vec())
        });
        let packets: Vec<_> = packets.collect();
        self.post(used.len());
        packets
    }

    /// The one packet that the device has for the guest.
    fn packet(&mut self) -> (Header, Vec<u8>) {
        let packets = self.packets();
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets.into_iter().next().unwrap()
    }

    fn expect(&mut self, op: u16) -> Header {
        let (header, _) = self.packet();
        assert_eq!(header.op, op, "{header:?}");
        header
    }

    /// Sends a packet as the guest.
    fn send(&mut self, header: Header, data: &[u8]) {
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend_from_slice(data);
        self.driver.send(TX, &[Piece::Read(bytes)]);
        self.device.process_queues(true);
        assert_eq!(self.driver.used(TX).len(), 1);
    }

    /// A client of the host, connected to the guest's port.
    fn host_stream(&mut self) -> (UnixStream, Peer) {
        let mut client = UnixStream::connect(self.path()).unwrap();
        writeln!(client, "CONNECT {GUEST_PORT}").unwrap();
        let request = self.expect(OP_REQUEST);
        assert_eq!(request.dst_port, GUEST_PORT);
        assert_eq!((request.src_cid, request.kind), (HOST_CID, TYPE_STREAM));
        let peer = Peer {
            host: request.src_port,
            guest: GUEST_PORT,
        };
        self.send(peer.header(OP_RESPONSE), b"");
        let line = read_line(&mut client);
        assert_eq!(line, format!("OK {}\n", peer.host));
        (client, peer)
    }

    /// A listener of the host for `port`.
    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.dir.path().join(format!("vsock.sock_{port}"))).unwrap()
    }

    /// A stream that the guest opened.
    fn guest_stream(&mut self, listener: &UnixListener, peer: Peer) -> UnixStream {
        self.send(peer.header(OP_REQUEST), b"");
        assert_eq!(self.expect(OP_RESPONSE).dst_port, peer.guest);
        let (stream, _) = listener.accept().unwrap();
        stream
    }
}

/// As the event loop does for as long as there are events: a new client's line is the second.
fn poll(device: &mut Vsock) {
    for _ in 0..3 {
        device.muxer.poll();
    }
}

/// The guest's end of a stream.
#[derive(Debug, Clone, Copy)]
struct Peer {
    host: u32,
    guest: u32,
}

impl Peer {
    fn header(self, op: u16) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: self.guest,
            dst_port: self.host,
            kind: TYPE_STREAM,
            op,
            buf_alloc: 1 << 20,
            ..Header::default()
        }
    }

    fn data(self, len: usize) -> Header {
        Header {
            len: u32::try_from(len).unwrap(),
            ..self.header(OP_RW)
        }
    }

    fn shutdown(self, flags: u32) -> Header {
        Header {
            flags,
            ..self.header(OP_SHUTDOWN)
        }
    }
}

fn read_line(client: &mut UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\n") {
        client.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

fn at_end(stream: &mut UnixStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    matches!(stream.read(&mut [0]), Ok(0))
}

fn noise(len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| u8::try_from((i * 31 + i / 251) % 256).unwrap())
        .collect()
}
