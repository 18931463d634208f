// SPDX-License-Identifier: GPL-2.0-only
//! Client and server against each other over a socket pair: real commands, real files.

mod broken_peers;
mod connect;

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mvas_agent::client::{ClientError, ExecIo, Session, vsock_stream};
use mvas_agent::protocol::{
    CommandEnd, Exec, FailureKind, Frame, Link, LinkError, OsText, Reply, Request, ShutdownKind,
    Stream, WindowSize,
};
use mvas_agent::server::{NoHost, Server};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

const PATIENCE: Duration = Duration::from_secs(30);

fn served() -> (UnixStream, JoinHandle<Result<(), LinkError>>) {
    let (ours, theirs) = UnixStream::pair().expect("socketpair");
    let server = Server::new(Arc::new(NoHost));
    let thread = thread::spawn(move || server.serve(theirs.into()));
    (ours, thread)
}

fn session() -> Session {
    Session::start(served().0, PATIENCE).expect("greeting")
}

struct Ran {
    end: CommandEnd,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

fn run(exec: Exec, input: &[u8]) -> Result<Ran, ClientError> {
    let mut stdin = tempfile::tempfile().expect("tmp");
    stdin.write_all(input).expect("write");
    stdin.rewind().expect("seek");
    let mut outputs = [(); 2].map(|()| tempfile::tempfile().expect("tmp"));
    let io = ExecIo {
        stdin: Some(stdin.as_fd()),
        stdout: outputs[0].as_fd(),
        stderr: outputs[1].as_fd(),
        signals: None,
    };
    let end = session().exec(exec, &io)?;
    let [stdout, stderr] = outputs.each_mut().map(|file| {
        let mut bytes = Vec::new();
        file.rewind().expect("seek");
        file.read_to_end(&mut bytes).expect("read");
        bytes
    });
    Ok(Ran {
        end,
        stdout,
        stderr,
    })
}

fn sh(script: &str) -> Exec {
    Exec::new(["sh", "-c", script])
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} never happened");
        thread::sleep(Duration::from_millis(10));
    }
}

fn is_gone(pid: &str) -> bool {
    match fs::read_to_string(format!("/proc/{}/stat", pid.trim())) {
        Ok(stat) => stat.contains(") Z "),
        Err(_) => true,
    }
}

#[test]
fn a_command_gets_its_input_and_gives_its_outputs_apart_and_its_exit_code() {
    let ran = run(sh("cat; echo oops >&2; exit 42"), b"hello").expect("ran");
    assert_eq!(ran.end, CommandEnd::Code(42));
    assert_eq!(ran.stdout, b"hello");
    assert_eq!(ran.stderr, b"oops\n");
}

#[test]
fn megabytes_pass_both_ways_unchanged() {
    let input: Vec<u8> = (0..5_000_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0])
        .collect();
    let ran = run(Exec::new(["cat"]), &input).expect("ran");
    assert!(ran.stdout == input);
}

#[test]
fn both_outputs_full_at_once_do_not_lock_up() {
    let script = "head -c 3000000 /dev/zero >&2 & head -c 3000000 /dev/zero; wait";
    let ran = run(sh(script), b"").expect("ran");
    assert_eq!((ran.stdout.len(), ran.stderr.len()), (3_000_000, 3_000_000));
}

#[test]
fn input_that_nobody_reads_does_not_hold_up_the_end() {
    let ran = run(sh("exit 3"), &vec![1; 3_000_000]).expect("ran");
    assert_eq!(ran.end, CommandEnd::Code(3));
}

#[test]
fn death_by_a_signal_is_told_apart_from_an_exit_code() {
    let ran = run(sh("kill -9 $$"), b"").expect("ran");
    assert_eq!(ran.end, CommandEnd::Signal(9));
}

#[test]
fn what_a_background_job_may_still_write_is_not_waited_for() {
    let ran = run(sh("sleep 600 & echo $!"), b"").expect("ran");
    assert_eq!(ran.end, CommandEnd::Code(0));
    let pid = String::from_utf8(ran.stdout).expect("a number");
    assert!(!is_gone(&pid), "the job lives on");
    let pid = nix::unistd::Pid::from_raw(pid.trim().parse().expect("a number"));
    nix::sys::signal::kill(pid, Signal::SIGKILL).expect("kill");
}

#[test]
fn environment_and_folder_are_as_asked() {
    let mut exec = sh("pwd; env");
    exec.env = vec![(OsText::from("A"), OsText::from("b c"))];
    exec.clear_env = true;
    exec.cwd = Some(OsText::from("/usr"));
    let ran = run(exec, b"").expect("ran");
    let text = String::from_utf8(ran.stdout).expect("text");
    assert!(text.starts_with("/usr\n"));
    assert!(text.lines().any(|line| line == "A=b c"));
    assert!(!text.contains("CARGO"));
}

#[test]
fn arguments_need_not_be_utf8() {
    use std::os::unix::ffi::OsStrExt;
    let exec = Exec::new([
        OsStr::new("printf"),
        OsStr::new("%s"),
        OsStr::from_bytes(b"\xff\xfe"),
    ]);
    assert_eq!(run(exec, b"").expect("ran").stdout, b"\xff\xfe");
}

#[test]
fn a_command_is_not_left_with_blocked_signals() {
    let mut set = SigSet::empty();
    set.add(Signal::SIGUSR1);
    set.thread_block().expect("block");
    let ran = run(sh("grep SigBlk /proc/self/status"), b"").expect("ran");
    assert_eq!(ran.stdout, b"SigBlk:\t0000000000000000\n");
}

#[test]
fn a_command_runs_as_another_user() {
    if !nix::unistd::getuid().is_root() {
        eprintln!("needs root to become another user");
        return;
    }
    let mut exec = sh("id -un; id -G");
    exec.user = Some("nobody".to_owned());
    exec.cwd = Some(OsText::from("/"));
    let ran = run(exec, b"").expect("ran");
    assert_eq!(ran.stdout, b"nobody\n65534\n");
}

#[test]
fn signals_reach_the_command() {
    let mut set = SigSet::empty();
    set.add(Signal::SIGUSR2);
    set.thread_block().expect("block");
    let signals = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK).expect("signalfd");
    let (mut output, stdout) = std::io::pipe().expect("pipe");
    let this_thread = nix::sys::pthread::pthread_self();
    let client = thread::spawn(move || {
        let mut line = [0; 6];
        output.read_exact(&mut line).expect("ready");
        nix::sys::pthread::pthread_kill(this_thread, Signal::SIGUSR2).expect("signal");
    });
    let stderr = tempfile::tempfile().expect("tmp");
    let io = ExecIo {
        stdin: None,
        stdout: stdout.as_fd(),
        stderr: stderr.as_fd(),
        signals: Some(&signals),
    };
    let script = "trap 'exit 9' USR2; echo ready; while :; do sleep 0.05; done";
    let end = session().exec(sh(script), &io).expect("ran");
    client.join().expect("client");
    assert_eq!(end, CommandEnd::Code(9));
}

#[test]
fn a_terminal_has_the_size_asked_for_and_one_output() {
    let mut exec = sh("test -t 0 && test -t 2 && stty size; echo err >&2");
    exec.tty = Some(WindowSize { rows: 33, cols: 77 });
    let ran = run(exec, b"").expect("ran");
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "33 77\r\nerr\r\n");
    assert!(ran.stderr.is_empty());
}

#[test]
fn a_terminal_takes_input_and_its_end() {
    let mut exec = sh("stty -echo; read x; echo got $x; cat");
    exec.tty = Some(WindowSize { rows: 24, cols: 80 });
    let ran = run(exec, b"word\n").expect("ran");
    assert_eq!(ran.end, CommandEnd::Code(0));
    assert!(String::from_utf8_lossy(&ran.stdout).contains("got word"));
}

#[test]
fn a_terminal_follows_resizes() {
    let mut link = Link::new(served().0.into()).expect("link");
    link.greet(PATIENCE).expect("greeting");
    let mut exec = sh("trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.05; done");
    exec.tty = Some(WindowSize { rows: 1, cols: 1 });
    link.queue(&Frame::Request(Request::Exec(exec)));
    let mut seen = String::new();
    let mut resized = false;
    loop {
        match link.recv(None).expect("frame") {
            Frame::Data { bytes, .. } => seen.push_str(&String::from_utf8_lossy(&bytes)),
            Frame::Reply(Reply::Ended(_)) => break,
            _ => {}
        }
        if seen.contains("ready") && !resized {
            resized = true;
            link.queue(&Frame::Resize(WindowSize { rows: 50, cols: 60 }));
        }
    }
    assert!(seen.contains("50 60"), "{seen:?}");
}

#[test]
fn commands_that_cannot_run_say_why() {
    let kind = |exec| match run(exec, b"") {
        Err(ClientError::Failed { kind, message }) => (kind, message),
        other => panic!("{:?}", other.map(|ran| ran.end)),
    };
    let (missing, message) = kind(Exec::new(["/no/such/command"]));
    assert_eq!(missing, FailureKind::CommandNotFound);
    assert!(message.contains("/no/such/command"));
    assert_eq!(
        kind(Exec::new(["/etc/passwd"])).0,
        FailureKind::CommandNotRunnable
    );
    assert_eq!(
        kind(Exec::new(Vec::<String>::new())).0,
        FailureKind::BadRequest
    );
    let mut exec = sh("true");
    exec.user = Some("no-such-user".to_owned());
    assert_eq!(kind(exec).0, FailureKind::BadRequest);
    let mut exec = sh("true");
    exec.cwd = Some(OsText::from("/no/such/folder"));
    let (no_folder, message) = kind(exec);
    assert_eq!(no_folder, FailureKind::Os);
    assert!(message.contains("/no/such/folder"));
}

#[test]
fn a_client_that_vanishes_takes_its_command_along() {
    let (stream, server) = served();
    let mut link = Link::new(stream.into()).expect("link");
    link.greet(PATIENCE).expect("greeting");
    // It ignores SIGHUP: only SIGKILL ends it.
    let exec = sh("trap '' HUP; echo $$; while :; do sleep 0.05; done");
    link.queue(&Frame::Request(Request::Exec(exec)));
    let pid = loop {
        if let Frame::Data { bytes, .. } = link.recv(None).expect("frame") {
            break String::from_utf8(bytes).expect("a number");
        }
    };
    assert!(!is_gone(&pid));
    drop(link);
    wait_for("the command's end", || is_gone(&pid));
    server.join().expect("no panic").expect("a clean end");
}

#[test]
fn one_connection_serves_session_after_session() {
    let (stream, _server) = served();
    for _ in 0..3 {
        let session = Session::start(stream.try_clone().expect("dup"), PATIENCE).expect("greeting");
        assert!(session.info().expect("info").uptime_ms > 0);
    }
}

#[test]
fn a_session_broken_off_does_not_disturb_the_next() {
    let (stream, _server) = served();
    let mut link = Link::new(stream.try_clone().expect("dup").into()).expect("link");
    link.greet(PATIENCE).expect("greeting");
    link.queue(&Frame::Request(Request::Exec(sh("yes"))));
    let _ = link.recv(None).expect("started");
    drop(link);
    let session = Session::start(stream, PATIENCE).expect("greeting");
    assert!(session.info().is_ok());
}

#[test]
fn shutting_down_an_agent_without_a_machine_is_refused() {
    let refused = session().shutdown(ShutdownKind::PowerOff);
    assert!(matches!(
        refused,
        Err(ClientError::Failed {
            kind: FailureKind::BadRequest,
            ..
        })
    ));
}

#[test]
fn folders_travel_in_and_out() {
    let dir = tempfile::tempdir().expect("tmp");
    let source = dir.path().join("src");
    fs::create_dir_all(source.join("a/b")).expect("mkdir");
    fs::write(source.join("a/b/f"), vec![9; 700_000]).expect("write");
    let mut seen = (0, 0);
    let inside = dir.path().join("inside");
    session()
        .copy_in(&source, inside.as_os_str(), &mut |done, total| {
            seen = (done, total)
        })
        .expect("in");
    assert_eq!(seen, (700_000, 700_000));
    let out = session()
        .copy_out(inside.as_os_str(), &dir.path().join("out"), &mut |_, _| {})
        .expect("out");
    assert_eq!(fs::read(out.join("a/b/f")).expect("read"), vec![9; 700_000]);
}

#[test]
fn a_copy_that_fails_says_why_and_leaves_nothing() {
    let dir = tempfile::tempdir().expect("tmp");
    let big = dir.path().join("big");
    fs::write(&big, vec![1; 2_000_000]).expect("write");
    let dest = Path::new("/no/such/folder/x");
    let error = session()
        .copy_in(&big, dest.as_os_str(), &mut |_, _| {})
        .expect_err("no such folder");
    assert!(error.to_string().contains("/no/such/folder/x"), "{error}");
    let error = session()
        .copy_out(dest.as_os_str(), &dir.path().join("y"), &mut |_, _| {})
        .expect_err("no such file");
    assert!(error.to_string().contains("/no/such/folder/x"), "{error}");
    assert!(!dir.path().join("y").exists());
}

#[test]
fn a_client_that_vanishes_in_a_copy_leaves_nothing() {
    let dir = tempfile::tempdir().expect("tmp");
    let (stream, server) = served();
    let mut link = Link::new(stream.into()).expect("link");
    link.greet(PATIENCE).expect("greeting");
    let dest = dir.path().join("x");
    link.queue(&Frame::Request(Request::CopyIn {
        dest: OsText::from(dest.as_os_str()),
        name: OsText::from("x"),
    }));
    assert!(matches!(link.recv_reply(None), Ok(Reply::Ready { .. })));
    link.queue_data(Stream::Stdin, &[0; 100]);
    link.flush().expect("sent");
    drop(link);
    server.join().expect("no panic").expect("a clean end");
    assert_eq!(fs::read_dir(dir.path()).expect("ls").count(), 0);
}

#[test]
fn a_connection_over_vsock_may_be_silent_for_ever() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("vsock.sock");
    let listener = UnixListener::bind(&path).expect("listen");
    let guest = thread::spawn(move || {
        let (mut peer, _) = listener.accept().expect("accept");
        let mut line = String::new();
        BufReader::new(&peer).read_line(&mut line).expect("a line");
        writeln!(peer, "OK 1").expect("an answer");
        line
    });
    let stream = vsock_stream(&path, 52, PATIENCE).expect("a stream");
    assert_eq!(guest.join().expect("no panic"), "CONNECT 52\n");
    assert_eq!(stream.read_timeout().expect("an option"), None);
}
