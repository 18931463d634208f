//! The snapshot store outside of this guest: the way there and back.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use memmap2::MmapMut;
use serde_json::{Value, json as value};
use vascriu::device::{Session, VAS_ACCESS_READ, VAS_ACCESS_WRITE, VasId};
use vascriu::process::PidFd;

use crate::harness::{
    Test, Workload, all_vases, bad, dump, end_workloads, good, json, restore, rm, vascriu, vases,
    wait_until,
};
use crate::snapshots::small;
use crate::workload::Options;

/// Where there is a store.
pub const TESTS: &[Test] = &[
    ("a_cold_snapshot_comes_back", cold),
    ("a_dump_goes_to_the_store_in_the_background", background),
    ("a_snapshot_comes_back_after_a_reboot", reboot),
    (
        "a_snapshot_whose_images_were_elsewhere_comes_back_after_a_reboot",
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
    let rows = json(&mut vascriu(&["ls", "--json"]));
    assert_eq!(rows.as_array().map(Vec::len), Some(1), "{rows}");
    rows[0].clone()
}

pub fn kept() -> Value {
    row()["kept"].clone()
}

pub fn nothing_left() {
    assert_eq!(json(&mut vascriu(&["ls", "--json"])), value!([]));
    assert_eq!(all_vases(), Vec::<String>::new());
}

/// Takes from this guest all that it has of a snapshot, as its reboot would.
pub fn forget(name: &str) {
    let session = Session::open().expect("session");
    let prefix = format!("{name}:");
    for vas in all_vases().iter().filter(|v| v.starts_with(&prefix)) {
        let vas = session.vas_by_name(vas, VAS_ACCESS_READ | VAS_ACCESS_WRITE);
        vas.expect("VAS").delete(true).expect("delete");
    }
    let path = Path::new("/run/vascriu").join(name);
    fs::remove_file(&path)
        .or_else(|_| fs::remove_dir_all(&path))
        .expect("remove");
}

fn tree(dir: &Path) -> Options {
    Options {
        children: 1,
        huge: true,
        ..small(dir)
    }
}

fn cold(dir: &Path) {
    let w = Workload::start(&tree(dir));
    assert_eq!(w.check(), 1);
    let said = w.dump("x", &["--sync"]);
    assert_eq!(said["kept"], "stored");
    assert_eq!(kept(), "stored");
    for n in 0..2 {
        let freed = json(&mut vascriu(&["evict", "x", "--json"]));
        assert!(freed["pages"].as_u64() >= Some(16 * 256), "{freed}");
        assert_eq!(kept(), "cold");
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
    wait_until("the drain", || kept() == "stored");
    assert!(good(&mut vascriu(&["ls"])).contains("ready, stored"));
    let (r, _) = restore("x", &w, &[]);
    assert_eq!(r.check(), 1);
    r.kill();
    rm(&["x"]);
    nothing_left();
}

fn comes_back_after_reboot(w: &Workload) {
    forget("x");
    assert_eq!(kept(), "in_store");
    assert!(good(&mut vascriu(&["ls"])).contains("in store only"));
    assert!(good(&mut vascriu(&["show", "x"])).contains("in store only"));
    for _ in 0..2 {
        let (r, _) = restore("x", w, &[]);
        assert_eq!(r.check(), 2);
        r.kill();
    }
    assert_eq!(row()["state"], "ready");
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
    fs::remove_dir_all(images).expect("remove");
    comes_back_after_reboot(&w);
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
    bad(&mut dump(w.pid, "x"), &["exists already"]);
    forget("x");
    for more in [&[][..], &["--sync"]] {
        bad(dump(w.pid, "x").args(more), &["store has a `x` already"]);
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
    assert_eq!(kept(), "hot");
    assert_eq!(all_vases().len(), 1);
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
        wait_until("its CRIU to end", || row()["state"] != "busy");
        end_workloads();
        if kept() == "in_store" {
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
pub fn stored(snapshot: &str, vas: &str, memory: &[u8]) {
    let session = Session::open().expect("session");
    let own = PidFd::open(std::process::id().cast_signed()).expect("pidfd");
    let mut pages = MmapMut::map_anon(memory.len().next_multiple_of(4096)).expect("memory");
    pages[..memory.len()].copy_from_slice(memory);
    let (id, file): (VasId, _) = session.create(vas, 0o600).expect("create");
    file.capture_own(own.as_fd(), &pages).expect("capture");
    session.drain(snapshot, &[id], true).expect("drain");
}

fn not_ours(_: &Path) {
    let head = b"VASIMGS\x01";
    let file = |name: &str| {
        let len = u16::try_from(name.len()).expect("short");
        let entry = [&len.to_le_bytes()[..], &[0; 8], name.as_bytes()].concat();
        let all = (16 + entry.len()) as u64;
        [&head[..], &all.to_le_bytes(), &entry].concat()
    };
    let cases = [
        ("x:1", vec![1; 4096], "no images"),
        ("x:images", vec![1; 4096], "damaged"),
        ("x:images", [&head[..], &[0xff; 8]].concat(), "damaged"),
        ("x:images", file("../x.img"), "no right name"),
        ("x:images", file("a.img"), "no vas.json"),
        ("x:images", file("vas.json"), "damaged"),
    ];
    for (vas, memory, says) in cases {
        stored("x", vas, &memory);
        bad(&mut vascriu(&["restore", "x"]), &["cannot restore x", says]);
        assert_eq!(all_vases(), Vec::<String>::new());
        assert_eq!(kept(), "in_store");
        rm(&["x"]);
    }
    nothing_left();
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
    assert_eq!(kept(), "hot");
    assert_eq!(all_vases().len(), 1);
    bad(&mut vascriu(&["evict", "x"]), &["cannot evict x"]);
    let (r, _) = restore("x", &w, &[]);
    assert_eq!(r.check(), 2);
    r.kill();
    rm(&["x"]);
}
