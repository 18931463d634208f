// SPDX-License-Identifier: GPL-2.0-only
//! TCP ports of the host that lead to servers in a guest, which has no network.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::process::{Child, ChildStderr, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::{PATIENCE, Vm, mvasvm, output, shared, show, succeed, text, wait_for};

/// `mvasvm forward` of one port, any that is free.
struct Forward {
    child: Child,
    port: u16,
}

impl Forward {
    fn start(vm: &Vm, guest: &str) -> Self {
        let mut child = mvasvm(&["forward", &vm.0, &format!("0:{guest}")])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("mvasvm starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("output");
        let rest = line.strip_prefix("127.0.0.1:").expect(&line);
        let port = rest.strip_suffix(&format!(" -> {}:{guest}\n", vm.0));
        let port = port.and_then(|port| port.parse().ok()).expect(&line);
        Self { child, port }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    }

    fn stderr(&mut self) -> BufReader<ChildStderr> {
        BufReader::new(self.child.stderr.take().expect("a pipe"))
    }
}

/// Ends as by Ctrl-C.
impl Drop for Forward {
    fn drop(&mut self) {
        if let (Ok(None), Ok(pid)) = (self.child.try_wait(), i32::try_from(self.child.id())) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
        }
        let _ = self.child.wait();
    }
}

/// Redis, on a port of the guest's loopback address.
fn redis(vm: &Vm, port: &str) {
    let server = ["redis-server", "--port", port, "--bind", "127.0.0.1"];
    let started = vm.exec(&[&server[..], &["--daemonize", "yes", "--save", ""]].concat());
    assert!(started.status.success(), "{}", show(&started));
    wait_for("redis", || {
        text(&vm.exec(&["redis-cli", "-p", port, "ping"]).stdout) == "PONG\n"
    });
}

#[test]
fn a_server_in_the_guest_is_reached_by_many_at_once_and_has_all_of_each() {
    let vm = shared();
    redis(vm, "7001");
    let forward = Forward::start(vm, "7001");
    let value = vec![b'v'; 300_000];
    let streams: Vec<_> = (0..24).map(|_| forward.connect()).collect();
    for (i, mut stream) in streams.iter().enumerate() {
        write!(stream, "*3\r\n$3\r\nSET\r\n$2\r\n{i:02}\r\n$300000\r\n").expect("write");
        stream.write_all(&value).expect("write");
        write!(stream, "\r\nGET {i:02}\r\n").expect("write");
        // Redis answers what came before the end.
        stream.shutdown(Shutdown::Write).expect("shutdown");
    }
    let expected = [&b"+OK\r\n$300000\r\n"[..], &value, b"\r\n"].concat();
    for mut stream in streams {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("an answer");
        assert!(all == expected, "{} bytes", all.len());
    }
    vm.exec(&["redis-cli", "-p", "7001", "shutdown"]);
}

#[test]
fn where_nobody_listens_the_connection_is_cut_and_it_says_so() {
    let mut forward = Forward::start(shared(), "7002");
    let error = forward.connect().read(&mut [0]).expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let mut line = String::new();
    forward.stderr().read_line(&mut line).expect("an error");
    assert!(line.contains("127.0.0.1:7002 in the guest"), "{line}");
    // And it goes on.
    forward.connect().read(&mut [0]).expect_err("a reset");
}

#[test]
fn a_port_that_is_taken_is_refused() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    let port = taken.local_addr().expect("an address").port();
    let refused = output(&["forward", &shared().0, "0:80", &format!("{port}:80")]);
    assert_eq!(refused.status.code(), Some(125), "{}", show(&refused));
    let says = format!("cannot listen on 127.0.0.1:{port}");
    assert!(text(&refused.stderr).contains(&says), "{}", show(&refused));
    assert_eq!(text(&refused.stdout), "");
}

#[test]
fn a_forward_ends_with_its_vm() {
    let vm = Vm::start("forwarded", &[]);
    let mut forward = Forward::start(&vm, "80");
    let mut stderr = forward.stderr();
    succeed(&["kill", &vm.0]);
    let mut said = String::new();
    stderr.read_to_string(&mut said).expect("output");
    assert_eq!(said, "mvasvm: forwarded has ended\n");
    wait_for(
        "its end",
        || matches!(forward.child.try_wait(), Ok(Some(status)) if status.code() == Some(0)),
    );
}

#[test]
fn a_signal_ends_a_forward_and_gives_its_port_back() {
    let forward = Forward::start(shared(), "80");
    let port = forward.port;
    drop(forward);
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("a free port");
}
