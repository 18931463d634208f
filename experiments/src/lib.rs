//! The scripted experiments.
//!
//! Each has a host half, which boots a microVM and prints the results, and a
//! guest half, which measures; both are the one command `mvas-exp`, and talk
//! through the guest half's standard output (JSON). `docs/EXPERIMENTS.md`
//! defines every number.

pub mod bench;
pub mod checks;
pub mod criu;
pub mod criu_log;
pub mod demo;
pub mod host;
pub mod redis;
pub mod stats;
pub mod system;
pub mod table;
pub mod vas;
pub mod workload;
