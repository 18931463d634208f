// SPDX-License-Identifier: GPL-2.0-only
//! Flow control, fairness, and many bytes.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::*;

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
    // Both ends of each are here: more files than a process may open at first.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
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
