// SPDX-License-Identifier: GPL-2.0-only
//! Snapshots that go to the snapshot store later, and what others do there meanwhile.

use std::path::Path;

use serde_json::{Value, json as value};
use vascriu::device::Session;

use crate::harness::{Test, Workload, bad, good, id_of, json, restore, rm, vascriu, wait_until};
use crate::snapshots::small;
use crate::store::{forget, nothing_left, state};
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
];

/// As another microVM does.
fn remove_from_store(name: &str) {
    let session = Session::open().expect("session");
    session.unstore(&id_of(name).to_string()).expect("unstore");
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
    assert_eq!(
        drain(&[]),
        value!([{"snapshot": id_of("x"), "name": "x", "kept": "draining"}])
    );
    wait_until("the drain", || state() == "stored");
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
    assert_eq!(state(), "stored");
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
    assert_eq!(state(), "stored", "filled by the restore");
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
