// SPDX-License-Identifier: GPL-2.0-only
//! What threads of a monitor can do in their sandbox, and what they cannot.
//!
//! A sandbox is for good, and what it refuses ends the process. So each attempt is made by a
//! process of its own: this program again, which runs the one test that is ignored otherwise.

#![allow(clippy::unwrap_used)] // tests, and helpers of tests

mod escapes;
#[allow(dead_code)] // what other tests need
#[path = "../vas/vm.rs"]
mod vm;
mod work;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use mvasvm::sandbox::{Role, Sandbox, landlock_version};
use tempfile::TempDir;

/// The process that makes an attempt reads what it shall do from here.
const ATTEMPT: &str = "MVAS_TEST_ATTEMPT";
/// The thread's name in it.
const THREAD: &str = "it";

/// What can be tried: its name, and how. `Err`: the kernel said no.
type Attempt = (&'static str, fn(&Place) -> Result<(), i32>);

/// What came of an attempt.
#[derive(Debug, PartialEq, Eq)]
enum Came {
    Done,
    /// It failed with this error number, and the process went on.
    Failed(i32),
    /// The sandbox ended the process because of this system call.
    Ended(i64),
    Else(String),
}

/// The folders of an attempt.
struct Place(PathBuf);

impl Place {
    fn folder(&self) -> PathBuf {
        self.0.join("folder")
    }

    fn store(&self) -> PathBuf {
        self.0.join("store")
    }

    /// A file, a program and a socket that are none of a monitor's business.
    fn foreign(&self, name: &str) -> PathBuf {
        self.0.join("foreign").join(name)
    }

    fn refusals(&self) -> PathBuf {
        self.folder().join("refused")
    }
}

fn place() -> (TempDir, Place) {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let place = Place(dir.path().to_owned());
    for folder in ["folder", "store", "foreign"] {
        fs::create_dir(place.0.join(folder)).unwrap();
    }
    fs::remove_dir(place.store()).unwrap(); // the store makes it
    fs::write(place.foreign("file"), "secret").unwrap();
    fs::copy("/bin/true", place.foreign("program")).unwrap();
    (dir, place)
}

/// Has a thread of this role try something, in a process of its own.
fn attempt(role: Role, name: &str) -> Came {
    let (_dir, place) = place();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env(ATTEMPT, format!("{role:?} {name} {}", place.0.display()))
        .env("RUST_BACKTRACE", "full")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let refused = fs::read_to_string(place.refusals()).unwrap();
    match (output.status.code(), refused.strip_prefix("it ")) {
        (Some(0), None) => Came::Done,
        (Some(125), Some(call)) if said.contains("the sandbox ended the VM") => {
            Came::Ended(call.trim_end().parse().unwrap())
        }
        (Some(code @ 1..100), None) => Came::Failed(code),
        (code, _) => Came::Else(format!(
            "code {code:?}, signal {:?}, refused {refused:?}, {said}",
            output.status.signal()
        )),
    }
}

#[test]
#[ignore = "run by the others, each time in a process of its own"]
fn child() {
    let Ok(attempt) = std::env::var(ATTEMPT) else {
        return;
    };
    let mut words = attempt.splitn(3, ' ');
    let (role, name) = (words.next().unwrap(), words.next().unwrap());
    let role = Role::ALL.into_iter().find(|r| format!("{r:?}") == role);
    let role = role.unwrap();
    let place = Place(Path::new(words.next().unwrap()).to_owned());
    let all = escapes::ALL.iter().chain(work::ALL);
    let (_, try_it) = all.copied().find(|(known, _)| *known == name).unwrap();
    let refusals = fs::File::create(place.refusals()).unwrap();
    let sandbox = Sandbox::new(&place.folder(), Some(&place.store()), refusals).unwrap();
    // Made before, as a monitor does.
    let store = mvas_host::store::Store::open(&place.store(), Default::default()).unwrap();
    let guest = vm::Vm::new(&store, "vm");
    work::PREPARED.set((store, guest)).ok().unwrap();
    let body = move || {
        sandbox.enter(role).unwrap();
        let code = match try_it(&place) {
            Ok(()) => 0,
            Err(errno) => errno,
        };
        // SAFETY: ends the process; nothing of it is needed any more.
        unsafe { libc::_exit(code) };
    };
    let thread = thread::Builder::new().name(THREAD.to_owned()).spawn(body);
    let _ = thread.unwrap().join();
    // SAFETY: as above. The thread has panicked.
    unsafe { libc::_exit(101) };
}

/// Whether this kernel confines what may be opened; where not, such a test is no test.
fn has_landlock() -> bool {
    let has = landlock_version() > 0;
    if !has {
        println!("SKIPPED in part: this kernel has no Landlock");
    }
    has
}

#[test]
fn no_thread_opens_a_file_that_is_not_its_own() {
    for role in Role::ALL {
        let opens_nothing = [Role::Disk, Role::Vcpu].contains(&role);
        if !opens_nothing && !has_landlock() {
            continue;
        }
        for deed in ["read", "overwrite", "make", "remove"] {
            let came = attempt(role, deed);
            // These do not even have the call to remove something.
            let ended = opens_nothing && came == Came::Ended(libc::SYS_unlink);
            assert!(
                ended || came == Came::Failed(libc::EACCES),
                "{role:?} {deed}: {came:?}"
            );
        }
    }
}

#[test]
fn no_thread_connects_to_anything_but_the_commands_to_its_guest() {
    for role in Role::ALL {
        for deed in ["tcp", "vsock", "netlink", "unix"] {
            let came = attempt(role, deed);
            let expected = match (role, deed) {
                // A guest can ask for it: it is refused, and goes on.
                (Role::Devices, _) => Came::Failed(libc::EACCES),
                // Its way to the agent. THREATS.md has what that leaves open.
                (Role::Command, "unix") => match landlock_version() {
                    ..9 => Came::Done,
                    _ => Came::Failed(libc::EACCES),
                },
                _ => Came::Ended(libc::SYS_socket),
            };
            assert_eq!(came, expected, "{role:?} {deed}");
        }
    }
}

#[test]
fn no_thread_reaches_another_process_or_runs_other_code() {
    for role in Role::ALL {
        for (deed, call) in [
            ("exec", libc::SYS_execve),
            ("execveat", libc::SYS_execveat),
            ("ptrace", libc::SYS_ptrace),
            ("peek", libc::SYS_process_vm_readv),
            ("kill", libc::SYS_kill),
            ("tgkill", libc::SYS_tgkill),
            ("own", libc::SYS_fcntl),
            ("fork", libc::SYS_clone),
            ("new code", libc::SYS_mmap),
            ("data as code", libc::SYS_mprotect),
            ("io_uring", libc::SYS_io_uring_setup),
            ("bpf", libc::SYS_bpf),
            ("namespace", libc::SYS_unshare),
            ("mount", libc::SYS_mount),
            ("handler", libc::SYS_rt_sigaction),
            ("typing", libc::SYS_ioctl),
        ] {
            assert_eq!(
                attempt(role, &deed.replace(' ', "-")),
                Came::Ended(call),
                "{role:?} {deed}"
            );
        }
    }
}

#[test]
fn a_disks_thread_empties_ranges_of_its_image_and_allocates_none() {
    // Each role but those that serve the store.
    for role in [Role::Command, Role::Counters, Role::Disk, Role::Vcpu] {
        assert_eq!(
            attempt(role, "grow"),
            Came::Ended(libc::SYS_fallocate),
            "{role:?}"
        );
    }
}

#[test]
fn what_threads_do_besides_their_work_is_no_escape() {
    for role in Role::ALL {
        for deed in ["panic", "allocate", "log", "sleep", "hash", "missing-page"] {
            assert_eq!(attempt(role, deed), Came::Done, "{role:?} {deed}");
        }
    }
}

#[test]
fn each_thread_can_do_its_work() {
    for (role, deed) in [
        (Role::Command, "thread"),
        (Role::Command, "session"),
        (Role::Command, "record"),
        (Role::Counters, "record"),
        (Role::Snapshots, "snapshots"),
        (Role::Devices, "end-of-run"),
        (Role::Disk, "disk"),
    ] {
        assert_eq!(attempt(role, deed), Came::Done, "{role:?} {deed}");
    }
}

#[test]
fn without_a_sandbox_all_of_it_can_be_done() {
    // So that a refusal is the sandbox's and not the test's.
    let (_dir, place) = place();
    for (name, try_it) in escapes::ALL.iter().copied().take(escapes::HARMLESS) {
        assert_eq!(try_it(&place), Ok(()), "{name}");
    }
    let sandbox = Sandbox::default();
    sandbox.enter(Role::Vcpu).unwrap();
    fs::read(place.foreign("file")).unwrap_err(); // the last of them has removed it
    assert_eq!(sandbox.lacks().len(), 1);
}
