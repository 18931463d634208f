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
