// SPDX-License-Identifier: GPL-2.0-only
//! Which files a thread may open: Landlock.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    Scope, make_bitflags,
};

use super::{Role, SandboxError};

/// What the domains know of. An older kernel enforces what it knows; what it would take to know
/// all is Linux 7.1.
const KNOWN: ABI = ABI::V9;

/// Make, read, write, shorten and remove plain files. Nothing is executed, and no folder, device,
/// socket or link is made.
const FILES: BitFlags<AccessFs> = make_bitflags!(AccessFs::{
    ReadFile | ReadDir | WriteFile | Truncate | MakeReg | RemoveFile
});

/// The version of Landlock that this kernel has; 0: none.
pub fn landlock_version() -> u32 {
    const VERSION: u32 = 1;
    let nothing = std::ptr::null::<libc::c_void>();
    // SAFETY: with this flag it only tells its version, and reads no memory.
    let answer = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0, VERSION) };
    u32::try_from(answer).unwrap_or(0)
}

/// Folders and files of a role, and what may be done there.
fn allowed<'a>(
    role: Role,
    folder: &'a Path,
    store: Option<&'a Path>,
) -> Vec<(&'a Path, BitFlags<AccessFs>)> {
    let store = store.map(|store| (store, FILES));
    match role {
        // Its socket to the guest is in the folder; detached, it leaves standard output; a session
        // with the guest's agent begins with a random number.
        Role::Command => {
            let devices = [
                (Path::new("/dev/null"), AccessFs::WriteFile.into()),
                (Path::new("/dev/urandom"), AccessFs::ReadFile.into()),
            ];
            // One that is not there cannot be opened without a sandbox either.
            let devices = devices.into_iter().filter(|(path, _)| path.exists());
            let own = (folder, FILES | AccessFs::ResolveUnix);
            std::iter::once(own).chain(devices).collect()
        }
        Role::Counters => vec![(folder, FILES)],
        // At the end: vsock's socket goes, and the store gets back what was the VM's alone.
        Role::Devices => store
            .into_iter()
            .chain([(folder, AccessFs::RemoveFile.into())])
            .collect(),
        Role::Disk | Role::Vcpu => Vec::new(),
        Role::Snapshots => store.into_iter().collect(),
    }
}

/// Has the calling thread enter the domain of its role; on a kernel without Landlock, nothing
/// happens.
///
/// Signals are not scoped: some kernels then refuse those between threads of one process, and the
/// seccomp filters allow no others.
pub fn confine(role: Role, folder: &Path, store: Option<&Path>) -> Result<(), SandboxError> {
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))
        .and_then(|ruleset| ruleset.scope(Scope::AbstractUnixSocket))
        .and_then(Ruleset::create);
    let mut ruleset = ruleset.map_err(SandboxError::Landlock)?;
    for (path, access) in allowed(role, folder, store) {
        let rule = PathBeneath::new(PathFd::new(path)?, access);
        ruleset = ruleset.add_rule(rule).map_err(SandboxError::Landlock)?;
    }
    ruleset.restrict_self().map_err(SandboxError::Landlock)?;
    Ok(())
}
