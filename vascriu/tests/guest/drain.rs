//! Snapshots that go to the snapshot store later, and what others do there meanwhile.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json as value};
use vascriu::device::Session;

use crate::harness::{
    Test, Workload, all_vases, bad, dump, good, json, restore, rm, vascriu, wait_until,
};
use crate::snapshots::small;
use crate::store::{forget, kept, nothing_left, stored};
use crate::workload::Options;

/// All tests here.
pub const TESTS: &[Test] = &[
    ("what_was_kept_in_the_guest_is_drained_later", later),
    ("a_drain_under_way_is_waited_for", under_way),
    (
        "what_others_removed_from_the_store_is_drained_again",
        removed_by_others,
    ),
    ("what_others_removed_while_it_was_cold_is_lost", lost),
    (
        "rm_leaves_a_later_snapshot_of_another_microvm",
        replaced_by_others,
    ),
    ("a_drain_under_a_taken_name_changes_nothing", name_taken),
    (
        "images_of_another_boot_say_where_the_snapshot_is",
        other_boot,
    ),
];

/// As another microVM does.
fn remove_from_store(name: &str) {
    let session = Session::open().expect("session");
    session.unstore(name, None).expect("unstore");
}

fn drain(more: &[&str]) -> Value {
    json(vascriu(&["drain", "x", "--json"]).args(more))
}

fn later(dir: &Path) {
    let w = Workload::start(&Options {
        children: 1,
        huge: true,
        ..small(dir)
    });
    w.dump("x", &["--guest-only"]);
    assert_eq!(drain(&[]), value!([{"name": "x", "kept": "draining"}]));
    wait_until("the drain", || kept() == "stored");
    for _ in 0..2 {
        assert_eq!(drain(&["--sync"])[0]["kept"], "stored", "nothing is to do");
    }
    good(&mut vascriu(&["evict", "x"]));
    assert_eq!(good(&mut vascriu(&["drain", "x"])), "x: cold\n");
    let (r, _) = restore("x", &w, &[]);
    assert_eq!(r.check(), 1);
    r.kill();
    forget("x");
    let (r, _) = restore("x", &w, &[]);
    assert_eq!(r.check(), 1, "its images were drained, too");
    r.kill();
    rm(&["x"]);
    bad(
        &mut vascriu(&["drain", "x", "y"]),
        &["cannot drain x: no snapshot `x`", "cannot drain y"],
    );
    nothing_left();
}

fn under_way(dir: &Path) {
    let w = Workload::start(&Options {
        mib: 96,
        ..small(dir)
    });
    assert_eq!(w.dump("x", &[])["kept"], "draining");
    assert_eq!(drain(&["--sync"])[0]["kept"], "stored");
    assert_eq!(kept(), "stored");
    rm(&["x"]);
    nothing_left();
}

fn removed_by_others(dir: &Path) {
    let w = Workload::start(&small(dir));
    w.dump("x", &["--sync"]);
    remove_from_store("x");
    assert_eq!(drain(&["--sync"])[0]["kept"], "stored");
    forget("x");
    let (r, _) = restore("x", &w, &[]);
    assert_eq!(r.check(), 1);
    r.kill();
    // What came from the store goes there again.
    remove_from_store("x");
    assert_eq!(kept(), "stored", "filled by the restore");
    assert_eq!(drain(&["--sync"])[0]["kept"], "stored");
    forget("x");
    let (r, _) = restore("x", &w, &[]);
    assert_eq!(r.check(), 1);
    r.kill();
    rm(&["x"]);
    nothing_left();
}

fn lost(dir: &Path) {
    let w = Workload::start(&small(dir));
    w.dump("x", &["--sync"]);
    good(&mut vascriu(&["evict", "x"]));
    remove_from_store("x");
    bad(
        &mut vascriu(&["drain", "x"]),
        &["cannot drain x", "no longer there"],
    );
    bad(
        &mut vascriu(&["restore", "x", "-d"]),
        &["cannot restore x", "no longer there"],
    );
    rm(&["x"]);
    nothing_left();
}

fn replaced_by_others(dir: &Path) {
    for cold in [false, true] {
        let place = dir.join(format!("{cold}"));
        fs::create_dir(&place).expect("directory");
        let w = Workload::start(&small(&place));
        w.dump("x", &["--sync"]);
        if cold {
            good(&mut vascriu(&["evict", "x"]));
        }
        remove_from_store("x");
        stored("x", "y:1", &[7; 4096]);
        rm(&["x"]);
        assert_eq!(all_vases(), Vec::<String>::new());
        assert_eq!(kept(), "in_store", "the later one is there");
        // Who means that one gets it.
        rm(&["x"]);
        nothing_left();
    }
}

fn name_taken(dir: &Path) {
    let w = Workload::start(&small(dir));
    stored("x", "y:1", &[7; 4096]);
    w.dump("x", &["--guest-only"]);
    for more in [&[][..], &["--sync"]] {
        bad(
            vascriu(&["drain", "x"]).args(more),
            &["cannot drain x", "store has a `x` already"],
        );
    }
    assert_eq!(kept(), "hot");
    let (r, _) = restore("x", &w, &[]);
    assert_eq!(r.check(), 1);
    r.kill();
    rm(&["x"]);
    assert_eq!(kept(), "in_store");
    rm(&["x"]);
    nothing_left();
}

fn other_boot(dir: &Path) {
    let w = Workload::start(&small(dir));
    let (images, copy) = (dir.join("images"), dir.join("copy"));
    let (images, copy) = (
        images.to_str().expect("UTF-8"),
        copy.to_str().expect("UTF-8"),
    );
    let said = json(dump(w.pid, "x").args(["--sync", "-D", images]));
    assert_eq!(said["kept"], "stored");
    // On a disk, they are there after a reboot.
    good(Command::new("cp").args(["-r", images, copy]));
    let file = Path::new(copy).join("vas.json");
    let text = fs::read_to_string(&file).expect("read");
    let mut all: Value = serde_json::from_str(&text).expect("JSON");
    all["boot_id"] = value!("00000000-0000-0000-0000-000000000000");
    fs::write(&file, all.to_string()).expect("write");
    forget("x");
    let restore_copy = || vascriu(&["restore", "-D", copy, "-d"]);
    let says = ["another boot", "store has a `x`: `vascriu restore x`"];
    bad(&mut restore_copy(), &says);
    let (r, _) = restore("x", &w, &[]);
    assert_eq!(r.check(), 1);
    r.kill();
    rm(&["x"]);
    bad(&mut restore_copy(), &["another boot", "no `x`"]);
    nothing_left();
}
