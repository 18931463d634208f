//! In-memory container snapshots: stock CRIU with a VAS plugin.
//!
//! [`device`] is `/dev/vas`; [`manifest`] ties a snapshot's tasks to their VASes
//! and is shared by the plugin and the command; [`store`] is where snapshots are in
//! this guest, [`stored`] ties it to the snapshot store outside; [`dump`] and
//! [`restore`] are the two jobs. docs/VASCRIU.md tells how and why.

pub mod check;
pub mod criu;
pub mod device;
pub mod dump;
pub mod manifest;
pub mod name;
pub mod options;
pub mod orphans;
pub mod pack;
pub mod process;
pub mod report;
pub mod rescue;
pub mod restore;
pub mod stats;
pub mod store;
pub mod stored;
