// SPDX-License-Identifier: GPL-2.0-only
//! Which directories are taken as a store.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};

use mvas_host::store::{Store, StoreError, StoreOptions};
use nix::unistd::geteuid;

use crate::support::{folder, private_folder};

fn open(path: &std::path::Path) -> Result<Store, StoreError> {
    Store::open(path, StoreOptions::default())
}

#[test]
fn a_missing_directory_is_made_for_its_owner_alone() {
    let folder = folder();
    let path = folder.path().join("store");
    let store = open(&path).unwrap();
    assert_eq!(store.path(), path);
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    assert_eq!(
        fs::read_to_string(path.join("version")).unwrap(),
        "mvas-store 2\n"
    );
    assert!(open(&folder.path().join("no/where")).is_err());
}

#[test]
fn links_are_not_followed() {
    let folder = folder();
    let (real, link) = (folder.path().join("real"), folder.path().join("link"));
    open(&real).unwrap();
    symlink(&real, &link).unwrap();
    for path in [link.clone(), link.join(""), link.join(".")] {
        let error = open(&path).unwrap_err();
        assert!(
            matches!(error, StoreError::NotADirectory(_)),
            "{path:?}: {error}"
        );
    }
    fs::write(folder.path().join("file"), "").unwrap();
    let error = open(&folder.path().join("file")).unwrap_err();
    assert!(matches!(error, StoreError::NotADirectory(_)), "{error}");
}

#[test]
fn a_directory_of_others_or_open_to_others_is_refused() {
    let folder = folder();
    for mode in [0o755, 0o770, 0o701] {
        fs::set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
        let error = open(folder.path()).unwrap_err();
        assert!(matches!(error, StoreError::Open(_)), "{error}");
    }
    fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).unwrap();
    if !geteuid().is_root() {
        eprintln!("SKIPPED: only root can give a directory away");
        return;
    }
    chown(folder.path(), Some(1234), None).unwrap();
    let error = open(folder.path()).unwrap_err();
    assert!(
        matches!(error, StoreError::Foreign { owner: 1234, .. }),
        "{error}"
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn another_file_system_needs_force() {
    let disk = private_folder(env!("CARGO_TARGET_TMPDIR"));
    let error = open(disk.path()).unwrap_err();
    assert!(matches!(error, StoreError::NotTmpfs(_)), "{error}");
    assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0);
    let options = StoreOptions {
        force: true,
        ..StoreOptions::default()
    };
    assert!(Store::open(disk.path(), options).is_ok());
}

#[test]
fn a_directory_with_something_else_is_left_alone() {
    let folder = folder();
    fs::write(folder.path().join("thesis.tex"), "").unwrap();
    let error = open(folder.path()).unwrap_err();
    assert!(matches!(error, StoreError::NotAStore { .. }), "{error}");
    assert!(error.to_string().contains("thesis.tex"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_store_of_another_format_is_refused() {
    let folder = folder();
    open(folder.path()).unwrap();
    for version in ["mvas-store 1\n", "mvas-store 3\n", "", "\u{ff}"] {
        fs::write(folder.path().join("version"), version).unwrap();
        let error = open(folder.path()).unwrap_err();
        assert!(matches!(error, StoreError::Version { .. }), "{error}");
    }
}

#[test]
fn a_store_whose_making_was_cut_off_is_finished() {
    let folder = folder();
    fs::create_dir(folder.path().join("ram")).unwrap();
    fs::write(folder.path().join("version.new"), "mvas-st").unwrap();
    let store = open(folder.path()).unwrap();
    assert!(store.check().unwrap().problems.is_empty());
    // Somebody tidied up.
    fs::remove_dir(folder.path().join("drafts")).unwrap();
    let store = open(folder.path()).unwrap();
    assert!(store.check().unwrap().problems.is_empty());
}

#[test]
fn many_may_make_a_store_at_once() {
    let folder = folder();
    let path = folder.path().join("store");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| open(&path).unwrap().start_run("vm", 2 << 20).unwrap());
        }
    });
    assert!(open(&path).unwrap().check().unwrap().problems.is_empty());
}

#[test]
fn a_file_that_does_not_belong_there_is_reported_and_left() {
    let folder = folder();
    let store = open(folder.path()).unwrap();
    for path in [
        "stray",
        "ram/notes",
        "uses/x",
        "snapshots/.snap",
        "drafts/.x",
    ] {
        fs::write(folder.path().join(path), "").unwrap();
    }
    store.gc(true).unwrap();
    assert_eq!(store.check().unwrap().problems.len(), 5);
}
