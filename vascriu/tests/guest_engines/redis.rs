// SPDX-License-Identifier: GPL-2.0-only
//! A Redis in a container, asked over its socket from outside.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use crate::harness::wait_until;

/// How many values, of how many bytes: a few MiB.
const LOAD: &str = "DEBUG POPULATE 2000 key 1000";
/// That in bytes, at least.
pub const DATA: u64 = 2000 * 1000;

/// Where it answers.
#[derive(Debug, Clone)]
pub enum Redis {
    /// A socket in the container's root file system.
    Unix(PathBuf),
    /// A port of the guest.
    Port(u16),
}

impl Redis {
    /// That of a container, by the PID of one of its processes.
    pub fn of(pid: i32) -> Self {
        Self::Unix(format!("/proc/{pid}/root/tmp/redis").into())
    }

    /// Fills it; the digest of its data.
    #[track_caller]
    pub fn load(&self) -> String {
        wait_until("Redis to answer", || {
            self.ask("PING").as_deref() == Some("PONG")
        });
        assert_eq!(self.say(LOAD), "OK");
        self.digest()
    }

    /// The digest of all its data.
    #[track_caller]
    pub fn digest(&self) -> String {
        self.say("DEBUG DIGEST")
    }

    /// Sets the key `mark`.
    #[track_caller]
    pub fn mark(&self, value: &str) {
        assert_eq!(self.say(&format!("SET mark {value}")), "OK");
    }

    /// Its answer to a command.
    #[track_caller]
    pub fn say(&self, command: &str) -> String {
        let mut answer = None;
        wait_until("Redis to answer", || {
            answer = self.ask(command);
            answer.is_some()
        });
        answer.unwrap_or_default()
    }

    /// Its answer, if it gives one.
    pub fn ask(&self, command: &str) -> Option<String> {
        match self {
            Self::Unix(path) => talk(UnixStream::connect(path).ok()?, command),
            Self::Port(port) => talk(TcpStream::connect(("127.0.0.1", *port)).ok()?, command),
        }
    }
}

/// One command and its answer: a line, or a text whose length comes first.
fn talk<S: Read + Write>(mut stream: S, command: &str) -> Option<String> {
    stream.write_all(format!("{command}\r\n").as_bytes()).ok()?;
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let (kind, rest) = first.split_at_checked(1)?;
    match kind {
        "$" if rest != "-1" => lines.next()?.ok(),
        _ => Some(rest.to_owned()),
    }
}
