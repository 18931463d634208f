// SPDX-License-Identifier: GPL-2.0-only
//! The rate of the guest's time stamp counter.

use kvm_bindings::KVMIO;
use kvm_ioctls::VmFd;
use vmm_sys_util::ioctl::ioctl_with_val;
use vmm_sys_util::ioctl_io_nr;

// kvm-ioctls has this for vCPUs only, where it would be too late.
ioctl_io_nr!(KVM_SET_TSC_KHZ, KVMIO, 0xa2);

/// Makes the TSC of the vCPU that is made next run at the host's rate. Call it right before: the
/// host refines its rate about two seconds after its boot, and what is made after that by the rate
/// of before has the fault below. (Seen: a guest whose timers fired after 44, 95, 197, 402 s.)
///
/// It should by itself. But a KVM built into the host's kernel keeps the first estimate of
/// the rate (`kvm_timer_init`); where the refined one is more than 250 ppm higher, it gives
/// vCPUs a scaling ratio of 0 (`set_tsc_khz`): the guest's clock is wrong and its TSC-deadline
/// timer late, both by the host's uptime. The simulated host is such a host.
pub fn run_at_host_rate(vm: &VmFd) {
    const HOST_RATE: libc::c_ulong = 0;
    // KVM_CAP_VM_TSC_CONTROL does not tell whether this works: it is about scaling.
    // SAFETY: the argument of this request is a number.
    if unsafe { ioctl_with_val(vm, KVM_SET_TSC_KHZ(), HOST_RATE) } != 0 {
        // Before Linux 5.18; what KVM chose by itself is right on almost every host.
        let error = kvm_ioctls::Error::last();
        tracing::debug!(%error, "KVM does not take the rate of the TSC for a whole VM");
    }
}
