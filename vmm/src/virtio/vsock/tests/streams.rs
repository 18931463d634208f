// SPDX-License-Identifier: GPL-2.0-only
//! How streams begin and end.

use super::*;

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
