// SPDX-License-Identifier: GPL-2.0-only
//! Clients of programs that listen on the loopback.

use std::fs;
use std::io::{BufReader, ErrorKind};
use std::net::{Ipv4Addr, TcpStream};

use anyhow::{Context, Result};

use super::PATIENCE;

/// A new connection. That nobody listens is an [`std::io::Error`], as such.
pub(super) fn connect(port: u16) -> Result<BufReader<TcpStream>> {
    let stream = match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => return Err(e.into()),
        other => other.with_context(|| format!("port {port}"))?,
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(BufReader::with_capacity(64 << 10, stream))
}

/// Whether the server's end of a connection to it is still there.
pub(super) fn is_connected(port: u16) -> Result<bool> {
    let table = fs::read_to_string("/proc/net/tcp").context("/proc/net/tcp")?;
    Ok(has_connection(&table, port))
}

/// From `/proc/net/tcp`.
fn has_connection(table: &str, port: u16) -> bool {
    let local = format!(":{port:04X}");
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let is_its = fields.next().is_some_and(|f| f.ends_with(&local));
        // What waits (TIME_WAIT) is the kernel's alone; and where it listens.
        is_its && !matches!(fields.nth(1), Some("06" | "0A"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_one_that_the_server_still_holds() {
        let table = |state: &str| {
            format!(
                "  sl  local_address rem_address   st\n   0: 0100007F:2BCB 0100007F:D2F0 {state} 0\n"
            )
        };
        assert!(has_connection(&table("01"), 11211));
        assert!(has_connection(&table("08"), 11211), "CLOSE_WAIT");
        assert!(!has_connection(&table("0A"), 11211), "LISTEN");
        assert!(!has_connection(&table("06"), 11211), "TIME_WAIT");
        assert!(!has_connection(&table("01"), 6379), "of another");
    }
}
