// SPDX-License-Identifier: GPL-2.0-only
//! Whole microVMs, driven as users drive them: by the command line.
//!
//! They need a host with hardware virtualization, and the guest kernel and image in the cache
//! (`make image`). Where the host has none, a simulated host has:
//!
//! ```text
//! cargo build --release -p mvasvm
//! CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="$PWD/target/release/mvasvm sim --work $PWD --" \
//!     cargo test --release -p mvasvm --test e2e -- --test-threads=1
//! ```
//!
//! In the environment, `MVAS_CHURN_SECONDS` (50) says how long random operations go on,
//! `MVAS_KILLS` (3) how often their monitor is killed, and `MVAS_SEED` which ones they are.
//! `MVAS_KILLS=100` with `… -- churn::` takes about an hour on a simulated host.

#[path = "e2e/chaos.rs"]
mod chaos;
#[path = "e2e/churn.rs"]
mod churn;
#[path = "e2e/commands.rs"]
mod commands;
#[path = "e2e/disks.rs"]
mod disks;
#[path = "e2e/engines.rs"]
mod engines;
#[path = "e2e/forward.rs"]
mod forward;
#[path = "e2e/frozen.rs"]
mod frozen;
#[path = "e2e/host.rs"]
mod host;
#[path = "e2e/lifecycle.rs"]
mod lifecycle;
#[path = "e2e/snapshots.rs"]
mod snapshots;
#[path = "e2e/store.rs"]
mod store;
#[path = "e2e/terminal.rs"]
mod terminal;
