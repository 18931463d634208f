// SPDX-License-Identifier: GPL-2.0-only
//! What one side of the agent's protocol makes of anything that the other one says.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use mvas_agent::client::{ExecIo, Session};
use mvas_agent::protocol::{
    CommandEnd, Decoder, Exec, FailureKind, Frame, FrameError, HELLO_LEN, Hello, Info, Reply,
    Request, Stream, WindowSize,
};
use mvas_agent::server::{NoHost, Server};

pub fn run(input: &[u8]) {
    let Some((form, bytes)) = input.split_first() else {
        return;
    };
    match form % 5 {
        0 => decode(bytes),
        1 => serve(bytes),
        form => call(form, bytes),
    }
}

/// However the stream is cut, it has the same frames; and a frame is what it is encoded as.
fn decode(bytes: &[u8]) {
    let Some((cut, bytes)) = bytes.split_first() else {
        return;
    };
    let whole = frames(bytes, bytes.len());
    let (pieces, _) = frames(bytes, usize::from(*cut) + 1);
    assert_eq!(whole.0, pieces);
    let mut again = Vec::new();
    for frame in &whole.0 {
        frame.encode(&mut again);
    }
    let (back, error) = frames(&again, again.len());
    assert_eq!((back, error), (whole.0, None));
    let (hello, used) = Hello::find(bytes);
    assert!(used <= bytes.len());
    if let Some(hello) = hello {
        assert_eq!(bytes[used - HELLO_LEN..used], hello.encode());
    }
}

fn frames(bytes: &[u8], cut: usize) -> (Vec<Frame>, Option<FrameError>) {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    for piece in bytes.chunks(cut.max(1)) {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

/// The guest's side. What would run something, touch a file or connect to a server is left out,
/// however it is written.
fn serve(bytes: &[u8]) {
    let has = |what: &[u8]| bytes.windows(what.len()).any(|window| window == what);
    if has(b"Exec") || has(b"Copy") || has(b"Connect") || has(b"\\") {
        return;
    }
    let (mut client, server) = UnixStream::pair().expect("sockets");
    client
        .write_all(&Hello::new([7; 16]).encode())
        .expect("room");
    client.write_all(bytes).expect("room");
    client.shutdown(Shutdown::Write).expect("a socket");
    let _ = Server::new(Arc::new(NoHost)).serve(server.into());
    let mut said = Vec::new();
    // It ends with an error where the server has not read all.
    let _ = client.read_to_end(&mut said);
    let mut decoder = Decoder::default();
    decoder.push(&said);
    // A greeting's answer is the first, and not that of the first greeting where another one
    // came before it was sent. What follows are greetings and frames.
    let hello = decoder.next_hello().expect("an answer");
    assert!(said.starts_with(&hello.encode()));
    assert!(hello.nonce == [7; 16] || has(&hello.nonce));
    loop {
        match decoder.next_frame() {
            Ok(Some(Frame::Reply(_))) => {}
            Ok(None) => break,
            Err(FrameError::Restart) => assert!(decoder.next_hello().is_some()),
            other => panic!("{other:?}"),
        }
    }
}

/// The host's side of a session with a guest that greets rightly, then says `bytes` and ends.
fn call(form: u8, bytes: &[u8]) {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a tmpfs");
    let (client, mut guest) = UnixStream::pair().expect("sockets");
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut hello = [0; HELLO_LEN];
            if guest.read_exact(&mut hello).is_ok() {
                let _ = guest
                    .write_all(&hello)
                    .and_then(|()| guest.write_all(bytes));
            }
            let _ = guest.shutdown(Shutdown::Write);
            // What is asked of it must have somewhere to go.
            let _ = guest.read_to_end(&mut Vec::new());
        });
        let session = Session::start(client, Duration::from_secs(5)).expect("an answer");
        match form {
            2 => drop(session.info()),
            3 => copy_out(session, &folder.path().join("in")),
            _ => exec(session, folder.path(), bytes.len()),
        }
    });
}

fn copy_out(session: Session, destination: &Path) {
    fs::create_dir(destination).expect("a folder");
    let mut told = 0;
    let made = session.copy_out("/a/name".as_ref(), destination, &mut |done, total| {
        assert!(done <= total && done >= told);
        told = done;
    });
    let there: Vec<_> = fs::read_dir(destination)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    match made {
        Ok(path) => assert_eq!((path, there.len()), (destination.join("name"), 1)),
        // All of it came, and then the guest did not say that it was all.
        Err(_) => assert!(there.iter().all(|path| path.ends_with("name")), "{there:?}"),
    }
}

fn exec(session: Session, folder: &Path, most: usize) {
    let output = |name| fs::File::create(folder.join(name)).expect("a file");
    let (out, err) = (output("out"), output("err"));
    let io = ExecIo {
        stdin: None,
        stdout: out.as_fd(),
        stderr: err.as_fd(),
        signals: None,
    };
    let _ = session.exec(Exec::new(["true"]), &io);
    let len = |file: &fs::File| file.metadata().expect("a file").len();
    assert!(len(&out) + len(&err) <= most as u64, "more than was said");
}

pub fn seeds() -> Vec<Vec<u8>> {
    let encode = |frames: &[Frame]| {
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut bytes));
        bytes
    };
    let data = |stream, bytes: &[u8]| Frame::Data {
        stream,
        bytes: bytes.to_vec(),
    };
    let reply = |reply| encode(&[Frame::Reply(reply)]);
    let all = encode(&[
        Frame::Request(Request::Exec(Exec::new(["echo", "text"]))),
        Frame::Request(Request::CopyOut { path: "/x".into() }),
        data(Stream::Stdin, b"input"),
        Frame::Credit {
            stream: Stream::Stdout,
            bytes: 65536,
        },
        Frame::Signal(15),
        Frame::Resize(WindowSize { rows: 24, cols: 80 }),
    ]);
    let info = reply(Reply::Info(Info {
        agent: "1".to_owned(),
        kernel: "6.12".to_owned(),
        hostname: "mvas".to_owned(),
        boot_ms: 1,
        uptime_ms: 2,
    }));
    let failed = reply(Reply::Failed {
        kind: FailureKind::Os,
        message: "no".to_owned(),
    });
    let ran = encode(&[
        Frame::Reply(Reply::Started { pid: 7 }),
        data(Stream::Stdout, b"text\n"),
        data(Stream::Stderr, b"more\n"),
        data(Stream::Stdout, b""),
        data(Stream::Stderr, b""),
        Frame::Reply(Reply::Ended(CommandEnd::Code(0))),
    ]);
    let archive = super::archive::seeds().swap_remove(0);
    let copied = encode(&[
        Frame::Reply(Reply::Ready { bytes: 9 }),
        data(Stream::Stdout, &archive),
        data(Stream::Stdout, b""),
        Frame::Reply(Reply::Done),
    ]);
    let asked = [
        encode(&[Frame::Request(Request::Info)]),
        Hello::new([1; 16]).encode().to_vec(),
        encode(&[Frame::Request(Request::Info), Frame::Signal(2)]),
    ]
    .concat();
    let with = |form: &[u8], bytes: &[u8]| [form, bytes].concat();
    vec![
        with(&[0, 10], &all),
        with(&[0, 200], &[all, info.clone()].concat()),
        with(&[1], &asked),
        with(&[2], &info),
        with(&[2], &failed),
        with(&[3], &copied),
        with(&[4], &ran),
        with(&[1], &Hello::new([2; 16]).encode()),
    ]
}
