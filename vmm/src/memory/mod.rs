// SPDX-License-Identifier: GPL-2.0-only
//! Guest memory: the RAM file, its place in guest-physical address space, KVM's memory
//! slots, and remapping. One module owns all four, because the host store remaps 2 MiB
//! blocks under running vCPUs.
//!
//! Nothing may ever pin guest memory (`docs/VMM.md` says why): a pinned page would be written to
//! after it became part of a snapshot.

mod bus_error;
mod guest_ram;
pub mod layout;
mod mapping;

use std::io;

use thiserror::Error;

use mvas_host::RamError;

pub use guest_ram::GuestRam;
pub use layout::PhysBits;

/// Guest memory as devices see it.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;

/// Why guest memory could not be provided or remapped.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The guest's CPUs could not address all of it.
    #[error(
        "{} MiB of guest memory are too many: this host's CPUs address {bits} bits, so at most {} MiB",
        mem >> 20, limit >> 20
    )]
    TooLarge {
        /// What was asked for, bytes.
        mem: u64,
        /// Width of a guest-physical address.
        bits: u32,
        /// The most that fits, bytes.
        limit: u64,
    },
    /// The RAM file could not be made.
    #[error("cannot make the guest's RAM file")]
    File(#[from] RamError),
    /// The RAM file is smaller than the guest's memory.
    #[error("the RAM file has {file} bytes, the guest {mem}")]
    FileSize {
        /// Size of the file, bytes.
        file: u64,
        /// Size of guest memory, bytes.
        mem: u64,
    },
    /// The host's address space has no room.
    #[error("cannot map {} MiB of guest memory: ask for less, or raise the limit on virtual memory (ulimit -v)", len >> 20)]
    Map {
        /// Bytes to map.
        len: u64,
        /// Why `mmap` failed.
        source: io::Error,
    },
    /// Two ranges of guest memory overlap or overflow.
    #[error("guest memory cannot be laid out")]
    Layout(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// KVM refused a memory slot.
    #[error("KVM refuses memory slot {slot} ({} MiB at {gpa:#x})", len >> 20)]
    Slot {
        /// Slot number.
        slot: u32,
        /// Its guest-physical address.
        gpa: u64,
        /// Its size, bytes.
        len: u64,
        /// KVM's reason.
        source: kvm_ioctls::Error,
    },
    /// A device touched guest memory that the host could not provide.
    #[error("the host has no memory for a page of the guest's")]
    Lost,
    /// Accesses that find no memory could not be caught.
    #[error("cannot watch the guest's memory")]
    Watch(#[source] io::Error),
    /// The kernel does not tell what this process's pages are.
    #[error("cannot open /proc/self/pagemap: mount /proc")]
    Pagemap(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    /// All Rust sources below a folder.
    fn sources(folder: &Path, each: &mut impl FnMut(&Path, &str)) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, each);
            } else if path.extension().is_some_and(|end| end == "rs") {
                each(&path, &fs::read_to_string(&path).unwrap());
            }
        }
    }

    #[test]
    fn nothing_here_can_pin_guest_memory() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for folder in ["vmm/src", "mvas-host/src"] {
            sources(&root.join(folder), &mut |path, text| {
                let code = text.lines().filter(|line| !line.trim().starts_with("//"));
                // Cut in two, so that this file has none of them.
                for (head, tail) in [
                    ("O_DIR", "ECT"),
                    ("MSG_ZERO", "COPY"),
                    ("vm", "splice"),
                    ("io_", "uring"),
                    ("/dev/v", "host"),
                    ("/dev/v", "fio"),
                ] {
                    let word = format!("{head}{tail}");
                    for line in code.clone() {
                        // One that opens folders has it as its beginning.
                        let line = line.replace("O_DIRECTORY", "");
                        assert!(!line.contains(&word), "{}: {word}", path.display());
                    }
                }
            });
        }
        let locked = fs::read_to_string(root.join("Cargo.lock")).unwrap();
        for name in ["io-uring", "tokio-uring", "rio", "vhost", "vfio-ioctls"] {
            assert!(!locked.contains(&format!("name = \"{name}\"\n")), "{name}");
        }
    }
}
