// SPDX-License-Identifier: GPL-2.0-only
//! Clients and guests that break the protocol, on purpose or not.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use mvas_agent::client::{ClientError, ExecIo, Session};
use mvas_agent::protocol::{Exec, Frame, Hello, Link, LinkError, Reply, Request, Stream};
use proptest::prelude::*;

use crate::{PATIENCE, served, sh, wait_for};

/// Sends `frames` after a greeting and gives what comes back until the server ends.
pub fn provoke(frames: &[u8]) -> (Vec<Frame>, Result<(), LinkError>) {
    let (mut stream, server) = served();
    stream
        .write_all(&Hello::new([1; 16]).encode())
        .expect("send");
    stream.write_all(frames).expect("send");
    stream
        .shutdown(std::net::Shutdown::Write)
        .expect("shutdown");
    let mut link = Link::new(stream.into()).expect("link");
    let mut got = Vec::new();
    let mut decoder = mvas_agent::protocol::Decoder::default();
    let mut bytes = Vec::new();
    let mut raw: File = link.as_fd().try_clone_to_owned().expect("dup").into();
    wait_for("the server's end", || {
        let _ = raw.read_to_end(&mut bytes);
        server.is_finished()
    });
    let _ = raw.read_to_end(&mut bytes);
    decoder.push(&bytes);
    assert!(decoder.next_hello().is_some());
    while let Ok(Some(frame)) = decoder.next_frame() {
        got.push(frame);
    }
    let _ = &mut link;
    (got, server.join().expect("no panic"))
}

pub fn encoded(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for frame in frames {
        frame.encode(&mut bytes);
    }
    bytes
}

#[test]
fn a_client_that_breaks_the_protocol_is_told_and_left() {
    let exec = || Frame::Request(Request::Exec(Exec::new(["sleep", "60"])));
    let data = |len| Frame::Data {
        stream: Stream::Stdin,
        bytes: vec![0; len],
    };
    let credit = |stream, bytes| Frame::Credit { stream, bytes };
    let too_much: Vec<Frame> = std::iter::once(exec())
        .chain((0..5).map(|_| data(60_000)))
        .collect();
    for (what, frames) in [
        ("no request", vec![data(1)]),
        ("a request within a request", vec![exec(), exec()]),
        (
            "a reply to a server",
            vec![exec(), Frame::Reply(Reply::Done)],
        ),
        ("more data than granted", too_much),
        ("data after its end", vec![exec(), data(0), data(1)]),
        (
            "too much credit",
            vec![exec(), credit(Stream::Stdout, u32::MAX)],
        ),
        ("credit for input", vec![exec(), credit(Stream::Stdin, 1)]),
    ] {
        let (got, ended) = provoke(&encoded(&frames));
        assert!(
            matches!(got.last(), Some(Frame::Reply(Reply::Failed { .. }))),
            "{what}: {got:?}"
        );
        assert!(
            matches!(ended, Err(LinkError::Protocol(_))),
            "{what}: {ended:?}"
        );
    }
}

#[test]
fn another_version_is_refused_with_its_number() {
    let (ours, mut theirs) = UnixStream::pair().expect("socketpair");
    let peer = thread::spawn(move || {
        let mut hello = [0; 32];
        theirs.read_exact(&mut hello).expect("greeting");
        hello[14] = 99;
        theirs.write_all(&hello).expect("answer");
        theirs
    });
    let error = Session::start(ours, PATIENCE).expect_err("version");
    assert!(matches!(error, ClientError::Link(LinkError::Version(99))));
    peer.join().expect("peer");
}

#[test]
fn a_server_that_says_nothing_is_given_up() {
    let (ours, _theirs) = UnixStream::pair().expect("socketpair");
    let error = Session::start(ours, Duration::from_millis(50)).expect_err("silence");
    assert!(matches!(error, ClientError::Link(LinkError::Timeout(_))));
}

/// A hostile guest: greets well, then sends `frames`.
fn hostile(frames: Vec<u8>) -> Session {
    let (ours, mut theirs) = UnixStream::pair().expect("socketpair");
    thread::spawn(move || {
        let mut hello = [0; 32];
        theirs.read_exact(&mut hello).expect("greeting");
        theirs.write_all(&hello).expect("answer");
        theirs.write_all(&frames).expect("send");
        let _ = theirs.read_to_end(&mut Vec::new());
    });
    Session::start(ours, PATIENCE).expect("greeting")
}

#[test]
fn a_hostile_guest_gets_no_more_than_its_credit() {
    let started = Frame::Reply(Reply::Started { pid: 1 });
    let flood = |stream| {
        let bytes = vec![0; 60_000];
        Frame::Data { stream, bytes }
    };
    for frames in [
        vec![started.clone(), flood(Stream::Stdin)],
        vec![Frame::Reply(Reply::Done)],
        vec![started.clone(), Frame::Signal(9)],
        vec![
            started.clone(),
            Frame::Credit {
                stream: Stream::Stdin,
                bytes: 1 << 30,
            },
        ],
        std::iter::once(started.clone())
            .chain((0..10).map(|_| flood(Stream::Stdout)))
            .collect(),
    ] {
        // Nobody reads the pipe: what the guest sends piles up here, within its credit.
        let (_reader, writer) = std::io::pipe().expect("pipe");
        let io = ExecIo {
            stdin: None,
            stdout: writer.as_fd(),
            stderr: writer.as_fd(),
            signals: None,
        };
        let error = hostile(encoded(&frames))
            .exec(sh("x"), &io)
            .expect_err("violation");
        assert!(
            matches!(error, ClientError::Link(LinkError::Protocol(_))),
            "{error:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_bring_the_server_down(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let (got, _) = provoke(&bytes);
        let answers_only = got.iter().all(|frame| matches!(frame, Frame::Reply(_)));
        prop_assert!(answers_only);
    }

    #[test]
    fn no_bytes_bring_the_client_down(bytes in proptest::collection::vec(any::<u8>(), 8..300)) {
        let (_reader, writer) = std::io::pipe().expect("pipe");
        let io = ExecIo { stdin: None, stdout: writer.as_fd(), stderr: writer.as_fd(), signals: None };
        let mut frames = vec![0; 8];
        frames[0] = 200;
        frames.extend(bytes);
        prop_assert!(hostile(frames).exec(sh("x"), &io).is_err());
    }
}
