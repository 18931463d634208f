//! The rate of the guest's time stamp counter.

use kvm_bindings::{KVM_CAP_VM_TSC_CONTROL, KVMIO};
use kvm_ioctls::VmFd;
use vmm_sys_util::ioctl::ioctl_with_val;
use vmm_sys_util::ioctl_io_nr;

// kvm-ioctls has this for vCPUs only.
ioctl_io_nr!(KVM_SET_TSC_KHZ, KVMIO, 0xa2);

/// Makes the TSC of vCPUs made from now on run at the host's rate, where KVM can be told so
/// (Linux 5.18).
///
/// It should by itself. But a KVM built into the host's kernel keeps the first estimate of
/// the rate (`kvm_timer_init`); where the refined one is more than 250 ppm higher, it gives
/// vCPUs a scaling ratio of 0 (`set_tsc_khz`): the guest's clock is wrong and its TSC-deadline
/// timer late, both by the host's uptime. The simulated host is such a host.
pub fn run_at_host_rate(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    const HOST_RATE: libc::c_ulong = 0;
    if vm.check_extension_raw(KVM_CAP_VM_TSC_CONTROL.into()) <= 0 {
        return Ok(());
    }
    // SAFETY: the argument of this request is a number.
    match unsafe { ioctl_with_val(vm, KVM_SET_TSC_KHZ(), HOST_RATE) } {
        0 => Ok(()),
        _ => Err(kvm_ioctls::Error::last()),
    }
}
