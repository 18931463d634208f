// SPDX-License-Identifier: GPL-2.0-only
//! Guest RAM files and the snapshot store in host DRAM. Knows nothing of KVM.
//!
//! [`RamFile`] is the file that backs a guest's memory; [`FileRange`] names a part of it.
//! [`store`] keeps snapshots in such files; [`server`] does what a guest asks for.

mod locked;
mod ram;
mod range;
pub mod server;
pub mod store;

pub use ram::{RamError, RamFile};
pub use range::{FileOffset, FileRange};
