// SPDX-License-Identifier: GPL-2.0-only
//! memcached, by its text protocol.

use std::hash::{DefaultHasher, Hasher};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;

use super::{Program, net, spawn};

pub(super) struct Memcached;

const PORT: u16 = 11211;
/// Bytes of a value.
const VALUE: usize = 16 << 10;
/// Values that one request asks for.
const BATCH: usize = 64;

impl Program for Memcached {
    fn start(&self, dir: &Path, size_mib: usize) -> Result<Child> {
        // Its slabs are larger than the values in them.
        let room = (size_mib * 2 + 64).to_string();
        let mut command = Command::new("memcached");
        command
            .args(["-u", "memcache", "-l", "127.0.0.1", "-p", &PORT.to_string()])
            .args(["-U", "0", "-m", &room, "-M"]);
        spawn(&mut command, dir)
    }

    fn load(&self, size_mib: usize) -> Result<()> {
        let mut server = net::connect(PORT)?;
        for i in 0..(size_mib << 20) / VALUE {
            let mut request = format!("set {} 0 0 {VALUE}\r\n", key(i)).into_bytes();
            request.extend(value(i));
            request.extend(b"\r\n");
            server.get_mut().write_all(&request)?;
            let said = line(&mut server)?;
            ensure!(said == "STORED", "set answered {said}");
        }
        Ok(())
    }

    fn ask(&self) -> Result<()> {
        let values = get(&mut net::connect(PORT)?, &[key(7)])?;
        ensure!(values == [value(7)], "a value is not what was stored");
        Ok(())
    }

    fn state(&self) -> Result<String> {
        let mut server = net::connect(PORT)?;
        let items: usize = stat(&mut server, "curr_items")?.parse()?;
        let mut digest = DefaultHasher::new();
        for first in (0..items).step_by(BATCH) {
            let batch = first..items.min(first + BATCH);
            let keys: Vec<_> = batch.clone().map(key).collect();
            let values = get(&mut server, &keys)?;
            ensure!(values.len() == batch.len(), "of {keys:?} some are missing");
            values.iter().for_each(|value| digest.write(value));
        }
        Ok(format!("{items} items, digest {:016x}", digest.finish()))
    }

    fn is_busy(&self, _pid: i32) -> Result<bool> {
        net::is_connected(PORT)
    }
}

fn key(i: usize) -> String {
    format!("key:{i:08}")
}

/// Bytes that do not compress.
fn value(i: usize) -> Vec<u8> {
    let mut value = vec![0; VALUE];
    Rng::with_seed(i as u64).fill(&mut value);
    value
}

/// The values of these keys, in their order; of a missing one, none.
fn get(server: &mut BufReader<TcpStream>, keys: &[String]) -> Result<Vec<Vec<u8>>> {
    write!(server.get_mut(), "get {}\r\n", keys.join(" "))?;
    read_values(server)
}

fn read_values(server: &mut impl BufRead) -> Result<Vec<Vec<u8>>> {
    let mut values = Vec::new();
    loop {
        let head = line(server)?;
        if head == "END" {
            return Ok(values);
        }
        let length = head
            .strip_prefix("VALUE ")
            .and_then(|rest| rest.split(' ').nth(2));
        let length: usize = length
            .with_context(|| format!("get answered {head}"))?
            .parse()?;
        ensure!(length == VALUE, "a value of {length} bytes");
        let mut value = vec![0; length + 2];
        server.read_exact(&mut value)?;
        ensure!(value.ends_with(b"\r\n"), "a value without its end");
        value.truncate(length);
        values.push(value);
    }
}

/// One of its statistics.
fn stat(server: &mut BufReader<TcpStream>, name: &str) -> Result<String> {
    server.get_mut().write_all(b"stats\r\n")?;
    let mut found = None;
    loop {
        let said = line(server)?;
        if said == "END" {
            return found.with_context(|| format!("stats has no {name}"));
        }
        if let Some(value) = said.strip_prefix(&format!("STAT {name} ")) {
            found = Some(value.to_owned());
        }
    }
}

fn line(server: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    server.take(4096).read_line(&mut line)?;
    let line = line.strip_suffix("\r\n").context("the connection broke")?;
    Ok(line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_to_their_end() {
        let mut stream = Vec::new();
        for i in [3, 4] {
            stream.extend(format!("VALUE {} 0 {VALUE}\r\n", key(i)).bytes());
            stream.extend(value(i));
            stream.extend(b"\r\n");
        }
        stream.extend(b"END\r\n");
        let values = read_values(&mut stream.as_slice()).unwrap();
        assert_eq!(values, [value(3), value(4)]);
        stream.truncate(stream.len() - 5);
        assert!(read_values(&mut stream.as_slice()).is_err());
        let error = read_values(&mut b"ERROR\r\n".as_slice()).unwrap_err();
        assert!(error.to_string().contains("ERROR"), "{error}");
        assert!(read_values(&mut b"VALUE k 0 9999999\r\n".as_slice()).is_err());
    }
}
