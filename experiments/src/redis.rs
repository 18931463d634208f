// SPDX-License-Identifier: GPL-2.0-only
//! A Redis server, and a client of its protocol (RESP) that loads it in bulk.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use serde::{Deserialize, Serialize};

use crate::subject::in_new_session;

/// Where the server listens.
const ADDRESS: &str = "127.0.0.1:6379";
/// How long an answer may take: a digest of 1 GiB on an emulated machine is slow.
const PATIENCE: Duration = Duration::from_secs(900);

/// Starts Debian's redis-server without persistence, in a session of its own. It holds no file
/// open, for another microVM would not have it.
///
/// # Errors
/// When it does not start or does not answer.
pub fn start(dir: &Path) -> Result<Child> {
    let log = dir.join("redis.log");
    let mut command = Command::new("redis-server");
    command
        .args([
            "--bind",
            "127.0.0.1",
            "--port",
            "6379",
            "--save",
            "",
            "--appendonly",
            "no",
        ])
        .args(["--enable-debug-command", "yes", "--daemonize", "no"])
        .arg("--logfile")
        .arg(&log)
        .arg("--dir")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = in_new_session(&mut command)
        .spawn()
        .context("cannot start redis-server")?;
    let begun = Instant::now();
    while TcpStream::connect(ADDRESS).is_err() {
        if let Some(status) = child.try_wait()? {
            let log = fs::read_to_string(&log).unwrap_or_default();
            bail!("redis-server ended ({status}): {log}");
        }
        ensure!(begun.elapsed() < PATIENCE, "redis-server does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(child)
}

/// Waits until the server has no connection any more: CRIU would have to take
/// it along.
///
/// # Errors
/// When one stays.
pub fn wait_until_idle(pid: i32) -> Result<()> {
    let begun = Instant::now();
    loop {
        let mut sockets = 0;
        for fd in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
            let target = fs::read_link(fd.path()).unwrap_or_default();
            sockets += usize::from(target.to_string_lossy().starts_with("socket:"));
        }
        // The one it listens on.
        if sockets == 1 {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < Duration::from_secs(30),
            "redis-server keeps {sockets} sockets open"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// An answer of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// `+OK`
    Simple(String),
    /// `:1`
    Integer(i64),
    /// `$3`, or nothing
    Bulk(Option<Vec<u8>>),
}

/// How many values [`Client::load`] stores.
#[must_use]
pub fn values(mib: usize) -> usize {
    (mib << 20) / VALUE_BYTES
}

/// Where it stores the `i`-th.
#[must_use]
pub fn key(i: usize) -> String {
    format!("key:{i:08}")
}

/// A connection to the server.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<TcpStream>,
}

/// Bytes of a value that [`Client::load`] stores.
pub const VALUE_BYTES: usize = 16 << 10;
/// Values sent before their answers are read.
const PIPELINE: usize = 64;

impl Client {
    /// Connects to the server.
    ///
    /// # Errors
    /// When it does not listen.
    pub fn connect() -> Result<Self> {
        let stream = TcpStream::connect(ADDRESS).context("redis-server does not listen")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: BufReader::with_capacity(64 << 10, stream),
        })
    }

    /// Sends one command and reads its answer.
    ///
    /// # Errors
    /// When the connection breaks or the server answers with an error.
    pub fn command(&mut self, words: &[&[u8]]) -> Result<Reply> {
        self.stream.get_mut().write_all(&encode(words))?;
        read_reply(&mut self.stream)
            .with_context(|| format!("redis: {}", String::from_utf8_lossy(words[0])))
    }

    /// Stores `mib` MiB of seeded values, telling the progress in MiB.
    ///
    /// # Errors
    /// When the server refuses one.
    pub fn load(&mut self, mib: usize, seed: u64, mut progress: impl FnMut(usize)) -> Result<()> {
        let values = values(mib);
        // Bytes that do not compress.
        let mut random = Rng::with_seed(seed);
        let mut value = vec![0; VALUE_BYTES];
        for first in (0..values).step_by(PIPELINE) {
            let batch = first..values.min(first + PIPELINE);
            let mut request = Vec::with_capacity(batch.len() * (VALUE_BYTES + 64));
            for i in batch.clone() {
                random.fill(&mut value);
                request.extend(encode(&[b"SET", key(i).as_bytes(), &value]));
            }
            self.stream.get_mut().write_all(&request)?;
            for _ in batch {
                let reply = read_reply(&mut self.stream)?;
                ensure!(
                    reply == Reply::Simple("OK".into()),
                    "SET answered {reply:?}"
                );
            }
            progress((first * VALUE_BYTES) >> 20);
        }
        Ok(())
    }

    /// The digest of all keys and values, and their number.
    ///
    /// # Errors
    /// When the server does not tell.
    pub fn state(&mut self) -> Result<State> {
        let keys = match self.command(&[b"DBSIZE"])? {
            Reply::Integer(keys) => keys,
            other => bail!("DBSIZE answered {other:?}"),
        };
        let digest = match self.command(&[b"DEBUG", b"DIGEST"])? {
            Reply::Simple(digest) => digest,
            other => bail!("DEBUG DIGEST answered {other:?}"),
        };
        Ok(State { keys, digest })
    }

    /// Writes a key, reads it back, and removes it; says what went wrong.
    ///
    /// # Errors
    /// When the server does not answer, or not with what was written.
    pub fn write_and_read(&mut self) -> Result<()> {
        let (key, value) = (b"after-restore".as_slice(), b"written".as_slice());
        self.command(&[b"SET", key, value])?;
        let got = self.command(&[b"GET", key])?;
        ensure!(
            got == Reply::Bulk(Some(value.to_vec())),
            "a value written after the restore reads back as {got:?}"
        );
        let removed = self.command(&[b"DEL", key])?;
        ensure!(removed == Reply::Integer(1), "DEL answered {removed:?}");
        Ok(())
    }
}

/// All that Redis holds, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Number of keys.
    pub keys: i64,
    /// `DEBUG DIGEST`.
    pub digest: String,
}

/// Loads `size_mib` MiB into the server; what it holds then.
///
/// # Errors
/// When it does not answer.
pub fn load(size_mib: usize) -> Result<State> {
    let begun = Instant::now();
    let mut client = Client::connect()?;
    let mut told = 0;
    client.load(size_mib, 2019, |mib| {
        if mib >= told + 128 {
            told = mib;
            eprintln!(
                "loading Redis: {mib} of {size_mib} MiB, {} s",
                begun.elapsed().as_secs()
            );
        }
    })?;
    eprintln!(
        "loading Redis: done in {} s; taking the digest of its data",
        begun.elapsed().as_secs()
    );
    client.state()
}

/// What the server holds differently from `expected`, or does not do any more.
///
/// # Errors
/// When it does not answer.
pub fn difference(expected: &State) -> Result<Option<String>> {
    let mut client = Client::connect().context("after the restore")?;
    if let Err(error) = client.write_and_read() {
        return Ok(Some(format!("{error:#}")));
    }
    let now = client.state()?;
    Ok((now != *expected).then(|| {
        format!(
            "{} keys with digest {} before, {} keys with digest {} after the restore",
            expected.keys, expected.digest, now.keys, now.digest
        )
    }))
}

/// A command in RESP.
fn encode(words: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        out.extend(format!("${}\r\n", word.len()).bytes());
        out.extend_from_slice(word);
        out.extend(b"\r\n");
    }
    out
}

/// Longest answer that is believed: no value here is longer.
const LONGEST: usize = 64 << 20;

fn read_reply(stream: &mut impl BufRead) -> Result<Reply> {
    let mut line = String::new();
    stream.take(LONGEST as u64).read_line(&mut line)?;
    let line = line.strip_suffix("\r\n").context("the connection broke")?;
    let (kind, rest) = line.split_at_checked(1).context("an empty answer")?;
    match kind {
        "+" => Ok(Reply::Simple(rest.into())),
        "-" => bail!("the server answered: {rest}"),
        ":" => Ok(Reply::Integer(rest.parse()?)),
        "$" if rest == "-1" => Ok(Reply::Bulk(None)),
        "$" => {
            let length: usize = rest.parse()?;
            ensure!(length <= LONGEST, "an answer of {length} bytes");
            let mut bulk = vec![0; length + 2];
            stream.read_exact(&mut bulk)?;
            ensure!(bulk.ends_with(b"\r\n"), "an answer without its end");
            bulk.truncate(length);
            Ok(Reply::Bulk(Some(bulk)))
        }
        _ => bail!("an answer of unknown kind: {line}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_command_is_encoded_with_its_lengths() {
        assert_eq!(
            encode(&[b"SET", b"k", b"a\r\nb"]),
            b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\na\r\nb\r\n"
        );
    }

    #[test]
    fn answers_of_each_kind_are_read() {
        let mut stream: &[u8] = b"+OK\r\n:42\r\n$5\r\na\r\nbc\r\n$-1\r\n-ERR no\r\n";
        assert_eq!(read_reply(&mut stream).unwrap(), Reply::Simple("OK".into()));
        assert_eq!(read_reply(&mut stream).unwrap(), Reply::Integer(42));
        assert_eq!(
            read_reply(&mut stream).unwrap(),
            Reply::Bulk(Some(b"a\r\nbc".to_vec()))
        );
        assert_eq!(read_reply(&mut stream).unwrap(), Reply::Bulk(None));
        let error = read_reply(&mut stream).unwrap_err().to_string();
        assert!(error.contains("ERR no"), "{error}");
        assert!(read_reply(&mut stream).is_err(), "the end is not an answer");
    }

    proptest! {
        #[test]
        fn no_answer_panics(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _any = read_reply(&mut bytes.as_slice());
        }
    }
}
