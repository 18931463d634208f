// SPDX-License-Identifier: GPL-2.0-only
//! Guests of a few instructions, for tests.

/// Defines a function that returns guest code, assembled for 64-bit mode. It is entered
/// at 1 MiB with the first GiB mapped; `0x3f8` is the serial port, `0x600` power-off.
macro_rules! guest_code {
    ($name:ident: $($line:literal)*) => {
        std::arch::global_asm!(
            ".pushsection .rodata",
            concat!(".globl mvas_test_guest_", stringify!($name)),
            concat!(".globl mvas_test_guest_", stringify!($name), "_end"),
            concat!("mvas_test_guest_", stringify!($name), ":"),
            $($line,)*
            concat!("mvas_test_guest_", stringify!($name), "_end:"),
            ".popsection",
        );
        pub fn $name() -> &'static [u8] {
            let (start, end): (*const u8, *const u8);
            // SAFETY: loads two addresses that the assembler defined just above.
            unsafe {
                std::arch::asm!(
                    concat!("lea {0}, [rip + mvas_test_guest_", stringify!($name), "]"),
                    concat!("lea {1}, [rip + mvas_test_guest_", stringify!($name), "_end]"),
                    out(reg) start,
                    out(reg) end,
                    options(nomem, nostack, pure),
                );
            }
            // SAFETY: they bound the constant bytes between them.
            unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
        }
    };
}

guest_code! { power_off:
    "mov dx, 0x600"
    "mov al, 0x34"
    "out dx, al"
    "2: hlt"
    "jmp 2b"
}

// Prints by a string instruction and by single writes.
guest_code! { hello:
    "lea rsi, [rip + 3f]"
    "mov ecx, 5"
    "mov dx, 0x3f8"
    "rep outsb"
    "mov al, '!'"
    "out dx, al"
    "mov dx, 0x600"
    "mov al, 0x34"
    "out dx, al"
    "2: hlt"
    "jmp 2b"
    "3: .ascii \"hello\""
}

guest_code! { acpi_reset:
    "mov dx, 0x602"
    "mov al, 1"
    "out dx, al"
    "2: hlt"
    "jmp 2b"
}

guest_code! { keyboard_reset:
    "mov al, 0xfe"
    "out 0x64, al"
    "2: hlt"
    "jmp 2b"
}

// The interrupt table is empty: the exception cannot be delivered, nor the next.
guest_code! { triple_fault:
    "ud2"
}

guest_code! { spin:
    "mov dx, 0x3f8"
    "mov al, 's'"
    "out dx, al"
    "2: jmp 2b"
}

guest_code! { sleep:
    "mov dx, 0x3f8"
    "mov al, 's'"
    "out dx, al"
    "2: cli"
    "hlt"
    "jmp 2b"
}

// Resets the first virtio device, and prints 'r' when that is done.
guest_code! { reset_device:
    "mov qword ptr [0xa018], 0xc003"
    "mov eax, 0xd0000083"
    "mov [0xc400], rax"
    "mov ebx, 0xd0000000"
    "mov dx, 0x3f8"
    "mov al, 's'"
    "out dx, al"
    "mov dword ptr [rbx + 0x70], 0"
    "mov al, 'r'"
    "out dx, al"
    "2: hlt"
    "jmp 2b"
}

// Maps the 2 MiB at 0xd0000000 (virtio windows) and jumps to where no device is.
guest_code! { run_from_nowhere:
    "mov qword ptr [0xa018], 0xc003"
    "mov eax, 0xd0000083"
    "mov [0xc400], rax"
    "mov eax, 0xd0100000"
    "jmp rax"
}

// Prints '1' for all ones from a port, '2' for all ones from device memory, and the magic
// value of the first virtio device.
guest_code! { probe:
    "mov dx, 0x1234"
    "in eax, dx"
    "mov dx, 0x3f8"
    "cmp eax, -1"
    "jne 2f"
    "mov al, '1'"
    "out dx, al"
    "2: mov qword ptr [0xa018], 0xc003"
    "mov eax, 0xd0000083"
    "mov [0xc400], rax"
    "mov ebx, 0xd0100000"
    "mov dword ptr [rbx], 5"
    "mov eax, [rbx]"
    "cmp eax, -1"
    "jne 2f"
    "mov al, '2'"
    "out dx, al"
    "2: mov ebx, 0xd0000000"
    "mov eax, [rbx]"
    "mov ecx, 4"
    "2: out dx, al"
    "shr eax, 8"
    "loop 2b"
    "mov dx, 0x600"
    "mov al, 0x34"
    "out dx, al"
    "2: hlt"
    "jmp 2b"
}

// Maps the 2 MiB at 4 GiB, which are a memory slot of their own; copies a byte there and
// back to below 4 GiB, and prints it.
guest_code! { high_memory:
    "mov qword ptr [0xa020], 0xc003"
    "mov rax, 0x100000083"
    "mov [0xc000], rax"
    "mov rbx, 0x100000000"
    "mov byte ptr [rbx + 0x1fffff], 'h'"
    "mov al, [rbx + 0x1fffff]"
    "mov [0x3ffffff], al"
    "mov al, [0x3ffffff]"
    "mov dx, 0x3f8"
    "out dx, al"
    "mov dx, 0x600"
    "mov al, 0x34"
    "out dx, al"
    "2: hlt"
    "jmp 2b"
}

// Waits until the first byte at 16 MiB is 'B', writes 'C' over it, and ends.
guest_code! { watch_memory:
    "mov dx, 0x3f8"
    "mov al, 's'"
    "out dx, al"
    "mov ebx, 0x1000000"
    "2: pause"
    "cmp byte ptr [rbx], 'B'"
    "jne 2b"
    "mov byte ptr [rbx], 'C'"
    "mov dx, 0x600"
    "mov al, 0x34"
    "out dx, al"
    "2: hlt"
    "jmp 2b"
}

// Starts the second vCPU (INIT, then start-up at 0x8000) through the local APIC, which it
// maps first. The second prints its APIC id, which is 1, and sets a flag; the first waits.
guest_code! { two_cpus:
    "mov qword ptr [0xa018], 0xc003"
    "mov eax, 0xfee00093"
    "mov [0xcfb8], rax"
    "lea rsi, [rip + 4f]"
    "mov edi, 0x8000"
    "lea rcx, [rip + 5f]"
    "sub rcx, rsi"
    "rep movsb"
    "mov byte ptr [0x8ff0], 0"
    "mov ebx, 0xfee00000"
    "mov dword ptr [rbx + 0x310], 0x01000000"
    "mov dword ptr [rbx + 0x300], 0x4500"
    "mov dword ptr [rbx + 0x310], 0x01000000"
    "mov dword ptr [rbx + 0x300], 0x4608"
    "2: pause"
    "cmp byte ptr [0x8ff0], 1"
    "jne 2b"
    "mov dx, 0x600"
    "mov al, 0x34"
    "out dx, al"
    "2: hlt"
    "jmp 2b"
    ".code16"
    "4: xor ax, ax"
    "mov ds, ax"
    "mov eax, 1"
    "cpuid"
    "shr ebx, 24"
    "lea ax, [bx + '0']"
    "mov dx, 0x3f8"
    "out dx, al"
    "mov byte ptr ds:[0x8ff0], 1"
    "2: hlt"
    "jmp 2b"
    "5:"
    ".code64"
}

// Both vCPUs write numbers that go up and read them back at once. The first does it in 16
// blocks from 16 MiB on, in their first and last page, and looks before it writes whether its
// last number is still there; the second at 0x8f00, among the code and the page tables. Ends
// when 0x8ff0 is 1. Prints 's' in the beginning, '.' in the end; 'X' or 'Y' if a number is
// not what it should be.
guest_code! { hammer:
    "mov qword ptr [0xa018], 0xc003"
    "mov eax, 0xfee00093"
    "mov [0xcfb8], rax"
    "lea rsi, [rip + 6f]"
    "mov edi, 0x8000"
    "lea rcx, [rip + 7f]"
    "sub rcx, rsi"
    "rep movsb"
    "mov ebx, 0xfee00000"
    "mov dword ptr [rbx + 0x310], 0x01000000"
    "mov dword ptr [rbx + 0x300], 0x4500"
    "mov dword ptr [rbx + 0x310], 0x01000000"
    "mov dword ptr [rbx + 0x300], 0x4608"
    "2: pause"
    "cmp dword ptr [0x8f00], 0"
    "je 2b"
    "mov dx, 0x3f8"
    "mov al, 's'"
    "out dx, al"
    "xor r8d, r8d"
    "2: mov r9, r8"
    "add r8, 1"
    "mov ebx, 0x1000000"
    "mov ecx, 16"
    "3: cmp [rbx], r9"
    "jne 4f"
    "cmp [rbx + 0x1ff000], r9"
    "jne 4f"
    "mov [rbx], r8"
    "mov [rbx + 0x1ff000], r8"
    "cmp [rbx], r8"
    "jne 4f"
    "cmp [rbx + 0x1ff000], r8"
    "jne 4f"
    "add rbx, 0x200000"
    "sub ecx, 1"
    "jnz 3b"
    "cmp byte ptr [0x8ff0], 1"
    "jne 2b"
    "mov al, '.'"
    "jmp 5f"
    "4: mov al, 'X'"
    "5: out dx, al"
    "mov dx, 0x600"
    "mov al, 0x34"
    "out dx, al"
    "2: hlt"
    "jmp 2b"
    ".code16"
    "6: xor ax, ax"
    "mov ds, ax"
    "xor ecx, ecx"
    "2: add ecx, 1"
    "mov ds:[0x8f00], ecx"
    "cmp ds:[0x8f00], ecx"
    "je 2b"
    "mov al, 'Y'"
    "mov dx, 0x3f8"
    "out dx, al"
    "2: hlt"
    "jmp 2b"
    "7:"
    ".code64"
}

// Writes at 16 MiB, says so, and ends when it reads zero there.
guest_code! { await_zero:
    "mov ebx, 0x1000000"
    "mov qword ptr [rbx], 5"
    "mov dx, 0x3f8"
    "mov al, 's'"
    "out dx, al"
    "2: pause"
    "cmp qword ptr [rbx], 0"
    "jne 2b"
    "mov dx, 0x600"
    "mov al, 0x34"
    "out dx, al"
    "2: hlt"
    "jmp 2b"
}

guest_code! { poke_port_80:
    "mov al, 1"
    "out 0x80, al"
    "2: hlt"
    "jmp 2b"
}
