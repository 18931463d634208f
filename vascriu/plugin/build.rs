// SPDX-License-Identifier: GPL-2.0-only
//! How the plugin is linked.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // CRIU unloads its plugins before it exits; ours has an exit handler and an entry in
    // CRIU's import table to outlive that.
    println!("cargo:rustc-link-arg-cdylib=-Wl,-z,nodelete");
    // CRIU itself does not need GCC's unwinder: as `libgcc_s.so` it would be mapped and
    // relocated in each run of CRIU, for us alone. A compiler without the archive links that.
    if let Some(dir) = unwinder_dir() {
        println!("cargo:rustc-link-search=native={dir}");
        println!("cargo:rustc-link-lib=static=gcc_eh");
    }
}

/// Where the C compiler has `libgcc_eh.a`; it answers the bare name where it has none.
fn unwinder_dir() -> Option<String> {
    let mut cc = Command::new("cc");
    let answer = cc.arg("-print-file-name=libgcc_eh.a").output().ok()?;
    let path = String::from_utf8(answer.stdout).ok()?;
    let dir = Path::new(path.trim()).parent()?;
    dir.is_absolute().then(|| dir.display().to_string())
}
