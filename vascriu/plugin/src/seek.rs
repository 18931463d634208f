// SPDX-License-Identifier: GPL-2.0-only
//! CRIU asks by `lseek(SEEK_DATA)` which pages of shared memory it has to write to its images.
//! Of what we copy into a VAS there are none.

use std::collections::HashSet;
use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::sync::Mutex;

use crate::imports;

/// Files of one device.
#[derive(Debug)]
struct Hidden {
    dev: u64,
    inodes: HashSet<u64>,
}

static HIDDEN: Mutex<Option<Hidden>> = Mutex::new(None);

fn is_hidden(fd: c_int) -> bool {
    let Ok(hidden) = HIDDEN.lock() else {
        return false;
    };
    let Some(hidden) = hidden.as_ref().filter(|h| !h.inodes.is_empty()) else {
        return false;
    };
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: there is room for what it writes.
    if unsafe { libc::fstat(fd, stat.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: fstat has succeeded.
    let stat = unsafe { stat.assume_init() };
    stat.st_dev == hidden.dev && hidden.inodes.contains(&stat.st_ino)
}

/// Stands in for CRIU's `lseek`.
unsafe extern "C" fn lseek(fd: c_int, offset: libc::off64_t, whence: c_int) -> libc::off64_t {
    if whence == libc::SEEK_DATA && is_hidden(fd) {
        // SAFETY: the calling thread's own errno.
        unsafe { *libc::__errno_location() = libc::ENXIO };
        return -1;
    }
    // SAFETY: what CRIU asked for.
    unsafe { libc::lseek64(fd, offset, whence) }
}

/// From now on files of this device can be hidden.
///
/// # Errors
/// This CRIU asks in another way.
pub fn install(dev: u64) -> Result<(), imports::Error> {
    // SAFETY: it has the signature of what it stands in for.
    unsafe { imports::divert(c"lseek64", lseek as *const std::ffi::c_void) }?;
    if let Ok(mut hidden) = HIDDEN.lock() {
        *hidden = Some(Hidden {
            dev,
            inodes: HashSet::new(),
        });
    }
    Ok(())
}

/// Hides one; whether it was not hidden yet.
pub fn hide(inode: u64) -> bool {
    let Ok(mut hidden) = HIDDEN.lock() else {
        return false;
    };
    hidden.as_mut().is_some_and(|h| h.inodes.insert(inode))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_hidden_file_has_no_data() {
        let mut file = tempfile::tempfile().expect("file");
        file.write_all(b"data").expect("write");
        let stat = file.metadata().expect("stat");
        *HIDDEN.lock().expect("lock") = Some(Hidden {
            dev: stat.dev(),
            inodes: HashSet::new(),
        });
        let seek = |file: &File, whence| {
            // SAFETY: three integers.
            unsafe { lseek(file.as_raw_fd(), 0, whence) }
        };
        assert_eq!(seek(&file, libc::SEEK_DATA), 0);
        assert!(hide(stat.ino()) && !hide(stat.ino()));
        assert_eq!(seek(&file, libc::SEEK_DATA), -1);
        assert_eq!(
            std::io::Error::last_os_error().raw_os_error(),
            Some(libc::ENXIO)
        );
        assert_eq!(seek(&file, libc::SEEK_END), 4);
        let other = tempfile::tempfile().expect("file");
        (&other).write_all(b"data").expect("write");
        assert_eq!(seek(&other, libc::SEEK_DATA), 0);
    }
}
