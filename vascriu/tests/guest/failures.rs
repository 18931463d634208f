// SPDX-License-Identifier: GPL-2.0-only
//! Failures from outside: the kernel refuses, a script fails, files or memory do
//! not suffice.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use mvas_abi::vas::{
    VAS_IOC_ATTACH, VAS_IOC_CAPTURE, VAS_IOC_COMMIT, VAS_IOC_CREATE, VAS_IOC_SET_LABEL,
};

use crate::bad_input::executable;
use crate::harness::{
    Test, Workload, bad, dump, errors, good, restore, rm, vascriu, vases, wait_until, workloads,
};
use crate::snapshots::small;
use crate::workload::Options;

/// All tests here.
pub const TESTS: &[Test] = &[
    ("a_failing_capture_leaves_the_tasks_running", capture_fails),
    ("a_failing_commit_leaves_the_tasks_running", commit_fails),
    ("a_failing_attach_kills_what_was_restored", attach_fails),
    (
        "a_failing_post_dump_script_leaves_the_tasks_running",
        post_dump_fails,
    ),
    (
        "a_reference_that_does_not_fit_leaves_the_tasks_running",
        no_room,
    ),
    ("two_dumps_of_one_process_at_once_do_no_harm", two_dumps),
    (
        "a_dump_short_of_memory_is_whole_or_nothing",
        dump_short_of_memory,
    ),
    (
        "a_restore_short_of_memory_is_whole_or_nothing",
        restore_short_of_memory,
    ),
];

/// Has the kernel answer one ioctl with EIO, for this command and its children.
fn refuse_ioctl(command: &mut Command, ioctl: u32) {
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: u16::try_from(code).expect("small"),
        jt: 0,
        jf: 0,
        k,
    };
    let unless_equal = |k: u32, skip: u8| libc::sock_filter {
        jf: skip,
        ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k)
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let give = libc::BPF_RET | libc::BPF_K;
    let mut program = vec![
        statement(load, 0), // the system call's number
        unless_equal(u32::try_from(libc::SYS_ioctl).expect("small"), 3),
        statement(load, 24), // its second argument, the lower half
        unless_equal(ioctl, 1),
        statement(give, libc::SECCOMP_RET_ERRNO | libc::EIO.cast_unsigned()),
        statement(give, libc::SECCOMP_RET_ALLOW),
    ];
    // SAFETY: prctl is async-signal-safe, and the program lives in the closure.
    unsafe {
        command.pre_exec(move || {
            let filter = libc::sock_fprog {
                len: u16::try_from(program.len()).unwrap_or(0),
                filter: program.as_mut_ptr(),
            };
            let mode = libc::SECCOMP_MODE_FILTER;
            match libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
}

/// `guest refusing IOCTL COMMAND…`: runs the command with that ioctl refused.
pub fn refusing(args: &[String]) {
    let [ioctl, command, args @ ..] = args else {
        panic!("IOCTL COMMAND");
    };
    let mut command = Command::new(command);
    command.args(args);
    refuse_ioctl(&mut command, ioctl.parse().expect("a number"));
    panic!("cannot run it: {}", command.exec());
}

fn busy(dir: &Path) -> Options {
    Options {
        children: 2,
        threads: 2,
        files: true,
        tcp: true,
        ..small(dir)
    }
}

fn ioctl_fails(dir: &Path, ioctl: u32, name: &str) {
    let w = Workload::start(&busy(dir));
    for more in [
        &[][..],
        &["--leave-running"],
        &["--network-lock", "nftables"],
    ] {
        let mut command = dump(w.pid, "x");
        command.arg("--tcp-established").args(more);
        refuse_ioctl(&mut command, ioctl);
        bad(&mut command, &[name, "Input/output error"]);
        assert_eq!(vases(), Vec::<String>::new());
        assert_eq!(crate::harness::packet_filters(), "");
        w.check();
    }
}

fn capture_fails(dir: &Path) {
    ioctl_fails(dir, VAS_IOC_CREATE, "CREATE");
    wait_until("the end", || {
        workloads().iter().for_each(|&pid| {
            // SAFETY: kill takes two integers.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        });
        workloads().is_empty()
    });
    fs::remove_dir_all(dir).expect("remove");
    fs::create_dir(dir).expect("directory");
    ioctl_fails(dir, VAS_IOC_CAPTURE, "CAPTURE");
}

fn commit_fails(dir: &Path) {
    ioctl_fails(dir, VAS_IOC_COMMIT, "COMMIT");
}

fn attach_fails(dir: &Path) {
    let w = Workload::start(&Options {
        children: 2,
        threads: 2,
        ..small(dir)
    });
    w.dump("x", &[]);
    // Of CRIU alone: vascriu attaches the images.
    let exe = std::env::current_exe().expect("this program");
    for (ioctl, name) in [(VAS_IOC_ATTACH, "ATTACH"), (VAS_IOC_SET_LABEL, "SET_LABEL")] {
        let script = dir.join("criu-refused");
        let text = format!(
            "#!/bin/sh\nexec {} refusing {ioctl} criu \"$@\"\n",
            exe.display()
        );
        executable(&script, &text);
        let mut command = vascriu(&["restore", "x", "-d"]);
        command.env("VASCRIU_CRIU", &script);
        bad(
            &mut command,
            &["cannot restore x", name, "Input/output error"],
        );
        assert_eq!(workloads(), Vec::<i32>::new());
    }
    let (r, _) = restore("x", &w, &[]);
    assert_eq!(r.check(), 1);
    r.kill();
    rm(&["x"]);
}

fn post_dump_fails(dir: &Path) {
    let w = Workload::start(&busy(dir));
    let script = dir.join("script");
    executable(
        &script,
        "#!/bin/sh\n[ \"$CRTOOLS_SCRIPT_ACTION\" != post-dump ]\n",
    );
    let script = script.to_str().expect("UTF-8");
    let more = ["--tcp-established", "--action-script", script];
    bad(dump(w.pid, "x").args(more), &["CRIU's dump failed"]);
    w.check();
    assert_eq!(vases(), Vec::<String>::new());
}

fn no_room(dir: &Path) {
    let w = Workload::start(&busy(dir));
    let images = dir.join("images");
    fs::create_dir(&images).expect("directory");
    good(
        Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4k", "x"])
            .arg(&images),
    );
    fs::write(images.join("full"), [1; 4096]).expect("write");
    let mut command = dump(w.pid, "x");
    command.arg("--tcp-established").arg("-D").arg(&images);
    bad(&mut command, &["cannot dump", "inventory.img", "No space"]);
    assert_eq!(
        images.read_dir().expect("directory").count(),
        1,
        "nothing of it stays"
    );
    good(Command::new("umount").arg(&images));
    w.check();
    assert_eq!(vases(), Vec::<String>::new());
}

fn two_dumps(dir: &Path) {
    for _ in 0..4 {
        let w = Workload::start(&Options {
            children: 2,
            ..small(dir)
        });
        let both = ["x", "y"].map(|name| (name, dump(w.pid, name).spawn().expect("vascriu")));
        let won: Vec<_> = both
            .into_iter()
            .filter_map(|(name, mut child)| child.wait().expect("status").success().then_some(name))
            .collect();
        match won[..] {
            [] => {
                w.check();
                w.kill();
            }
            [name] => {
                assert!(!w.is_alive());
                let (r, _) = restore(name, &w, &[]);
                r.check();
                r.kill();
                rm(&[name]);
            }
            _ => panic!("both dumped it"),
        }
        for file in dir.read_dir().expect("directory").flatten() {
            fs::remove_file(file.path()).expect("remove");
        }
    }
}

/// Runs a command whose CRIU has so much memory, page tables and all. Where that
/// is so little that CRIU only reads its own code again and again, it is killed.
fn limited(dir: &Path, kib: u64, command: &mut Command) -> Output {
    let root = Path::new("/sys/fs/cgroup");
    let group = root.join("vascriu-test");
    fs::write(root.join("cgroup.subtree_control"), "+memory").expect("the memory controller");
    fs::create_dir_all(&group).expect("group");
    fs::write(group.join("memory.max"), (kib << 10).to_string()).expect("limit");
    let _ = fs::write(group.join("memory.swap.max"), "0");
    let script = dir.join("criu-limited");
    let procs = group.join("cgroup.procs");
    let text = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] || echo $$ > {} && exec criu \"$@\"\n",
        procs.display()
    );
    executable(&script, &text);
    command.env("VASCRIU_CRIU", script);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("vascriu");
    let begun = Instant::now();
    while child.try_wait().expect("status").is_none() {
        if begun.elapsed() > Duration::from_secs(10) {
            fs::write(group.join("cgroup.kill"), "1").expect("kill");
        }
        sleep(Duration::from_millis(20));
    }
    let out = child.wait_with_output().expect("output");
    for pid in fs::read_to_string(&procs).unwrap_or_default().lines() {
        let _ = fs::write(root.join("cgroup.procs"), pid);
    }
    wait_until("the group to empty", || {
        fs::remove_dir(&group).is_ok() || !group.exists()
    });
    out
}

/// KiB: from less than CRIU starts with to more than it takes.
const LIMITS: [u64; 6] = [256, 512, 1024, 2048, 4096, 24 << 10];

fn dump_short_of_memory(dir: &Path) {
    let mut w = Workload::start(&Options {
        children: 1,
        ..small(dir)
    });
    let (mut whole, mut nothing) = (0, 0);
    for kib in LIMITS {
        let out = limited(dir, kib, &mut dump(w.pid, "x"));
        if out.status.success() || errors(&out).contains("kept as") {
            whole += 1;
            (w, _) = restore("x", &w, &[]);
            rm(&["x"]);
        } else {
            nothing += 1;
            assert_eq!(vases(), Vec::<String>::new(), "with {kib} KiB");
        }
        w.check();
    }
    assert!(nothing > 0, "no limit was too small; whole: {whole}");
}

fn restore_short_of_memory(dir: &Path) {
    let w = Workload::start(&Options {
        children: 1,
        ..small(dir)
    });
    w.dump("x", &[]);
    let (mut whole, mut nothing) = (0, 0);
    for kib in LIMITS {
        let out = limited(dir, kib, &mut vascriu(&["restore", "x", "-d"]));
        if out.status.success() {
            whole += 1;
            assert_eq!(w.check(), 1);
            w.kill();
        } else {
            nothing += 1;
            wait_until("half-restored tasks to go", || workloads().is_empty());
        }
    }
    assert!(nothing > 0, "no limit was too small; whole: {whole}");
    let (r, _) = restore("x", &w, &[]);
    assert_eq!(r.check(), 1);
    r.kill();
    rm(&["x"]);
}
