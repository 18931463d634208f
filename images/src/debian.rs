// SPDX-License-Identifier: GPL-2.0-only
//! Packages of a Debian release, which need not be this machine's.

use std::path::Path;
use std::process::Command;

/// The release: its guest has CRIU 4.1, its emulator is QEMU 10.
pub(crate) const SUITE: &str = "trixie";

/// What of Debian's packages is left out of guests, below `/usr`. The folders of manuals stay: a
/// JVM's package makes links in them.
const NOT_INSTALLED: [&str; 4] = [
    "share/man/*/*",
    "share/info/*",
    "share/locale/*",
    "share/doc/*",
];

/// `mmdebstrap`, which puts Debian's smallest system of a release and `packages`, as a guest has
/// them, into the tar file `out`.
pub(crate) fn system(packages: &[&str], suite: &str, out: &Path) -> Command {
    let mut command = mmdebstrap("minbase", packages, suite, out);
    for path in NOT_INSTALLED {
        leave_out(&mut command, path);
    }
    command
}

/// Has it leave out a path of the packages, below `/usr`.
pub(crate) fn leave_out(mmdebstrap: &mut Command, path: &str) {
    mmdebstrap.arg(format!("--dpkgopt=path-exclude=/usr/{path}"));
}

/// `mmdebstrap`, which puts `packages` of a release into the tar file `out`. Options may be added.
pub(crate) fn mmdebstrap(variant: &str, packages: &[&str], suite: &str, out: &Path) -> Command {
    let mut command = Command::new("mmdebstrap");
    command
        .arg(format!("--variant={variant}"))
        .arg("--aptopt=Acquire::Retries \"3\"")
        .arg(format!("--include={}", packages.join(",")))
        .arg(suite)
        .arg(out);
    command
}
