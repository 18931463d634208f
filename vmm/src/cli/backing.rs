//! Where a guest's memory goes: into a snapshot store, or nowhere.

use std::path::Path;

use anyhow::{Context, Result};
use mvas_host::server::Grant;
use mvas_host::store::{Store, StoreOptions};
use mvasvm::config::RamBacking;
use nix::sys::statvfs::statvfs;

use super::args::{GrantArg, RunArgs};
use super::note;
use super::store::default_dir;

/// Finds the store: the one that was asked for, or the default one if it has room.
pub(super) fn backing(args: &RunArgs) -> Result<RamBacking> {
    let options = StoreOptions {
        limit: args.store_limit,
        force: args.store_force,
    };
    let open = |dir: &Path| Store::open(dir, options);
    let mem = args.mem.bytes();
    let store = match &args.store {
        Some(dir) if dir.as_os_str() == "none" => return Ok(RamBacking::Memfd),
        Some(dir) => {
            let store = open(dir).with_context(|| format!("no store in {}", dir.display()))?;
            if let Some(room) = room(dir).filter(|room| *room < mem) {
                note(format!(
                    "warning: {} has room for {} MiB and the guest may use {} MiB: if it does, it \
                     fails; remove snapshots, or ask for less memory",
                    dir.display(),
                    room >> 20,
                    mem >> 20
                ));
            }
            store
        }
        None => {
            let dir = default_dir();
            // A tmpfs may be mounted on it.
            let place = match dir.parent() {
                Some(parent) if !dir.is_dir() => parent,
                _ => dir.as_path(),
            };
            if let Some(room) = room(place).filter(|room| *room < mem) {
                note(format!(
                    "snapshots stay in the guest: {} has room for {} MiB, not for the guest's {} \
                     MiB; name another --store, or make it larger (mvasvm store mount)",
                    place.display(),
                    room >> 20,
                    mem >> 20
                ));
                return Ok(RamBacking::Memfd);
            }
            match open(&dir) {
                Ok(store) => store,
                Err(error) => {
                    let error = anyhow::Error::from(error);
                    note(format!("snapshots stay in the guest: {error:#}"));
                    return Ok(RamBacking::Memfd);
                }
            }
        }
    };
    let grant = match args.grant {
        GrantArg::Own => Grant::Own,
        GrantArg::All => Grant::All,
    };
    Ok(RamBacking::Store { store, grant })
}

/// Bytes free in a file system; `None` if it has no limit, or does not tell.
fn room(dir: &Path) -> Option<u64> {
    let stat = statvfs(dir).ok().filter(|stat| stat.blocks() > 0)?;
    Some(stat.blocks_available() * stat.fragment_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_tells_its_room_or_has_no_limit() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(room(dir.path()).is_some_and(|room| room > 0));
        // procfs has no blocks.
        assert_eq!(room(Path::new("/proc")), None);
        assert_eq!(room(Path::new("/nonexistent")), None);
    }
}
