// SPDX-License-Identifier: GPL-2.0-only
//! Images of the user's own, made and run as users do.
//!
//! They need what `make image` builds, Debian's packages from the network, and a host that can run
//! microVMs, real or simulated: Debian's packages cannot be had within a simulated host, so this
//! does not run in one. `cargo test --release -p mvasvm --test images`

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::json;
use sha2::{Digest, Sha256};

/// Counts in the background, is dumped and restored, and goes on counting.
const DUMP_AND_RESTORE: &str = "set -e
setsid sh -c 'i=0; while :; do i=$((i+1)); echo $i >/tmp/count; sleep 0.1; done' </dev/null >/dev/null 2>&1 &
pid=$!
until [ -s /tmp/count ]; do sleep 0.1; done
vascriu dump -t $pid --name warm
before=$(cat /tmp/count)
vascriu restore warm -d
until [ \"$(cat /tmp/count)\" -gt $before ]; do sleep 0.1; done
echo went on";

/// A cache with what is built, and with images of its own.
struct Cache(tempfile::TempDir);

impl Cache {
    fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        let doctor = Command::new(env!("CARGO_BIN_EXE_mvasvm"))
            .args(["doctor", "--json"])
            .output()
            .expect("mvasvm starts");
        let facts: serde_json::Value = serde_json::from_slice(&doctor.stdout).expect("JSON");
        let kernel = Path::new(facts["kernel"]["path"].as_str().expect("a kernel"));
        let built = std::env::var_os("XDG_CACHE_HOME").map_or_else(
            || Path::new(&std::env::var_os("HOME").expect("HOME")).join(".cache"),
            Into::into,
        );
        assert!(kernel.exists(), "`make image` builds what is missing");
        let cache = dir.path().join("mvas");
        fs::create_dir(&cache).expect("a folder");
        symlink(built.join("mvas/current"), cache.join("current")).expect("a link");
        Self(dir)
    }

    fn mvasvm(&self, words: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_mvasvm"))
            .args(words)
            .env("XDG_CACHE_HOME", self.0.path())
            .stdin(Stdio::null())
            .output()
            .expect("mvasvm starts")
    }

    /// Runs it, and wants success.
    fn succeed(&self, words: &[&str]) -> String {
        let output = self.mvasvm(words);
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {stdout}\n{stderr}");
        stdout
    }

    fn run(&self, image: &str, more: &[&str]) -> String {
        let words = [
            "run", "--image", image, "--mem", "1G", "--cpus", "1", "--store", "none",
        ];
        self.succeed(&[&words[..], more].concat())
    }
}

#[test]
fn an_image_of_debian_packages_runs_and_its_processes_are_restored() {
    let cache = Cache::new();
    let dir = tempfile::tempdir().expect("a folder");
    let script = dir.path().join("a script.sh");
    fs::write(
        &script,
        "#!/bin/sh\necho \"$(id -u) scripted\" >/etc/by-script\n",
    )
    .expect("write");
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(6);
    tar.append_data(&mut header, "etc/by-tar", &b"tarred"[..])
        .expect("a tar file");
    let archive = dir.path().join("a.tar");
    fs::write(&archive, tar.into_inner().expect("a tar file")).expect("write");
    let [script, archive] = [script, archive].map(|path| path.to_str().expect("UTF-8").to_owned());
    cache.succeed(&[
        "image",
        "build",
        "own",
        "--packages",
        "procps",
        "--script",
        &script,
        "--tar",
        &archive,
    ]);
    let listed: serde_json::Value =
        serde_json::from_str(&cache.succeed(&["image", "ls", "--json"])).expect("JSON");
    assert_eq!(listed[0]["name"], "own", "{listed}");
    let overlay = dir.path().join("overlay.img");
    let overlay = overlay.to_str().expect("UTF-8");
    let command = format!(
        "pgrep -V; cat /etc/by-script /etc/by-tar; echo kept >/root/kept; {DUMP_AND_RESTORE}"
    );
    let said = cache.run("own", &["--overlay", overlay, "--", "sh", "-c", &command]);
    for word in ["procps", "0 scripted", "tarred", "went on"] {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
    let said = cache.run("own", &["--overlay", overlay, "--", "cat", "/root/kept"]);
    assert_eq!(said, "kept\n");
    cache.succeed(&["image", "rm", "own"]);
    assert!(
        !cache
            .mvasvm(&["run", "--image", "own", "--", "true"])
            .status
            .success()
    );
}

/// An image layout of busybox, which needs no C library, as user 7 of group 8.
fn busybox(dir: &Path) {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("a folder");
    let hash = |content: &[u8]| {
        let sum = Sha256::digest(content);
        sum.iter().map(|b| format!("{b:02x}")).collect::<String>()
    };
    let blob = |content: &[u8], kind: &str| {
        fs::write(blobs.join(hash(content)), content).expect("write");
        let (digest, size) = (format!("sha256:{}", hash(content)), content.len());
        json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": size })
    };
    let program = fs::read("/bin/busybox").expect("busybox-static (images/setup installs it)");
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(program.len() as u64);
    tar.append_data(&mut header, "bin/busybox", &program[..])
        .expect("a tar file");
    for name in ["sh", "cat", "echo", "id", "ls", "pwd", "setsid", "sleep"] {
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        let name = format!("bin/{name}");
        tar.append_link(&mut header, name, "busybox")
            .expect("a tar file");
    }
    let layer = tar.into_inner().expect("a tar file");
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Entrypoint": ["/bin/sh", "-c"],
            "Cmd": ["id; pwd; echo $GREETING"],
            "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "GREETING=hello"],
            "WorkingDir": "/data",
            "User": "7:8",
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", hash(&layer))] },
    });
    let manifest = json!({
        "schemaVersion": 2,
        "config": blob(config.to_string().as_bytes(), "config.v1+json"),
        "layers": [blob(&layer, "layer.v1.tar")],
    });
    let manifest = blob(manifest.to_string().as_bytes(), "manifest.v1+json");
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(dir.join("index.json"), index.to_string()).expect("write");
}

#[test]
fn a_containers_image_without_a_c_library_runs_as_it_says_and_is_restored() {
    let cache = Cache::new();
    let dir = tempfile::tempdir().expect("a folder");
    busybox(dir.path());
    let source = format!("oci:{}", dir.path().display());
    cache.succeed(&["image", "import", "box:1", &source]);
    assert_eq!(
        cache.run("box:1", &[]),
        "uid=7 gid=8 groups=8\n/data\nhello\n"
    );
    assert_eq!(cache.run("box:1", &["--", "echo mine"]), "mine\n");
    let again = cache.mvasvm(&["image", "import", "box:1", &source]);
    assert_eq!(again.status.code(), Some(125));
    // The guest alone, and a command that `exec` runs as root.
    let vm = Vm::start(&cache);
    let said = vm.exec(&["/bin/sh", "-c", DUMP_AND_RESTORE]);
    assert!(said.ends_with("went on\n"), "{said}");
    let used = cache.mvasvm(&["image", "rm", "box:1"]);
    let said = String::from_utf8_lossy(&used.stderr);
    assert!(!used.status.success() && said.contains("in use"), "{said}");
}

/// A detached VM of the image; dropping it ends it.
struct Vm<'a>(&'a Cache, String);

impl<'a> Vm<'a> {
    fn start(cache: &'a Cache) -> Self {
        let name = format!("own-image-{}", std::process::id());
        cache.run("box:1", &["--detach", "--name", &name]);
        Self(cache, name)
    }

    fn exec(&self, command: &[&str]) -> String {
        self.0
            .succeed(&[&["exec", &self.1, "--"], command].concat())
    }
}

impl Drop for Vm<'_> {
    fn drop(&mut self) {
        let _ = self.0.mvasvm(&["kill", &self.1]);
    }
}
