// SPDX-License-Identifier: GPL-2.0-only
//! What a microVM is made of: validated values, no I/O.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use mvas_host::server::Grant;
use mvas_host::store::Store;
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use crate::metrics::Metrics;
use crate::sandbox::Sandbox;

/// Why a value given for a microVM cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// The name is empty, too long, or has a character that a folder name should not have.
    #[error(
        "{0:?} cannot be a VM name: use 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit"
    )]
    Name(String),
    /// The memory size is not a number with an optional unit.
    #[error(
        "{0:?} is not a memory size: write a number of MiB, or a number with K, M, G or T (for example 8G)"
    )]
    MemNotANumber(String),
    /// Less memory than a Linux kernel can start in.
    #[error("{given} bytes of guest memory are too few: at least {} MiB are needed to boot Linux", MemSize::MIN >> 20)]
    MemTooSmall {
        /// What was asked for, in bytes.
        given: u64,
    },
    /// More memory than any x86-64 CPU can address.
    #[error(
        "{0:?} of guest memory are more than any x86-64 CPU can address (52 bits, 4 PiB): ask for less"
    )]
    MemTooLarge(String),
    /// The size is not a whole number of 2 MiB blocks.
    #[error("{given} bytes of guest memory are not a multiple of 2 MiB: try {} MiB", (given >> 21) << 1)]
    MemNotAligned {
        /// What was asked for, in bytes.
        given: u64,
    },
    /// No vCPU, or not a number.
    #[error("{0:?} is not a number of vCPUs: use 1 or more")]
    Cpus(String),
}

/// The name of a microVM; also the name of its run-time folder.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VmName(String);

impl VmName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for VmName {
    type Err = ConfigError;

    fn from_str(s: &str) -> Result<Self, ConfigError> {
        let starts_well = s.starts_with(|c: char| c.is_ascii_alphanumeric());
        let all_allowed = s
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if starts_well && all_allowed && s.len() <= 64 {
            Ok(Self(s.to_owned()))
        } else {
            Err(ConfigError::Name(s.to_owned()))
        }
    }
}

/// Size of guest memory: bytes, a non-zero multiple of 2 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemSize(u64);

impl MemSize {
    /// The least that a Linux guest boots in, bytes.
    pub const MIN: u64 = 32 << 20;
    /// One past the most that the architecture can address, bytes.
    pub const LIMIT: u64 = 1 << 52;
    /// The unit in which memory is shared between guests, bytes.
    pub const BLOCK: u64 = 2 << 20;

    /// Checks a size in bytes.
    ///
    /// # Errors
    /// The size is too small, too large, or not a multiple of 2 MiB.
    pub fn from_bytes(bytes: u64) -> Result<Self, ConfigError> {
        if bytes < Self::MIN {
            Err(ConfigError::MemTooSmall { given: bytes })
        } else if bytes >= Self::LIMIT {
            Err(ConfigError::MemTooLarge(bytes.to_string()))
        } else if !bytes.is_multiple_of(Self::BLOCK) {
            Err(ConfigError::MemNotAligned { given: bytes })
        } else {
            Ok(Self(bytes))
        }
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for MemSize {
    type Err = ConfigError;

    /// As [`bytes_of`].
    fn from_str(s: &str) -> Result<Self, ConfigError> {
        let bytes = bytes_of(s)?;
        if bytes >= Self::LIMIT {
            return Err(ConfigError::MemTooLarge(s.to_owned()));
        }
        Self::from_bytes(bytes)
    }
}

/// Reads an amount of memory: `8G`, `512M`, `2T`, `1048576K`; a bare number counts MiB.
///
/// # Errors
/// It is not a number with such a unit, or overflows.
pub fn bytes_of(text: &str) -> Result<u64, ConfigError> {
    let not_a_number = || ConfigError::MemNotANumber(text.to_owned());
    let (digits, shift) = match text.char_indices().next_back().ok_or_else(not_a_number)? {
        (at, 'k' | 'K') => (&text[..at], 10),
        (at, 'm' | 'M') => (&text[..at], 20),
        (at, 'g' | 'G') => (&text[..at], 30),
        (at, 't' | 'T') => (&text[..at], 40),
        _ => (text, 20),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(not_a_number());
    }
    digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(|| ConfigError::MemTooLarge(text.to_owned()))
}

/// Number of vCPUs, at least one. What the host can run at most, [`crate::vm`] asks KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CpuCount(u32);

impl CpuCount {
    /// One vCPU.
    pub const ONE: Self = Self(1);

    /// The number itself.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl FromStr for CpuCount {
    type Err = ConfigError;

    fn from_str(s: &str) -> Result<Self, ConfigError> {
        match s.parse() {
            Ok(n) if n > 0 => Ok(Self(n)),
            _ => Err(ConfigError::Cpus(s.to_owned())),
        }
    }
}

/// What backs guest memory.
#[derive(Debug, Clone)]
pub enum RamBacking {
    /// An anonymous memory file: vanishes with the process. The guest reaches no store.
    Memfd,
    /// A RAM file in a snapshot store, which the guest reaches through a virtio-vas device.
    Store {
        /// The store.
        store: Store,
        /// Which of its snapshots the guest may have.
        grant: Grant,
    },
}

/// A raw disk image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskConfig {
    /// The image.
    pub path: PathBuf,
    /// The guest may not write; several VMs may share the image.
    pub read_only: bool,
}

/// The vsock device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VsockConfig {
    /// The guest's context id.
    pub cid: u64,
    /// The host's Unix socket.
    pub uds_path: PathBuf,
}

/// Host side of the virtio console (`hvc0`).
#[derive(Debug)]
pub struct ConsoleConfig {
    /// What the guest reads; `None`: nothing ever.
    pub input: Option<OwnedFd>,
    /// Where the guest's output goes.
    pub output: OwnedFd,
    /// Written (say, on SIGWINCH) when the terminal's size may have changed; the guest is then
    /// told the size of the terminal that `output` or `input` is. Non-blocking.
    pub resized: Option<EventFd>,
}

/// Everything that [`crate::run::run`] needs to know about a microVM.
pub struct VmConfig {
    /// Its name.
    pub name: VmName,
    /// Guest memory.
    pub mem: MemSize,
    /// What backs it.
    pub ram: RamBacking,
    /// Number of vCPUs.
    pub cpus: CpuCount,
    /// An ELF `vmlinux` or a `bzImage`.
    pub kernel: PathBuf,
    /// An initial RAM file system, if any.
    pub initramfs: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Disks in order: `/dev/vda`, `/dev/vdb`, …
    pub disks: Vec<DiskConfig>,
    /// vsock, if wanted.
    pub vsock: Option<VsockConfig>,
    /// `hvc0`, if wanted.
    pub console: Option<ConsoleConfig>,
    /// Where the bytes written to `ttyS0` go; see [`crate::devices::BoundedLog`].
    pub serial_output: Box<dyn Write + Send>,
    /// Bytes for `ttyS0` to read, if any (a pipe, terminal or socket).
    pub serial_input: Option<File>,
    /// Where the VM's parts put their counters while it is made.
    pub metrics: Arc<Metrics>,
    /// What its threads enter before the guest's first instruction, that of the caller included.
    pub sandbox: Sandbox,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mem(s: &str) -> Result<u64, ConfigError> {
        s.parse::<MemSize>().map(MemSize::bytes)
    }

    #[test]
    fn memory_sizes_are_read_in_every_unit() {
        for (text, bytes) in [
            ("64", 64 << 20),
            ("65536k", 64 << 20),
            ("512M", 512 << 20),
            ("8G", 8 << 30),
            ("64g", 64 << 30),
            ("2T", 2 << 40),
        ] {
            assert_eq!(mem(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn memory_sizes_that_make_no_sense_say_why() {
        for text in [
            "", "G", "8GB", "-1G", "1.5G", "0x10", " 8G", "8 G", "٣G", "many",
        ] {
            assert_eq!(mem(text), Err(ConfigError::MemNotANumber(text.into())));
        }
        for text in ["0", "0G", "31M"] {
            assert!(
                matches!(mem(text), Err(ConfigError::MemTooSmall { .. })),
                "{text}"
            );
        }
        for text in ["4096T", "99999999999999999999", "18446744073709551615G"] {
            assert_eq!(mem(text), Err(ConfigError::MemTooLarge(text.into())));
        }
        let error = mem("33M").unwrap_err();
        assert!(error.to_string().contains("try 32 MiB"), "{error}");
    }

    #[test]
    fn names_that_would_leave_their_folder_or_hide_are_refused() {
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "-x",
            ".x",
            "a b",
            "ä",
            "a\0",
            &"x".repeat(65),
        ] {
            assert_eq!(bad.parse::<VmName>(), Err(ConfigError::Name(bad.into())));
        }
        for good in ["a", "vm-1", "0.x_y", &"x".repeat(64)] {
            assert_eq!(good.parse::<VmName>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn a_number_of_vcpus_is_one_or_more() {
        assert_eq!("1".parse(), Ok(CpuCount::ONE));
        for bad in ["0", "-1", "", "two", "1.0", "4294967296"] {
            assert_eq!(bad.parse::<CpuCount>(), Err(ConfigError::Cpus(bad.into())));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_size_or_an_error_and_sizes_are_whole_blocks(text in "\\PC*") {
            if let Ok(bytes) = mem(&text) {
                prop_assert!((MemSize::MIN..MemSize::LIMIT).contains(&bytes));
                prop_assert!(bytes.is_multiple_of(MemSize::BLOCK));
            }
        }
    }
}
