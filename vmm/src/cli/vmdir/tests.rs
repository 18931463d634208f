// SPDX-License-Identifier: GPL-2.0-only
use std::panic::{AssertUnwindSafe, catch_unwind};

use tempfile::TempDir;

use super::*;
use crate::cli::record::Hw;

fn vms() -> (TempDir, Vms) {
    let dir = tempfile::tempdir().expect("a folder");
    let vms = Vms {
        dir: dir.path().to_owned(),
    };
    (dir, vms)
}

fn name(name: &str) -> VmName {
    name.parse().expect("a name")
}

fn info(name: &str) -> VmInfo {
    VmInfo {
        name: name.to_owned(),
        pid: 1,
        hw: Hw::Kvm,
        sim: None,
        store: None,
        mem_bytes: 1,
        cpus: 1,
        kernel: PathBuf::from("kernel"),
        image: None,
        started: 1,
        end: None,
    }
}

/// A monitor's folder, described.
fn start(vms: &Vms, vm: &str) -> VmDir {
    let mut dir = vms.claim(&name(vm)).expect("a free name");
    dir.clear().expect("clear");
    dir.describe(info(vm)).expect("describe");
    dir
}

fn ended_at(at: u64) -> End {
    let end = End::new(Cause::PoweredOff, "powered off", Some(0));
    End { at, ..end }
}

fn names(vms: &Vms) -> Vec<String> {
    let all = vms.all().expect("list").into_iter();
    all.map(|vm| vm.info.name).collect()
}

#[test]
fn those_that_ended_last_are_kept_and_every_living_one() {
    let (_dir, vms) = vms();
    let living: Vec<VmDir> = ["a", "z"].iter().map(|vm| start(&vms, vm)).collect();
    for at in 0..20 {
        start(&vms, &format!("vm{at:02}")).end(ended_at(at));
    }
    let kept = names(&vms);
    assert_eq!(kept.len(), KEPT + living.len());
    assert_eq!((kept[0].as_str(), kept[1].as_str()), ("a", "vm04"));
    assert_eq!(kept.last().map(String::as_str), Some("z"));
    assert_eq!(fs::read_dir(&vms.dir).expect("ls").count(), KEPT + 2 + 1);
    let docs = include_str!("../../../../docs/VMM.md");
    assert!(docs.contains(&format!("The {KEPT} records that ended last")));
}

/// A name that is claimed for a new VM while its record is the oldest.
#[test]
fn a_record_too_many_whose_folder_is_held_stays() {
    let (_dir, vms) = vms();
    start(&vms, "vm").end(ended_at(0));
    let held = vms.claim(&name("vm")).expect("a free name");
    for at in 1..=20 {
        start(&vms, &format!("vm{at}")).end(ended_at(at));
    }
    vms.all().expect("list");
    assert!(held.path().join(LOCK).exists());
    vms.remove_ended().expect("remove");
    assert!(held.path().join(LOCK).exists());
}

#[test]
fn a_monitor_that_unwinds_says_so_in_its_record() {
    let (_dir, vms) = vms();
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        let _dir = start(&vms, "vm");
        panic!("a panic that a test wants");
    }));
    assert!(unwound.is_err());
    let end = vms.find(&name("vm")).expect("a record").info.end;
    assert_eq!(end.map(|end| end.cause), Some(Cause::Failed));
}

#[test]
fn a_claim_that_comes_to_nothing_leaves_what_was_there() {
    let (_dir, vms) = vms();
    drop(vms.claim(&name("vm")).expect("a free name"));
    assert!(!vms.dir.join("vm").exists());
    start(&vms, "vm").end(ended_at(7));
    drop(vms.claim(&name("vm")).expect("a free name"));
    let found = vms.find(&name("vm")).expect("a record");
    assert_eq!(found.info.end, Some(ended_at(7)));
}

#[test]
fn a_name_in_use_is_refused_and_looking_changes_nothing() {
    let (_dir, vms) = vms();
    let dir = start(&vms, "vm");
    let refused = vms.claim(&name("vm")).expect_err("in use").to_string();
    assert!(refused.contains("runs already, process 1"), "{refused}");
    assert!(
        vms.running(&name("vm"))
            .expect("it runs")
            .lives()
            .expect("its lock")
    );
    dir.end(ended_at(7));
    assert!(vms.running(&name("vm")).is_err());
    assert!(
        !vms.find(&name("vm"))
            .expect("a record")
            .lives()
            .expect("its lock")
    );
}

#[test]
fn those_who_look_are_not_taken_for_monitors() {
    let (_dir, vms) = vms();
    start(&vms, "ended").end(ended_at(7));
    start(&vms, "again").end(ended_at(8));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let ended = vms.find(&name("ended")).expect("a record");
                let again = vms.find(&name("again")).expect("a record");
                for _ in 0..1000 {
                    assert!(!ended.lives().expect("its lock"), "nobody has it");
                    again.lives().expect("its lock");
                }
            });
        }
        for _ in 0..400 {
            // Refused, if a look were an owner.
            drop(vms.claim(&name("again")).expect("a free name"));
        }
    });
}
