// SPDX-License-Identifier: GPL-2.0-only
//! Containers of Docker's that go from one microVM to another.

use crate::host::{Vm, scratch, succeed};
use crate::store::Shelf;

const FLAVOR: [&str; 2] = ["--image", "containers"];

/// Waits for Docker, has it use vascriu, and makes its image of the guest's files.
fn prepare(vm: &Vm) {
    let wait = "until [ -S /run/docker.sock ]; do sleep 0.1; done; docker version";
    vm.good(&["sh", "-c", wait]);
    vm.good(&["vascriu", "enable", "docker"]);
    vm.good(&[
        "sh",
        "-c",
        "/usr/lib/mvas/container-root | docker import - mvas:1",
    ]);
}

/// Has Docker make (`run -d`, `create`) a Redis.
fn redis(vm: &Vm, verb: &[&str]) {
    let server = [
        "redis-server",
        "--save",
        "",
        "--enable-debug-command",
        "yes",
    ];
    vm.good(&[&["docker"], verb, &["--name", "web", "mvas:1"], &server].concat());
}

fn ask(vm: &Vm, command: &[&str]) -> String {
    vm.good(&[&["docker", "exec", "web", "redis-cli"], command].concat())
}

/// Where dockerd keeps the checkpoints of the container.
fn checkpoints(vm: &Vm) -> String {
    let id = vm.good(&["docker", "inspect", "-f", "{{.Id}}", "web"]);
    format!("/var/lib/docker/containers/{}/checkpoints", id.trim())
}

#[test]
fn a_container_of_a_killed_vm_starts_in_another_with_its_data() {
    let shelf = Shelf::new();
    let first = shelf.vm("first", &FLAVOR);
    prepare(&first);
    redis(&first, &["run", "-d"]);
    let ready = "until docker exec web redis-cli ping; do sleep 0.1; done";
    first.good(&["sh", "-c", ready]);
    ask(&first, &["debug", "populate", "2000", "key", "1000"]);
    let digest = ask(&first, &["debug", "digest"]);
    first.good(&["docker", "checkpoint", "create", "web", "one"]);
    first.good(&["vascriu", "drain", "web", "--sync"]);
    let carried = scratch();
    let carried = carried.path().to_str().expect("UTF-8");
    let from = format!("first:{}/one", checkpoints(&first));
    succeed(&["cp", &from, carried]);
    succeed(&["kill", "first"]);
    drop(first);
    shelf.is_right();

    let second = shelf.vm("second", &[&FLAVOR[..], &["--grant", "all"]].concat());
    prepare(&second);
    redis(&second, &["create"]);
    let to = checkpoints(&second);
    second.good(&["mkdir", "-p", &to]);
    succeed(&["cp", &format!("{carried}/one"), &format!("second:{to}")]);
    second.good(&["docker", "start", "--checkpoint", "one", "web"]);
    assert_eq!(ask(&second, &["debug", "digest"]), digest);
    second.good(&["docker", "rm", "-f", "web"]);
    second.good(&["vascriu", "rm", "web"]);
    drop(second);
    shelf.is_empty();
}
