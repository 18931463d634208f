// SPDX-License-Identifier: GPL-2.0-only
//! Commands and files in a running VM.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::{end_of, mvasvm, output, scratch, shared, show, succeed, text, with_input};

#[test]
fn exec_keeps_the_streams_apart_and_passes_the_exit_code() {
    let script = "cat; echo oops >&2; exit 42";
    let words = ["exec", &shared().0, "--", "sh", "-c", script];
    let ran = with_input(&words, b"hello\n");
    assert_eq!(ran.status.code(), Some(42), "{}", show(&ran));
    assert_eq!(text(&ran.stdout), "hello\n");
    assert_eq!(text(&ran.stderr), "oops\n");
}

#[test]
fn exec_carries_megabytes_both_ways_unchanged() {
    let input: Vec<u8> = (0..3_000_000u32)
        .map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()[3])
        .collect();
    let ran = with_input(&["exec", &shared().0, "--", "cat"], &input);
    assert!(ran.stdout == input, "{}", text(&ran.stderr));
}

#[test]
fn exec_sets_environment_folder_and_user() {
    let vm = &shared().0;
    let options = ["-e", "A=b c", "-w", "/usr", "-u", "nobody"];
    let command = ["--", "sh", "-c", "echo $A; pwd; id -un"];
    let said = succeed(&[&["exec", vm][..], &options, &command].concat());
    assert_eq!(said, "b c\n/usr\nnobody\n");
}

#[test]
fn a_command_that_cannot_run_has_a_code_of_its_own() {
    let missing = shared().exec(&["no-such-command"]);
    assert_eq!(missing.status.code(), Some(127), "{}", show(&missing));
    let forbidden = shared().exec(&["/etc/passwd"]);
    assert_eq!(forbidden.status.code(), Some(126), "{}", show(&forbidden));
    let killed = shared().exec(&["sh", "-c", "kill -KILL $$"]);
    assert_eq!(killed.status.code(), Some(137), "{}", show(&killed));
}

#[test]
fn signals_reach_the_command() {
    let script = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done";
    let mut child = mvasvm(&["exec", &shared().0, "--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .spawn()
        .expect("mvasvm starts");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("a pipe");
    BufReader::new(stdout).read_line(&mut line).expect("output");
    assert_eq!(line, "ready\n");
    let pid = i32::try_from(child.id()).expect("a process id");
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("kill");
    assert_eq!(end_of(child).code(), Some(7));
}

#[test]
fn a_client_that_is_killed_takes_its_command_along() {
    let mut child = mvasvm(&["exec", &shared().0, "--", "sleep", "98765"])
        .spawn()
        .expect("mvasvm starts");
    // The brackets keep the search from finding itself.
    let search = ["sh", "-c", "grep -l '[9]8765' /proc/[0-9]*/cmdline"];
    let runs = || shared().exec(&search).status.success();
    crate::host::wait_for("the command", runs);
    child.kill().expect("kill");
    child.wait().expect("wait");
    crate::host::wait_for("the command's end", || !runs());
}

#[test]
fn folders_are_copied_in_and_out() {
    let vm = &shared().0;
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("sub")).expect("mkdir");
    let data = vec![7; 2_000_000];
    fs::write(source.join("sub/data"), &data).expect("write");
    fs::set_permissions(source.join("sub/data"), PermissionsExt::from_mode(0o750)).expect("mode");
    let path = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    succeed(&["cp", &path(&source), &format!("{vm}:/tmp/")]);
    let seen = shared().exec(&["stat", "-c", "%a %s", "/tmp/source/sub/data"]);
    assert_eq!(text(&seen.stdout), "750 2000000\n", "{}", show(&seen));
    let back = dir.path().join("back");
    succeed(&["cp", &format!("{vm}:/tmp/source"), &path(&back)]);
    assert!(fs::read(back.join("sub/data")).expect("read") == data);
    shared().exec(&["rm", "-r", "/tmp/source"]);
}

#[test]
fn a_copy_that_fails_says_why() {
    let vm = &shared().0;
    let missing = output(&["cp", &format!("{vm}:/no/such/file"), "/tmp/x"]);
    assert_eq!(missing.status.code(), Some(125));
    assert!(
        text(&missing.stderr).contains("/no/such/file"),
        "{}",
        show(&missing)
    );
    let nowhere = output(&["cp", "/etc/passwd", &format!("{vm}:/no/such/folder/x")]);
    assert_eq!(nowhere.status.code(), Some(125));
    assert!(
        text(&nowhere.stderr).contains("/no/such/folder"),
        "{}",
        show(&nowhere)
    );
}

#[test]
fn logs_show_what_the_kernel_says() {
    let vm = shared();
    let said = vm.exec(&["sh", "-c", "echo '<1>mvas-was-here' > /dev/kmsg"]);
    assert!(said.status.success(), "{}", show(&said));
    crate::host::wait_for("the line", || {
        succeed(&["logs", &vm.0]).contains("mvas-was-here")
    });
}

#[test]
fn the_guest_has_what_a_machine_has() {
    let script = "set -e
        test \"$(cat /proc/1/comm)\" = agent
        test \"$(hostname)\" = shared
        ping -c1 127.0.0.1 >/dev/null 2>&1 || grep -q '127.0.0.1' /proc/net/fib_trie
        touch /etc/written /tmp/x /run/x /dev/shm/x
        grep -q memory /sys/fs/cgroup/cgroup.subtree_control
        test -c /dev/ptmx -a -e /dev/fd/0 -a -d /sys/kernel/tracing
        nproc";
    let ran = shared().exec(&["sh", "-c", script]);
    assert_eq!(text(&ran.stdout), "2\n", "{}", show(&ran));
}

#[test]
fn orphans_are_reaped() {
    let script = "(sleep 0.2 &) ; sleep 1; grep -l 'State:.Z' /proc/[0-9]*/status";
    let zombies = shared().exec(&["sh", "-c", script]);
    assert_eq!(text(&zombies.stdout), "", "{}", show(&zombies));
}
