// SPDX-License-Identifier: GPL-2.0-only
//! Images that are made here, in all forms, and damaged ones.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use oci_client::RegistryOperation;
use oci_client::client::{Client, ClientConfig, ClientProtocol, Config, ImageLayer};
use oci_client::secrets::RegistryAuth;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::*;

fn sha256(content: &[u8]) -> String {
    let sum = Sha256::digest(content);
    sum.iter().map(|b| format!("{b:02x}")).collect()
}

/// A layer with one file.
fn layer(name: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(name.len() as u64);
    tar.append_data(&mut header, name, name.as_bytes()).unwrap();
    tar.into_inner().unwrap()
}

fn config(layers: &[Vec<u8>]) -> Vec<u8> {
    let digests = layers.iter().map(|l| format!("sha256:{}", sha256(l)));
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Entrypoint": ["/bin/app"],
            "Cmd": ["serve"],
            "Env": ["A=1=2", "nonsense"],
            "WorkingDir": "/data",
            "User": "7:8",
        },
        "rootfs": { "type": "layers", "diff_ids": digests.collect::<Vec<_>>() },
    });
    serde_json::to_vec(&config).unwrap()
}

/// A folder with an image layout.
struct Layout(tempfile::TempDir);

impl Layout {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        Self(dir)
    }

    /// Puts a blob there; returns its descriptor.
    fn blob(&self, kind: &str, content: &[u8]) -> Value {
        let digest = sha256(content);
        fs::write(self.0.path().join("blobs/sha256").join(&digest), content).unwrap();
        let media = format!("application/vnd.oci.image.{kind}");
        json!({ "mediaType": media, "digest": format!("sha256:{digest}"), "size": content.len() })
    }

    fn manifest(&self, layers: &[Vec<u8>]) -> Value {
        let all = layers.iter().map(|l| self.blob("layer.v1.tar", l));
        let manifest = json!({
            "schemaVersion": 2,
            "config": self.blob("config.v1+json", &config(layers)),
            "layers": all.collect::<Vec<_>>(),
        });
        self.blob("manifest.v1+json", &serde_json::to_vec(&manifest).unwrap())
    }

    fn index(&self, manifests: &[Value]) {
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        fs::write(self.0.path().join("index.json"), index.to_string()).unwrap();
    }

    fn import(&self, tag: &str) -> Result<(Vec<Layer>, Settings)> {
        import(&format!("oci:{}{tag}", self.0.path().display()))
    }
}

fn import(source: &str) -> Result<(Vec<Layer>, Settings)> {
    let work = tempfile::tempdir()?;
    let source: Source = source.parse().map_err(anyhow::Error::msg)?;
    source.bring(work.path())?.open(work.path())
}

fn two() -> [Vec<u8>; 2] {
    [layer("a"), layer("b")]
}

fn check(imported: Result<(Vec<Layer>, Settings)>) {
    let (layers, settings) = imported.unwrap();
    assert_eq!(layers.len(), 2);
    assert_eq!(settings.entrypoint, ["/bin/app"]);
    assert_eq!(settings.cmd, ["serve"]);
    assert_eq!(settings.env, [("A".to_owned(), "1=2".to_owned())].into());
    assert_eq!(settings.workdir.as_deref(), Some("/data"));
    assert_eq!(settings.user.as_deref(), Some("7:8"));
}

fn refused(imported: Result<(Vec<Layer>, Settings)>, why: &str) {
    let message = format!("{:#}", imported.unwrap_err());
    assert!(message.contains(why), "{message}");
}

#[test]
fn a_layout_is_imported_with_what_it_says_about_running() {
    let layout = Layout::new();
    layout.index(&[layout.manifest(&two())]);
    check(layout.import(""));
}

#[test]
fn of_several_images_the_tag_and_the_platform_choose() {
    let layout = Layout::new();
    let mut all = Vec::new();
    for (tag, arch, layers) in [
        ("one", "amd64", vec![layer("a"), layer("b")]),
        ("one", "arm64", vec![layer("c")]),
        ("two", "arm64", vec![layer("d")]),
    ] {
        let mut manifest = layout.manifest(&layers);
        manifest["platform"] = json!({ "os": "linux", "architecture": arch });
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        all.push(manifest);
    }
    layout.index(&all);
    check(layout.import(":one"));
    refused(layout.import(""), "say which: one, two");
    refused(layout.import(":three"), "but one, two");
    layout.index(&[
        json!({
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "digest": all[0]["digest"], "size": all[0]["size"],
            "platform": { "os": "linux", "architecture": "arm64" },
        }),
        all[1].clone(),
    ]);
    refused(layout.import(""), "linux/amd64");
}

#[test]
fn a_layout_that_is_damaged_or_lies_is_refused() {
    let layout = Layout::new();
    refused(layout.import(""), "index.json");
    fs::write(layout.0.path().join("index.json"), "{").unwrap();
    refused(layout.import(""), "index.json is damaged");
    let manifest = layout.manifest(&two());
    // A manifest that is longer, shorter, or not what its digest says.
    let size = manifest["size"].as_u64().unwrap();
    for (size, why) in [(size - 1, "longer"), (size + 1, "instead of")] {
        let mut wrong = manifest.clone();
        wrong["size"] = json!(size);
        layout.index(&[wrong]);
        refused(layout.import(""), why);
    }
    layout.index(std::slice::from_ref(&manifest));
    let blobs = layout.0.path().join("blobs/sha256");
    let first = blobs.join(sha256(&layer("a")));
    fs::write(&first, layer("x")).unwrap();
    refused(layout.import(""), "not what its digest says");
    fs::remove_file(&first).unwrap();
    refused(layout.import(""), "layer 1");
    // Not what the configuration says, though what the manifest says.
    let manifest = json!({
        "schemaVersion": 2,
        "config": layout.blob("config.v1+json", &config(&two())),
        "layers": [layout.blob("layer.v1.tar", &layer("a")), layout.blob("layer.v1.tar", &layer("c"))],
    });
    layout.index(&[layout.blob("manifest.v1+json", manifest.to_string().as_bytes())]);
    refused(layout.import(""), "layer 2");
    let mut manifest = manifest;
    manifest["layers"] = json!([]);
    layout.index(&[layout.blob("manifest.v1+json", manifest.to_string().as_bytes())]);
    refused(layout.import(""), "its manifest 0");
}

#[test]
fn what_docker_saves_is_imported_and_what_is_none_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tar");
    let save = |saved: Value| {
        let mut tar = tar::Builder::new(Vec::new());
        let saved = saved.to_string().into_bytes();
        let config = config(&two());
        let [a, b] = two();
        for (name, content) in [
            ("manifest.json", saved),
            ("c.json", config),
            ("a/layer.tar", a),
            ("b.tar", b),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, name, &content[..]).unwrap();
        }
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        tar.append_link(&mut link, "b/layer.tar", "../b.tar")
            .unwrap();
        fs::write(&path, tar.into_inner().unwrap()).unwrap();
        import(&format!("docker-archive:{}", path.display()))
    };
    let layers = ["a/layer.tar", "b/layer.tar"];
    let good = json!({ "Config": "c.json", "RepoTags": ["x:1"], "Layers": layers });
    check(save(json!([good.clone()])));
    refused(save(json!([good.clone(), good])), "several images");
    refused(save(json!([])), "no image");
    refused(save(json!({})), "manifest.json is damaged");
    let bad = json!({ "Config": "../../etc/passwd", "Layers": layers });
    refused(save(json!([bad])), "it has no ../../etc/passwd");
    fs::write(&path, "no archive at all").unwrap();
    assert!(import(&format!("docker-archive:{}", path.display())).is_err());
    assert!(import("docker-archive:/no/such/file").is_err());
    assert!(import("docker-archive:/dev/null").is_err());
}

/// Debian's registry, on this machine.
struct Server(Child, u16);

impl Server {
    fn start(dir: &std::path::Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let config = dir.join("config.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            dir.display()
        );
        fs::write(&config, text).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry (images/setup installs it)");
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "the registry does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        Self(child, port)
    }

    /// Has it keep an image of two layers; returns what the manifest is called.
    fn push(&self) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::try_from(ClientConfig {
            protocol: ClientProtocol::Http,
            ..ClientConfig::default()
        })
        .unwrap();
        let name = format!("127.0.0.1:{}/app:1", self.1);
        let layers = two().map(|l| {
            let media = "application/vnd.oci.image.layer.v1.tar".to_owned();
            ImageLayer::new(l, media, None)
        });
        let media = "application/vnd.oci.image.config.v1+json".to_owned();
        let config = Config::new(config(&two()), media, None);
        let reference = name.parse().unwrap();
        runtime.block_on(async {
            let auth = RegistryAuth::Anonymous;
            client
                .auth(&reference, &auth, RegistryOperation::Push)
                .await
                .unwrap();
            client
                .push(&reference, &layers, config, &auth, None)
                .await
                .unwrap();
        });
        name
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_image_is_imported_from_a_registry_and_what_is_not_there_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let name = server.push();
    check(import(&name));
    refused(import(&name.replace("app:1", "app:2")), "unknown");
    let none = format!("{}@sha256:{}", name.trim_end_matches(":1"), "0".repeat(64));
    assert!(import(&none).is_err());
    drop(server);
    assert!(import(&name).is_err());
}
