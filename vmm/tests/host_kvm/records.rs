// SPDX-License-Identifier: GPL-2.0-only
//! What remains of a VM, however it ended.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::{MVASVM, exit_code, test_kernel, wait_until};

/// A user with a run-time folder and, for guests, a store.
pub struct Home(TempDir);

/// Powers off.
const POWER_OFF: &[u8] = &[0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xeb, 0xfe];
/// Pulls the keyboard controller's reset line.
const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe];
/// `jmp .`
const SPIN: &[u8] = &[0xeb, 0xfe];

/// Maps where virtio windows are and jumps to where no device is: KVM gives up. (As
/// `run_from_nowhere` in src/run/guests.rs.)
const FROM_NOWHERE: &[u8] = &[
    0x48, 0xc7, 0x04, 0x25, 0x18, 0xa0, 0, 0, 0x03, 0xc0, 0,
    0, // mov qword ptr [0xa018], 0xc003
    0xb8, 0x83, 0, 0, 0xd0, // mov eax, 0xd0000083
    0x48, 0x89, 0x04, 0x25, 0, 0xc4, 0, 0, // mov [0xc400], rax
    0xb8, 0, 0, 0x10, 0xd0, // mov eax, 0xd0100000
    0xff, 0xe0, // jmp rax
];

/// A guest that writes a text to its serial port, then does what `end` does.
fn says(text: &str, end: &[u8]) -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03]; // mov dx, 0x3f8
    for byte in text.bytes() {
        code.extend([0xb0, byte, 0xee]); // mov al, byte; out dx, al
    }
    code.extend(end);
    code
}

impl Home {
    pub fn new() -> Self {
        Self(tempfile::tempdir_in("/dev/shm").unwrap())
    }

    fn store(&self) -> PathBuf {
        self.0.path().join("store")
    }

    pub fn folder(&self, name: &str) -> PathBuf {
        self.0.path().join("mvas").join(name)
    }

    fn start(&self, name: &str, kernel: &[u8]) -> Child {
        self.start_with(name, kernel, &[])
    }

    fn start_with(&self, name: &str, kernel: &[u8], more: &[&str]) -> Child {
        let (file, initramfs) = (
            self.0.path().join("kernel"),
            self.0.path().join("initramfs"),
        );
        fs::write(&file, kernel).unwrap();
        fs::write(&initramfs, [0; 4096]).unwrap();
        Command::new(MVASVM)
            .args(["run", "--hw", "kvm", "--mem", "64M", "--name", name])
            .arg("--store")
            .arg(self.store())
            .arg("--kernel")
            .arg(file)
            .arg("--initramfs")
            .arg(initramfs)
            .args(more)
            .args(["--", "true"])
            .env("XDG_RUNTIME_DIR", self.0.path())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Runs a guest to its end.
    fn run(&self, name: &str, code: &[u8]) -> Option<i32> {
        exit_code(self.start(name, &test_kernel::elf(code)))
    }

    /// Starts a guest that says `s` and goes on, and waits until it has.
    fn spin(&self, name: &str) -> Child {
        self.spin_with(name, &[])
    }

    /// The same with more words.
    pub fn spin_with(&self, name: &str, more: &[&str]) -> Child {
        self.run_until_it_says_s(name, &says("s", SPIN), more)
    }

    /// Starts a guest, and waits until it says `s`.
    pub fn run_until_it_says_s(&self, name: &str, code: &[u8], more: &[&str]) -> Child {
        let mut child = self.start_with(name, &test_kernel::elf(code), more);
        wait_until("the guest should speak", || {
            assert_eq!(child.try_wait().unwrap(), None, "the VM should run");
            let output = self.output(&["logs", name]);
            output.status.success() && output.stdout == b"s"
        });
        child
    }

    fn output(&self, words: &[&str]) -> Output {
        Command::new(MVASVM)
            .args(words)
            .env("XDG_RUNTIME_DIR", self.0.path())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Wants success; returns what it prints.
    pub fn good(&self, words: &[&str]) -> String {
        let output = self.output(words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Wants a refusal; returns what it says.
    fn bad(&self, words: &[&str]) -> String {
        let output = self.output(words);
        assert_eq!(output.status.code(), Some(125), "{words:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.good(words)).unwrap()
    }

    /// The only VM that is listed, which should have ended.
    pub fn end(&self) -> Value {
        assert_eq!(self.good(&["ls", "--json"]), "[]\n");
        let list = self.json(&["ls", "--all", "--json"]);
        assert_eq!(list.as_array().unwrap().len(), 1, "{list}");
        list[0]["end"].clone()
    }

    /// How many RAM files the store has.
    pub fn ram_files(&self) -> usize {
        fs::read_dir(self.store().join("ram")).unwrap().count()
    }
}

pub fn signal(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id()).unwrap();
    kill(Pid::from_raw(pid), signal).unwrap();
}

#[test]
fn a_vm_that_powered_off_keeps_its_log_its_end_and_its_counters() {
    let home = Home::new();
    assert_eq!(home.run("box", &says("hello\n", POWER_OFF)), Some(119));
    let end = home.end();
    assert_eq!(end["cause"], "powered-off");
    assert_eq!(end["exit_code"], 119);
    let table = home.good(&["ls", "--all"]);
    assert!(table.contains("the guest powered off"), "{table}");
    assert_eq!(home.good(&["logs", "box"]), "hello\n");
    assert_eq!(home.good(&["logs", "--follow", "box"]), "hello\n");
    let monitor = home.good(&["logs", "--monitor", "box"]);
    assert!(
        monitor.contains("mvasvm: the guest powered off\n"),
        "{monitor}"
    );
    let metrics = home.json(&["metrics", "--json", "box"]);
    // Six letters and the power-off.
    assert_eq!(metrics["vcpus"]["pio"], 7, "{metrics}");
    let table = home.good(&["metrics", "box"]);
    assert!(
        table
            .lines()
            .any(|line| line.starts_with("vcpus.pio ") && line.ends_with(" 7"))
    );
    assert_eq!(home.ram_files(), 0);
    for words in [
        &["exec", "box", "--", "true"][..],
        &["stop", "box"],
        &["kill", "box"],
    ] {
        assert!(home.bad(words).contains("no running VM named box"));
    }
}

#[test]
fn the_cause_of_each_end_is_kept() {
    let home = Home::new();
    let panic = "Kernel panic - not syncing: a test\n";
    for (code, cause, exit) in [
        (says(panic, RESET), "guest-panic", 121),
        (says("", RESET), "reset", 120),
        (vec![0x0f, 0x0b], "triple-fault", 122),
        (FROM_NOWHERE.to_vec(), "failed", 125),
    ] {
        assert_eq!(home.run("box", &code), Some(exit), "{cause}");
        let end = home.end();
        assert_eq!(
            (&end["cause"], &end["exit_code"]),
            (&cause.into(), &exit.into())
        );
    }
    let child = home.spin("box");
    signal(&child, Signal::SIGTERM);
    assert_eq!(exit_code(child), Some(143));
    let end = home.end();
    assert_eq!(
        (&end["cause"], &end["exit_code"]),
        (&"stopped".into(), &143.into())
    );
}

#[test]
fn a_monitor_that_failed_keeps_its_error() {
    let home = Home::new();
    assert_eq!(exit_code(home.start("box", b"no kernel")), Some(125));
    let end = home.end();
    assert_eq!(end["cause"], "failed");
    assert!(
        end["text"].as_str().unwrap().contains("is not a kernel"),
        "{end}"
    );
}

#[test]
fn a_killed_monitor_keeps_log_and_counters_and_its_memory_comes_back() {
    let home = Home::new();
    let child = home.spin("box");
    let running = home.json(&["metrics", "--json", "box"]);
    assert_eq!(running["vcpus"]["pio"], 1, "{running}");
    assert_eq!(home.ram_files(), 1);
    signal(&child, Signal::SIGKILL);
    exit_code(child);
    let end = home.end();
    assert_eq!(end["cause"], "monitor-killed");
    assert_eq!(end.get("exit_code"), None);
    assert_eq!(home.ram_files(), 0);
    assert_eq!(home.good(&["logs", "box"]), "s");
    assert_eq!(home.json(&["metrics", "--json", "box"]), running);
}

#[test]
fn a_vm_that_the_user_killed_says_so_and_has_its_last_counters() {
    let home = Home::new();
    let child = home.spin("box");
    home.good(&["kill", "box"]);
    assert_eq!(exit_code(child), None);
    assert_eq!(home.end()["cause"], "killed");
    assert_eq!(home.json(&["metrics", "--json", "box"])["vcpus"]["pio"], 1);
    let mut left: Vec<_> = fs::read_dir(home.folder("box"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    let record = [
        "console.log",
        "lock",
        "metrics.json",
        "monitor.log",
        "vm.json",
    ];
    assert_eq!(left, record);
}

#[test]
fn a_new_vm_takes_the_place_of_an_ended_one_of_its_name() {
    let home = Home::new();
    home.run("box", &says("old", POWER_OFF));
    let child = home.spin("box");
    assert_eq!(home.good(&["logs", "box"]), "s");
    let list = home.json(&["ls", "--all", "--json"]);
    assert_eq!(list.as_array().unwrap().len(), 1, "{list}");
    assert_eq!(list[0].get("end"), None);
    // A second one is refused, and nothing of the first is touched.
    assert_eq!(home.run("box", &says("new", POWER_OFF)), Some(125));
    assert_eq!(home.good(&["logs", "box"]), "s");
    home.good(&["kill", "box"]);
    exit_code(child);
    // What is refused before anything is made does not cost the record.
    let refused = home.output(&["run", "--name", "box", "--kernel", "/no/such", "--", "true"]);
    assert_eq!(refused.status.code(), Some(125));
    assert_eq!(home.end()["cause"], "killed");
}

#[test]
fn records_are_removed_and_living_vms_are_not() {
    let home = Home::new();
    home.run("ended", &says("", POWER_OFF));
    let child = home.spin("living");
    let refused = home.bad(&["rm", "ended", "living"]);
    assert!(refused.contains("living runs"), "{refused}");
    assert!(refused.contains("mvasvm stop living") && refused.contains("mvasvm kill living"));
    let names = || -> Vec<String> {
        let list = home.json(&["ls", "--all", "--json"]);
        let list = list.as_array().unwrap().iter();
        list.map(|vm| vm["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        names(),
        ["ended", "living"],
        "one was refused: none is removed"
    );
    home.good(&["rm", "--all"]);
    assert_eq!(names(), ["living"]);
    assert_eq!(home.good(&["logs", "living"]), "s");
    assert!(
        home.bad(&["rm", "ended"])
            .contains("no ended VM named ended")
    );
    home.good(&["kill", "living"]);
    exit_code(child);
    home.good(&["rm", "living"]);
    assert!(!home.folder("living").exists());
    assert!(home.bad(&["logs", "living"]).contains("no VM named living"));
}

#[test]
fn clients_that_hang_keep_nobody_from_a_vms_counters() {
    let home = Home::new();
    let child = home.spin("box");
    let socket = home.folder("box").join("stats.sock");
    let mode = fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // They take nothing, say nothing, and do not leave.
    let hanging: Vec<_> = (0..100)
        .map(|_| UnixStream::connect(&socket).unwrap())
        .collect();
    for _ in 0..3 {
        assert_eq!(home.json(&["metrics", "--json", "box"])["vcpus"]["pio"], 1);
    }
    signal(&child, Signal::SIGTERM);
    assert_eq!(exit_code(child), Some(143));
    drop(hanging);
}
