// SPDX-License-Identifier: GPL-2.0-only
//! A container of runc's, and a PATH in which runc finds vascriu as its CRIU.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use crate::harness::{Workload, good, json, wait_until};
use crate::workload::Options;

/// Where CRIU puts its logs: the directory of the tests.
pub const WORK: &str = "/tmp/vascriu-tests";

/// Memory with a pattern in each task of a container, in bytes.
pub const MEMORY: usize = 16 << 20;

/// Which CRIU runc finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// vascriu, wherever it is called from.
    DropIn,
    /// What this guest's PATH has.
    Usual,
}

/// An OCI bundle whose root is the guest's own, read-only, and whose /mnt is the
/// test's directory.
#[derive(Debug)]
pub struct Bundle {
    dir: PathBuf,
    bin: PathBuf,
    pub acks: PathBuf,
}

impl Bundle {
    /// Makes one in the test's directory.
    pub fn new(dir: &Path) -> Self {
        Self::of(
            dir,
            Options {
                mib: MEMORY >> 20,
                children: 1,
                threads: 2,
                ..Options::default()
            },
        )
    }

    /// One whose container is such a workload.
    pub fn of(dir: &Path, options: Options) -> Self {
        let this = Self {
            dir: dir.join("bundle"),
            bin: dir.join("bin"),
            acks: dir.join("acks"),
        };
        let root = this.dir.join("rootfs");
        for d in [&root, &this.acks, &this.bin] {
            fs::create_dir_all(d).expect("directory");
        }
        std::os::unix::fs::symlink("/usr/bin/vascriu", this.bin.join("criu")).expect("link");
        good(Command::new("mount").args(["--bind", "/"]).arg(&root));
        let options = Options {
            dir: "/mnt".into(),
            ..options
        };
        good(Command::new("runc").arg("spec").current_dir(&this.dir));
        let path = this.dir.join("config.json");
        let mut spec: serde_json::Value =
            serde_json::from_slice(&fs::read(&path).expect("spec")).expect("JSON");
        let exe = std::env::current_exe().expect("this program");
        let mut args = vec![exe.display().to_string()];
        args.extend(options.args());
        spec["process"]["args"] = json!(args);
        spec["process"]["terminal"] = json!(false);
        spec["root"]["readonly"] = json!(true);
        let mounts = spec["mounts"].as_array_mut().expect("mounts");
        mounts.push(json!({
            "destination": "/mnt", "source": this.acks, "type": "bind", "options": ["bind", "rw"],
        }));
        fs::write(&path, spec.to_string()).expect("spec");
        this
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Changes its configuration.
    pub fn configure(&self, change: impl FnOnce(&mut serde_json::Value)) {
        let path = self.dir.join("config.json");
        let mut spec = serde_json::from_slice(&fs::read(&path).expect("spec")).expect("JSON");
        change(&mut spec);
        fs::write(&path, spec.to_string()).expect("spec");
    }

    /// Gives the containers that are started or restored from now on so many bytes.
    pub fn limit(&self, bytes: usize) {
        self.configure(|spec| spec["linux"]["resources"]["memory"] = json!({ "limit": bytes }));
    }

    /// A PATH with vascriu as the first CRIU.
    pub fn path(&self) -> OsString {
        let usual = std::env::var_os("PATH").unwrap_or_default();
        let dirs = std::iter::once(self.bin.clone()).chain(std::env::split_paths(&usual));
        std::env::join_paths(dirs).expect("a PATH")
    }

    /// `runc ARGS`, not yet run.
    pub fn runc(&self, found: Found, args: &[&str]) -> Command {
        let mut command = Command::new("runc");
        command.arg("--log").arg(self.dir.join("runc.log"));
        command.args(args).current_dir(&self.dir);
        if found == Found::DropIn {
            command.env("PATH", self.path());
        }
        // The container inherits these.
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    /// Starts container `id`; its workload has PID 1.
    pub fn start(&self, id: &str) -> Workload {
        self.good(self.runc(Found::Usual, &["run", "-d", id]));
        let ready = self.acks.join("ready-1");
        wait_until("the container to be ready", || ready.exists());
        self.workload(id)
    }

    /// The workload in container `id`.
    pub fn workload(&self, id: &str) -> Workload {
        let state = json(Command::new("runc").args(["state", id]));
        let pid = state["pid"].as_i64().and_then(|p| p.try_into().ok());
        Workload::at(pid.expect("a PID"), 1, &self.acks)
    }

    pub fn images(&self) -> PathBuf {
        self.dir.join("images")
    }

    pub fn checkpoint(&self, found: Found, id: &str, more: &[&str]) -> Command {
        let mut command = self.runc(found, &["checkpoint", "--image-path"]);
        command.arg(self.images()).args(["--work-path", WORK]);
        command.args(more).arg(id);
        command
    }

    pub fn restore(&self, found: Found, id: &str) -> Command {
        let mut command = self.runc(found, &["restore", "-d", "--image-path"]);
        command.arg(self.images()).args(["--work-path", WORK, id]);
        command
    }

    /// What runc and CRIU have said.
    pub fn logs(&self) -> String {
        let work = Path::new(WORK);
        let logs = [
            self.dir.join("runc.log"),
            work.join("dump.log"),
            work.join("restore.log"),
        ];
        let text = logs.each_ref().map(|l| {
            let text = fs::read_to_string(l).unwrap_or_default();
            let told = |l: &&str| !l.starts_with('(') || l.contains("Error") || l.contains("vas");
            text.lines().filter(told).collect::<Vec<_>>().join("\n")
        });
        text.join("\n")
    }

    /// Runs what must succeed.
    #[track_caller]
    pub fn good(&self, mut command: Command) {
        let done = command.status().expect("runc").success();
        assert!(done, "{command:?}: {}", self.logs());
    }

    /// Runs what must fail; what was said.
    #[track_caller]
    pub fn bad(&self, mut command: Command) -> String {
        assert!(!command.status().expect("runc").success(), "{command:?}");
        self.logs()
    }

    pub fn delete(&self, id: &str) {
        let _ = self.runc(Found::Usual, &["delete", "-f", id]).status();
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.dir.join("rootfs")).status();
    }
}
