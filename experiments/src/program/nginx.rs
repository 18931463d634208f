// SPDX-License-Identifier: GPL-2.0-only
//! nginx: a master and a worker, which serve one file.

use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;

use super::{Program, net, spawn};

pub(super) struct Nginx;

const PORT: u16 = 8080;
/// Bytes of the file.
const PAGE: usize = 64 << 10;

impl Program for Nginx {
    fn start(&self, dir: &Path, _size_mib: usize) -> Result<Child> {
        fs::create_dir(dir.join("root"))?;
        fs::write(dir.join("root/page"), page())?;
        let conf = dir.join("nginx.conf");
        fs::write(&conf, configuration(dir))?;
        let mut command = Command::new("nginx");
        command.arg("-c").arg(conf).args(["-e", "stderr"]);
        spawn(&mut command, dir)
    }

    /// It has no data but the file; that it serves it is all there is to wait for.
    fn load(&self, _size_mib: usize) -> Result<()> {
        self.ask()
    }

    fn ask(&self) -> Result<()> {
        ensure!(served()? == page(), "the page is not what it was");
        Ok(())
    }

    fn state(&self) -> Result<String> {
        let page = served()?;
        let mut digest = DefaultHasher::new();
        digest.write(&page);
        Ok(format!(
            "{} bytes, digest {:016x}",
            page.len(),
            digest.finish()
        ))
    }

    fn is_busy(&self, _pid: i32) -> Result<bool> {
        net::is_connected(PORT)
    }
}

fn configuration(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "daemon off; worker_processes 1; error_log stderr; pid {dir}/pid;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    server {{ listen 127.0.0.1:{PORT}; root {dir}/root; }}
}}
"
    )
}

fn page() -> Vec<u8> {
    let mut page = vec![0; PAGE];
    Rng::with_seed(2019).fill(&mut page);
    page
}

/// The page as a client gets it.
fn served() -> Result<Vec<u8>> {
    let mut server = net::connect(PORT)?;
    let request = b"GET /page HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    server.get_mut().write_all(request)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    body(&answer)
}

fn body(answer: &[u8]) -> Result<Vec<u8>> {
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n");
    let (head, body) = answer.split_at(head.context("an answer without an end of its head")? + 4);
    ensure!(
        head.starts_with(b"HTTP/1.1 200 "),
        "nginx answered {}",
        String::from_utf8_lossy(head)
    );
    Ok(body.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_what_follows_a_good_head() {
        let page = body(b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\na\r\n\r\nb").unwrap();
        assert_eq!(page, b"a\r\n\r\nb");
        let error = body(b"HTTP/1.1 404 Not Found\r\n\r\n").unwrap_err();
        assert!(error.to_string().contains("404"), "{error}");
        assert!(body(b"HTTP/1.1 200 OK\r\n").is_err());
    }
}
