// SPDX-License-Identifier: GPL-2.0-only
//! Where a guest's memory goes: into a snapshot store, or nowhere.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use mvas_host::server::Grant;
use mvas_host::store::{Store, StoreOptions};
use mvasvm::config::RamBacking;
use nix::sys::utsname::uname;

use super::args::{GrantArg, RunArgs};
use super::note;
use super::store::default_dir;

/// Finds the store: the one that was asked for, or the default one if it has room.
///
/// # Errors
/// The store that was asked for cannot be used, or has no room for the guest's memory: what
/// could not be kept is not begun.
pub(super) fn backing(args: &RunArgs) -> Result<RamBacking> {
    let options = StoreOptions {
        limit: args.store_limit,
        force: args.store_force,
        ..StoreOptions::default()
    };
    let mem = args.mem.bytes();
    let kernel = uname().context("cannot tell this host's kernel")?;
    let kernel = kernel.release().to_string_lossy().into_owned();
    let open = |dir: &Path| -> Result<Store> {
        if leaves_holes(&kernel, overcommit().as_deref()) {
            bail!(
                "with vm.overcommit_memory=2 and Linux {kernel}, older than 6.12, guest memory that \
                 cannot be remapped is lost: sysctl vm.overcommit_memory=1"
            );
        }
        let store = Store::open(dir, options)?;
        store.check_room(mem)?;
        Ok(store)
    };
    let mib = mem >> 20;
    let store = match &args.store {
        Some(dir) if dir.as_os_str() == "none" => return Ok(RamBacking::Memfd),
        Some(dir) => open(dir).with_context(|| {
            let dir = dir.display();
            format!(
                "{mib} MiB of guest memory cannot be kept in {dir} (ask for less with --mem, name \
                 another --store, or keep snapshots in the guest with --store none)"
            )
        })?,
        None => match open(&default_dir()) {
            Ok(store) => store,
            Err(error) => {
                note(format!("snapshots stay in the guest: {error:#}"));
                return Ok(RamBacking::Memfd);
            }
        },
    };
    let grant = match args.grant {
        GrantArg::Own => Grant::Own,
        GrantArg::All => Grant::All,
    };
    Ok(RamBacking::Store { store, grant })
}

/// How the kernel counts memory that was promised and not touched.
fn overcommit() -> Option<String> {
    fs::read_to_string("/proc/sys/vm/overcommit_memory").ok()
}

/// Whether an `mmap` in place of guest memory that fails leaves nothing there: the server goes on
/// with what was there. Without overcommit private mappings are counted and can be refused, and
/// kernels before 6.12 unmap first and count then.
fn leaves_holes(kernel: &str, overcommit: Option<&str>) -> bool {
    let mut numbers = kernel.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next()?.parse::<u32>().ok();
    let version = number().zip(number());
    overcommit.is_some_and(|mode| mode.trim() == "2") && version.is_none_or(|v| v < (6, 12))
}

#[cfg(test)]
mod tests {
    use super::leaves_holes;

    #[test]
    fn only_old_kernels_without_overcommit_leave_holes() {
        for (kernel, mode, holes) in [
            ("6.11.10-amd64", Some("2\n"), true),
            ("5.15.0", Some("2"), true),
            ("strange", Some("2"), true),
            ("6.12.0-rc1", Some("2\n"), false),
            ("10.0", Some("2"), false),
            ("6.1.0-18-amd64", Some("0\n"), false),
            ("6.1.0-18-amd64", Some("1\n"), false),
            ("6.1.0-18-amd64", None, false),
        ] {
            assert_eq!(leaves_holes(kernel, mode), holes, "{kernel} {mode:?}");
        }
    }
}
