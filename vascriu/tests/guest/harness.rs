// SPDX-License-Identifier: GPL-2.0-only
//! What the tests are written with: running vascriu, starting a workload, and
//! seeing that nothing was left behind.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use vascriu::snapshot::id::SnapshotId;

use crate::watchdog::Watchdog;
use crate::workload::{self, Options};

/// A name and what it runs.
pub type Test = (&'static str, fn(&Path));

/// Where the workloads' directories are.
pub const TMP: &str = "/tmp/vascriu-tests";
/// Longest wait for anything; emulated machines are slow.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Whether everything is several times slower: the kernel with fault injection has KASAN and
/// lockdep, too.
pub fn is_debug_kernel() -> bool {
    Path::new("/proc/self/fail-nth").exists()
}

/// Runs a test in an empty directory; then nothing may be left: no VAS, no
/// snapshot, no process, no packet filter, no word from the kernel.
pub fn in_clean_guest(test: fn(&Path)) {
    let dir = Path::new(TMP);
    let _ = fs::remove_dir_all(dir);
    fs::create_dir_all(dir).expect("directory");
    let _watchdog = Watchdog::start();
    let log = kernel_log().len();
    let result = std::panic::catch_unwind(|| test(dir));
    end_workloads();
    if let Err(panic) = result {
        let _ = vascriu_all_gone();
        std::panic::resume_unwind(panic);
    }
    assert_eq!(vascriu_all_gone(), Vec::<String>::new(), "left behind");
    let said: Vec<String> = kernel_log()
        .split_off(log)
        .into_iter()
        .filter(|l| is_alarm(l))
        .collect();
    assert_eq!(said, Vec::<String>::new(), "the kernel complains");
    assert_eq!(packet_filters(), "", "packet filters left behind");
}

fn is_alarm(line: &str) -> bool {
    let alarms = [
        "WARNING",
        "BUG",
        "Oops",
        "INFO: ",
        "leak",
        "Bad page",
        "general protection",
    ];
    alarms.iter().any(|a| line.contains(a))
}

fn kernel_log() -> Vec<String> {
    let out = Command::new("dmesg").output().expect("dmesg");
    String::from_utf8_lossy(&out.stdout)
        .lines()
        .map(str::to_owned)
        .collect()
}

/// CRIU's locks on connections, by either of its methods.
pub fn packet_filters() -> String {
    let nft = Command::new("nft")
        .args(["list", "ruleset"])
        .output()
        .expect("nft");
    let rules = String::from_utf8_lossy(&nft.stdout).into_owned();
    // iptables leaves its empty chains.
    let locks = |l: &&str| l.contains("drop") || l.contains("CRIU");
    rules.lines().filter(locks).collect::<Vec<_>>().join("\n")
}

/// Kills every workload, so that a failed test does not disturb the next.
pub fn end_workloads() {
    for pid in workloads() {
        // SAFETY: kill takes two integers.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    wait_until("the workloads to be gone", || workloads().is_empty());
}

/// PIDs of all processes that are workloads.
pub fn workloads() -> Vec<i32> {
    let is_one = |pid: &i32| {
        let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        cmdline.split(|&b| b == 0).nth(1) == Some(b"workload")
    };
    vascriu::process::all().filter(is_one).collect()
}

/// The number of KiB in the line of `text` that begins with `key`, as /proc writes it.
#[track_caller]
pub fn kib_of(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|l| l.strip_prefix(key));
    let kib = line.expect("a line").trim().trim_end_matches(" kB");
    kib.parse().expect("a number")
}

/// Removes what is left of snapshots, and says what that was.
fn vascriu_all_gone() -> Vec<String> {
    let mut left = all_vases();
    left.extend(work_dirs());
    for row in ls() {
        let id = row["id"].as_str().expect("an identity");
        left.push(format!("snapshot {row}"));
        rm(&[id]);
    }
    let _ = Command::new("vascriu")
        .arg("gc")
        .stdout(Stdio::null())
        .status();
    left
}

/// What is in vascriu's directory but for what it knows of CRIU, and what `serve` leaves.
pub fn work_dirs() -> Vec<String> {
    let dir = Path::new("/run/vascriu").read_dir();
    let names = dir.into_iter().flatten().flatten();
    let names = names.map(|e| e.path().display().to_string());
    let stays = ["/criu-version.", "/serve.lock", "/ready"];
    names
        .filter(|n| !stays.iter().any(|s| n.contains(s)))
        .collect()
}

/// All snapshots, as `ls` tells them.
#[track_caller]
pub fn ls() -> Vec<Value> {
    let list = json(&mut vascriu(&["ls", "--json"]));
    assert_eq!(list["version"], 1);
    list["snapshots"].as_array().expect("snapshots").clone()
}

/// The identity of the snapshot that has this name.
#[track_caller]
pub fn id_of(name: &str) -> SnapshotId {
    let rows = ls();
    let row = rows.iter().find(|r| r["name"] == name);
    let row = row.unwrap_or_else(|| panic!("no {name} in {rows:?}"));
    row["id"]
        .as_str()
        .and_then(|id| id.parse().ok())
        .expect("an identity")
}

/// Names of all VASes of tasks.
pub fn vases() -> Vec<String> {
    let mut names = all_vases();
    names.retain(|n| !n.ends_with(":images") && !n.ends_with(":shared"));
    names
}

/// Names of all VASes, those of images too.
pub fn all_vases() -> Vec<String> {
    let dir = Path::new("/sys/kernel/vas")
        .read_dir()
        .expect("sysfs")
        .flatten();
    dir.filter_map(|e| fs::read_to_string(e.path().join("name")).ok())
        .map(|n| n.trim().to_owned())
        .collect()
}

/// Waits until `done`.
#[track_caller]
pub fn wait_until(what: &str, done: impl FnMut() -> bool) {
    assert!(comes_true(done), "waited too long for {what}");
}

/// Waits until `done`; whether it ever was.
fn comes_true(mut done: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while !done() {
        if begun.elapsed() > PATIENCE {
            return false;
        }
        sleep(Duration::from_millis(2));
    }
    true
}

/// `vascriu ARGS`, not yet run.
pub fn vascriu(args: &[&str]) -> Command {
    let mut command = Command::new("vascriu");
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs a command that must succeed; its standard output.
#[track_caller]
pub fn good(command: &mut Command) -> String {
    let out = command.output().expect("run");
    assert!(out.status.success(), "{command:?}: {}", errors(&out));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Runs a command that must succeed and print JSON.
#[track_caller]
pub fn json(command: &mut Command) -> Value {
    let text = good(command);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{command:?} printed {text:?}: {e}"))
}

/// Runs a command that must fail with an error that holds each of `words`.
#[track_caller]
pub fn bad(command: &mut Command, words: &[&str]) -> String {
    let out = command.output().expect("run");
    assert!(!out.status.success(), "{command:?} succeeded: {out:?}");
    let text = errors(&out);
    for word in words {
        assert!(
            text.contains(word),
            "{command:?} did not say `{word}` but: {text}"
        );
    }
    text
}

/// What a command wrote to standard error.
pub fn errors(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// A running workload, perhaps restored.
#[derive(Debug)]
pub struct Workload {
    /// Its root as we see it.
    pub pid: i32,
    /// Its root as it sees itself.
    pub vpid: i32,
    dir: PathBuf,
}

impl Workload {
    /// Starts one and waits until it has filled its memory.
    #[track_caller]
    pub fn start(options: &Options) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(options.args());
        Self::spawn(command, options)
    }

    /// Starts one through `command`.
    #[track_caller]
    pub fn spawn(mut command: Command, options: &Options) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // SAFETY: setsid and signal are async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGCHLD, libc::SIG_DFL);
                Ok(())
            });
        }
        let child = command.spawn().expect("workload");
        let pid = i32::try_from(child.id()).expect("a PID");
        reap(child);
        let this = Self {
            pid,
            vpid: pid,
            dir: options.dir.clone(),
        };
        let tasks = options.children + 1;
        wait_until("the workload to be ready", || {
            this.addresses().len() == tasks
        });
        this
    }

    /// One that somebody else started or restored.
    pub fn at(pid: i32, vpid: i32, dir: &Path) -> Self {
        Self {
            pid,
            vpid,
            dir: dir.into(),
        }
    }

    /// One that was restored from a snapshot of `self`.
    pub fn restored_as(&self, pid: i32) -> Self {
        Self {
            pid,
            vpid: self.vpid,
            dir: self.dir.clone(),
        }
    }

    /// Where the memory of each task begins, by their inner PIDs.
    pub fn addresses(&self) -> Vec<(i32, u64)> {
        let files = self.dir.read_dir().expect("directory").flatten();
        let parse = |e: fs::DirEntry| {
            let pid = e
                .file_name()
                .to_str()?
                .strip_prefix("ready-")?
                .parse()
                .ok()?;
            Some((pid, fs::read_to_string(e.path()).ok()?.parse().ok()?))
        };
        files.filter_map(parse).collect()
    }

    /// Everything is as it should be; says for the how-manieth time.
    #[track_caller]
    pub fn check(&self) -> u64 {
        let text = self.ask().unwrap_or_else(|e| e);
        let generation = text.strip_prefix("ok ").and_then(|t| t.split(' ').next());
        let generation = generation.and_then(|n| n.parse().ok());
        generation.unwrap_or_else(|| panic!("the workload is damaged: {text}"))
    }

    /// What it answers when it is told to check everything.
    pub fn ask(&self) -> Result<String, String> {
        let ack = workload::ack(&self.dir, self.vpid);
        let _ = fs::remove_file(&ack);
        // SAFETY: kill takes two integers.
        let sent = unsafe { libc::kill(self.pid, libc::SIGUSR1) };
        if sent != 0 {
            return Err(format!("{} is gone", self.pid));
        }
        if !comes_true(|| ack.exists() || !self.is_alive()) {
            return Err(format!("{} does not answer", self.pid));
        }
        Ok(fs::read_to_string(&ack).unwrap_or_else(|_| "it died".into()))
    }

    /// It runs; a zombie does not.
    pub fn is_alive(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    }

    /// PIDs of all of its tree, as we see them.
    pub fn tree(&self) -> Vec<i32> {
        let mut pids = vec![self.pid];
        let mut at = 0;
        while at < pids.len() {
            let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", pids[at]));
            let children = children.unwrap_or_default();
            pids.extend(
                children
                    .split_whitespace()
                    .filter_map(|p| p.parse::<i32>().ok()),
            );
            at += 1;
        }
        pids
    }

    /// Ends it and its children.
    pub fn kill(&self) {
        for pid in self.tree() {
            // SAFETY: kill takes two integers.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        wait_until("the workload to end", || !self.is_alive());
    }

    /// Dumps it under `name`, with `more` arguments.
    #[track_caller]
    pub fn dump(&self, name: &str, more: &[&str]) -> Value {
        json(dump(self.pid, name).args(more))
    }
}

/// `vascriu dump -t PID --name NAME --json`, not yet run.
pub fn dump(pid: i32, name: &str) -> Command {
    vascriu(&["dump", "-t", &pid.to_string(), "--name", name, "--json"])
}

/// Restores `name`, detached; `of` is what was dumped.
#[track_caller]
pub fn restore(name: &str, of: &Workload, more: &[&str]) -> (Workload, Value) {
    let said = json(vascriu(&["restore", name, "-d", "--json"]).args(more));
    let pid = said["pid"]
        .as_i64()
        .and_then(|p| p.try_into().ok())
        .expect("a PID");
    (of.restored_as(pid), said)
}

/// Removes snapshots.
#[track_caller]
pub fn rm(names: &[&str]) {
    good(vascriu(&["rm"]).args(names));
}

/// Reaps a child whenever it ends.
pub fn reap(mut child: Child) {
    std::thread::spawn(move || child.wait());
}

/// The page frames of `pages` pages of a task, by `/proc/PID/pagemap`; 0 where
/// none is.
pub fn frames(pid: i32, address: u64, pages: u64) -> Vec<u64> {
    use std::os::unix::fs::FileExt;
    let file = fs::File::open(format!("/proc/{pid}/pagemap")).expect("pagemap");
    let mut bytes = vec![0; usize::try_from(pages * 8).expect("small")];
    file.read_exact_at(&mut bytes, address / 4096 * 8)
        .expect("read");
    let entry = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("8 bytes"));
    let frame = |e: u64| if e >> 63 == 1 { e & ((1 << 55) - 1) } else { 0 };
    bytes.chunks_exact(8).map(|b| frame(entry(b))).collect()
}
