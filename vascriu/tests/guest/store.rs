// SPDX-License-Identifier: GPL-2.0-only
//! The snapshot store outside of this guest: the way there and back.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use memmap2::MmapMut;
use serde_json::Value;
use vascriu::device::{Session, VasId};
use vascriu::process::{PidFd, Vpid};
use vascriu::snapshot::id::SnapshotId;
use vascriu::snapshot::registry::Registry;

use crate::crash::criu_is_gone;
use crate::harness::{
    Test, Workload, all_vases, bad, dump, end_workloads, good, id_of, json, ls, restore, rm,
    vascriu, vases, wait_until,
};
use crate::snapshots::small;
use crate::workload::Options;

/// Where there is a store.
pub const TESTS: &[Test] = &[
    ("a_cold_snapshot_comes_back", cold),
    ("a_dump_goes_to_the_store_in_the_background", background),
    ("a_snapshot_comes_back_after_a_reboot", reboot),
    (
        "a_reference_brings_its_snapshot_after_a_reboot",
        reboot_elsewhere,
    ),
    ("a_drain_ends_with_its_snapshot", rm_while_draining),
    ("a_name_that_the_store_has_is_refused", name_twice),
    ("guest_only_stays_in_the_guest", guest_only),
    (
        "a_restore_that_is_killed_leaves_the_stored_snapshot_whole",
        killed_restore,
    ),
    (
        "what_is_no_snapshot_of_vascriu_is_not_restored_from_the_store",
        not_ours,
    ),
];

/// Where there is none.
pub const TESTS_WITHOUT: &[Test] = &[("without_a_store_snapshots_stay_in_the_guest", without)];

/// The only row of `ls`.
#[track_caller]
pub fn row() -> Value {
    let rows = ls();
    assert_eq!(rows.len(), 1, "{rows:?}");
    rows[0].clone()
}

pub fn state() -> Value {
    row()["state"].clone()
}

#[track_caller]
pub fn nothing_left() {
    assert_eq!(ls(), Vec::<Value>::new());
    assert_eq!(all_vases(), Vec::<String>::new());
}

/// Takes from this guest all that it has of a snapshot, as its reboot would.
pub fn forget(name: &str) {
    let registry = Registry::open().expect("registry");
    let id = id_of(name);
    for vas in registry.members(id).expect("VASes") {
        vas.delete(true).expect("delete");
    }
}

fn tree(dir: &Path) -> Options {
    Options {
        children: 1,
        huge: true,
        shared: true,
        ..small(dir)
    }
}

fn cold(dir: &Path) {
    let w = Workload::start(&tree(dir));
    assert_eq!(w.check(), 1);
    let said = w.dump("x", &["--sync"]);
    assert_eq!(said["kept"], "stored");
    assert_eq!(state(), "stored");
    for n in 0..2 {
        let freed = json(&mut vascriu(&["evict", "x", "--json"]));
        assert!(freed["pages"].as_u64() >= Some(16 * 256), "{freed}");
        assert_eq!(state(), "cold");
        assert!(good(&mut vascriu(&["show", "x"])).contains("cold"));
        let (r, _) = restore("x", &w, &[]);
        assert_eq!(r.check(), 2, "every copy begins where the snapshot was");
        if n == 0 {
            r.kill();
        }
    }
    // The restored tree is as good as any.
    let r = w.restored_as(w.pid);
    assert_eq!(r.check(), 3);
    r.dump("y", &["--sync"]);
    rm(&["x"]);
    good(&mut vascriu(&["evict", "y"]));
    let (r, _) = restore("y", &w, &[]);
    assert_eq!(r.check(), 4);
    r.kill();
    rm(&["y"]);
    nothing_left();
}

fn background(dir: &Path) {
    let w = Workload::start(&small(dir));
    let said = w.dump("x", &["--leave-running"]);
    assert_eq!(
        (&said["kept"], &said["store_error"]),
        (&"draining".into(), &Value::Null)
    );
    // Both go on with the same memory meanwhile.
    assert_eq!(w.check(), 1);
    w.kill();
    let (r, _) = restore("x", &w, &[]);
    assert_eq!(r.check(), 1);
    r.kill();
    wait_until("the drain", || state() == "stored");
    assert!(good(&mut vascriu(&["ls"])).contains("stored"));
    let (r, _) = restore("x", &w, &[]);
    assert_eq!(r.check(), 1);
    r.kill();
    rm(&["x"]);
    nothing_left();
}

fn comes_back_after_reboot(w: &Workload) {
    forget("x");
    assert_eq!(state(), "in_store_only");
    assert!(good(&mut vascriu(&["ls"])).contains("in store only"));
    assert!(good(&mut vascriu(&["show", "x"])).contains("in store only"));
    for _ in 0..2 {
        let (r, _) = restore("x", w, &[]);
        assert_eq!(r.check(), 2);
        r.kill();
    }
    assert_eq!(vases().len(), 2);
    good(&mut vascriu(&["evict", "x"]));
    let (r, _) = restore("x", w, &[]);
    assert_eq!(r.check(), 2);
    r.kill();
    rm(&["x"]);
    nothing_left();
}

fn reboot(dir: &Path) {
    let w = Workload::start(&tree(dir));
    assert_eq!(w.check(), 1);
    w.dump("x", &["--sync"]);
    comes_back_after_reboot(&w);
}

fn reboot_elsewhere(dir: &Path) {
    let w = Workload::start(&tree(dir));
    assert_eq!(w.check(), 1);
    let images = dir.join("images");
    w.dump("x", &["--sync", "-D", images.to_str().expect("UTF-8")]);
    forget("x");
    good(vascriu(&["restore", "-d", "-D"]).arg(&images));
    assert_eq!(w.check(), 2);
    w.kill();
    comes_back_after_reboot(&w);
    let says = ["dumped on", "snapshot store of another machine"];
    bad(vascriu(&["restore", "-d", "-D"]).arg(&images), &says);
}

fn rm_while_draining(dir: &Path) {
    for wait in [0, 1, 5, 20, 50] {
        let places = [format!("a{wait}"), format!("b{wait}")].map(|d| dir.join(d));
        for place in &places {
            fs::create_dir(place).expect("directory");
        }
        let w = Workload::start(&Options {
            mib: 64,
            ..small(&places[0])
        });
        w.dump("x", &[]);
        sleep(Duration::from_millis(wait));
        rm(&["x"]);
        nothing_left();
        // Its name is free at once.
        let w = Workload::start(&small(&places[1]));
        assert_eq!(w.dump("x", &["--sync"])["kept"], "stored");
        let (r, _) = restore("x", &w, &[]);
        assert_eq!(r.check(), 1);
        r.kill();
        rm(&["x"]);
        nothing_left();
    }
}

fn name_twice(dir: &Path) {
    let w = Workload::start(&small(dir));
    w.dump("x", &["--sync", "--leave-running"]);
    bad(&mut dump(w.pid, "x"), &["is taken"]);
    forget("x");
    for more in [&[][..], &["--sync"]] {
        bad(dump(w.pid, "x").args(more), &["the name `x` is taken"]);
    }
    assert_eq!(w.check(), 1, "it goes on");
    rm(&["x"]);
    bad(&mut vascriu(&["rm", "x"]), &["no snapshot `x`"]);
    bad(&mut vascriu(&["restore", "x"]), &["no snapshot `x`"]);
    nothing_left();
}

fn guest_only(dir: &Path) {
    let w = Workload::start(&small(dir));
    assert_eq!(w.dump("x", &["--guest-only"])["kept"], "hot");
    assert_eq!(state(), "hot");
    assert_eq!(all_vases().len(), 2);
    bad(
        &mut vascriu(&["evict", "x"]),
        &["cannot evict x", "not in the store"],
    );
    bad(&mut vascriu(&["evict", "y"]), &["no snapshot `y`"]);
    let (r, _) = restore("x", &w, &[]);
    assert_eq!(r.check(), 1);
    r.kill();
    rm(&["x"]);
    nothing_left();
    bad(
        dump(w.pid, "x").args(["--sync", "--guest-only"]),
        &["cannot be used with"],
    );
}

fn killed_restore(dir: &Path) {
    let w = Workload::start(&small(dir));
    w.dump("x", &["--sync"]);
    for wait in [0, 2, 5, 10, 20, 40, 80] {
        forget("x");
        let mut restoring = vascriu(&["restore", "x", "-d"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("vascriu");
        sleep(Duration::from_millis(wait));
        restoring.kill().expect("kill");
        restoring.wait().expect("status");
        wait_until("its CRIU to end", criu_is_gone);
        end_workloads();
        if state() == "in_store_only" {
            assert_eq!(all_vases(), Vec::<String>::new(), "after {wait} ms");
        }
        let (r, _) = restore("x", &w, &[]);
        assert_eq!(r.check(), 1);
        r.kill();
    }
    rm(&["x"]);
    nothing_left();
}

/// Puts a snapshot of one VAS into the store by hand, and nothing of it stays here.
fn stored(snapshot: SnapshotId, vas: &str, memory: &[u8]) {
    let session = Session::open().expect("session");
    let own = PidFd::open(std::process::id().cast_signed()).expect("pidfd");
    let mut pages = MmapMut::map_anon(memory.len().next_multiple_of(4096)).expect("memory");
    pages[..memory.len()].copy_from_slice(memory);
    let (id, file): (VasId, _) = session.create(vas, 0o600).expect("create");
    file.capture_own(own.as_fd(), &pages).expect("capture");
    session
        .drain(&snapshot.to_string(), &[id], true)
        .expect("drain");
}

fn not_ours(_: &Path) {
    let head = b"VASIMGS\x01";
    let file = |name: &str| {
        let len = u16::try_from(name.len()).expect("short");
        let entry = [&len.to_le_bytes()[..], &[0; 8], name.as_bytes()].concat();
        let all = (16 + entry.len()) as u64;
        [&head[..], &all.to_le_bytes(), &entry].concat()
    };
    let id = SnapshotId::random();
    let images = id.images_vas();
    let cases = [
        (id.task_vas(Vpid(1)), vec![1; 4096], "no images"),
        ("x:images".into(), vec![1; 4096], "no snapshot of vascriu"),
        (
            SnapshotId::random().images_vas(),
            vec![1; 4096],
            "no snapshot of vascriu",
        ),
        (images.clone(), vec![1; 4096], "damaged"),
        (images.clone(), [&head[..], &[0xff; 8]].concat(), "damaged"),
        (images.clone(), file("../x.img"), "no right name"),
        (images.clone(), file("a.img"), "no images of vascriu"),
        (images, file("vas.json"), "damaged"),
    ];
    let text = id.to_string();
    for (vas, memory, says) in cases {
        stored(id, &vas, &memory);
        bad(&mut vascriu(&["restore", &text]), &["cannot restore", says]);
        rm(&[&text]);
        nothing_left();
    }
}

fn without(dir: &Path) {
    let w = Workload::start(&small(dir));
    bad(
        dump(w.pid, "x").arg("--sync"),
        &["no snapshot store", "mvasvm run --store"],
    );
    assert_eq!(w.check(), 1, "nothing happened to it");
    assert!(good(&mut vascriu(&["check"])).contains("none: snapshots stay in the guest"));
    let out = dump(w.pid, "x").output().expect("vascriu");
    assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
    assert_eq!(state(), "hot");
    assert_eq!(all_vases().len(), 2);
    bad(&mut vascriu(&["evict", "x"]), &["cannot evict x"]);
    let (r, _) = restore("x", &w, &[]);
    assert_eq!(r.check(), 2);
    r.kill();
    rm(&["x"]);
}
