// SPDX-License-Identifier: GPL-2.0-only
//! Between an engine and its CRIU: every message goes on as it came, except for CRIU's
//! last word: a failure gets the reason, and a success is none if CRIU did not end well.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};
use protobuf::Message as _;

use super::request::{self, Answer, Kind};
use crate::criu::stuck;
use crate::process::PidFd;
use crate::socket::{self, Message};

/// The two that talk, and CRIU's process.
#[derive(Debug)]
pub struct Relay<'a> {
    /// The engine's socket.
    pub engine: BorrowedFd<'a>,
    /// CRIU's.
    pub criu: BorrowedFd<'a>,
    /// CRIU's process.
    pub process: &'a PidFd,
    /// Its PID.
    pub pid: i32,
}

/// What the engine was told of CRIU's work: none, if CRIU ended without a word.
pub type Verdict = Option<bool>;

impl Relay<'_> {
    /// Passes messages on until CRIU has given its last word, or has ended. `begun` is called
    /// at its first word; `ended_well`, when it says that all went well, tells whether that
    /// may be passed on; `reason` tells why it failed, as far as we know more than CRIU.
    ///
    /// # Errors
    /// The kernel's.
    pub fn run(
        &self,
        begun: impl FnOnce(),
        ended_well: impl Fn() -> bool,
        reason: impl FnOnce() -> Option<String>,
    ) -> io::Result<Verdict> {
        let (mut begun, mut reason) = (Some(begun), Some(reason));
        let mut engine_talks = true;
        let mut watch = stuck::Watch::new(self.pid);
        loop {
            let [engine, criu, ended] = self.wait(engine_talks)?;
            if engine && !self.forward()? {
                engine_talks = false;
            }
            if !(criu || ended) {
                if !engine {
                    watch.look(self.process);
                }
                continue;
            }
            let mut message = match socket::receive(self.criu, false) {
                Ok(Some(message)) => message,
                Ok(None) => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && !ended => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) => return Err(e),
            };
            if let Some(begun) = begun.take() {
                begun();
            }
            let mut verdict = verdict(&message);
            if verdict == Some(true) && !ended_well() {
                verdict = Some(false);
                message.bytes = denied(&message);
            }
            let reason = reason.take_if(|_| verdict == Some(false));
            if let Some(why) = reason.and_then(|reason| reason()) {
                explain(&mut message, &why);
            }
            self.back(&message)?;
            if verdict.is_some() {
                return Ok(verdict);
            }
        }
    }

    /// Waits, but not for long; which of engine, CRIU, and CRIU's end there is something of.
    fn wait(&self, engine_talks: bool) -> io::Result<[bool; 3]> {
        let fds = [self.criu, self.process.as_fd(), self.engine];
        let mut fds = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let asked = if engine_talks { 3 } else { 2 };
        let period = PollTimeout::try_from(stuck::PERIOD).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds[..asked], period) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let any = |at: usize| at < asked && fds[at].any().unwrap_or(false);
        Ok([any(2), any(0), any(1)])
    }

    /// Passes on what the engine says; false when it will say no more, which CRIU then
    /// learns.
    fn forward(&self) -> io::Result<bool> {
        if let Some(message) = socket::receive(self.engine, true)? {
            // That CRIU is gone is seen where it is waited for.
            let _ = socket::pass(self.criu, &message);
            return Ok(true);
        }
        no_more(self.criu)?;
        Ok(false)
    }

    /// Passes on what CRIU says. An engine that is gone is no error: CRIU learns it by
    /// the end of its connection.
    fn back(&self, message: &Message) -> io::Result<()> {
        match socket::pass(self.engine, message) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => no_more(self.criu),
            done => done,
        }
    }
}

/// CRIU gets no more messages.
fn no_more(criu: BorrowedFd<'_>) -> io::Result<()> {
    match shutdown(criu.as_raw_fd(), Shutdown::Write) {
        Ok(()) | Err(Errno::ENOTCONN) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Whether CRIU says that it is done, well or not; none where it only notifies.
fn verdict(message: &Message) -> Verdict {
    let answer = Answer::parse_from_bytes(&message.bytes).ok()?;
    (answer.type_() != Kind::NOTIFY).then(|| answer.success())
}

/// The failure that takes the place of a success.
fn denied(message: &Message) -> Vec<u8> {
    let answer = Answer::parse_from_bytes(&message.bytes).unwrap_or_default();
    let text = "CRIU was killed at the end of its work";
    request::encode(&request::failure(answer.type_(), libc::EINTR, text))
}

fn explain(message: &mut Message, why: &str) {
    if let Ok(mut answer) = Answer::parse_from_bytes(&message.bytes) {
        request::explain(&mut answer, why);
        message.bytes = request::encode(&answer);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;
    use std::process::{Child, Command, Stdio};
    use std::thread;

    use super::super::request::{Request, answer, encode, failure};
    use super::*;

    /// An engine, CRIU, and what is between; CRIU's process is a `cat` that lives as long
    /// as the test wants.
    struct Play {
        engine: OwnedFd,
        criu: OwnedFd,
        process: Child,
        relay: thread::JoinHandle<Verdict>,
    }

    impl Play {
        fn begin(ends_well: bool, reason: Option<&'static str>) -> Self {
            let (engine, engine_side) = socket::pair().expect("pair");
            let (criu, criu_side) = socket::pair().expect("pair");
            let process = Command::new("cat")
                .stdin(Stdio::piped())
                .spawn()
                .expect("cat");
            let pid = i32::try_from(process.id()).expect("a PID");
            let process_fd = PidFd::open(pid).expect("alive");
            let relay = thread::spawn(move || {
                let relay = Relay {
                    engine: engine_side.as_fd(),
                    criu: criu_side.as_fd(),
                    process: &process_fd,
                    pid,
                };
                let why = || reason.map(str::to_owned);
                relay.run(|| {}, || ends_well, why).expect("relayed")
            });
            Self {
                engine,
                criu,
                process,
                relay,
            }
        }

        fn end(mut self) -> Verdict {
            drop(self.process.stdin.take());
            let verdict = self.relay.join().expect("no panic");
            self.process.wait().expect("reaped");
            verdict
        }
    }

    fn notify(script: &str) -> Vec<u8> {
        let mut message = answer(Kind::NOTIFY, true);
        message
            .notify
            .mut_or_insert_default()
            .set_script(script.into());
        encode(&message)
    }

    fn next(socket: &OwnedFd) -> Message {
        let message = socket::receive(socket.as_fd(), true).expect("received");
        message.expect("a message")
    }

    #[test]
    fn messages_and_descriptors_go_both_ways_until_the_last_word() {
        let play = Play::begin(true, None);
        let (mut read, write) = nix::unistd::pipe()
            .map(|(r, w)| (File::from(r), w))
            .expect("pipe");
        let terminal = notify("orphan-pts-master");
        socket::send(play.criu.as_fd(), &terminal, &[write.as_fd()]).expect("sent");
        drop(write);

        let mut message = next(&play.engine);
        assert_eq!((message.bytes, message.fds.len()), (terminal, 1));
        let mut got = File::from(message.fds.remove(0));
        got.write_all(b"hello").expect("written");
        drop(got);
        let mut said = String::new();
        read.read_to_string(&mut said)
            .expect("no descriptor is left open");
        assert_eq!(said, "hello");

        let mut done = Request::new();
        done.set_type(Kind::NOTIFY);
        done.set_notify_success(true);
        socket::send(play.engine.as_fd(), &encode(&done), &[]).expect("sent");
        assert_eq!(next(&play.criu).bytes, encode(&done));

        let last = encode(&answer(Kind::DUMP, true));
        socket::send(play.criu.as_fd(), &last, &[]).expect("sent");
        assert_eq!(next(&play.engine).bytes, last);
        assert_eq!(play.end(), Some(true));
    }

    #[test]
    fn a_failure_reaches_the_engine_with_our_reason() {
        let play = Play::begin(true, Some("no room for the snapshot"));
        let failed = encode(&failure(Kind::DUMP, libc::ENOMEM, "Error (x)"));
        socket::send(play.criu.as_fd(), &failed, &[]).expect("sent");
        let answer = Answer::parse_from_bytes(&next(&play.engine).bytes).expect("an answer");
        assert_eq!(answer.cr_errmsg(), "no room for the snapshot\nError (x)");
        assert_eq!(answer.cr_errno(), libc::ENOMEM);
        assert_eq!(play.end(), Some(false));
    }

    #[test]
    fn a_criu_that_is_killed_after_its_last_word_has_failed() {
        let play = Play::begin(false, None);
        let last = encode(&answer(Kind::RESTORE, true));
        socket::send(play.criu.as_fd(), &last, &[]).expect("sent");
        let answer = Answer::parse_from_bytes(&next(&play.engine).bytes).expect("an answer");
        assert_eq!((answer.type_(), answer.success()), (Kind::RESTORE, false));
        assert_eq!(play.end(), Some(false));
    }

    #[test]
    fn a_killed_criu_is_the_end_though_others_hold_its_socket() {
        let mut play = Play::begin(true, None);
        play.process.kill().expect("killed");
        assert_eq!(play.relay.join().expect("no panic"), None);
        play.process.wait().expect("reaped");
        // The engine is not left waiting.
        let end = socket::receive(play.engine.as_fd(), true).expect("received");
        assert!(end.is_none());
    }

    #[test]
    fn what_criu_said_before_it_ended_is_not_lost() {
        let play = Play::begin(true, None);
        let last = encode(&answer(Kind::RESTORE, true));
        socket::send(play.criu.as_fd(), &last, &[]).expect("sent");
        let Play {
            engine,
            criu,
            mut process,
            relay,
        } = play;
        process.kill().expect("killed");
        drop(criu);
        assert_eq!(relay.join().expect("no panic"), Some(true));
        assert_eq!(next(&engine).bytes, last);
        process.wait().expect("reaped");
    }

    #[test]
    fn criu_learns_that_the_engine_is_gone() {
        let play = Play::begin(true, None);
        drop(play.engine);
        let end = socket::receive(play.criu.as_fd(), true).expect("received");
        assert!(end.is_none());
        let mut process = play.process;
        process.kill().expect("killed");
        process.wait().expect("reaped");
        assert_eq!(play.relay.join().expect("no panic"), None);
    }
}
