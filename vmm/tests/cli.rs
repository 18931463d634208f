// SPDX-License-Identifier: GPL-2.0-only
//! Bad input on the command line. None of it needs a VM: it is refused before.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use mvas_cli::testing::{assert_completions, assert_pages};
use tempfile::TempDir;

const MVASVM: &str = env!("CARGO_BIN_EXE_mvasvm");
const HIDDEN: [&str; 6] = [
    "--detached-child",
    "janitor",
    "man",
    "relay",
    "sim-init",
    "sim-serve",
];

#[test]
fn completions_have_every_command_but_hidden_ones() {
    assert_completions(MVASVM, &HIDDEN);
}

#[test]
fn every_command_has_a_page() {
    let dir = tempfile::tempdir().expect("a folder");
    let some = ["mvasvm-run.1", "mvasvm-snapshots-ls.1"];
    assert_pages(MVASVM, dir.path(), &some, &HIDDEN);
}

/// A user with nothing: no VMs, no kernel, no image.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(MVASVM);
        command
            .env("HOME", self.0.path())
            .env("XDG_RUNTIME_DIR", self.0.path())
            .env_remove("XDG_CACHE_HOME")
            .env_remove("MVAS_KERNEL")
            .env_remove("MVAS_IMAGE")
            .env_remove("MVAS_QEMU")
            .env("MVAS_STORE", self.0.path().join("store"))
            .stdin(Stdio::null());
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command().args(words).output().expect("mvasvm starts")
    }

    /// A file of the user's.
    fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.0.path().join(name);
        fs::write(&path, content).expect("write");
        path.to_str().expect("UTF-8").to_owned()
    }

    /// Wants a refusal with this exit code, that says all of `says`, and leaves nothing.
    fn refuses(&self, words: &[&str], code: i32, says: &[&str]) {
        let output = self.run(words);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {stderr}");
        for text in says {
            assert!(
                stderr.contains(text),
                "{words:?} does not say {text:?}: {stderr}"
            );
        }
        assert!(output.stdout.is_empty(), "{words:?}");
        let left = self.0.path().join("mvas");
        let left: Vec<_> = fs::read_dir(left).into_iter().flatten().flatten().collect();
        let own = [".sim", ".lock"];
        let left = left
            .iter()
            .filter(|e| !own.iter().any(|own| e.file_name() == *own));
        assert_eq!(left.count(), 0, "{words:?} left something");
    }
}

/// The emulator of who runs the tests; without, the one in `PATH`.
fn emulator() -> Option<PathBuf> {
    let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".cache"));
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(home)?;
    let built = cache.join("mvas/current/qemu-system-x86_64");
    built.exists().then_some(built)
}

#[test]
fn memory_sizes_that_make_no_sense_are_refused() {
    let home = Home::new();
    for (size, says) in [
        ("0", "too few"),
        ("1M", "too few"),
        ("33M", "multiple of 2 MiB"),
        ("lots", "not a memory size"),
        ("", "--mem"),
        ("8Q", "not a memory size"),
        ("1.5G", "not a memory size"),
        ("99999999T", "more than any"),
        ("99999999999999999999G", "more than any"),
    ] {
        home.refuses(&["run", "--mem", size], 2, &[says]);
    }
    home.refuses(&["run", "--mem=-8G"], 2, &["not a memory size"]);
}

#[test]
fn vcpu_counts_that_make_no_sense_are_refused() {
    for cpus in ["0", "two", "99999999999", "1.5"] {
        Home::new().refuses(&["run", "--cpus", cpus], 2, &["not a number of vCPUs"]);
    }
    Home::new().refuses(&["run", "--cpus=-1"], 2, &["not a number of vCPUs"]);
}

#[test]
fn names_that_are_no_folder_names_are_refused() {
    for name in ["../x", "a/b", ".hidden", "", "a b"] {
        Home::new().refuses(&["run", "--name", name], 2, &["--name"]);
        Home::new().refuses(&["exec", name, "--", "true"], 2, &["NAME"]);
    }
}

#[test]
fn forwards_that_make_no_sense_are_refused() {
    for port in [
        "80",
        "80:",
        "80:0",
        "99999:80",
        "80:99999",
        "localhost:80:80",
        "::1:80:80",
    ] {
        Home::new().refuses(&["forward", "x", port], 2, &[port]);
    }
}

#[test]
fn a_missing_kernel_or_image_says_how_to_get_one() {
    let home = Home::new();
    home.refuses(&["run", "--hw", "kvm"], 125, &["no image", "make image"]);
    let image = home.file("image", b"x");
    let words = ["run", "--hw", "kvm", "--image", &image];
    home.refuses(&words, 125, &["no kernel", "make image"]);
    let words = ["run", "--kernel", "/no/such/kernel", "--image", &image];
    home.refuses(&words, 125, &["no kernel /no/such/kernel"]);
    home.refuses(&["sim", "--", "true"], 125, &["no kernel", "make image"]);
}

#[test]
fn files_that_are_no_kernel_are_refused() {
    let home = Home::new();
    let image = home.file("image", &[0; 1 << 20]);
    let mut truncated = vec![0; 2048];
    truncated[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    truncated[0x202..0x206].copy_from_slice(b"HdrS");
    for (name, content) in [
        ("empty", &[][..]),
        ("text", b"#!/bin/sh\n".as_slice()),
        ("elf", b"\x7fELF".as_slice()),
        ("truncated", truncated.as_slice()),
    ] {
        let kernel = home.file(name, content);
        let words = ["run", "--hw", "kvm", "--kernel", &kernel, "--image", &image];
        // What came of it stays as the record of a VM, until that is removed.
        let output = home.run(&[&words[..], &["--name", name, "--", "true"]].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{stderr}");
        assert!(stderr.contains(kernel_or_kvm(&kernel)), "{stderr}");
        let list = home.run(&["ls", "--all", "--json"]);
        let list: serde_json::Value = serde_json::from_slice(&list.stdout).expect("JSON");
        assert_eq!(list[0]["end"]["cause"], "failed", "{list}");
        assert_eq!(list[0]["end"]["exit_code"], 125, "{list}");
        let text = list[0]["end"]["text"].as_str().expect("words");
        assert!(text.contains(kernel_or_kvm(&kernel)), "{text}");
        assert!(home.run(&["rm", name]).status.success());
        home.refuses(&["rm", name], 125, &["no ended VM"]);
    }
}

/// Where there is no KVM at all, that is said first.
fn kernel_or_kvm(kernel: &str) -> &str {
    if Path::new("/dev/kvm").exists() {
        kernel
    } else {
        "/dev/kvm"
    }
}

#[test]
fn disks_that_cannot_be_had_are_refused() {
    let home = Home::new();
    let image = home.file("image", &[0; 1 << 20]);
    let kernel = home.file("kernel", b"x");
    let run = |disk: &str, code, says: &[&str]| {
        let words = ["run", "--hw", "kvm", "--kernel", &kernel, "--image", &image];
        home.refuses(&[&words[..], &["--disk", disk]].concat(), code, says);
    };
    run("/no/such/disk", 125, &["no disk image /no/such/disk"]);
    run(",ro", 2, &["no file"]);
    run(&format!("{image},fast"), 2, &["fast"]);
}

#[test]
fn commands_to_vms_that_do_not_run_say_so() {
    let home = Home::new();
    for words in [
        &["exec", "x", "--", "true"][..],
        &["cp", "x:/a", "b"],
        &["forward", "x", "0:80"],
        &["stop", "x"],
        &["kill", "x"],
    ] {
        home.refuses(words, 125, &["no running VM named x", "mvasvm ls"]);
    }
    for words in [&["logs", "x"][..], &["metrics", "x"]] {
        let says = ["no VM named x, running or ended", "mvasvm ls --all"];
        home.refuses(words, 125, &says);
    }
    let says = ["no ended VM named x", "mvasvm ls --all"];
    home.refuses(&["rm", "x"], 125, &says);
    assert!(home.run(&["rm", "--all"]).status.success());
    home.refuses(&["cp", "a", "b"], 125, &["NAME:PATH"]);
    home.refuses(&["cp", "x:a", "y:b"], 125, &["both"]);
}

#[test]
fn what_a_killed_monitor_left_is_cleaned_up() {
    let home = Home::new();
    for name in ["mvas", "mvas/dead", "mvas/empty"] {
        let dir = home.0.path().join(name);
        fs::create_dir(&dir).expect("mkdir");
        fs::set_permissions(&dir, PermissionsExt::from_mode(0o700)).expect("mode");
    }
    home.file("mvas/dead/lock", b"");
    home.file("mvas/dead/vm.json", br#"{"name":"dead","pid":1}"#);
    let list = home.run(&["ls", "--json"]);
    assert_eq!(String::from_utf8_lossy(&list.stdout), "[]\n");
    assert!(!home.0.path().join("mvas/dead").exists());
    // And process 1 was not killed.
    home.refuses(&["kill", "dead"], 125, &["no running VM"]);
}

#[test]
fn a_run_time_folder_that_others_may_enter_is_refused() {
    let home = Home::new();
    let dir = home.0.path().join("mvas");
    fs::create_dir(&dir).expect("mkdir");
    fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).expect("mode");
    home.refuses(&["ls"], 125, &["others may enter", "chmod 700"]);
}

/// Runs `mvasvm run --hw kvm` where a shell script changed what it finds.
fn run_kvm_after(change: &str, says: &str) {
    if !nix::unistd::getuid().is_root() {
        eprintln!("needs root to change /dev/kvm for itself");
        return;
    }
    let home = Home::new();
    // Readable by all, for the case without rights.
    fs::set_permissions(home.0.path(), PermissionsExt::from_mode(0o755)).expect("mode");
    let (kernel, image) = (home.file("kernel", b"x"), home.file("image", &[0; 4096]));
    let mvasvm = home.file(
        "mvasvm",
        &fs::read(env!("CARGO_BIN_EXE_mvasvm")).expect("read"),
    );
    fs::set_permissions(&mvasvm, PermissionsExt::from_mode(0o755)).expect("mode");
    let run = format!("{mvasvm} run --hw kvm --kernel {kernel} --image {image} -- true");
    let script = change.replace("@RUN", &run);
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .env("HOME", home.0.path())
        .env("XDG_RUNTIME_DIR", home.0.path())
        .output()
        .expect("unshare");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    assert!(stderr.contains(says), "{stderr}");
}

#[test]
fn a_missing_kvm_is_said() {
    run_kvm_after(
        "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && @RUN",
        "/dev/kvm does not exist",
    );
}

#[test]
fn a_forbidden_kvm_is_said() {
    let change = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 &&
        mknod -m 600 /dev/kvm c 10 232 &&
        mkdir -m 700 $XDG_RUNTIME_DIR/mvas && chown nobody $XDG_RUNTIME_DIR/mvas &&
        setpriv --reuid nobody --clear-groups @RUN";
    run_kvm_after(change, "no right to use /dev/kvm");
}

#[test]
fn a_device_that_is_no_kvm_is_said() {
    let change = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 &&
        mknod -m 666 /dev/kvm c 1 3 && @RUN";
    run_kvm_after(change, "/dev/kvm");
}

#[test]
fn a_missing_emulator_names_its_package() {
    let home = Home::new();
    let kernel = home.file("kernel", b"x");
    let output = home
        .command()
        .args(["sim", "--kernel", &kernel, "--", "true"])
        .env("PATH", home.0.path())
        .output()
        .expect("mvasvm starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    assert!(
        stderr.contains("apt-get install qemu-system-x86"),
        "{stderr}"
    );
}

#[test]
fn a_simulated_host_with_a_broken_kernel_says_so() {
    let home = Home::new();
    let kernel = home.file("kernel", b"this is no kernel");
    let mut command = home.command();
    if let Some(emulator) = emulator() {
        command.env("MVAS_QEMU", emulator);
    }
    let output = command.args(["sim", "--kernel", &kernel, "--", "true"]);
    let output = output.output().expect("mvasvm starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    assert!(stderr.contains("simulated host ended (QEMU: "), "{stderr}");
    let left = fs::read_dir(home.0.path().join("mvas/.sim")).expect("ls");
    assert_eq!(left.count(), 0, "{stderr}");
}

#[test]
fn doctor_says_in_its_exit_code_whether_vms_can_run() {
    let home = Home::new();
    let output = home.run(&["doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let usable = report["usable"].as_bool().expect("a verdict");
    assert_eq!(output.status.code(), Some(i32::from(!usable)));
    let kinds = ["vmx", "svm", "software", "none"];
    assert!(kinds.contains(&report["kvm"]["kind"].as_str().expect("a kind")));
    // This home has no kernel: what to do about it is said.
    assert!(
        report["advice"].to_string().contains("make image"),
        "{report}"
    );
    let plain = home.run(&["doctor"]);
    assert_eq!(plain.status.code(), output.status.code());
    assert!(String::from_utf8_lossy(&plain.stdout).contains("KVM"));
}

#[test]
fn every_command_has_help() {
    let home = Home::new();
    for command in [
        "run", "exec", "cp", "ls", "stop", "kill", "rm", "logs", "metrics", "doctor", "sim",
    ] {
        let output = home.run(&[command, "--help"]);
        assert!(output.status.success(), "{command}");
        assert!(
            String::from_utf8_lossy(&output.stdout).contains("Example"),
            "{command}"
        );
    }
}
