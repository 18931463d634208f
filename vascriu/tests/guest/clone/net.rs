// SPDX-License-Identifier: GPL-2.0-only
//! Copies that listen: on a bridge, on one port, in networks of their own.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{Copy, all_different, clone, copies, namespace};
use crate::harness::{Test, bad, errors, good, json, reap, rm, vascriu, wait_until};

/// All tests here.
pub const TESTS: &[Test] = &[
    ("each_copy_has_an_address_and_listens_as_before", bridge),
    (
        "of_copies_with_one_port_the_first_runs_and_the_second_is_named",
        port,
    ),
];

/// A bridge, and a Redis to be copied.
struct Network;

const PORT: &str = "6390";

impl Network {
    fn new() -> Self {
        for line in [
            "link add vastest type bridge",
            "addr add 10.99.0.1/24 dev vastest",
            "link set vastest up",
        ] {
            good(Command::new("ip").args(line.split(' ')));
        }
        Self
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", "vastest"]).status();
    }
}

fn redis(host: &str, command: &[&str]) -> String {
    let mut cli = Command::new("redis-cli");
    cli.args(["-h", host, "-p", PORT]).args(command);
    good(&mut cli).trim().to_owned()
}

fn redis_server(dir: &Path) -> i32 {
    let mut server = Command::new("redis-server");
    server
        .args([
            "--port",
            PORT,
            "--protected-mode",
            "no",
            "--save",
            "",
            "--dir",
        ])
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: setsid is async-signal-safe.
    unsafe { server.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into)) };
    let server = server.spawn().expect("redis-server");
    let pid = server.id().try_into().expect("a PID");
    reap(server);
    let mut ping = Command::new("redis-cli");
    ping.args(["-p", PORT, "ping"]);
    wait_until("Redis", || {
        ping.output().is_ok_and(|o| o.stdout == b"PONG\n")
    });
    pid
}

fn bridge(dir: &Path) {
    let _network = Network::new();
    let pid = redis_server(dir);
    redis("127.0.0.1", &["set", "key", "before"]);
    json(&mut crate::harness::dump(pid, "x"));
    let net = ["--net", "vastest", "--subnet"];
    let first = clone("x", 3, &[&net[..], &["10.99.0.0/24"]].concat());
    // The second time others are given: these are in use.
    let more = clone("x", 1, &[&net[..], &["10.99.0.0/24"]].concat());
    let all: Vec<_> = first.iter().chain(&more).collect();
    let addresses: Vec<_> = all
        .iter()
        .filter_map(|c| c.said["address"].as_str())
        .collect();
    assert_eq!(
        addresses,
        ["10.99.0.2", "10.99.0.3", "10.99.0.4", "10.99.0.5"]
    );
    for address in &addresses {
        assert_eq!(redis(address, &["get", "key"]), "before");
        redis(address, &["set", "key", address]);
    }
    for address in &addresses {
        assert_eq!(redis(address, &["get", "key"]), *address);
    }
    // It can reach out.
    let from = all[0].pid.to_string();
    let other = [
        "-n",
        "-t",
        &from,
        "redis-cli",
        "-h",
        addresses[1],
        "-p",
        PORT,
        "ping",
    ];
    assert_eq!(good(Command::new("nsenter").args(other)).trim(), "PONG");
    let full = [
        "clone",
        "x",
        "-n",
        "300",
        "--net",
        "vastest",
        "--subnet",
        "10.99.0.0/24",
    ];
    bad(&mut vascriu(&full), &["249 free", "300"]);
    let ports = || {
        Path::new("/sys/class/net/vastest/brif")
            .read_dir()
            .expect("bridge")
            .count()
    };
    let before = ports();
    first[0].kill();
    wait_until("its network to go", || ports() < before);
    let again = clone("x", 1, &[&net[..], &["10.99.0.0/24"]].concat());
    assert_eq!(again[0].said["address"], "10.99.0.2", "it is free again");
    for c in first[1..].iter().chain(&more).chain(&again) {
        c.kill();
    }
    rm(&["x"]);
}

fn port(dir: &Path) {
    let pid = redis_server(dir);
    redis("127.0.0.1", &["set", "key", "before"]);
    json(&mut crate::harness::dump(pid, "x"));
    let out = vascriu(&["clone", "x", "-n", "3", "--json"])
        .output()
        .expect("run");
    assert!(!out.status.success());
    let text = errors(&out);
    assert!(
        text.contains("x-2 failed") && text.contains("1 of 3 copies run"),
        "{text}"
    );
    assert!(text.contains("in use") && text.contains("--net"), "{text}");
    let said: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!(said["failed"][0]["index"], 2);
    assert_eq!(redis("127.0.0.1", &["get", "key"]), "before");
    copies(&said).iter().for_each(Copy::kill);
    // With a network each there is no such trouble.
    let all = clone("x", 2, &["--net", "none"]);
    let net = all.iter().map(|c| c.namespace("net"));
    assert!(all_different(net.chain([namespace("self", "net")])));
    for c in &all {
        let id = c.pid.to_string();
        let ask = ["-n", "-t", &id, "redis-cli", "-p", PORT, "get", "key"];
        assert_eq!(good(Command::new("nsenter").args(ask)).trim(), "before");
        c.kill();
    }
    rm(&["x"]);
}
