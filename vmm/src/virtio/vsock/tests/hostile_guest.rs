// SPDX-License-Identifier: GPL-2.0-only
//! Guests that break the protocol.

use super::*;

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
