// SPDX-License-Identifier: GPL-2.0-only
//! `mvasvm` as a process, and one VM that many tests share.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// A guest may be slow, a simulated one very slow: what takes longer hangs.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// `mvasvm WORDS`.
pub fn mvasvm(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mvasvm"));
    command.args(words).stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub fn output(words: &[&str]) -> Output {
    with_input(words, b"")
}

/// Runs it to its end, with `input` on its standard input.
pub fn with_input(words: &[&str], input: &[u8]) -> Output {
    let mut child = mvasvm(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("mvasvm starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let input = input.to_owned();
    let feed = thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().expect("mvasvm ends");
    feed.join().expect("input");
    output
}

/// Runs it, and wants success.
pub fn succeed(words: &[&str]) -> String {
    let output = output(words);
    assert!(output.status.success(), "{words:?}: {}", show(&output));
    text(&output.stdout)
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn show(output: &Output) -> String {
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    format!("{}\nstdout: {stdout}\nstderr: {stderr}", output.status)
}

/// Waits until `done`, but not for ever.
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: never");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Waits for a child's end, but not for ever.
pub fn end_of(mut child: Child) -> ExitStatus {
    let mut status = None;
    wait_for("the end of mvasvm", || {
        status = child.try_wait().expect("a child");
        status.is_some()
    });
    status.expect("just seen")
}

/// A detached VM; dropping it ends it.
pub struct Vm(pub String);

impl Vm {
    pub fn start(name: &str, more: &[&str]) -> Self {
        let words = ["run", "--detach", "--name", name, "--mem", "1G"];
        let said = succeed(&[&words[..], more].concat());
        assert_eq!(said, format!("{name}\n"));
        Self(name.to_owned())
    }

    pub fn exec(&self, command: &[&str]) -> Output {
        output(&[&["exec", &self.0, "--"], command].concat())
    }

    /// The monitor's process.
    pub fn pid(&self) -> i32 {
        let list = succeed(&["ls", "--json"]);
        let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
        let all = list.as_array().expect("a list");
        let vm = all.iter().find(|vm| vm["name"] == *self.0).expect("listed");
        i32::try_from(vm["pid"].as_i64().expect("a number")).expect("a process id")
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = output(&["kill", &self.0]);
    }
}

/// A VM for tests that leave it as it was.
pub fn shared() -> &'static Vm {
    static VM: OnceLock<Vm> = OnceLock::new();
    extern "C" fn kill() {
        let _ = output(&["kill", "shared"]);
    }
    VM.get_or_init(|| {
        // SAFETY: the function only starts a process and waits for it, which is allowed at
        // exit. (Nothing drops a static.)
        unsafe { libc::atexit(kill) };
        Vm::start("shared", &[])
    })
}

/// A folder for the files of a test.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

/// The ELF kernel beside the bzImage that is booted by default.
pub fn vmlinux() -> PathBuf {
    let doctor = output(&["doctor", "--json"]);
    let facts: serde_json::Value = serde_json::from_slice(&doctor.stdout).expect("JSON");
    let kernel = facts["kernel"]["path"].as_str().expect("a kernel");
    PathBuf::from(kernel).with_file_name("vmlinux")
}
