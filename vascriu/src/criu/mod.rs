// SPDX-License-Identifier: GPL-2.0-only
//! Running CRIU: what it is told, which one it is, what it leaves.

pub mod options;
pub mod order;
pub mod orphans;
pub mod report;
pub mod rescue;
pub mod run;
pub mod settle;
pub mod stats;
pub mod stuck;
pub mod version;
pub mod work;
