//! The vsock device between a guest's driver (its queues) and the host's real Unix sockets.

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

#[test]
fn a_host_client_reaches_the_guests_port_and_bytes_go_both_ways() {
    let mut rig = Rig::new();
    let (mut client, peer) = rig.host_stream();
    client.write_all(b"to the guest").unwrap();
    let (header, data) = rig.packet();
    assert_eq!((header.op, header.src_port), (OP_RW, peer.host));
    assert_eq!(data, b"to the guest");
    rig.send(peer.data(11), b"to the host");
    let mut data = [0; 11];
    client.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"to the host");
}

#[test]
fn bytes_written_right_after_the_connect_line_are_not_lost() {
    let mut rig = Rig::new();
    let mut client = UnixStream::connect(rig.path()).unwrap();
    client.write_all(b"CONNECT 52\nearly").unwrap();
    let request = rig.expect(OP_REQUEST);
    let peer = Peer {
        host: request.src_port,
        guest: 52,
    };
    rig.send(peer.header(OP_RESPONSE), b"");
    assert_eq!(rig.packet().1, b"early");
}

#[test]
fn a_connect_line_may_come_in_pieces() {
    let mut rig = Rig::new();
    let mut client = UnixStream::connect(rig.path()).unwrap();
    for piece in ["CON", "NECT 5", "2"] {
        client.write_all(piece.as_bytes()).unwrap();
        assert!(rig.packets().is_empty());
    }
    client.write_all(b"\n").unwrap();
    assert_eq!(rig.expect(OP_REQUEST).dst_port, 52);
}

#[test]
fn a_client_that_talks_nonsense_is_closed() {
    for line in [
        &b"GET / HTTP/1.1\n"[..],
        b"CONNECT\n",
        b"CONNECT x\n",
        b"CONNECT 99999999999\n",
        b"\n",
        &[b'C'; 100],
    ] {
        let mut rig = Rig::new();
        let mut client = UnixStream::connect(rig.path()).unwrap();
        client.write_all(line).unwrap();
        assert!(rig.packets().is_empty());
        assert!(rig.device.muxer.is_empty());
        client.set_nonblocking(true).unwrap();
        // Unread bytes turn the end into a reset.
        let end = client.read(&mut [0]);
        assert!(
            matches!(&end, Ok(0)) || end.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset)
        );
    }
}

#[test]
fn a_client_is_closed_when_the_guest_refuses() {
    let mut rig = Rig::new();
    let mut client = UnixStream::connect(rig.path()).unwrap();
    writeln!(client, "CONNECT 52").unwrap();
    let request = rig.expect(OP_REQUEST);
    rig.send(request_reply(&request, OP_RST), b"");
    assert!(at_end(&mut client));
    assert!(rig.device.muxer.is_empty());
}

fn request_reply(request: &Header, op: u16) -> Header {
    Peer {
        host: request.src_port,
        guest: request.dst_port,
    }
    .header(op)
}

#[test]
fn clients_that_came_before_the_driver_are_served_when_it_starts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vsock.sock");
    let mut device = Vsock::new(&path, CID).unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    writeln!(client, "CONNECT 52").unwrap();
    poll(&mut device);
    assert!(device.muxer.is_empty());
    let driver = Driver::start(&mut device);
    let mut rig = Rig {
        dir,
        device,
        driver,
        posted: VecDeque::new(),
    };
    rig.post(8);
    rig.expect(OP_REQUEST);
}

#[test]
fn a_guest_reaches_a_host_listener() {
    let mut rig = Rig::new();
    let listener = rig.listen(1234);
    let peer = Peer {
        host: 1234,
        guest: 9,
    };
    let mut stream = rig.guest_stream(&listener, peer);
    rig.send(peer.data(4), b"ping");
    let mut data = [0; 4];
    stream.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"ping");
    stream.write_all(b"pong").unwrap();
    assert_eq!(rig.packet().1, b"pong");
}

#[test]
fn a_guest_is_refused_where_nobody_listens() {
    let mut rig = Rig::new();
    let peer = Peer {
        host: 1234,
        guest: 9,
    };
    rig.send(peer.header(OP_REQUEST), b"");
    let reset = rig.expect(OP_RST);
    assert_eq!((reset.src_port, reset.dst_port), (1234, 9));
    assert_eq!(rig.device.metrics().refused.get(), 1);
}

#[test]
fn the_guest_never_gets_more_than_its_credit() {
    let mut rig = Rig::new();
    let listener = rig.listen(1);
    let peer = Peer { host: 1, guest: 2 };
    let credit = |fwd_cnt| Header {
        buf_alloc: 10_000,
        fwd_cnt,
        ..peer.header(OP_CREDIT_UPDATE)
    };
    let mut stream = rig.guest_stream(&listener, peer);
    rig.send(credit(0), b"");
    let data = noise(25_000);
    stream.write_all(&data).unwrap();
    let mut got = Vec::new();
    for round in 1..=3 {
        let mut packets = rig.packets();
        if round < 3 {
            // Full: the device asks once for news.
            assert_eq!(packets.pop().unwrap().0.op, OP_CREDIT_REQUEST);
        }
        got.extend(packets.into_iter().flat_map(|(_, data)| data));
        assert_eq!(got.len(), (10_000 * round).min(25_000));
        assert!(rig.packets().is_empty());
        rig.send(credit(u32::try_from(got.len()).unwrap()), b"");
    }
    assert_eq!(got, data);
}

#[test]
fn a_guest_that_claims_impossible_credit_gets_nothing_more() {
    let mut rig = Rig::new();
    let (mut client, peer) = rig.host_stream();
    let lie = Header {
        fwd_cnt: 1000,
        buf_alloc: 100,
        ..peer.header(OP_CREDIT_UPDATE)
    };
    rig.send(lie, b"");
    client.write_all(b"data").unwrap();
    assert!(
        rig.packets()
            .iter()
            .all(|(header, _)| header.op == OP_CREDIT_REQUEST)
    );
}

#[test]
fn a_sleeping_reader_holds_the_guest_at_the_window_and_loses_nothing() {
    let mut rig = Rig::new();
    let (mut client, peer) = rig.host_stream();
    let data = noise(2 << 20);
    let mut sent = 0;
    let mut free = LARGE_WINDOW as usize;
    // Until both the socket and the device are full.
    while free > 0 {
        let len = free.min(60_000);
        rig.send(peer.data(len), &data[sent..sent + len]);
        sent += len;
        free -= len;
        for (header, _) in rig.packets() {
            assert_eq!(header.op, OP_CREDIT_UPDATE);
            free = LARGE_WINDOW as usize - (sent - header.fwd_cnt as usize);
        }
    }
    assert!(sent >= LARGE_WINDOW as usize && sent < data.len());
    // The reader wakes up: everything comes, and the guest learns of the room.
    let mut got = vec![0; sent];
    client
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut done = 0;
    let mut told = 0;
    while done < sent {
        done += client.read(&mut got[done..]).unwrap();
        told = rig
            .packets()
            .iter()
            .map(|(h, _)| h.fwd_cnt)
            .max()
            .unwrap_or(told);
    }
    assert_eq!(got, data[..sent]);
    assert!(sent - told as usize <= LARGE_WINDOW as usize / 2);
}

#[test]
fn a_guest_that_ignores_the_window_is_reset() {
    let mut rig = Rig::new();
    let (mut client, peer) = rig.host_stream();
    let data = noise(64 << 10);
    let mut packets = 0;
    while rig.device.metrics().bad_packets.get() == 0 {
        rig.send(peer.data(data.len()), &data);
        packets += 1;
        assert!(packets < 20, "the window has no end");
    }
    let last = rig.packets().pop().unwrap().0;
    assert_eq!(last.op, OP_RST);
    assert!(rig.device.muxer.is_empty());
    // What was taken before is still there to read, then the end.
    let mut got = Vec::new();
    let _ = client.read_to_end(&mut got);
    assert!(got.len() < packets * data.len());
}

#[test]
fn half_closed_by_the_guest_the_host_can_still_answer() {
    let mut rig = Rig::new();
    let (mut client, peer) = rig.host_stream();
    rig.send(peer.data(8), b"question");
    rig.send(peer.shutdown(SHUTDOWN_SEND), b"");
    let mut question = String::new();
    client.read_to_string(&mut question).unwrap();
    assert_eq!(question, "question");
    client.write_all(b"answer").unwrap();
    drop(client);
    let packets = rig.packets();
    assert_eq!(packets[0].1, b"answer");
    assert_eq!(packets.last().unwrap().0.op, OP_SHUTDOWN);
    assert_eq!(packets.last().unwrap().0.flags, SHUTDOWN_BOTH);
    rig.send(peer.header(OP_RST), b"");
    assert!(rig.device.muxer.is_empty());
}

#[test]
fn half_closed_by_the_host_the_guest_can_still_answer() {
    let mut rig = Rig::new();
    let (mut client, peer) = rig.host_stream();
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let packets = rig.packets();
    assert_eq!(packets[0].1, b"question");
    assert_eq!(
        (packets[1].0.op, packets[1].0.flags),
        (OP_SHUTDOWN, SHUTDOWN_SEND)
    );
    rig.send(peer.data(6), b"answer");
    rig.send(peer.shutdown(SHUTDOWN_BOTH), b"");
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
    assert_eq!(rig.expect(OP_RST).dst_port, GUEST_PORT);
    assert!(rig.device.muxer.is_empty());
}

#[test]
fn a_guest_that_closes_gets_a_reset_as_confirmation() {
    let mut rig = Rig::new();
    let (mut client, peer) = rig.host_stream();
    rig.send(peer.shutdown(SHUTDOWN_BOTH), b"");
    rig.expect(OP_RST);
    assert!(at_end(&mut client));
    assert!(rig.device.muxer.is_empty());
}

#[test]
fn a_guest_that_receives_no_more_makes_the_hosts_writes_fail() {
    let mut rig = Rig::new();
    let (mut client, peer) = rig.host_stream();
    rig.send(peer.shutdown(SHUTDOWN_RCV), b"");
    assert_eq!(
        client.write(b"x").unwrap_err().kind(),
        ErrorKind::BrokenPipe
    );
    rig.send(peer.data(4), b"late");
    let mut data = [0; 4];
    client.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"late");
}

#[test]
fn what_the_guest_sent_before_it_closed_reaches_a_slow_reader() {
    let mut rig = Rig::new();
    let (mut client, peer) = rig.host_stream();
    let data = noise(LARGE_WINDOW as usize);
    for part in data.chunks(64 << 10) {
        rig.send(peer.data(part.len()), part);
    }
    rig.send(peer.shutdown(SHUTDOWN_BOTH), b"");
    // Linux does not wait for longer than eight seconds.
    rig.send(peer.header(OP_RST), b"");
    let mut got = Vec::new();
    let mut part = vec![0; 10_000];
    loop {
        let len = client.read(&mut part).unwrap();
        if len == 0 {
            break;
        }
        got.extend_from_slice(&part[..len]);
        rig.packets();
    }
    assert_eq!(got.len(), data.len());
    assert!(got == data);
    rig.packets();
    assert!(rig.device.muxer.is_empty());
}

#[test]
fn a_guest_that_does_not_confirm_the_end_is_reset_in_time() {
    let mut rig = Rig::new();
    let (client, _peer) = rig.host_stream();
    drop(client);
    let shutdown = rig.packets().pop().unwrap().0;
    assert_eq!((shutdown.op, shutdown.flags), (OP_SHUTDOWN, SHUTDOWN_BOTH));
    rig.device
        .muxer
        .tick(Instant::now() + Duration::from_secs(5));
    assert!(rig.packets().is_empty());
    rig.device
        .muxer
        .tick(Instant::now() + Duration::from_secs(11));
    rig.expect(OP_RST);
    assert!(rig.device.muxer.is_empty());
    assert_eq!(rig.device.metrics().timeouts.get(), 1);
}

#[test]
fn a_guest_that_does_not_answer_a_request_is_given_up() {
    let mut rig = Rig::new();
    let mut client = UnixStream::connect(rig.path()).unwrap();
    writeln!(client, "CONNECT 52").unwrap();
    rig.expect(OP_REQUEST);
    rig.device
        .muxer
        .tick(Instant::now() + Duration::from_secs(11));
    assert!(at_end(&mut client));
    rig.expect(OP_RST);
    assert!(rig.device.muxer.is_empty());
}

#[test]
fn a_client_that_says_nothing_is_given_up() {
    let mut rig = Rig::new();
    let mut client = UnixStream::connect(rig.path()).unwrap();
    rig.packets();
    assert_eq!(rig.device.muxer.len(), 1);
    rig.device
        .muxer
        .tick(Instant::now() + Duration::from_secs(11));
    assert!(rig.device.muxer.is_empty());
    assert!(at_end(&mut client));
}

#[test]
fn three_hundred_streams_are_served_at_once_and_none_starves() {
    let mut rig = Rig::new();
    let listener = rig.listen(7);
    listener.set_nonblocking(true).unwrap();
    let mut streams = Vec::new();
    for guest in 0..300 {
        let stream = rig.guest_stream(&listener, Peer { host: 7, guest });
        streams.push(stream);
    }
    for (guest, stream) in streams.iter_mut().enumerate() {
        stream
            .write_all(&vec![u8::try_from(guest % 256).unwrap(); 20_000])
            .unwrap();
    }
    let mut got = vec![0; streams.len()];
    while got.iter().any(|count| *count < 20_000) {
        let packets = rig.packets();
        assert!(!packets.is_empty());
        for (header, data) in packets {
            assert!(
                data.iter()
                    .all(|byte| u32::from(*byte) == header.dst_port % 256)
            );
            got[header.dst_port as usize] += data.len();
        }
        // Nobody is ahead by more than its turn.
        let spread = got.iter().max().unwrap() - got.iter().min().unwrap();
        assert!(spread <= 2 * RX_BUFFER as usize, "{spread}");
    }
    assert_eq!(rig.device.metrics().opened.get(), 300);
}

#[test]
fn streams_beyond_the_limit_are_refused() {
    let mut rig = Rig::new();
    let listener = rig.listen(7);
    listener.set_nonblocking(true).unwrap();
    let mut streams = Vec::new();
    for guest in 0..u32::try_from(MAX_STREAMS).unwrap() {
        streams.push(rig.guest_stream(&listener, Peer { host: 7, guest }));
    }
    rig.send(
        Peer {
            host: 7,
            guest: 100_000,
        }
        .header(OP_REQUEST),
        b"",
    );
    rig.expect(OP_RST);
    let mut client = UnixStream::connect(rig.path()).unwrap();
    rig.packets();
    assert!(at_end(&mut client));
    // And one that ends makes room.
    rig.send(Peer { host: 7, guest: 5 }.header(OP_RST), b"");
    rig.guest_stream(
        &listener,
        Peer {
            host: 7,
            guest: 100_000,
        },
    );
}

#[test]
fn a_batch_of_packets_interrupts_once() {
    let mut rig = Rig::new();
    let (mut client, _peer) = rig.host_stream();
    rig.driver.interrupts();
    client.write_all(&noise(100_000)).unwrap();
    let packets = rig.packets();
    assert_eq!(packets.len(), 25);
    assert_eq!(rig.driver.interrupts(), 1);
}

#[test]
fn megabytes_pass_both_ways_unharmed() {
    const SIZE: usize = 8 << 20;
    let mut rig = Rig::new();
    let (mut client, peer) = rig.host_stream();
    let data = noise(SIZE);
    let echo = std::thread::spawn(move || {
        let mut part = vec![0; 100_000];
        loop {
            let len = client.read(&mut part).unwrap();
            if len == 0 {
                return;
            }
            client.write_all(&part[..len]).unwrap();
        }
    });
    let (mut sent, mut got, mut freed) = (0, Vec::new(), 0usize);
    while got.len() < SIZE {
        let free = LARGE_WINDOW as usize - (sent - freed);
        let len = free.min(64 << 10).min(SIZE - sent);
        if len > 0 {
            let header = Header {
                fwd_cnt: u32::try_from(got.len()).unwrap(),
                ..peer.data(len)
            };
            rig.send(header, &data[sent..sent + len]);
            sent += len;
        } else {
            let header = Header {
                fwd_cnt: u32::try_from(got.len()).unwrap(),
                ..peer.header(OP_CREDIT_UPDATE)
            };
            rig.send(header, b"");
            std::thread::yield_now();
        }
        for (header, data) in rig.packets() {
            freed = header.fwd_cnt as usize;
            got.extend(data);
        }
    }
    assert!(got == data);
    rig.send(peer.shutdown(SHUTDOWN_BOTH), b"");
    echo.join().unwrap();
}

#[test]
fn packets_from_a_wrong_address_are_ignored_and_to_a_wrong_one_are_reset() {
    let mut rig = Rig::new();
    let header = Peer { host: 1, guest: 2 }.header(OP_REQUEST);
    rig.send(
        Header {
            src_cid: 4,
            ..header
        },
        b"",
    );
    rig.send(
        Header {
            src_cid: HOST_CID,
            ..header
        },
        b"",
    );
    assert!(rig.packets().is_empty());
    let to_another = Header {
        dst_cid: 77,
        ..header
    };
    rig.send(to_another, b"");
    let reset = rig.expect(OP_RST);
    assert_eq!((reset.src_cid, reset.src_port, reset.dst_port), (77, 1, 2));
    rig.send(Header { kind: 2, ..header }, b"");
    assert_eq!(rig.expect(OP_RST).kind, 2);
}

#[test]
fn packets_for_no_stream_are_reset_and_resets_are_not_answered() {
    let peer = Peer { host: 1, guest: 2 };
    for op in [
        0,
        OP_RESPONSE,
        OP_SHUTDOWN,
        OP_RW,
        OP_CREDIT_UPDATE,
        OP_CREDIT_REQUEST,
        8,
        u16::MAX,
    ] {
        let mut rig = Rig::new();
        rig.send(peer.header(op), b"");
        rig.expect(OP_RST);
    }
    let mut rig = Rig::new();
    rig.send(peer.header(OP_RST), b"");
    assert!(rig.packets().is_empty());
}

#[test]
fn a_stream_whose_guest_breaks_the_protocol_is_reset() {
    for bad in [0, OP_REQUEST, OP_RESPONSE, 8, u16::MAX] {
        let mut rig = Rig::new();
        let (mut client, peer) = rig.host_stream();
        rig.send(peer.header(bad), b"");
        rig.expect(OP_RST);
        assert!(at_end(&mut client));
        assert!(rig.device.muxer.is_empty());
        assert_eq!(rig.device.metrics().bad_packets.get(), 1);
    }
}

#[test]
fn a_length_beyond_the_packet_resets_the_stream() {
    for len in [5, 4096, u32::MAX] {
        let mut rig = Rig::new();
        let (mut client, peer) = rig.host_stream();
        let header = Header {
            len,
            ..peer.header(OP_RW)
        };
        rig.send(header, b"data");
        rig.expect(OP_RST);
        assert!(at_end(&mut client));
    }
}

#[test]
fn data_after_the_guests_own_shutdown_resets_the_stream() {
    let mut rig = Rig::new();
    let (_client, peer) = rig.host_stream();
    rig.send(peer.shutdown(SHUTDOWN_SEND), b"");
    rig.send(peer.data(1), b"x");
    rig.expect(OP_RST);
}

#[test]
fn a_response_before_the_request_was_sent_is_refused() {
    let mut rig = Rig::new();
    // No room for the request yet.
    let used_up = rig.posted.len();
    for port in 0..used_up {
        rig.send(
            Peer {
                host: 1,
                guest: u32::try_from(port).unwrap(),
            }
            .header(OP_REQUEST),
            b"",
        );
    }
    let mut client = UnixStream::connect(rig.path()).unwrap();
    writeln!(client, "CONNECT 52").unwrap();
    poll(&mut rig.device);
    rig.device.process_queues(false);
    let guess = Peer {
        host: 1 << 30,
        guest: 52,
    };
    rig.send(guess.header(OP_RESPONSE), b"");
    assert!(at_end(&mut client));
}

#[test]
fn a_flood_of_requests_without_room_for_answers_waits_and_is_then_answered() {
    let dir = tempfile::tempdir().unwrap();
    let mut device = Vsock::new(&dir.path().join("vsock.sock"), CID).unwrap();
    let mut driver = Driver::start(&mut device);
    let mut taken = 0;
    for round in 0..4 {
        for port in 0..200u32 {
            let header = Peer {
                host: 1,
                guest: round * 1000 + port,
            }
            .header(OP_REQUEST);
            if round * 200 + port < 500 {
                driver.send(TX, &[Piece::Read(header.to_bytes().to_vec())]);
            }
            if port % 50 == 49 {
                device.process_queues(true);
                taken += driver.used(TX).len();
            }
        }
    }
    assert_eq!(taken, 256, "as many as there may be resets");
    let mut rig = Rig {
        dir,
        device,
        driver,
        posted: VecDeque::new(),
    };
    let mut resets = 0;
    for _ in 0..10 {
        rig.post(20);
        let packets = rig.packets();
        assert!(packets.iter().all(|(header, _)| header.op == OP_RST));
        resets += packets.len();
    }
    assert!(resets > 256, "{resets}");
}

#[test]
fn receive_buffers_without_room_for_data_are_returned_empty() {
    let mut rig = Rig::new();
    let dir = tempfile::tempdir().unwrap();
    rig.device = Vsock::new(&dir.path().join("vsock.sock"), CID).unwrap();
    rig.driver = Driver::start(&mut rig.device);
    let client = UnixStream::connect(dir.path().join("vsock.sock"));
    writeln!(client.as_ref().unwrap(), "CONNECT 52").unwrap();
    for len in [0, 1, 43, 44] {
        let sent = rig.driver.send(RX, &[Piece::write(len)]);
        poll(&mut rig.device);
        rig.device.process_queues(false);
        assert_eq!(rig.driver.used(RX), [(sent.head, 0)]);
    }
    let sent = rig.driver.send(RX, &[Piece::write(20), Piece::write(25)]);
    rig.device.process_queues(false);
    assert_eq!(rig.driver.used(RX), [(sent.head, 44)]);
}

#[test]
fn packets_may_be_framed_in_any_way() {
    let mut rig = Rig::new();
    let (mut client, peer) = rig.host_stream();
    let bytes = peer.data(9).to_bytes();
    let pieces = [
        Piece::read(&bytes[..10]),
        Piece::read(&bytes[10..]),
        Piece::read(b"abc"),
        Piece::read(b""),
        Piece::read(b"defghi"),
    ];
    rig.driver.send_indirect(TX, &pieces);
    rig.device.process_queues(true);
    let mut data = [0; 9];
    client.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"abcdefghi");
}

#[test]
fn a_reset_closes_every_stream_and_the_device_starts_anew() {
    let mut rig = Rig::new();
    let (mut client, _) = rig.host_stream();
    let mut waiting = UnixStream::connect(rig.path()).unwrap();
    rig.packets();
    rig.device.reset();
    assert!(at_end(&mut client));
    assert!(at_end(&mut waiting));
    rig.driver = Driver::start(&mut rig.device);
    rig.posted.clear();
    rig.post(16);
    rig.host_stream();
}

#[test]
fn configuration_space_tells_the_address() {
    let rig = Rig::new();
    let mut config = [0xff; 10];
    rig.device.read_config(0, &mut config);
    assert_eq!(config[..8], CID.to_le_bytes());
    assert_eq!(config[8..], [0xff; 2]);
}

fn any_header() -> impl Strategy<Value = (Header, usize)> {
    let port =
        || prop_oneof![4 => 0u32..4, 2 => (0u32..4).prop_map(|p| (1 << 30) + p), 1 => any::<u32>()];
    (
        prop_oneof![20 => Just(CID), 1 => any::<u64>()],
        prop_oneof![20 => Just(HOST_CID), 1 => any::<u64>()],
        (port(), port()),
        prop_oneof![20 => Just(TYPE_STREAM), 1 => any::<u16>()],
        prop_oneof![20 => 0u16..9, 1 => any::<u16>()],
        any::<u32>(),
        (
            prop_oneof![0u32..100_000, any::<u32>()],
            prop_oneof![0u32..100_000, any::<u32>()],
        ),
        0usize..2000,
        prop_oneof![20 => Just(0isize), 1 => -10isize..10],
    )
        .prop_map(
            |(
                src_cid,
                dst_cid,
                (src_port, dst_port),
                kind,
                op,
                flags,
                (buf_alloc, fwd_cnt),
                len,
                lie,
            )| {
                let header = Header {
                    src_cid,
                    dst_cid,
                    src_port,
                    dst_port,
                    len: u32::try_from(len.saturating_add_signed(lie)).unwrap(),
                    kind,
                    op,
                    flags,
                    buf_alloc,
                    fwd_cnt,
                };
                (header, len)
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any conversation: no panic, no stream too many, every packet answered or taken.
    #[test]
    fn any_packets_are_survived(
        steps in proptest::collection::vec((any_header(), 0u8..8), 1..120),
    ) {
        let mut rig = Rig::new();
        let listeners: Vec<_> = (0..2).map(|port| rig.listen(port)).collect();
        for listener in &listeners {
            listener.set_nonblocking(true).unwrap();
        }
        let mut streams = Vec::new();
        for ((header, len), host) in steps {
            rig.send(header, &vec![1; len]);
            match host {
                0 => streams.extend(listeners.iter().filter_map(|l| l.accept().ok()).map(|(s, _)| s)),
                1 => { streams.pop(); }
                2 => {
                    let mut client = UnixStream::connect(rig.path()).unwrap();
                    writeln!(client, "CONNECT 1").unwrap();
                    streams.push(client);
                }
                3 | 4 => for stream in &mut streams {
                    stream.set_nonblocking(true).unwrap();
                    let _ = stream.write(&[7; 5000]);
                    let _ = stream.read(&mut [0; 3000]);
                },
                _ => { rig.packets(); }
            }
            prop_assert!(rig.device.muxer.len() <= MAX_STREAMS);
        }
        drop(streams);
        drop(listeners);
        for _ in 0..5 {
            rig.packets();
            rig.device.muxer.tick(Instant::now() + Duration::from_secs(100));
        }
        rig.packets();
        prop_assert!(rig.device.muxer.is_empty(), "{}", rig.device.muxer.len());
    }
}

hostile_queue_tests!(
    || {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock.sock");
        let mut device = Vsock::new(&path, CID).unwrap();
        let mut client = UnixStream::connect(&path).unwrap();
        writeln!(client, "CONNECT 52").unwrap();
        // It stays, so that the device has something for the guest.
        std::mem::forget(client);
        let driver = Driver::start(&mut device);
        (device, driver)
    },
    |device: &mut Vsock, queue| {
        poll(device);
        device.process_queues(queue == TX);
    }
);
