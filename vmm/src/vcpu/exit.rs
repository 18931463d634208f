// SPDX-License-Identifier: GPL-2.0-only
//! One run of a vCPU until KVM hands it back, and what to do about it.

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::VcpuExit;

use super::{Vcpu, VcpuError};
use crate::devices::Bus;
use crate::end::ExitReason;
use crate::metrics::VcpuMetrics;

impl Vcpu {
    /// Enters the guest once. `Ok(None)`: go on.
    pub(super) fn step(
        &mut self,
        bus: &Bus,
        metrics: &VcpuMetrics,
    ) -> Result<Option<ExitReason>, VcpuError> {
        let cpu = self.index;
        match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                metrics.pio.inc();
                bus.port_read(port, data);
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                metrics.pio.inc();
                bus.port_write(port, data);
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                metrics.mmio.inc();
                bus.mmio_read(address, data);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                metrics.mmio.inc();
                bus.mmio_write(address, data);
            }
            Ok(VcpuExit::Intr) => metrics.interrupted.inc(),
            Ok(VcpuExit::Shutdown) => return Ok(Some(ExitReason::TripleFault)),
            Ok(VcpuExit::SystemEvent(kind, data)) => {
                return match kind {
                    KVM_SYSTEM_EVENT_SHUTDOWN => Ok(Some(ExitReason::PowerOff)),
                    KVM_SYSTEM_EVENT_RESET => Ok(Some(ExitReason::Reset)),
                    KVM_SYSTEM_EVENT_CRASH => Ok(Some(ExitReason::TripleFault)),
                    _ => Err(VcpuError::Unexpected {
                        cpu,
                        exit: format!("system event {kind} {data:x?}"),
                    }),
                };
            }
            Ok(VcpuExit::FailEntry(reason, _)) => return Err(VcpuError::FailEntry { cpu, reason }),
            Ok(VcpuExit::InternalError) => return Err(self.internal_error()),
            Ok(VcpuExit::MemoryFault { .. }) => return Err(self.memory_fault()),
            Ok(exit) => {
                return Err(VcpuError::Unexpected {
                    cpu,
                    exit: format!("{exit:?}"),
                });
            }
            Err(e) => match e.errno() {
                // EAGAIN: a vCPU that waits for its start-up message was interrupted.
                libc::EINTR | libc::EAGAIN => metrics.interrupted.inc(),
                libc::EFAULT | libc::ENOMEM | libc::EHWPOISON => return Err(self.memory_fault()),
                _ => {
                    return Err(VcpuError::Kvm {
                        cpu,
                        what: "run the guest",
                        source: e,
                    });
                }
            },
        }
        Ok(None)
    }

    fn rip(&self) -> u64 {
        self.fd.get_regs().map_or(0, |regs| regs.rip)
    }

    fn memory_fault(&self) -> VcpuError {
        VcpuError::MemoryFault {
            cpu: self.index,
            rip: self.rip(),
        }
    }

    fn internal_error(&mut self) -> VcpuError {
        // SAFETY: KVM filled this variant: the exit reason is KVM_EXIT_INTERNAL_ERROR. Its
        // fields are plain integers, valid whatever KVM wrote.
        let (suberror, ndata, data) = unsafe {
            let internal = self.fd.get_kvm_run().__bindgen_anon_1.internal;
            (internal.suberror, internal.ndata, internal.data)
        };
        let known = data.len().min(usize::try_from(ndata).unwrap_or(data.len()));
        VcpuError::Internal {
            cpu: self.index,
            reason: describe_internal_error(suberror, &data[..known]),
            rip: self.rip(),
        }
    }
}

/// What KVM's suberror means (Documentation/virt/kvm/api.rst, `KVM_EXIT_INTERNAL_ERROR`).
fn describe_internal_error(suberror: u32, data: &[u64]) -> String {
    const INSTRUCTION_BYTES: u64 = 1;
    match (suberror, data) {
        // flags, then the size in the lowest byte and up to 15 instruction bytes.
        (KVM_INTERNAL_ERROR_EMULATION, [flags, first, rest @ ..])
            if flags & INSTRUCTION_BYTES != 0 =>
        {
            let bytes: Vec<u8> = std::iter::once(first)
                .chain(rest)
                .flat_map(|word| word.to_le_bytes())
                .collect();
            let size = usize::from(bytes[0]).min(bytes.len() - 1);
            format!(
                "it cannot emulate the instruction {:02x?}",
                &bytes[1..=size]
            )
        }
        (KVM_INTERNAL_ERROR_EMULATION, _) => "it cannot emulate an instruction".into(),
        (KVM_INTERNAL_ERROR_SIMUL_EX, _) => "exceptions at the same time".into(),
        (KVM_INTERNAL_ERROR_DELIVERY_EV, _) => {
            format!("an exit while delivering an event, {data:x?}")
        }
        (KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, _) => {
            format!("an exit that it does not know, {data:x?}")
        }
        _ => format!("internal error {suberror}, {data:x?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_instruction_that_kvm_cannot_emulate_is_shown() {
        let data = [1, u64::from_le_bytes([3, 0x0f, 0xc7, 0x0f, 0, 0, 0, 0]), 0];
        let text = describe_internal_error(KVM_INTERNAL_ERROR_EMULATION, &data);
        assert!(text.contains("[0f, c7, 0f]"), "{text}");
    }

    proptest! {
        #[test]
        fn any_error_data_is_described(suberror in 0..6u32, data in proptest::collection::vec(any::<u64>(), 0..16)) {
            prop_assert!(!describe_internal_error(suberror, &data).is_empty());
        }
    }
}
