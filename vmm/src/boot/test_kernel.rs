// SPDX-License-Identifier: GPL-2.0-only
//! The least kernel file, for tests.

/// An ELF file with one segment, `code`, loaded and entered at 1 MiB.
pub fn elf(code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 1 << 20;
    const HEADERS: u64 = 64 + 56;
    let mut file = Vec::new();
    file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend_from_slice(&2u16.to_le_bytes()); // executable
    file.extend_from_slice(&62u16.to_le_bytes()); // x86-64
    file.extend_from_slice(&1u32.to_le_bytes());
    for word in [BASE, 64, 0] {
        file.extend_from_slice(&word.to_le_bytes()); // entry, program headers, sections
    }
    file.extend_from_slice(&0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    file.extend_from_slice(&1u32.to_le_bytes()); // PT_LOAD
    file.extend_from_slice(&7u32.to_le_bytes());
    let len = code.len() as u64;
    for word in [HEADERS, BASE, BASE, len, len, 4096] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(code);
    file
}
