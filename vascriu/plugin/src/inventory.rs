// SPDX-License-Identifier: GPL-2.0-only
//! CRIU's images of a dump with VASes must never be restored without the plugin: the tasks
//! would run on zeroed memory.
//!
//! Our image directory is nobody else's, but a post-dump script may copy it. So CRIU's
//! inventory, which every CRIU reads first and refuses to do without, gets another name
//! from the start; vascriu gives it its own when it unpacks the images for a restore.

use std::ffi::{CStr, c_char, c_int, c_void};

use crate::imports;

/// `vascriu::snapshot::images::INVENTORY`.
const NAME: &CStr = c"inventory.img";
/// `vascriu::snapshot::images::HIDDEN_INVENTORY`.
const HIDDEN: &CStr = c"inventory.vas.img";

/// Stands in for CRIU's `openat`, which is variadic: on x86-64 that takes the mode in the
/// same register as this.
unsafe extern "C" fn openat(dir: c_int, path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    // SAFETY: CRIU passes a NUL-terminated path.
    let is_inventory = unsafe { CStr::from_ptr(path) } == NAME;
    let path = if is_inventory { HIDDEN.as_ptr() } else { path };
    // SAFETY: what CRIU asked for, perhaps by its other name.
    unsafe { libc::openat(dir, path, flags, mode) }
}

/// Hides the inventory of the dump that has begun.
///
/// # Errors
/// This CRIU opens its images in another way.
pub fn hide() -> Result<(), imports::Error> {
    // SAFETY: it has the signature of what it stands in for.
    unsafe { imports::divert(c"openat64", openat as *const c_void) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::{AsRawFd, FromRawFd};

    use vascriu::snapshot::images;

    use super::*;

    #[test]
    fn only_the_inventory_is_written_under_another_name() {
        assert_eq!(NAME.to_str(), Ok(images::INVENTORY));
        assert_eq!(HIDDEN.to_str(), Ok(images::HIDDEN_INVENTORY));
        let dir = std::env::temp_dir().join(format!("inventory-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("directory");
        let fd = File::open(&dir).expect("open");
        for name in [NAME, c"core-1.img"] {
            // SAFETY: a NUL-terminated path.
            let made = unsafe {
                openat(
                    fd.as_raw_fd(),
                    name.as_ptr(),
                    libc::O_CREAT | libc::O_RDWR,
                    0o600,
                )
            };
            assert!(made >= 0);
            // SAFETY: openat has just made it for us.
            drop(unsafe { File::from_raw_fd(made) });
        }
        assert!(dir.join(images::HIDDEN_INVENTORY).exists() && dir.join("core-1.img").exists());
        assert!(!dir.join(images::INVENTORY).exists());
        std::fs::remove_dir_all(dir).expect("remove");
    }
}
