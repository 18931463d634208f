// SPDX-License-Identifier: GPL-2.0-only
//! vCPUs: registers, CPUID, MSRs, and the threads that run them.

pub(crate) mod cpuid;
mod exit;
mod regs;
mod threads;

use std::io;
use std::sync::Arc;

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::VcpuFd;
use thiserror::Error;

use crate::boot::Entry;
use crate::config::CpuCount;
use crate::memory::GuestMemory;
use crate::sandbox::SandboxError;
use crate::vm::{Host, Vm};

pub use threads::VcpuThreads;

/// Why a vCPU could not be made or could not go on.
#[derive(Debug, Error)]
pub enum VcpuError {
    /// A KVM call failed.
    #[error("vCPU {cpu}: KVM cannot {what}")]
    Kvm {
        /// Which vCPU.
        cpu: u32,
        /// What was tried.
        what: &'static str,
        /// KVM's reason.
        source: kvm_ioctls::Error,
    },
    /// The CPUID does not fit.
    #[error(
        "vCPU {cpu}: {entries} CPUID entries are more than KVM takes ({KVM_MAX_CPUID_ENTRIES}): this monitor does not know the host's CPU"
    )]
    Cpuid {
        /// Which vCPU.
        cpu: u32,
        /// What would be needed.
        entries: usize,
    },
    /// KVM accepted fewer MSRs than it was given.
    #[error("vCPU {cpu}: KVM refuses MSR {msr:#x}")]
    Msr {
        /// Which vCPU.
        cpu: u32,
        /// The first one refused.
        msr: u32,
    },
    /// The boot structures do not fit in guest memory.
    #[error("cannot write the boot page tables into guest memory")]
    BootMemory(#[source] vm_memory::GuestMemoryError),
    /// The CPU refused to enter the guest.
    #[error(
        "vCPU {cpu}: the host CPU refuses to enter the guest (hardware reason {reason:#x}): the vCPU state is not valid on this CPU"
    )]
    FailEntry {
        /// Which vCPU.
        cpu: u32,
        /// What the hardware said.
        reason: u64,
    },
    /// KVM gave up.
    #[error("vCPU {cpu}: KVM gave up ({reason}) at guest address {rip:#x}")]
    Internal {
        /// Which vCPU.
        cpu: u32,
        /// KVM's suberror, and the instruction bytes if it told them.
        reason: String,
        /// The guest's instruction pointer.
        rip: u64,
    },
    /// The host could not provide a page of guest memory.
    #[error(
        "vCPU {cpu}: the host cannot provide guest memory at guest address {rip:#x}: is it out of memory, or the RAM file's file system full?"
    )]
    MemoryFault {
        /// Which vCPU.
        cpu: u32,
        /// The guest's instruction pointer.
        rip: u64,
    },
    /// An exit that this monitor never asked for.
    #[error("vCPU {cpu}: unexpected exit from KVM: {exit}")]
    Unexpected {
        /// Which vCPU.
        cpu: u32,
        /// The exit.
        exit: String,
    },
    /// No thread could be started.
    #[error("cannot start a thread for vCPU {cpu}")]
    Thread {
        /// Which vCPU.
        cpu: u32,
        /// Why.
        source: io::Error,
    },
    /// A thread cannot be confined.
    #[error("vCPU {cpu} cannot start")]
    Sandbox {
        /// Which vCPU.
        cpu: u32,
        /// Why.
        source: SandboxError,
    },
    /// A thread panicked.
    #[error("internal error: vCPU {cpu} panicked; this is a bug in mvasvm, its message is above")]
    Panic {
        /// Which vCPU.
        cpu: u32,
    },
}

/// One vCPU, ready to run.
#[derive(Debug)]
pub struct Vcpu {
    index: u32,
    fd: VcpuFd,
    /// The VM's memory must stay mapped while the vCPU can run.
    _vm: Arc<Vm>,
}

impl Vcpu {
    /// Makes `count` vCPUs: the first enters the kernel at `entry`, the others wait for it
    /// to start them.
    ///
    /// # Errors
    /// KVM refuses a part of their state, or the boot page tables do not fit.
    pub fn create_all(
        host: &Host,
        vm: &Arc<Vm>,
        memory: &GuestMemory,
        count: CpuCount,
        entry: Entry,
    ) -> Result<Vec<Self>, VcpuError> {
        regs::write_boot_tables(memory)?;
        (0..count.get())
            .map(|index| Self::create(host, vm, index, count, entry))
            .collect()
    }

    fn create(
        host: &Host,
        vm: &Arc<Vm>,
        index: u32,
        count: CpuCount,
        entry: Entry,
    ) -> Result<Self, VcpuError> {
        let cannot = |what| {
            move |source| VcpuError::Kvm {
                cpu: index,
                what,
                source,
            }
        };
        let fd = vm.create_vcpu(index).map_err(cannot("create the vCPU"))?;
        let cpuid = cpuid::for_vcpu(host.cpuid(), index, count, host.has_tsc_deadline_timer())?;
        fd.set_cpuid2(&cpuid).map_err(cannot("set its CPUID"))?;
        regs::set_msrs(&fd, index)?;
        regs::set_lapic(&fd).map_err(cannot("set its local APIC"))?;
        if index == 0 {
            regs::enter_long_mode(&fd, entry).map_err(cannot("set its registers"))?;
        }
        Ok(Self {
            index,
            fd,
            _vm: Arc::clone(vm),
        })
    }
}
