//! Tasks whose memory is in VASes must never run without it. Two ways in which
//! CRIU alone would let them:
//!
//! - **Images restored without the plugin.** CRIU's inventory says that we are
//!   needed, but CRIU 4.1.1 looks there only if a plugin directory exists. So the
//!   image of the process tree gets another name, and a note takes its place,
//!   which no CRIU mistakes for an image. In a restore we show CRIU the image.
//! - **CRIU killed when it has opened the last gate** for the restored tasks and
//!   our hook has not been called yet. They are traced then, and the kernel lets
//!   a dead tracer's tasks run on. So they are traced with `PTRACE_O_EXITKILL`:
//!   the kernel kills them with CRIU.

use std::ffi::{CStr, c_char, c_int, c_long, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::imports;

/// CRIU's image of the process tree; it is read after plugins are loaded.
const TREE: &CStr = c"pstree.img";
/// What it is called in our snapshots.
const HIDDEN: &CStr = c"pstree.vas.img";
/// What lies in its place.
const NOTE: &[u8] = b"The memory of these tasks is in VASes (see vas.json), not in these images.\n\
    Restore them with `vascriu restore`, or with `criu restore --libdir /usr/lib/vascriu`.\n";

/// Makes the images in `dir` useless to a CRIU without this plugin.
///
/// # Errors
/// The file system's.
pub fn hide_tree(dir: BorrowedFd<'_>) -> io::Result<()> {
    let dir = dir.as_raw_fd();
    // SAFETY: both names are NUL-terminated.
    if unsafe { libc::renameat(dir, TREE.as_ptr(), dir, HIDDEN.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC;
    // SAFETY: the name is NUL-terminated.
    let fd = unsafe { libc::openat(dir, TREE.as_ptr(), flags, 0o600) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let mut note = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    io::Write::write_all(&mut note, NOTE)
}

/// Stands in for CRIU's `ptrace`, which is variadic: on x86-64 that takes pointers
/// and integers in the same registers as these.
unsafe extern "C" fn ptrace(
    request: c_int,
    pid: libc::pid_t,
    addr: *mut c_void,
    data: *mut c_void,
) -> c_long {
    let with_options = [libc::PTRACE_SEIZE, libc::PTRACE_SETOPTIONS];
    let options = libc::PTRACE_O_EXITKILL as usize;
    let data = if with_options.iter().any(|&r| r.cast_signed() == request) {
        data.map_addr(|d| d | options)
    } else {
        data
    };
    // SAFETY: what CRIU asked for, with one option more.
    unsafe { libc::ptrace(request.cast_unsigned(), pid, addr, data) }
}

/// Stands in for CRIU's `openat`, as [`ptrace`] does.
unsafe extern "C" fn openat(dir: c_int, path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    // SAFETY: CRIU passes a NUL-terminated path.
    let hidden = unsafe { CStr::from_ptr(path) } == TREE;
    let path = if hidden { HIDDEN.as_ptr() } else { path };
    // SAFETY: what CRIU asked for, perhaps by its other name.
    unsafe { libc::openat(dir, path, flags, mode) }
}

/// Guards the restore that has begun.
///
/// # Errors
/// This CRIU cannot be guarded.
pub fn install() -> Result<(), imports::Error> {
    // SAFETY: these have the signatures of what they stand in for.
    unsafe {
        imports::divert(c"ptrace", ptrace as *const c_void)?;
        imports::divert(c"openat64", openat as *const c_void)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::path::PathBuf;

    use super::*;

    fn temp(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("directory");
        dir
    }

    #[test]
    fn a_hidden_tree_is_whole_under_its_other_name_and_explained_under_its_own() {
        let dir = temp("hidden");
        std::fs::write(dir.join("pstree.img"), "tree").expect("write");
        let fd = File::open(&dir).expect("open");
        hide_tree(fd.as_fd()).expect("hidden");
        assert_eq!(
            std::fs::read(dir.join("pstree.vas.img")).expect("read"),
            b"tree"
        );
        assert_eq!(std::fs::read(dir.join("pstree.img")).expect("read"), NOTE);
        // SAFETY: a NUL-terminated path.
        let shown = unsafe { openat(fd.as_raw_fd(), TREE.as_ptr(), libc::O_RDONLY, 0) };
        // SAFETY: openat has just made it for us.
        let shown = unsafe { File::from_raw_fd(shown) };
        assert_eq!(io::read_to_string(shown).expect("read"), "tree");
        std::fs::remove_dir_all(dir).expect("remove");
    }

    #[test]
    fn without_a_tree_there_is_nothing_to_hide() {
        let dir = temp("none");
        let fd = File::open(&dir).expect("open");
        assert!(hide_tree(fd.as_fd()).is_err());
        std::fs::remove_dir_all(dir).expect("remove");
    }
}
