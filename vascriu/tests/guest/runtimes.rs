// SPDX-License-Identifier: GPL-2.0-only
//! The guest's settings, without which what runtimes like to use cannot be dumped or restored.

use std::fs;
use std::io;
use std::path::Path;

use crate::harness::{Test, Workload, restore, rm};
use crate::snapshots::small;
use crate::workload::Options;

/// All tests here.
pub const TESTS: &[Test] = &[
    ("programs_have_to_do_without_io_uring", no_io_uring),
    ("a_large_reservation_comes_back", reservation),
];

fn setting(path: &str) -> String {
    let value = fs::read_to_string(Path::new("/proc/sys").join(path)).expect(path);
    value.trim_end().to_owned()
}

fn no_io_uring(_: &Path) {
    assert_eq!(setting("kernel/io_uring_disabled"), "2");
    let mut parameters = [0_u8; 120];
    // SAFETY: it writes a struct io_uring_params, 120 bytes, and maps nothing.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    let error = io::Error::last_os_error();
    assert_eq!((ring, error.raw_os_error()), (-1, Some(libc::EPERM)));
}

fn reservation(dir: &Path) {
    let w = Workload::start(&Options {
        reserved_gib: 400,
        children: 1, // CRIU maps what a child inherits as if it were to be written
        ..small(dir)
    });
    w.dump("x", &[]);
    let (r, _) = restore("x", &w, &[]);
    assert_eq!(r.check(), 1);
    r.kill();
    rm(&["x"]);
    assert_eq!(setting("vm/overcommit_memory"), "1");
}
