// SPDX-License-Identifier: GPL-2.0-only
//! Disks of guests: what they give back, and one that hangs, as its image is on a file system that is
//! frozen.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::frozen::{Frozen, in_ext4};
use crate::host::{Vm, output, show, succeed, text, wait_for};

/// Starts a VM whose second disk hangs in a write.
fn with_hanging_disk(name: &str, test: impl FnOnce(&Vm, Frozen) + Send) {
    in_ext4(|mounted: &Path| {
        let image = mounted.join("disk.img");
        fs::write(&image, vec![0; 1 << 20]).expect("write");
        let vm = Vm::start(name, &["--disk", image.to_str().expect("UTF-8")]);
        let frozen = Frozen::new(mounted);
        let write = "dd if=/dev/zero of=/dev/vdb bs=4k count=1 oflag=direct </dev/null >&0 2>&0 &";
        let asked = vm.exec(&["sh", "-c", write]);
        assert!(asked.status.success(), "{}", show(&asked));
        let pid = Pid::from_raw(vm.pid());
        wait_for("the disk to hang", || frozen.hangs(pid));
        test(&vm, frozen);
    });
}

#[test]
fn what_a_guest_discards_or_zeroes_takes_no_room_on_the_host() {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder");
    let image = folder.path().join("disk.img");
    fs::write(&image, vec![7; 8 << 20]).expect("write");
    let allocated = || fs::metadata(&image).expect("an image").blocks() * 512;
    assert_eq!(allocated(), 8 << 20);
    let vm = Vm::start("discards", &["--disk", image.to_str().expect("UTF-8")]);
    for (command, left) in [
        ("blkdiscard --offset 0 --length 4M /dev/vdb", 4 << 20),
        (
            "blkdiscard --zeroout --offset 6M --length 1M /dev/vdb",
            3 << 20,
        ),
    ] {
        let said = vm.exec(&["sh", "-c", command]);
        assert!(said.status.success(), "{}", show(&said));
        assert_eq!(allocated(), left, "{command}");
    }
    let content = fs::read(&image).expect("an image");
    for (mib, byte) in [0, 0, 0, 0, 7, 7, 0, 7].into_iter().enumerate() {
        let content = &content[mib << 20..(mib + 1) << 20];
        assert!(content.iter().all(|b| *b == byte), "MiB {mib}");
    }
}

#[test]
fn a_disk_that_hangs_keeps_neither_the_rest_of_its_vm_nor_kill_waiting() {
    with_hanging_disk("hanging", |vm, frozen| {
        // vsock, and the other disk: what is read is not in the guest's cache any more.
        let read = "echo 3 > /proc/sys/vm/drop_caches; cat /usr/lib/mvas/agent | wc -c";
        let said = vm.exec(&["sh", "-c", read]);
        assert!(said.status.success(), "{}", show(&said));
        let len = text(&said.stdout).trim().parse::<u64>();
        assert!(len.is_ok_and(|len| len > 1 << 16), "{}", show(&said));
        // The kernel's log, and the counters.
        let said = vm.exec(&["sh", "-c", "echo '<1>still here' > /dev/kmsg"]);
        assert!(said.status.success(), "{}", show(&said));
        wait_for("the log", || {
            succeed(&["logs", "hanging"]).contains("still here")
        });
        let counted: serde_json::Value =
            serde_json::from_str(&succeed(&["metrics", "hanging", "--json"])).expect("JSON");
        assert_eq!(counted["disk1"]["writes"], 0, "{counted}");
        assert!(counted["disk0"]["reads"].as_u64() > Some(0), "{counted}");

        let killed = output(&["kill", "hanging"]);
        assert!(killed.status.success(), "{}", show(&killed));
        let says = text(&killed.stderr);
        assert!(says.contains("hangs"), "{says}");
        drop(frozen);
        wait_for("the end of its process", || {
            !succeed(&["ls"]).contains("hanging")
        });
        assert!(succeed(&["ls", "--all"]).contains("killed"));
    });
}

#[test]
fn a_vm_whose_disk_hangs_ends_in_order_when_told() {
    with_hanging_disk("hanging", |vm, frozen| {
        kill(Pid::from_raw(vm.pid()), Signal::SIGTERM).expect("kill");
        wait_for("its end", || !succeed(&["ls"]).contains("hanging"));
        let said = succeed(&["logs", "--monitor", "hanging"]);
        assert!(said.contains("stopped by signal 15"), "{said}");
        assert!(said.contains("hangs"), "{said}");
        // The name is free, though the image is not.
        let again = output(&["run", "--name", "hanging", "--mem", "1G", "--", "true"]);
        assert!(again.status.success(), "{}", show(&again));
        drop(frozen);
    });
}
