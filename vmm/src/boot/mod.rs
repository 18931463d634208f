// SPDX-License-Identifier: GPL-2.0-only
//! Boot: kernel loader, boot parameters, ACPI tables.
//!
//! Both kernel formats are entered by Linux's 64-bit boot protocol; no firmware runs.

mod acpi;
mod kernel;
mod params;
#[cfg(test)]
pub(crate) mod test_kernel;

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryError};

use crate::config::CpuCount;
use crate::memory::GuestMemory;

/// The longest kernel command line, bytes (`COMMAND_LINE_SIZE` of x86 less the end mark).
pub const CMDLINE_MAX: usize = 2047;

/// Why a guest could not be made ready to boot.
#[derive(Debug, Error)]
pub enum BootError {
    /// The file cannot be read.
    #[error("cannot read the {what} {}", path.display())]
    Read {
        /// "kernel" or "initramfs".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is something else.
    #[error("{} is not a kernel that can be booted here: {found}; give a 64-bit x86 vmlinux or bzImage", path.display())]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What it looks like.
        found: String,
    },
    /// The file ends too early.
    #[error("the kernel {} is truncated: it has {len} bytes of at least {needed}; build or copy it again", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its size, bytes.
        len: u64,
        /// What its own header says, bytes.
        needed: u64,
    },
    /// The kernel's parts are not where they can be loaded.
    #[error("the kernel {} cannot be loaded", path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// The loader's reason.
        source: linux_loader::loader::Error,
    },
    /// Too little memory.
    #[error("the {what} {} needs {} MiB of guest memory below 3 GiB, and there are {}: give the guest more (--mem)", path.display(), needed.div_ceil(1 << 20), have >> 20)]
    DoesNotFit {
        /// "kernel" or "initramfs".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes there are.
        have: u64,
    },
    /// The command line is too long or has a 0 byte.
    #[error("the kernel command line cannot be used: {0}")]
    Cmdline(String),
    /// The boot structures do not fit in guest memory.
    #[error("cannot write boot parameters into guest memory")]
    Memory(#[from] GuestMemoryError),
}

/// What to boot.
#[derive(Debug)]
pub struct BootSpec<'a> {
    /// An ELF `vmlinux` or a `bzImage`.
    pub kernel: &'a Path,
    /// An initial RAM file system, if any.
    pub initramfs: Option<&'a Path>,
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// Number of vCPUs.
    pub cpus: CpuCount,
    /// Where the guest finds its virtio devices.
    pub virtio: &'a [MmioDevice],
}

/// A device that ACPI tells the guest of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioDevice {
    /// Its registers: one window of [`crate::memory::layout::VIRTIO_MMIO_SIZE`].
    pub base: u32,
    /// Its interrupt (GSI), edge-triggered.
    pub irq: u32,
}

/// How the first vCPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The kernel's 64-bit entry point.
    pub rip: GuestAddress,
    /// The zero page, `struct boot_params`.
    pub boot_params: GuestAddress,
}

/// Puts kernel, initramfs, command line, boot parameters and ACPI tables into guest memory.
///
/// # Errors
/// A file is missing, truncated or not what it should be, or does not fit in memory.
pub fn load(memory: &GuestMemory, spec: &BootSpec) -> Result<Entry, BootError> {
    let kernel = kernel::load(memory, spec.kernel)?;
    let initramfs = spec
        .initramfs
        .map(|path| kernel::load_initramfs(memory, path, &kernel))
        .transpose()?;
    let rsdp = acpi::write(memory, spec.cpus, spec.virtio)?;
    let boot_params = params::write(memory, &kernel, initramfs, spec.cmdline, rsdp)?;
    Ok(Entry {
        rip: kernel.entry,
        boot_params,
    })
}
