//! A file system without room, at each step of making a snapshot.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

use mvas_host::store::{BLOCK, OpenSnapshot, StoreError, StoreRun};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;

use crate::support::{fill, label, metadata, name, open, own, private_folder, shows, snapshot};

/// Runs `test` where `path` is a tmpfs of this size, of which nobody else knows.
fn with_tmpfs(path: &Path, size: &str, test: impl FnOnce() + Send) -> bool {
    if !geteuid().is_root() {
        eprintln!("SKIPPED: only root can mount a small tmpfs");
        return false;
    }
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            let options = format!("size={size},mode=0700");
            let flags = MsFlags::empty();
            mount(
                Some("t"),
                path,
                Some("tmpfs"),
                flags,
                Some(options.as_str()),
            )
            .unwrap();
            test();
        });
        thread.join().unwrap();
    });
    true
}

/// Fills the file system but for `pages` pages.
fn fill_but(path: &Path, pages: u64) {
    let mut ballast = File::create(path).unwrap();
    let mut len = 0;
    loop {
        match ballast.write(&[1; 4096]) {
            Ok(n) => len += n as u64,
            Err(e) if e.kind() == ErrorKind::StorageFull => break,
            Err(e) => panic!("{e}"),
        }
    }
    ballast.set_len(len - pages * 4096).unwrap();
}

/// Gives the room back at once, even if a process that another test begins has the file
/// open until its `exec`.
fn remove(ballast: &Path) {
    File::create(ballast).unwrap();
    fs::remove_file(ballast).unwrap();
}

/// Everything that making a snapshot does; stops at the first that fails.
fn make(run: &StoreRun) -> Result<OpenSnapshot, StoreError> {
    let mut draft = run.draft(name("new"))?;
    run.reserve(&mut draft, 2)?;
    run.use_extents(&[own(run, 1)])?;
    draft.push_blocks(&[own(run, 1)])?;
    let packed = run.allocate(1)?;
    draft.push_packed(packed)?;
    let written = run.ram().file().write_all_at(&[2; 4096], packed.start().0);
    written.map_err(|_| StoreError::Full("the pages".into()))?;
    draft.packed_pages = 1;
    draft.meta = metadata(1, 1);
    draft.label = label("new");
    run.commit(&mut draft)
}

#[test]
fn without_room_a_snapshot_is_refused_and_nothing_else_happens() {
    let folder = private_folder("/tmp");
    let path = folder.path().to_owned();
    with_tmpfs(folder.path(), "16M", || {
        let store = open(&path);
        let run = store.start_run("vm", 4 * BLOCK).unwrap();
        (0..3).for_each(|block| fill(&run, block, 4));
        drop(snapshot(&run, "old", &[0]).unwrap());
        let ballast = path.join("ballast");
        let (mut refused, mut done) = (0, 0);
        for pages in 0..12 {
            fill_but(&ballast, pages);
            match make(&run) {
                Ok(opened) => {
                    done += 1;
                    drop(opened);
                    store.remove(&name("new")).unwrap();
                }
                Err(StoreError::Full(_)) => refused += 1,
                Err(e) => panic!("{e}"),
            }
            remove(&ballast);
            assert!((0..3).all(|block| shows(&run, own(&run, block), 4)));
            assert!(store.load(&name("old")).is_ok());
            assert_eq!(store.check().unwrap().problems, []);
        }
        assert!(refused >= 3 && done > 0, "{refused} refused, {done} done");
        drop(run);
        assert_eq!(crate::support::ram_bytes(&path), BLOCK);
    });
}

#[test]
fn without_room_a_snapshot_keeps_the_label_it_has() {
    let folder = private_folder("/tmp");
    let path = folder.path().to_owned();
    with_tmpfs(folder.path(), "8M", || {
        let store = open(&path);
        let run = store.start_run("vm", BLOCK).unwrap();
        drop(snapshot(&run, "s", &[0]).unwrap());
        let set = |text: &str| store.set_label(&name("s"), &label(text), |_| true);
        set("old").unwrap();
        fill_but(&path.join("ballast"), 0);
        let refused = set("new").unwrap_err();
        assert!(matches!(refused, StoreError::Full(_)), "{refused}");
        assert_eq!(store.snapshots().unwrap()[0].label, label("old"));
        remove(&path.join("ballast"));
        assert_eq!(store.check().unwrap().problems, []);
        set("new").unwrap();
    });
}

#[test]
fn a_run_that_finds_no_room_for_its_files_leaves_none() {
    let folder = private_folder("/tmp");
    let path = folder.path().to_owned();
    with_tmpfs(folder.path(), "1M", || {
        let store = open(&path);
        fill_but(&path.join("ballast"), 0);
        let error = store.start_run("vm", BLOCK).unwrap_err();
        assert!(matches!(error, StoreError::Full(_)), "{error}");
        remove(&path.join("ballast"));
        drop(open(&path));
        assert_eq!(fs::read_dir(path.join("uses")).unwrap().count(), 0);
        assert_eq!(store.check().unwrap().problems, []);
    });
}
