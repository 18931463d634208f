// SPDX-License-Identifier: GPL-2.0-only
//! `mvasvm store mount`.

use std::path::Path;
use std::process::Command;

use crate::Shm;

/// Runs a script where what it mounts is its own; `@MVASVM` is the command, `@DIR` a folder.
fn with_own_mounts(dir: &Path, script: &str) -> Option<(String, String)> {
    if !nix::unistd::getuid().is_root() {
        eprintln!("SKIPPED: needs root to mount");
        return None;
    }
    let script = script
        .replace("@MVASVM", env!("CARGO_BIN_EXE_mvasvm"))
        .replace("@DIR", dir.to_str().unwrap());
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Some((text(output.stdout), text(output.stderr)))
}

#[test]
fn mount_makes_a_tmpfs_with_huge_pages_for_the_owner_of_the_directory() {
    let folder = tempfile::tempdir().unwrap();
    let script = "mkdir -m 700 @DIR/s && chown 1234 @DIR/s &&
        @MVASVM store mount --store @DIR/s && grep @DIR/s /proc/mounts && stat -c %u:%a @DIR/s &&
        chown 0 @DIR/s && @MVASVM store check --store @DIR/s
        @MVASVM store mount --store @DIR/s";
    let Some((out, err)) = with_own_mounts(folder.path(), script) else {
        return;
    };
    for word in [
        "tmpfs",
        "huge=advise",
        "nosuid",
        "size=0k", // the kernel's word for no limit
        "\n1234:700\n",
        "0 problems",
    ] {
        assert!(out.contains(word), "{word}: {out}{err}");
    }
    assert!(
        err.contains("mounted on") && err.contains("already"),
        "{err}"
    );
}

#[test]
fn a_mount_of_limited_size_promises_each_vm_its_memory() {
    let folder = tempfile::tempdir().unwrap();
    let script = "mkdir -m 700 @DIR/s && @MVASVM store mount --size 64M --store @DIR/s &&
        grep @DIR/s /proc/mounts";
    let Some((out, err)) = with_own_mounts(folder.path(), script) else {
        return;
    };
    assert!(out.contains("size=65536k"), "{out}{err}");
}

#[test]
fn mount_hides_nothing_and_follows_no_link() {
    let shm = Shm::with_snapshots();
    let script = "@MVASVM store mount --store @DIR/store; ln -s @DIR @DIR/link
        @MVASVM store mount --store @DIR/link; touch @DIR/file
        @MVASVM store mount --store @DIR/file; @MVASVM store mount --store @DIR/no/where
        setpriv --reuid nobody --clear-groups @MVASVM store mount --store @DIR/x";
    let Some((out, err)) = with_own_mounts(shm.0.path(), script) else {
        return;
    };
    let errors: Vec<_> = err.lines().collect();
    assert_eq!((out.as_str(), errors.len()), ("", 5), "{err}");
    assert!(errors[0].contains("not empty"), "{err}");
    assert!(errors[1].contains("not a directory"), "{err}");
    assert!(errors[2].contains("not a directory"), "{err}");
    assert!(errors[3].contains("cannot make"), "{err}");
    assert!(
        errors[4].contains("root") || errors[4].contains("ermission"),
        "{err}"
    );
}

#[test]
fn memory_that_a_store_cannot_keep_is_refused_with_the_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let script = "mkdir -m 700 @DIR/s && mount -t tmpfs -o size=64m,mode=700 none @DIR/s &&
        touch @DIR/kernel @DIR/initramfs && export XDG_RUNTIME_DIR=@DIR MVAS_STORE=@DIR/s &&
        run='@MVASVM run --hw kvm --mem 96M --kernel @DIR/kernel --initramfs @DIR/initramfs' &&
        $run --store @DIR/s -- true; echo $? $(find @DIR/s/ram @DIR/mvas -type f ! -name .lock)
        echo the default store: >&2; $run -- true";
    let Some((out, err)) = with_own_mounts(folder.path(), script) else {
        return;
    };
    assert_eq!(out, "125\n");
    let (named, default) = err.split_once("the default store:").unwrap();
    for words in [
        "96 MiB of guest memory cannot be kept",
        "63 MiB free",
        "--store none",
    ] {
        assert!(named.contains(words), "{named}");
    }
    let words = "snapshots stay in the guest: no space: 96 MiB are needed";
    assert!(default.contains(words), "{default}");
}
