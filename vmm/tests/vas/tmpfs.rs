//! A file system of a test's own.

use std::path::Path;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Runs `test` with a tmpfs of its own, in a thread with a mount namespace of its own.
pub fn in_tmpfs(options: &str, test: impl FnOnce(&Path) + Send) {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    thread::scope(|scope| {
        let body = move || {
            let none: Option<&str> = None;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            let made = unshare(CloneFlags::CLONE_NEWNS)
                .and_then(|()| mount(none, "/", none, private, none))
                .and_then(|()| {
                    mount(
                        Some("tmpfs"),
                        dir,
                        Some("tmpfs"),
                        MsFlags::empty(),
                        Some(options),
                    )
                });
            match made {
                Ok(()) => test(dir),
                Err(error) => println!("SKIPPED: cannot mount a tmpfs ({error}); run as root"),
            }
        };
        scope.spawn(body).join().unwrap();
    });
}
