// SPDX-License-Identifier: GPL-2.0-only
//! The KVM virtual machine: what the host offers, in-kernel interrupt controllers, memory.

mod tsc;

use std::io;
use std::path::{Path, PathBuf};

use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_CAP_PMU_CAPABILITY, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY,
    KVM_PMU_CAP_DISABLE, kvm_enable_cap, kvm_pit_config,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use crate::config::CpuCount;
use crate::memory::layout::{KVM_IDENTITY_MAP_BASE, KVM_TSS_BASE};
use crate::memory::{GuestMemory, GuestRam, MemoryError, PhysBits};
use crate::vcpu::cpuid;

/// The I/O APIC and the legacy interrupt controllers name a CPU by 8 bits, one value of
/// which means all: more vCPUs would need interrupt remapping.
const MAX_CPUS: u32 = 255;

/// What we use of KVM that an old or foreign KVM might not have.
const NEEDED: [(Cap, &str); 8] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Why there is no virtual machine.
#[derive(Debug, Error)]
pub enum VmError {
    /// No such device.
    #[error("{} does not exist: this host offers no KVM here; load kvm_intel or kvm_amd, or run on the simulated host (--hw sim)", .0.display())]
    NoKvm(PathBuf),
    /// No right to use it.
    #[error("no right to use {}: become root, or a member of the group kvm", .0.display())]
    KvmForbidden(PathBuf),
    /// It cannot be opened.
    #[error("cannot open {}", path.display())]
    KvmOpen {
        /// The device.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not KVM, or a KVM from before 2007.
    #[error("{} is not KVM with API version {}: its answer is {version}", path.display(), KVM_API_VERSION)]
    NotKvm {
        /// The device.
        path: PathBuf,
        /// What it answered.
        version: i32,
    },
    /// The host's KVM lacks something.
    #[error(
        "this host's KVM lacks {0}: use a host kernel of 5.10 or later, or the simulated host (--hw sim)"
    )]
    Missing(&'static str),
    /// More vCPUs than the host can run.
    #[error("{asked} vCPUs are too many: this host runs at most {max} in one VM")]
    TooManyCpus {
        /// What was asked for.
        asked: u32,
        /// What KVM allows.
        max: u32,
    },
    /// A KVM call failed.
    #[error("KVM cannot {what}")]
    Kvm {
        /// What was tried.
        what: &'static str,
        /// KVM's reason.
        source: kvm_ioctls::Error,
    },
    /// The memory slots were refused.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Makes a closure for `map_err` that says what KVM could not do.
pub(crate) fn cannot(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VmError {
    move |source| VmError::Kvm { what, source }
}

/// The host's KVM.
#[derive(Debug)]
pub struct Host {
    kvm: Kvm,
    cpuid: CpuId,
}

impl Host {
    /// Where KVM is found.
    pub const DEVICE: &str = "/dev/kvm";

    /// Opens KVM and checks that it has all we need.
    ///
    /// # Errors
    /// The device is missing, forbidden or not KVM, or lacks a capability.
    pub fn open(path: &Path) -> Result<Self, VmError> {
        let open_error = |e: kvm_ioctls::Error| match e.errno() {
            libc::ENOENT | libc::ENODEV | libc::ENXIO => VmError::NoKvm(path.to_owned()),
            libc::EACCES | libc::EPERM => VmError::KvmForbidden(path.to_owned()),
            errno => VmError::KvmOpen {
                path: path.to_owned(),
                source: io::Error::from_raw_os_error(errno),
            },
        };
        let c_path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| VmError::NoKvm(path.to_owned()))?;
        let kvm = Kvm::new_with_path(&c_path).map_err(open_error)?;
        let version = kvm.get_api_version();
        if u32::try_from(version) != Ok(KVM_API_VERSION) {
            return Err(VmError::NotKvm {
                path: path.to_owned(),
                version,
            });
        }
        if let Some((_, name)) = NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(VmError::Missing(name));
        }
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(cannot("list the CPU features that it supports"))?;
        Ok(Self { kvm, cpuid })
    }

    /// Width of guest-physical addresses.
    pub fn phys_bits(&self) -> PhysBits {
        cpuid::phys_bits(&self.cpuid)
    }

    /// The CPU features that KVM supports.
    pub(crate) fn cpuid(&self) -> &CpuId {
        &self.cpuid
    }

    /// Whether the in-kernel local APIC has the TSC-deadline timer, which
    /// `KVM_GET_SUPPORTED_CPUID` does not tell.
    pub(crate) fn has_tsc_deadline_timer(&self) -> bool {
        self.kvm.check_extension(Cap::TscDeadlineTimer)
    }

    /// The most vCPUs that one VM can have here.
    pub fn max_cpus(&self) -> u32 {
        u32::try_from(self.kvm.get_max_vcpus())
            .unwrap_or(MAX_CPUS)
            .min(MAX_CPUS)
    }

    /// Refuses more vCPUs than the host allows; warns where they share host CPUs.
    ///
    /// # Errors
    /// `cpus` is more than [`Self::max_cpus`].
    pub fn check_cpus(&self, cpus: CpuCount) -> Result<(), VmError> {
        let (asked, max) = (cpus.get(), self.max_cpus());
        if asked > max {
            return Err(VmError::TooManyCpus { asked, max });
        }
        let host = std::thread::available_parallelism().map_or(1, usize::from);
        if usize::try_from(asked).is_ok_and(|asked| asked > host) {
            tracing::warn!("{asked} vCPUs share {host} host CPUs: the guest will be slow at times");
        }
        Ok(())
    }
}

/// Has KVM refuse the registers of performance counters, which tell what else the host's CPU
/// does. Before Linux 5.18 it cannot: then only CPUID says that there are none.
fn without_counters(fd: &VmFd) -> Result<(), VmError> {
    let can = fd.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into());
    if can.cast_unsigned() & KVM_PMU_CAP_DISABLE == 0 {
        return Ok(());
    }
    let mut cap = kvm_enable_cap {
        cap: KVM_CAP_PMU_CAPABILITY,
        ..Default::default()
    };
    cap.args[0] = KVM_PMU_CAP_DISABLE.into();
    fd.enable_cap(&cap)
        .map_err(cannot("take performance counters from the guest"))
}

/// A virtual machine with its memory and interrupt controllers, still without vCPUs.
#[derive(Debug)]
pub struct Vm {
    fd: VmFd,
    /// Keeps mapped what the slots point to.
    _memory: GuestMemory,
}

impl Vm {
    /// Makes a VM with `ram` in its slots, the PIC, I/O APIC, local APICs and PIT of KVM.
    ///
    /// # Errors
    /// KVM refuses a part.
    pub fn new(host: &Host, ram: &GuestRam) -> Result<Self, VmError> {
        let fd = host.kvm.create_vm().map_err(cannot("create a VM"))?;
        without_counters(&fd)?;
        fd.set_identity_map_address(KVM_IDENTITY_MAP_BASE)
            .map_err(cannot("place its identity map"))?;
        fd.set_tss_address(KVM_TSS_BASE)
            .map_err(cannot("place its task state segment"))?;
        fd.create_irq_chip()
            .map_err(cannot("create the interrupt controllers"))?;
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        fd.create_pit2(pit).map_err(cannot("create the timer"))?;
        ram.register(&fd)?;
        Ok(Self {
            fd,
            _memory: ram.memory().clone(),
        })
    }

    /// Makes vCPU `index`. Its TSC runs at the host's rate.
    pub(crate) fn create_vcpu(&self, index: u32) -> Result<VcpuFd, kvm_ioctls::Error> {
        tsc::run_at_host_rate(&self.fd);
        self.fd.create_vcpu(index.into())
    }

    /// Raises interrupt `gsi` whenever `event` is written.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn add_interrupt(&self, event: &EventFd, gsi: u32) -> Result<(), VmError> {
        self.fd
            .register_irqfd(event, gsi)
            .map_err(cannot("connect an interrupt"))
    }

    /// Writes `event` whenever the guest writes `value` (32 bits) to address `mmio`,
    /// without an exit to us.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn add_doorbell(&self, event: &EventFd, mmio: u64, value: u32) -> Result<(), VmError> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(mmio), value)
            .map_err(cannot("connect a doorbell"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_missing_device_is_told_from_one_that_is_not_kvm() {
        let missing = Host::open(Path::new("/nonexistent/kvm")).unwrap_err();
        assert!(matches!(missing, VmError::NoKvm(_)));
        assert!(missing.to_string().contains("--hw sim"), "{missing}");
        let not_kvm = Host::open(Path::new("/dev/null")).unwrap_err();
        assert!(matches!(not_kvm, VmError::NotKvm { .. }), "{not_kvm}");
        let nul = Host::open(Path::new("/dev/k\0vm")).unwrap_err();
        assert!(matches!(nul, VmError::NoKvm(_)));
    }

    #[test]
    fn a_forbidden_device_says_who_may_use_it() {
        // Opening a running program for writing is refused even to root, as EACCES is to
        // others; a folder is neither missing nor forbidden.
        let folder = tempfile::tempdir().unwrap();
        let error = Host::open(folder.path()).unwrap_err();
        assert!(matches!(error, VmError::KvmOpen { .. }), "{error}");
        let file = folder.path().join("kvm");
        fs::write(&file, b"").unwrap();
        let mut mode = fs::metadata(&file).unwrap().permissions();
        mode.set_readonly(true);
        fs::set_permissions(&file, mode).unwrap();
        let error = as_nobody(|| Host::open(&file).unwrap_err());
        assert!(matches!(error, VmError::KvmForbidden(_)), "{error}");
        assert!(error.to_string().contains("group kvm"), "{error}");
    }

    /// Runs `f` in a thread that has no root rights over files.
    fn as_nobody<T: Send>(f: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    // SAFETY: changes the file-system user of this thread only, which
                    // ends with the closure.
                    unsafe { libc::syscall(libc::SYS_setfsuid, 65534) };
                    f()
                })
                .join()
                .unwrap()
        })
    }

    #[test]
    fn more_cpus_than_the_host_allows_are_refused_with_the_maximum() {
        let host = Host::open(Path::new(Host::DEVICE)).expect("these tests need /dev/kvm");
        let max = host.max_cpus();
        assert!(max >= 1);
        let count = |n: u32| n.to_string().parse::<CpuCount>().unwrap();
        host.check_cpus(count(max)).unwrap();
        let error = host.check_cpus(count(max + 1)).unwrap_err();
        assert!(error.to_string().contains(&max.to_string()), "{error}");
        assert!(host.check_cpus(count(u32::MAX)).is_err());
    }
}
