//! The guest's time stamp counter.

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

// Attributes of a vCPU, which kvm-ioctls has for other architectures only.
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_HAS_DEVICE_ATTR, KVMIO, 0xe3, kvm_device_attr);

/// Gives the guest the host's own TSC, offset 0, where KVM can (Linux 5.16): equal on all
/// vCPUs, and right on the simulated host too, whose CPU ignores the offset (QEMU's TCG), so
/// that with any other the TSC-deadline timer and kvm-clock would be wrong by it.
pub fn share_with_host(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let offset = 0u64;
    let attribute = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: (&raw const offset).addr() as u64,
        flags: 0,
    };
    // SAFETY: the kernel reads `attribute`, and through it nothing for this request.
    if unsafe { ioctl_with_ref(vcpu, KVM_HAS_DEVICE_ATTR(), &attribute) } != 0 {
        return Ok(());
    }
    // SAFETY: the kernel reads `attribute` and the `u64` that it points to; both live.
    match unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &attribute) } {
        0 => Ok(()),
        _ => Err(kvm_ioctls::Error::last()),
    }
}
