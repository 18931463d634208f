// SPDX-License-Identifier: GPL-2.0-only
//! Terminals: `exec -t`, and the login.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::libc;
use nix::pty::{Winsize, openpty};
use nix::sys::termios::{LocalFlags, tcgetattr};

use crate::host::{end_of, mvasvm, shared, wait_for};

/// `mvasvm` on a terminal of our own.
struct OnTerminal {
    child: Child,
    terminal: File,
    other_end: OwnedFd,
    seen: Arc<Mutex<String>>,
}

impl OnTerminal {
    fn start(words: &[&str]) -> Self {
        let size = Winsize {
            ws_row: 31,
            ws_col: 97,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(Some(&size), None).expect("a terminal");
        let end = |fd: &OwnedFd| Stdio::from(fd.try_clone().expect("dup"));
        let child = mvasvm(words)
            .env("TERM", "xterm")
            .stdin(end(&pty.slave))
            .stdout(end(&pty.slave))
            .stderr(end(&pty.slave))
            .spawn()
            .expect("mvasvm starts");
        let terminal = File::from(pty.master);
        let seen = Arc::new(Mutex::new(String::new()));
        let (mut reader, into) = (terminal.try_clone().expect("dup"), seen.clone());
        thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..n]);
                into.lock().expect("no panic").push_str(&text);
            }
        });
        Self {
            child,
            terminal,
            other_end: pty.slave,
            seen,
        }
    }

    fn expect(&self, text: &str) {
        let seen = || self.seen.lock().expect("no panic").clone();
        let what = format!("{text:?} on the terminal");
        wait_for(&what, || seen().contains(text));
    }

    fn type_in(&mut self, text: &str) {
        self.terminal.write_all(text.as_bytes()).expect("write");
    }

    fn is_raw(&self) -> bool {
        let modes = tcgetattr(self.other_end.as_fd()).expect("a terminal");
        !modes.local_flags.contains(LocalFlags::ICANON)
    }

    fn is_nonblocking(&self) -> bool {
        use nix::fcntl::{FcntlArg, fcntl};
        let flags = fcntl(&self.other_end, FcntlArg::F_GETFL).expect("flags");
        flags & libc::O_NONBLOCK != 0
    }
}

#[test]
fn exec_on_a_terminal_has_its_size_and_restores_it() {
    let script = "stty size; read word; echo got:$word; exit 3";
    let words = ["exec", "-t", &shared().0, "--", "sh", "-c", script];
    let mut run = OnTerminal::start(&words);
    run.expect("31 97");
    assert!(run.is_raw());
    run.type_in("hello\r");
    run.expect("got:hello");
    let (terminal, status) = (run.other_end.try_clone().expect("dup"), end_of(run.child));
    assert_eq!(status.code(), Some(3));
    let modes = tcgetattr(terminal.as_fd()).expect("a terminal");
    assert!(
        modes
            .local_flags
            .contains(LocalFlags::ICANON | LocalFlags::ECHO)
    );
}

#[test]
fn ctrl_c_on_a_terminal_goes_to_the_command() {
    let script = "trap 'echo caught; exit 8' INT; echo ready; while :; do sleep 0.1; done";
    let mut run = OnTerminal::start(&["exec", "-t", &shared().0, "--", "sh", "-c", script]);
    run.expect("ready");
    run.type_in("\x03");
    run.expect("caught");
    assert_eq!(end_of(run.child).code(), Some(8));
}

#[test]
fn the_login_takes_commands_and_ctrl_a_x_leaves() {
    let mut run = OnTerminal::start(&["run", "--name", "login", "--mem", "1G"]);
    run.expect("# ");
    assert!(run.is_raw());
    run.type_in("stty size; echo $((6*7))$TERM; tty\r");
    run.expect("42xterm");
    run.expect("31 97");
    run.expect("/dev/hvc0");
    // A shell that ends comes again.
    run.type_in("echo one > /tmp/one; exit\r");
    run.type_in("\r");
    crate::host::wait_for("the file", || {
        let words = ["exec", "login", "--", "cat", "/tmp/one"];
        crate::host::output(&words).status.success()
    });
    run.type_in("\x01x");
    let mut run = run;
    wait_for("the monitor's end", || {
        run.child.try_wait().expect("a child").is_some()
    });
    assert_eq!(run.child.wait().expect("a child").code(), Some(0));
    assert!(!run.is_raw() && !run.is_nonblocking());
}
