// SPDX-License-Identifier: GPL-2.0-only
//! TCP connections through a session, to real servers.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use mvas_agent::client::{ClientError, Session};
use mvas_agent::protocol::{FailureKind, Frame, Link, LinkError, Reply, Request, Stream};

use crate::broken_peers::{encoded, provoke};
use crate::{PATIENCE, session};

/// A server for one connection, on a port of its own.
fn server<T: Send + 'static>(
    serve: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (u16, JoinHandle<T>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    let port = listener.local_addr().expect("an address").port();
    let thread = thread::spawn(move || serve(patient(listener.accept().expect("accept").0)));
    (port, thread)
}

/// One end of a connection whose other end goes through a session to `port`.
fn carried(port: u16) -> (TcpStream, JoinHandle<Result<(), ClientError>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    let ours = TcpStream::connect(listener.local_addr().expect("an address")).expect("connect");
    let theirs = listener.accept().expect("accept").0;
    let thread = thread::spawn(move || session().connect(port, &theirs));
    (patient(ours), thread)
}

fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

fn noise(len: usize) -> Vec<u8> {
    (0..u32::try_from(len).expect("short"))
        .map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()[3])
        .collect()
}

#[test]
fn a_server_that_answers_after_the_end_of_its_input_has_all_of_it() {
    let input = noise(3_000_000);
    let (port, server) = server(|mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("read");
        stream.write_all(&all).expect("write");
    });
    let (mut ours, session) = carried(port);
    ours.write_all(&input).expect("write");
    ours.shutdown(Shutdown::Write).expect("shutdown");
    let mut back = Vec::new();
    ours.read_to_end(&mut back).expect("read");
    assert!(back == input);
    server.join().expect("server");
    session.join().expect("thread").expect("carried");
}

#[test]
fn a_server_that_ends_its_side_first_goes_on_reading() {
    let input = noise(3_000_000);
    let (port, server) = server(|mut stream| {
        stream.write_all(b"bye").expect("write");
        stream.shutdown(Shutdown::Write).expect("shutdown");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("read");
        all
    });
    let (mut ours, session) = carried(port);
    let mut said = Vec::new();
    ours.read_to_end(&mut said).expect("read");
    assert_eq!(said, b"bye");
    ours.write_all(&input).expect("write");
    drop(ours);
    assert!(server.join().expect("server") == input);
    session.join().expect("thread").expect("carried");
}

#[test]
fn a_port_that_nobody_listens_on_is_an_error_that_names_it() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    let port = listener.local_addr().expect("an address").port();
    drop(listener);
    let (_ours, session) = carried(port);
    let error = session.join().expect("thread").expect_err("refused");
    let text = mvas_agent::chain(&error);
    assert!(text.contains(&format!("127.0.0.1:{port}")), "{text}");
    assert!(text.contains("refused"), "{text}");
}

#[test]
fn there_is_no_port_0() {
    let (_ours, session) = carried(0);
    let error = session.join().expect("thread").expect_err("refused");
    assert!(error.to_string().contains("no TCP port 0"), "{error}");
}

#[test]
fn a_connection_that_is_cut_is_not_taken_for_one_that_ended() {
    let (port, server) = server(|stream| {
        // What was not read makes the end a reset.
        stream.peek(&mut [0]).expect("data");
    });
    let (mut ours, session) = carried(port);
    ours.write_all(b"data").expect("write");
    let error = ours.read(&mut [0]).expect_err("a reset");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    server.join().expect("server");
    session.join().expect("thread").expect_err("cut");
}

#[test]
fn a_client_that_breaks_the_protocol_is_told_and_its_connection_cut() {
    let data = |len| Frame::Data {
        stream: Stream::Stdin,
        bytes: vec![0; len],
    };
    let credit = |stream| Frame::Credit { stream, bytes: 1 };
    for (what, frames) in [
        (
            "a request within a request",
            vec![Frame::Request(Request::Info)],
        ),
        ("a reply to a server", vec![Frame::Reply(Reply::Done)]),
        ("data after its end", vec![data(0), data(1)]),
        ("two ends", vec![data(0), data(0)]),
        ("credit that was not taken", vec![credit(Stream::Stdout)]),
        ("credit for input", vec![credit(Stream::Stdin)]),
        ("a signal", vec![Frame::Signal(9)]),
    ] {
        let (port, server) = server(|mut stream| stream.read_to_end(&mut Vec::new()));
        let frames = [vec![Frame::Request(Request::Connect { port })], frames].concat();
        let (got, ended) = provoke(&encoded(&frames));
        let Some(Frame::Reply(Reply::Failed { kind, .. })) = got.last() else {
            panic!("{what}: {got:?}");
        };
        assert_eq!(*kind, FailureKind::BadRequest, "{what}");
        assert!(matches!(ended, Err(LinkError::Protocol(_))), "{what}");
        let read = server.join().expect("server");
        // An end that was sent properly came before what was wrong.
        assert!(read.is_err() || what.contains("end"), "{what}: {read:?}");
    }
}

#[test]
fn a_guest_that_breaks_the_protocol_gets_the_connection_cut() {
    let data = |stream, len| Frame::Data {
        stream,
        bytes: vec![0; len],
    };
    let ready = || Frame::Reply(Reply::Ready { bytes: 0 });
    // More than the sockets between hold, while nobody reads.
    let too_much: Vec<Frame> = (0..600).map(|_| data(Stream::Stdout, 60_000)).collect();
    for (what, frames) in [
        ("done before its end", vec![Frame::Reply(Reply::Done)]),
        ("ready again", vec![ready()]),
        ("another stream", vec![data(Stream::Stderr, 1)]),
        ("more data than granted", too_much),
        (
            "data after its end",
            vec![data(Stream::Stdout, 0), data(Stream::Stdout, 1)],
        ),
    ] {
        let (stream, guest) = UnixStream::pair().expect("sockets");
        let answers = [vec![ready()], frames].concat();
        let guest = thread::spawn(move || {
            let mut link = Link::new(guest.into()).expect("link");
            link.accept().expect("a request");
            for frame in &answers {
                link.queue(frame);
            }
            // Until the client has seen enough.
            while link.recv(None).is_ok() {}
        });
        let session = Session::start(stream, PATIENCE).expect("greeting");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
        let ours = TcpStream::connect(listener.local_addr().expect("an address")).expect("connect");
        let theirs = listener.accept().expect("accept").0;
        let error = session.connect(1, &theirs).expect_err(what);
        assert!(
            matches!(error, ClientError::Link(LinkError::Protocol(_))),
            "{what}: {error:?}"
        );
        drop(theirs);
        let read = patient(ours).read_to_end(&mut Vec::new());
        assert!(read.is_err() || what.contains("end"), "{what}: {read:?}");
        guest.join().expect("the guest's end");
    }
}
