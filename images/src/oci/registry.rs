// SPDX-License-Identifier: GPL-2.0-only
//! A registry, over HTTPS; on this machine itself also over HTTP. Nobody logs in.

use std::fs::File;
use std::io::{self, Seek};
use std::net::IpAddr;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use anyhow::{Context, Result};
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE,
};
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, RegistryOperation};
use tokio::io::AsyncWrite;
use tokio::runtime::{Builder, Runtime};

use super::Brought;
use super::blob::{Sha256Digest, stored, verified};
use super::manifest::{self, Blobs};

/// A registry that says nothing for so long is not there.
const PATIENCE: Duration = Duration::from_secs(60);
const ACCEPTED: [&str; 4] = [
    OCI_IMAGE_INDEX_MEDIA_TYPE,
    IMAGE_MANIFEST_LIST_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE,
    IMAGE_MANIFEST_MEDIA_TYPE,
];

/// Brings an image from its registry.
pub(super) fn bring(reference: &Reference, work: &Path) -> Result<Brought> {
    // Fails where one is installed already, which does as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = ClientConfig {
        protocol: match is_here(reference.resolve_registry()) {
            true => ClientProtocol::Http,
            false => ClientProtocol::Https,
        },
        connect_timeout: Some(PATIENCE),
        read_timeout: Some(PATIENCE),
        ..ClientConfig::default()
    };
    let registry = Registry {
        runtime: Builder::new_current_thread().enable_all().build()?,
        client: Client::try_from(config).context("cannot use TLS")?,
        reference,
        work,
    };
    let auth = registry
        .client
        .auth(reference, &RegistryAuth::Anonymous, RegistryOperation::Pull);
    registry
        .runtime
        .block_on(auth)
        .with_context(|| format!("{} does not answer", reference.resolve_registry()))?;
    let manifest = registry.pull_manifest(reference)?;
    if let Some(digest) = reference.digest() {
        let digest = Sha256Digest::parse(digest)?;
        verified(&manifest[..], manifest.len() as u64, &digest).context("its manifest")?;
    }
    manifest::bring(manifest, &registry, work)
}

/// Whether a registry (`HOST`, `HOST:PORT`) is this machine: nobody listens on the way.
fn is_here(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => registry,
    };
    let host = host.trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

struct Registry<'a> {
    runtime: Runtime,
    client: Client,
    reference: &'a Reference,
    work: &'a Path,
}

impl Registry<'_> {
    fn pull_manifest(&self, reference: &Reference) -> Result<Vec<u8>> {
        let pull = self
            .client
            .pull_manifest_raw(reference, &RegistryAuth::Anonymous, &ACCEPTED);
        let (manifest, _) = self.runtime.block_on(pull)?;
        Ok(manifest.to_vec())
    }

    fn pull(&self, digest: &Sha256Digest, size: u64) -> Result<File> {
        let out = Bounded {
            file: tempfile::tempfile_in(self.work)?,
            left: size,
        };
        let mut file = out.file.try_clone()?;
        let digest = format!("sha256:{}", digest.digits());
        let pull = self.client.pull_blob(self.reference, digest.as_str(), out);
        self.runtime.block_on(pull)?;
        file.rewind()?;
        Ok(file)
    }
}

impl Blobs for Registry<'_> {
    fn manifest(&self, digest: &Sha256Digest, size: u64) -> Result<Vec<u8>> {
        let digest_text = format!("sha256:{}", digest.digits());
        let reference = self.reference.clone_with_digest(digest_text);
        verified(&self.pull_manifest(&reference)?[..], size, digest)
    }

    fn config(&self, digest: &Sha256Digest, size: u64) -> Result<Vec<u8>> {
        verified(self.pull(digest, size)?, size, digest)
    }

    fn layer(&self, digest: &Sha256Digest, size: u64, work: &Path) -> Result<File> {
        stored(self.pull(digest, size)?, size, digest, work)
    }
}

/// A file that takes no more than it is to have. Writing to it waits for the disk at most.
struct Bounded {
    file: File,
    left: u64,
}

impl AsyncWrite for Bounded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut TaskContext<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = io::Write::write(&mut self.file, buffer).and_then(|n| {
            let left = self.left.checked_sub(n as u64);
            self.left =
                left.ok_or_else(|| io::Error::other("it is longer than its manifest says"))?;
            Ok(n)
        });
        Poll::Ready(written)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::is_here;

    #[test]
    fn only_this_machine_is_spoken_to_without_tls() {
        for here in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "[::1]:5000",
        ] {
            assert!(is_here(here), "{here}");
        }
        for far in [
            "docker.io",
            "localhost.example.org",
            "10.0.0.1:5000",
            "127.example.org",
        ] {
            assert!(!is_here(far), "{far}");
        }
    }
}
