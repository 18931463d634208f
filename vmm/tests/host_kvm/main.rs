// SPDX-License-Identifier: GPL-2.0-only
//! The command on this machine's own KVM, with guests of a few instructions.

#![allow(clippy::unwrap_used)] // tests, and helpers of tests

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[allow(dead_code)] // what other tests need
#[path = "../e2e/frozen.rs"]
mod frozen;
#[allow(dead_code)] // what other tests need
#[macro_use]
#[path = "../../src/run/guests.rs"]
mod guests;

mod disks;
mod records;
mod sandbox;
#[path = "../../src/boot/test_kernel.rs"]
mod test_kernel;
#[allow(dead_code)] // what other tests need
#[path = "../vas/tmpfs.rs"]
mod tmpfs;

use tmpfs::in_tmpfs;

const MVASVM: &str = env!("CARGO_BIN_EXE_mvasvm");

/// `jmp .`
const SPIN: [u8; 2] = [0xeb, 0xfe];
/// `ud2`, which ends in a triple fault.
const CRASH: [u8; 2] = [0x0f, 0x0b];

fn start(dir: &Path, code: &[u8], mem: &str, store: &Path) -> Child {
    let (kernel, initramfs) = (dir.join("kernel"), dir.join("initramfs"));
    fs::write(&kernel, test_kernel::elf(code)).unwrap();
    fs::write(&initramfs, [0; 4096]).unwrap();
    Command::new(MVASVM)
        .args(["run", "--hw", "kvm", "--name", "test", "--mem", mem])
        .arg("--store")
        .arg(store)
        .arg("--kernel")
        .arg(kernel)
        .arg("--initramfs")
        .arg(initramfs)
        .args(["--", "true"])
        .env("XDG_RUNTIME_DIR", dir)
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}

/// Resident memory of a monitor in KiB: of guest RAM, and of all else. Its program counts
/// only where it is optimized, as users have it.
fn resident(pid: u32) -> (u64, u64) {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let (mut guest, mut own, mut unoptimized) = (0, 0, 0);
    let mut mapping = "";
    for line in smaps.lines() {
        if line
            .split(' ')
            .next()
            .is_some_and(|range| range.contains('-'))
        {
            mapping = line;
        } else if let Some(kib) = line.strip_prefix("Rss:") {
            let kib: u64 = kib.trim().trim_end_matches(" kB").parse().unwrap();
            let sum = match mapping {
                _ if mapping.contains("/memfd:") || mapping.ends_with(".ram") => &mut guest,
                _ if cfg!(debug_assertions) && mapping.ends_with(MVASVM) => &mut unoptimized,
                _ => &mut own,
            };
            *sum += kib;
        }
    }
    (guest, own)
}

fn has_thread(pid: u32, name: &str) -> bool {
    fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .any(|comm| comm.trim() == name)
}

/// Asks again and again until the answer is yes.
fn wait_until(what: &str, mut yes: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !yes() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn exit_code(mut child: Child) -> Option<i32> {
    let mut status = None;
    wait_until("the command should end", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.and_then(|status| status.code())
}

/// Runs a guest with 64 GiB, and ends it by SIGTERM.
fn takes_at_most_8_mib(store: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let mut child = start(dir.path(), &SPIN, "64G", store);
    wait_until("the vCPUs should start", || {
        assert_eq!(child.try_wait().unwrap(), None, "the VM should run");
        has_thread(child.id(), "vcpu1")
    });
    let (guest, own) = resident(child.id());
    assert!(guest > 0, "guest memory was not found");
    assert!(own <= 8 << 10, "{own} KiB of the monitor's own");
    let pid = i32::try_from(child.id()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    assert_eq!(exit_code(child), Some(128 + 15));
}

#[test]
fn the_monitor_takes_at_most_8_mib_beside_guest_memory_and_ends_on_sigterm() {
    takes_at_most_8_mib(Path::new("none"));
    // Without a limit, for this host may have less memory than the guest.
    in_tmpfs("size=0,mode=0700", |dir| {
        takes_at_most_8_mib(&dir.join("store"));
        let ram = fs::read_dir(dir.join("store/ram")).unwrap();
        assert_eq!(ram.count(), 0, "RAM files that nobody needs");
    });
}

#[test]
fn a_guest_that_crashes_fails_the_command() {
    let dir = tempfile::tempdir().unwrap();
    let code = exit_code(start(dir.path(), &CRASH, "64M", Path::new("none")));
    assert!(code.is_some_and(|code| code != 0), "{code:?}");
}
