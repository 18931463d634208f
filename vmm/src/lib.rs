// SPDX-License-Identifier: GPL-2.0-only
//! mvasvm: the rust-vmm microVM monitor of VAS-CRIU.
//!
//! [`run::run`] takes a [`config::VmConfig`] and blocks until the microVM ends.
//! `docs/VMM.md` shows the memory map, the boot protocol, the threads and the ways out.

pub mod boot;
pub mod config;
pub mod devices;
pub mod end;
pub mod memory;
pub mod metrics;
pub mod run;
pub mod sandbox;
#[cfg(test)]
#[path = "../tests/e2e/frozen.rs"]
mod test_frozen;
#[cfg(test)]
mod test_store;
#[cfg(test)]
#[path = "../tests/vas/tmpfs.rs"]
mod test_tmpfs;
pub mod vcpu;
pub mod virtio;
pub mod vm;
