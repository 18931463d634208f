// SPDX-License-Identifier: GPL-2.0-only
//! Keeps the simulated host's kernel from patching its own code while guests run.

use anyhow::Result;
use kvm_ioctls::Kvm;

/// Makes a VM with one vCPU that never runs, and keeps both for ever.
///
/// The first VM of a host, and the first local APIC that is disabled, switch static branches
/// in the scheduler and in KVM by patching code; the last ones switch them back. QEMU's TCG
/// at times lets the other CPU run into the breakpoint that the kernel puts there meanwhile
/// (seen: "Oops: int3" in `finish_task_switch` as a VM started). With these two kept, the
/// branches are switched once, before any guest runs.
pub(super) fn hold_kvm() -> Result<()> {
    let vm = Kvm::new()?.create_vm()?;
    vm.create_irq_chip()?;
    let vcpu = vm.create_vcpu(0)?;
    std::mem::forget((vm, vcpu));
    Ok(())
}
