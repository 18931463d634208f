//! Where a guest's memory goes: into a snapshot store, or nowhere.

use std::path::Path;

use anyhow::{Context, Result};
use mvas_host::server::Grant;
use mvas_host::store::{Store, StoreError, StoreOptions};
use mvasvm::config::RamBacking;

use super::args::{GrantArg, RunArgs};
use super::note;
use super::store::default_dir;

/// Finds the store: the one that was asked for, or the default one if it has room.
///
/// # Errors
/// The store that was asked for cannot be used, or has no room for the guest's memory: what
/// could not be kept is not begun.
pub(super) fn backing(args: &RunArgs) -> Result<RamBacking> {
    let options = StoreOptions {
        limit: args.store_limit,
        force: args.store_force,
    };
    let mem = args.mem.bytes();
    let open = |dir: &Path| -> Result<Store, StoreError> {
        let store = Store::open(dir, options)?;
        store.check_room(mem)?;
        Ok(store)
    };
    let mib = mem >> 20;
    let store = match &args.store {
        Some(dir) if dir.as_os_str() == "none" => return Ok(RamBacking::Memfd),
        Some(dir) => open(dir).with_context(|| {
            let dir = dir.display();
            format!(
                "{mib} MiB of guest memory cannot be kept in {dir} (ask for less with --mem, name \
                 another --store, or keep snapshots in the guest with --store none)"
            )
        })?,
        None => match open(&default_dir()) {
            Ok(store) => store,
            Err(error) => {
                let error = anyhow::Error::from(error);
                note(format!("snapshots stay in the guest: {error:#}"));
                return Ok(RamBacking::Memfd);
            }
        },
    };
    let grant = match args.grant {
        GrantArg::Own => Grant::Own,
        GrantArg::All => Grant::All,
    };
    Ok(RamBacking::Store { store, grant })
}
