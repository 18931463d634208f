// SPDX-License-Identifier: GPL-2.0-only
//! In-memory container snapshots: stock CRIU with a VAS plugin.
//!
//! [`device`] is `/dev/vas`; [`snapshot`] is the object that all is about; [`store`] is the
//! way to the host's store; [`criu`] runs CRIU, [`service`] one that is started before;
//! [`clone`] makes many of one; [`cmd`] are the commands. docs/SNAPSHOT.md tells what a
//! snapshot is, docs/VASCRIU.md how it is made.

pub mod cli;
pub mod clone;
pub mod cmd;
pub mod criu;
pub mod device;
pub mod dropin;
pub mod engine;
pub mod process;
pub mod service;
pub mod snapshot;
pub mod socket;
pub mod store;
pub mod text;
