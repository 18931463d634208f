// SPDX-License-Identifier: GPL-2.0-only
//! PID 1 of a machine whose only service is the agent: a microVM's guest, and the simulated
//! host.
//!
//! PID 1 itself mounts, starts services and reaps orphans; it is single-threaded and does
//! nothing that can fail for long. Sessions are served by a child of it ([`Service`]), so
//! that whatever happens there, the machine lives on and the child is started again.

mod mounts;
mod network;
mod power;
mod supervise;

use std::fs;
use std::path::Path;

pub use mounts::{Mount, bind_file, mount, mount_kernel_filesystems, overlay_root};
pub use network::bring_up_loopback;
pub use power::{Machine, request};
pub use supervise::{Service, programs, supervise};

use crate::server::unblock_signals;

/// Where commands are looked for in a fresh environment.
pub const DEFAULT_PATH: &str = crate::server::DEFAULT_PATH;

/// Says something on the console.
pub fn log(message: impl std::fmt::Display) {
    crate::server::log(message);
}

/// Writes a kernel setting; one that does not exist or refuses is only reported.
pub fn set(path: impl AsRef<Path>, value: &str) {
    let path = path.as_ref();
    if let Err(error) = fs::write(path, value) {
        log(format!(
            "cannot write {value:?} to {}: {error}",
            path.display()
        ));
    }
}

/// The value of `name=value` on the kernel's command line, the last one if there are several.
pub fn kernel_argument(cmdline: &str, name: &str) -> Option<String> {
    cmdline
        .split_whitespace()
        // What follows belongs to init.
        .take_while(|word| *word != "--")
        .filter_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        .last()
        .map(str::to_owned)
}

/// What a guest that is made for checkpoints needs: CRIU cannot dump io_uring. And what a runtime
/// reserves without access, hundreds of GiB, it restores by a mapping that can be written, if a
/// child has inherited it: a small guest refuses that, unless memory is overcommitted.
const FOR_CHECKPOINTS: [(&str, &str); 2] = [
    ("kernel.io_uring_disabled", "2"),
    ("vm.overcommit_memory", "1"),
];

/// Makes these settings below `proc_sys`, but those that the kernel's command line makes
/// (`sysctl.NAME=VALUE`), and those that this kernel does not have.
pub fn set_for_checkpoints(proc_sys: &Path, cmdline: &str) {
    // There, a slash does for a dot.
    let cmdline = cmdline.replace('/', ".");
    for (name, value) in FOR_CHECKPOINTS {
        let path = proc_sys.join(name.replace('.', "/"));
        if path.exists() && kernel_argument(&cmdline, &format!("sysctl.{name}")).is_none() {
            set(path, value);
        }
    }
}

/// The environment, limits and controllers that everything on the machine starts with.
pub fn prepare(hostname: &str) {
    if let Err(error) = nix::unistd::sethostname(hostname) {
        log(format!("cannot set the host name to {hostname}: {error}"));
    }
    if let Err(error) = bring_up_loopback() {
        log(format!("cannot bring up the loopback interface: {error}"));
    }
    for controller in ["cpu", "cpuset", "io", "memory", "pids"] {
        set(
            "/sys/fs/cgroup/cgroup.subtree_control",
            &format!("+{controller}"),
        );
    }
    use nix::sys::resource::{Resource, setrlimit};
    if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, 65536, 1 << 20) {
        log(format!("cannot raise the limit of open files: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_kernel_argument_of_a_name_counts() {
        let cmdline = "console=ttyS0 mvas.login=0 mvas.login=1 -- mvas.login=2\n";
        assert_eq!(kernel_argument(cmdline, "mvas.login").as_deref(), Some("1"));
        assert_eq!(kernel_argument(cmdline, "mvas.log"), None);
        assert_eq!(kernel_argument("mvas.login", "mvas.login"), None);
        assert_eq!(kernel_argument("", "x"), None);
    }

    /// The two settings after [`set_for_checkpoints`], of a kernel that has those in `has`.
    fn settings(has: &[&str], cmdline: &str) -> [Option<String>; 2] {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["kernel", "vm"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        for name in has {
            fs::write(dir.path().join(name), "0").unwrap();
        }
        set_for_checkpoints(dir.path(), cmdline);
        [IO_URING, OVERCOMMIT].map(|name| fs::read_to_string(dir.path().join(name)).ok())
    }

    const IO_URING: &str = "kernel/io_uring_disabled";
    const OVERCOMMIT: &str = "vm/overcommit_memory";

    #[test]
    fn a_guest_is_made_for_checkpoints_unless_its_command_line_says_else() {
        let both = &[IO_URING, OVERCOMMIT];
        let some = |values: [&str; 2]| values.map(|value| Some(value.to_owned()));
        assert_eq!(settings(both, "quiet"), some(["2", "1"]));
        assert_eq!(
            settings(both, "sysctl.kernel.io_uring_disabled=0"),
            some(["0", "1"])
        );
        assert_eq!(
            settings(both, "quiet sysctl.vm/overcommit_memory=2"),
            some(["2", "0"])
        );
        assert_eq!(
            settings(both, "-- sysctl.vm.overcommit_memory=2"),
            some(["2", "1"])
        );
    }

    #[test]
    fn a_setting_that_the_kernel_lacks_is_left_out() {
        let expected = [None, Some("1".to_owned())];
        assert_eq!(settings(&[OVERCOMMIT], ""), expected);
    }
}
