// SPDX-License-Identifier: GPL-2.0-only
//! The scripted experiments.
//!
//! Each has a host half, which boots microVMs on one snapshot store and prints
//! the results, and a guest half, which does one [`guest::Step`] after the other in
//! them; both are the one command `mvas-exp`, and talk JSON. `docs/EXPERIMENTS.md`
//! defines every number.

pub mod copies;
pub mod criu;
pub mod criu_log;
pub mod demo;
pub mod engines;
pub mod exp;
pub mod frame;
pub mod guest;
pub mod host;
pub mod load;
pub mod procfs;
pub mod program;
pub mod redis;
pub mod report;
pub mod sandbox;
pub mod series;
pub mod stats;
pub mod subject;
pub mod system;
pub mod table;
pub mod times;
pub mod trial;
pub mod vas;
pub mod workload;
