// SPDX-License-Identifier: GPL-2.0-only
//! A snapshot store of a test.

use mvas_host::store::{Store, StoreOptions};
use tempfile::TempDir;

/// A new store in memory; its folder goes with the first of both.
pub fn test_store() -> (TempDir, Store) {
    let folder = tempfile::Builder::new()
        .prefix("mvas-test-")
        .tempdir_in("/dev/shm")
        .expect("tests need a tmpfs on /dev/shm");
    let store = Store::open(&folder.path().join("store"), StoreOptions::default());
    let store = store.expect("a new store");
    (folder, store)
}
