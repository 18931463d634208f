// SPDX-License-Identifier: GPL-2.0-only
//! A monitor whose disk hangs at its end.

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::frozen::{Frozen, in_ext4};
use super::records::{Home, signal};
use super::{exit_code, wait_until};

// Starts the first virtio device, a disk, has it write its first sector, and does so again and
// again. What the device reads is copied to 32 MiB first: a queue of three descriptors, a header, a
// ring. Then registers are written, up to the kick: each an offset and a value.
guest_code! { write_to_disk:
    "mov qword ptr [0xa018], 0xc003"
    "mov eax, 0xd0000083"
    "mov [0xc400], rax"
    "lea rsi, [rip + 4f]"
    "mov edi, 0x2000000"
    "mov ecx, 80"
    "rep movsb"
    "mov ebx, 0xd0000000"
    "mov dx, 0x3f8"
    "mov al, 's'"
    "out dx, al"
    "2: lea rsi, [rip + 5f]"
    "3: mov eax, [rsi]"
    "mov ecx, [rsi + 4]"
    "mov [rbx + rax], ecx"
    "add rsi, 8"
    "cmp eax, 0x50"
    "jne 3b"
    "jmp 2b"
    "4: .quad 0x2000030, 0x0001000100000010"
    ".quad 0x2002000, 0x0002000100000200"
    ".quad 0x2003000, 0x0000000200000001"
    ".quad 1, 0"
    ".short 0, 1, 0, 0, 0, 0, 0, 0"
    "5: .long 0x70, 0, 0x70, 1, 0x70, 3, 0x24, 1, 0x20, 1, 0x70, 11, 0x30, 0, 0x38, 4"
    ".long 0x80, 0x2000000, 0x90, 0x2000040, 0xa0, 0x2001000, 0x44, 1, 0x70, 15, 0x50, 0"
}

#[test]
fn memory_that_a_disk_still_has_at_the_end_comes_back_when_the_disk_lets_go() {
    in_ext4(|mounted| {
        let image = mounted.join("disk");
        std::fs::write(&image, [7; 4096]).unwrap();
        let home = Home::new();
        let disk = ["--disk", image.to_str().unwrap()];
        let mut child = home.run_until_it_says_s("box", write_to_disk(), &disk);
        let frozen = Frozen::new(mounted);
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        wait_until("the disk should hang", || frozen.hangs(pid));
        signal(&child, Signal::SIGTERM);
        wait_until("it should have an end", || {
            home.good(&["ls"]).lines().count() < 2
        });
        assert_eq!(home.end()["cause"], "stopped");
        // The request has the memory, and the process.
        assert_eq!(child.try_wait().unwrap(), None);
        assert_eq!(home.ram_files(), 1);
        drop(frozen);
        assert_eq!(exit_code(child), Some(143));
        // Nobody runs `mvasvm` for that.
        wait_until("its memory should come back", || home.ram_files() == 0);
    });
}
