//! How much room there is.

use std::path::Path;

use nix::sys::statvfs::statvfs;

use super::StoreError;
use super::error::failed;

/// What a file system of limited size has, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// All that it may hold.
    pub total: u64,
    /// What is free for us.
    pub free: u64,
}

impl Room {
    /// The room of the file system that `path` is in; `None` if it has no limit of its own, as
    /// what `mvasvm store mount` makes.
    ///
    /// # Errors
    /// There is no such path, or the kernel does not tell.
    pub fn of(path: &Path) -> Result<Option<Self>, StoreError> {
        let stat = statvfs(path).map_err(failed("look at the file system of", path))?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
        Ok((stat.blocks() > 0).then(|| Self {
            total: bytes(stat.blocks()),
            free: bytes(stat.blocks_available()),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_tells_its_room_or_has_no_limit() {
        let dir = tempfile::tempdir().unwrap();
        let room = Room::of(dir.path()).unwrap().unwrap();
        assert!(0 < room.free && room.free <= room.total, "{room:?}");
        // procfs has no blocks.
        assert_eq!(Room::of(Path::new("/proc")).unwrap(), None);
        assert!(Room::of(Path::new("/nonexistent")).is_err());
    }
}
