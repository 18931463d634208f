// SPDX-License-Identifier: GPL-2.0-only
//! How VMs start, share a host, and end.

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Stdio;

use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::{
    Vm, end_of, mvasvm, output, scratch, shared, show, succeed, text, vmlinux, wait_for, with_input,
};

/// `mvasvm run MORE -- sh -c SCRIPT` in a small VM.
fn run(more: &[&str], script: &str) -> std::process::Output {
    let head = ["run", "--mem", "1G"];
    output(&[&head[..], more, &["--", "sh", "-c", script]].concat())
}

#[test]
fn run_passes_input_outputs_and_exit_code() {
    let words = [
        "run",
        "--mem",
        "1G",
        "--",
        "sh",
        "-c",
        "cat; echo oops >&2; exit 5",
    ];
    let ran = with_input(&words, b"hello\n");
    assert_eq!(ran.status.code(), Some(5), "{}", show(&ran));
    assert_eq!(text(&ran.stdout), "hello\n");
    assert!(text(&ran.stderr).contains("oops\n"));
}

#[test]
fn a_vm_and_its_memory_are_in_the_cgroup_that_it_joins() {
    let root = scratch();
    let none: Option<&str> = None;
    let kind = Some("cgroup2");
    mount(kind, root.path(), kind, MsFlags::empty(), none).expect("cgroup2");
    let group = root.path().join("grouped");
    fs::write(root.path().join("cgroup.subtree_control"), "+memory").expect("the controller");
    fs::create_dir(&group).expect("a cgroup");
    let read = |file: &str| fs::read_to_string(group.join(file)).expect("a file");
    let vm = Vm::start("grouped", &["--cgroup", group.to_str().expect("UTF-8")]);
    assert_eq!(read("cgroup.procs"), format!("{}\n", vm.pid()));
    let bytes: u64 = read("memory.current").trim().parse().expect("a number");
    assert!(bytes > 16 << 20, "{bytes}");
    drop(vm);
    wait_for("its end", || read("cgroup.procs").is_empty());
    fs::remove_dir(&group).expect("nobody is left");
    umount(root.path()).expect("unmount");

    let refused = run(&["--cgroup", "/proc"], "true");
    assert_eq!(refused.status.code(), Some(125), "{}", show(&refused));
    assert!(text(&refused.stderr).contains("/proc is no cgroup"));
}

#[test]
fn an_elf_kernel_boots_too() {
    let kernel = vmlinux();
    let ran = run(&["--kernel", kernel.to_str().expect("UTF-8")], "uname -s");
    assert_eq!(text(&ran.stdout), "Linux\n", "{}", show(&ran));
}

#[test]
fn the_exit_status_tells_why_the_vm_ended() {
    let agent = "/usr/lib/mvas/agent";
    for (script, more, code, says) in [
        (
            format!("{agent} poweroff; sleep 99"),
            "",
            119,
            "powered off",
        ),
        (format!("{agent} reboot; sleep 99"), "", 120, "reset"),
        (
            "echo c > /proc/sysrq-trigger".to_owned(),
            "",
            121,
            "panicked",
        ),
        (
            format!("{agent} reboot; sleep 99"),
            "reboot=t",
            122,
            "triple fault",
        ),
    ] {
        let ran = run(&["--cmdline", more], &script);
        assert_eq!(ran.status.code(), Some(code), "{script}: {}", show(&ran));
        assert!(text(&ran.stderr).contains(says), "{script}: {}", show(&ran));
    }
}

#[test]
fn a_guest_may_have_more_memory_than_its_host() {
    let ran = output(&[
        "run",
        "--mem",
        "64G",
        "--",
        "grep",
        "MemTotal",
        "/proc/meminfo",
    ]);
    let said = text(&ran.stdout);
    let kib = said
        .split_whitespace()
        .nth(1)
        .and_then(|n| n.parse::<u64>().ok());
    assert!(kib.is_some_and(|kib| kib > 60 << 20), "{}", show(&ran));
}

#[test]
fn several_vms_run_at_once_and_are_told_apart() {
    let vms = ["one", "two", "three"].map(|name| Vm::start(name, &[]));
    for vm in &vms {
        let said = vm.exec(&["hostname"]);
        assert_eq!(text(&said.stdout), format!("{}\n", vm.0), "{}", show(&said));
    }
    let list = succeed(&["ls"]);
    assert!(vms.iter().all(|vm| list.contains(&vm.0)), "{list}");
    succeed(&["stop", "one", "two", "three"]);
    let list = succeed(&["ls"]);
    assert!(!vms.iter().any(|vm| list.contains(&vm.0)), "{list}");
}

#[test]
fn a_name_is_taken_once() {
    let vm = shared();
    let second = output(&["run", "--name", &vm.0, "--", "true"]);
    assert_eq!(second.status.code(), Some(125), "{}", show(&second));
    let says = text(&second.stderr);
    assert!(
        says.contains("runs already") && says.contains(&vm.0),
        "{says}"
    );
}

#[test]
fn a_killed_monitor_leaves_nothing_in_the_way() {
    let vm = Vm::start("killed", &[]);
    kill(Pid::from_raw(vm.pid()), Signal::SIGKILL).expect("kill");
    wait_for("the end of its lock", || {
        !succeed(&["ls"]).contains("killed")
    });
    let gone = output(&["exec", "killed", "--", "true"]);
    assert!(
        text(&gone.stderr).contains("no running VM named killed"),
        "{}",
        show(&gone)
    );
    let again = Vm::start("killed", &[]);
    assert!(again.exec(&["true"]).status.success());
}

#[test]
fn sigterm_ends_a_detached_vm_and_its_record_says_so() {
    let vm = Vm::start("termed", &[]);
    let pid = vm.pid();
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("kill");
    wait_for("the monitor's end", || {
        !fs::exists(format!("/proc/{pid}")).expect("proc")
    });
    assert!(!succeed(&["ls"]).contains("termed"));
    let list: serde_json::Value =
        serde_json::from_str(&succeed(&["ls", "--all", "--json"])).expect("JSON");
    let all = list.as_array().expect("a list");
    let vm = all
        .iter()
        .find(|vm| vm["name"] == "termed")
        .expect("a record");
    assert_eq!(vm["end"]["cause"], "stopped", "{vm}");
    succeed(&["logs", "termed"]);
    let said = succeed(&["logs", "--monitor", "termed"]);
    assert!(said.contains("stopped by signal 15"), "{said}");
    succeed(&["rm", "termed"]);
}

#[test]
fn sigterm_while_the_guest_boots_ends_the_vm() {
    let child = mvasvm(&["run", "--name", "early", "--", "true"])
        .stderr(Stdio::null())
        .spawn()
        .expect("mvasvm starts");
    wait_for("the VM", || succeed(&["ls"]).contains("early"));
    let pid = i32::try_from(child.id()).expect("a process id");
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("kill");
    assert_eq!(end_of(child).code(), Some(143));
}

#[test]
fn kill_ends_a_vm_at_once() {
    let vm = Vm::start("plug", &[]);
    succeed(&["kill", "plug"]);
    assert!(!succeed(&["ls"]).contains("plug"));
    let gone = vm.exec(&["true"]);
    assert_eq!(gone.status.code(), Some(125), "{}", show(&gone));
}

#[test]
fn disks_are_written_flushed_and_protected() {
    let dir = scratch();
    let (rw, ro) = (dir.path().join("rw.img"), dir.path().join("ro.img"));
    for path in [&rw, &ro] {
        fs::write(path, vec![0; 4 << 20]).expect("write");
    }
    let disks = [rw.display().to_string(), format!("{},ro", ro.display())];
    let script = "set -e
        printf 'written' | dd of=/dev/vdb bs=4k seek=3 conv=notrunc,fsync 2>/dev/null
        test $(blockdev --getsize64 /dev/vdb) = 4194304
        test $(blockdev --getro /dev/vdc) = 1
        if dd if=/dev/zero of=/dev/vdc bs=4k count=1 conv=fsync 2>/dev/null; then exit 9; fi
        dd if=/dev/vdb bs=4k skip=3 count=1 2>/dev/null | head -c 7";
    let ran = run(&["--disk", &disks[0], "--disk", &disks[1]], script);
    assert_eq!(text(&ran.stdout), "written", "{}", show(&ran));
    assert!(ran.status.success(), "{}", show(&ran));
    let mut bytes = [0; 7];
    let file = fs::File::open(&rw).expect("open");
    file.read_exact_at(&mut bytes, 3 * 4096).expect("read");
    assert_eq!(&bytes, b"written");
    assert!(fs::read(&ro).expect("read").iter().all(|byte| *byte == 0));
}

#[test]
fn a_disk_in_use_is_refused() {
    let dir = scratch();
    let disk = dir.path().join("disk.img");
    fs::write(&disk, vec![0; 1 << 20]).expect("write");
    let disk = disk.to_str().expect("UTF-8");
    let _vm = Vm::start("owner", &["--disk", disk]);
    let second = run(&["--disk", disk], "true");
    assert_eq!(second.status.code(), Some(125), "{}", show(&second));
    assert!(text(&second.stderr).contains(disk), "{}", show(&second));
}

#[test]
fn a_guest_that_takes_no_commands_is_given_up() {
    let more = [
        "--boot-timeout",
        "5",
        "--cmdline",
        "init=/usr/bin/sleep -- 1000",
    ];
    let ran = run(&more, "true");
    assert_eq!(ran.status.code(), Some(125), "{}", show(&ran));
    assert!(
        text(&ran.stderr).contains("does not take commands"),
        "{}",
        show(&ran)
    );
}

/// SPECIFICATION: the monitor's own memory, beyond the guest's, is at most this.
const OVERHEAD_KIB: u64 = 8 << 10;

#[test]
fn the_monitor_adds_at_most_8_mib() {
    let vm = Vm::start("lean", &[]);
    assert!(vm.exec(&["true"]).status.success());
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", vm.pid())).expect("smaps");
    let (mut own, mut guest, mut in_guest) = (0, 0, false);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        let number = words
            .next()
            .and_then(|n| n.parse::<u64>().ok())
            .unwrap_or(0);
        if !first.ends_with(':') {
            // Guest RAM is a memory file, or one of the store; everything else is the monitor's.
            in_guest = line.contains("/memfd:") || line.ends_with(".ram");
        } else if first == "Pss:" {
            *(if in_guest { &mut guest } else { &mut own }) += number;
        }
    }
    println!("the monitor's own memory: {own} KiB; the guest's: {guest} KiB");
    assert!(guest > 0, "guest RAM was not found:\n{smaps}");
    assert!(own <= OVERHEAD_KIB, "{own} KiB:\n{smaps}");
}
