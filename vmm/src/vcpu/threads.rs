// SPDX-License-Identifier: GPL-2.0-only
//! The threads that run vCPUs, and how they are made to leave the guest.
//!
//! A vCPU leaves KVM_RUN for a signal. The signal may arrive just before KVM_RUN, so its
//! handler also sets `immediate_exit`, which KVM checks on entry. The order that makes
//! this free of races: the stopper ends the VM, then signals; the vCPU thread clears
//! `immediate_exit`, then looks whether the VM has ended, then runs.

use std::cell::Cell;
use std::ptr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::{Vcpu, VcpuError};
use crate::devices::Bus;
use crate::end::{EndSignal, ExitReason};
use crate::metrics::VcpuMetrics;
use crate::sandbox::{Role, Sandbox, SandboxError};

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

extern "C" fn on_kick(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: points into the mapped `kvm_run` of the vCPU that this very thread runs;
        // cleared before the vCPU goes. KVM reads the byte as another CPU would.
        unsafe { flag.write_volatile(1) };
    }
}

/// Running vCPU threads; dropping it ends the VM and waits for them.
#[derive(Debug)]
pub struct VcpuThreads {
    threads: Vec<JoinHandle<()>>,
    /// Each thread waits at its own: a word lets it run, and the end of the channel ends it.
    gates: Vec<Sender<()>>,
    end: EndSignal,
}

impl VcpuThreads {
    /// Starts a thread for each vCPU, which enters its sandbox and waits for [`Self::run`].
    ///
    /// # Errors
    /// The host refuses a thread, its sandbox, or the signal handler; those started are stopped
    /// again.
    pub fn start(
        vcpus: Vec<Vcpu>,
        bus: &Arc<Bus>,
        end: &EndSignal,
        metrics: &Arc<VcpuMetrics>,
        sandbox: &Sandbox,
    ) -> Result<Self, VcpuError> {
        let refused = |cpu, source| VcpuError::Thread { cpu, source };
        register_signal_handler(SIGRTMIN(), on_kick).map_err(|e| refused(0, e.into()))?;
        let mut started = Self {
            threads: Vec::new(),
            gates: Vec::new(),
            end: end.clone(),
        };
        for vcpu in vcpus {
            let cpu = vcpu.index;
            let (bus, end, metrics) = (Arc::clone(bus), end.clone(), Arc::clone(metrics));
            let sandbox = sandbox.clone();
            let (gate, wait) = channel();
            let (tell, told) = channel();
            let thread = thread::Builder::new()
                .name(format!("vcpu{cpu}"))
                .spawn(move || {
                    let guard = EndOnPanic { cpu, end: &end };
                    let cause = if is_let_in(&sandbox, &tell, &wait) {
                        vcpu.run_until_end(&bus, &end, &metrics)
                    } else {
                        Ok(None)
                    };
                    std::mem::forget(guard);
                    if let Some(cause) = cause.transpose() {
                        end.end(cause);
                    }
                })
                .map_err(|source| refused(cpu, source))?;
            started.threads.push(thread);
            started.gates.push(gate);
            match told.recv() {
                Ok(Ok(())) => {}
                Ok(Err(source)) => return Err(VcpuError::Sandbox { cpu, source }),
                Err(_) => return Err(VcpuError::Panic { cpu }),
            }
        }
        Ok(started)
    }

    /// Lets the vCPUs run.
    pub fn run(&mut self) {
        for gate in self.gates.drain(..) {
            // One that has panicked has said so.
            let _ = gate.send(());
        }
    }
}

/// Confines a vCPU's thread, tells how that went, and waits; true: it may run.
fn is_let_in(
    sandbox: &Sandbox,
    tell: &Sender<Result<(), SandboxError>>,
    wait: &Receiver<()>,
) -> bool {
    // Whoever started it waits for the answer.
    tell.send(sandbox.enter(Role::Vcpu)).is_ok() && wait.recv().is_ok()
}

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        self.end.end(Ok(ExitReason::Stopped));
        self.gates.clear();
        for thread in &self.threads {
            // A thread that has ended already cannot be signalled, nor need it be.
            let _ = thread.kill(SIGRTMIN());
        }
        for thread in self.threads.drain(..) {
            // A panic has been reported by `EndOnPanic`.
            let _ = thread.join();
        }
    }
}

/// Ends the VM if its thread unwinds.
struct EndOnPanic<'a> {
    cpu: u32,
    end: &'a EndSignal,
}

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        self.end.end(Err(VcpuError::Panic { cpu: self.cpu }));
    }
}

impl Vcpu {
    /// Runs until the VM ends; returns the cause if this vCPU found it.
    fn run_until_end(
        mut self,
        bus: &Bus,
        end: &EndSignal,
        metrics: &VcpuMetrics,
    ) -> Result<Option<ExitReason>, VcpuError> {
        IMMEDIATE_EXIT.set(&raw mut self.fd.get_kvm_run().immediate_exit);
        let _clear = ClearOnDrop;
        loop {
            self.fd.set_kvm_immediate_exit(0);
            if end.is_ended() {
                return Ok(None);
            }
            if let Some(reason) = self.step(bus, metrics)? {
                return Ok(Some(reason));
            }
        }
    }
}

/// Forgets the vCPU before it goes, also when unwinding.
struct ClearOnDrop;

impl Drop for ClearOnDrop {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}
