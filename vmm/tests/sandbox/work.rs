// SPDX-License-Identifier: GPL-2.0-only
//! What threads must still be able to do.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use mvas_abi::virtio_vas::*;
use mvas_host::server::BLOCK;
use mvas_host::store::Store;
use mvasvm::devices::keep_newest;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::uio::{preadv, pwritev};

use super::Attempt;
use super::vm::{Vm, done, meta};

const PUNCH: FallocateFlags = FallocateFlags::FALLOC_FL_PUNCH_HOLE;
const ZERO: FallocateFlags = FallocateFlags::FALLOC_FL_ZERO_RANGE;

/// A store, and a guest's memory in it.
pub static PREPARED: OnceLock<(Store, Vm)> = OnceLock::new();

fn guest() -> &'static Vm {
    &PREPARED.get().unwrap().1
}

pub const ALL: &[Attempt] = &[
    ("panic", |_| {
        // With a trace of all frames: the environment asks for it.
        let caught = std::panic::catch_unwind(|| panic!("a test"));
        assert!(caught.is_err());
        Ok(())
    }),
    ("allocate", |_| {
        // From the arena of a thread: it grows, shrinks, and maps what is large.
        for len in (0..21).map(|n| 1usize << n).cycle().take(63) {
            let mut many: Vec<Vec<u8>> = (0..10).map(|_| vec![1; len]).collect();
            many.iter_mut().for_each(|one| one.resize(len * 2, 2));
        }
        Ok(())
    }),
    ("log", |_| {
        io::stderr().write_all(b"said\n").map_err(|_| 1)?;
        guest().run.ram().file().metadata().map_err(|_| 2)?;
        Ok(())
    }),
    ("sleep", |_| {
        thread::sleep(Duration::from_millis(1));
        thread::yield_now();
        Ok(())
    }),
    ("hash", |_| {
        let random = RandomState::new().hash_one(1);
        let map: HashMap<u64, u64> = [(random, 1)].into();
        assert_eq!(map.len(), 1);
        Ok(())
    }),
    ("missing-page", |_| {
        // As a full tmpfs: there is no page behind the end of the file. SIGBUS, and zeroes.
        let vm = guest();
        vm.run.ram().file().set_len(0).unwrap();
        assert_eq!(vm.read(BLOCK), 0);
        assert!(mvas_host::server::GuestMapping::is_lost(&*vm.ram));
        Ok(())
    }),
    ("thread", |_| {
        let named = thread::Builder::new().name("another".to_owned());
        named.spawn(|| vec![1; 1 << 20]).unwrap().join().unwrap();
        thread::spawn(|| ()).join().unwrap();
        Ok(())
    }),
    ("session", |place| {
        // Nobody can listen in the sandbox: the way to the agent ends where it would begin.
        let error = UnixStream::connect(place.folder().join("vsock.sock")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let (mut reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"x").unwrap();
        reader.read_exact(&mut [0]).unwrap();
        OpenOptions::new().write(true).open("/dev/null").unwrap();
        // The session's number.
        let mut number = [0; 8];
        let mut random = std::fs::File::open("/dev/urandom").unwrap();
        random.read_exact(&mut number).unwrap();
        Ok(())
    }),
    ("record", |place| {
        // What is written down of a VM: by another name, then renamed; logs are cut.
        let folder = place.folder();
        let mut file = tempfile::NamedTempFile::new_in(&folder).unwrap();
        file.write_all(b"{}").unwrap();
        file.persist(folder.join("metrics.json")).unwrap();
        let mut log = OpenOptions::new();
        let log = log
            .create(true)
            .append(true)
            .open(folder.join("log"))
            .unwrap();
        log.write_all_at(&[1; 20_000], 0).unwrap_or_default();
        keep_newest(&folder.join("log"), 10).unwrap();
        fs::remove_file(folder.join("log")).unwrap();
        Ok(())
    }),
    ("snapshots", |_| {
        let vm = guest();
        vm.write(3 * BLOCK, 1);
        let pages: Vec<u64> = (0..600).map(|i| i * 2).collect();
        let draft = vm.create("s");
        done(vm.publish(draft, &[3, 4]));
        done(vm.copy(draft, &pages));
        done(vm.meta(draft, 0, &meta(2, 600)));
        done(vm.label(draft, "", "a label"));
        done(vm.commit(draft));
        vm.write(3 * BLOCK, 2);
        // Again: what was written since is copied.
        let again = vm.snapshot("t", &[3, 4]);
        let opened = vm.open("s");
        done(vm.map(
            opened,
            &[
                (7, 0, VIRTIO_VAS_KIND_BLOCKS),
                (9, 0, VIRTIO_VAS_KIND_PACKED),
            ],
        ));
        assert_eq!(vm.read(7 * BLOCK), 1);
        done(vm.release(&[(7, 1), (9, 1)]));
        assert_eq!(vm.list(0).1, 2);
        done(vm.label(0, "t", "another label"));
        done(vm.named(VIRTIO_VAS_OP_DELETE, "t"));
        done(vm.close(again));
        vm.create("given-up");
        vm.server.reset();
        assert_eq!(vm.list(0).1, 1);
        Ok(())
    }),
    ("disk", |_| {
        // A file that is open: here that of guest memory.
        let image = guest().run.ram().file();
        let mut sector = [1; 512];
        pwritev(image, &[IoSlice::new(&sector)], 4096).map_err(|e| e as i32)?;
        image.sync_data().map_err(|_| 1)?;
        sector.fill(0);
        preadv(image, &mut [IoSliceMut::new(&mut sector)], 4096).map_err(|e| e as i32)?;
        assert_eq!(sector, [1; 512]);
        for (way, works) in [(PUNCH, true), (ZERO, false)] {
            let way = way | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            // A tmpfs cannot do all of it; it says so itself.
            match fallocate(image, way, 4096, 512) {
                Err(Errno::EOPNOTSUPP) if !works => {}
                done => done.map_err(|e| e as i32)?,
            }
        }
        image.write_all_at(&sector, 4096).map_err(|_| 2)?;
        Ok(())
    }),
    ("end-of-run", |place| {
        let (store, _) = PREPARED.get().unwrap();
        // As at the end of a VM: what was its alone goes, what a snapshot needs stays.
        let freed = store.gc(false).unwrap();
        assert!(freed.blocked_by.is_empty());
        fs::read_dir(place.store()).unwrap().for_each(drop);
        Ok(())
    }),
];
