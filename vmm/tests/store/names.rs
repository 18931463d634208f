// SPDX-License-Identifier: GPL-2.0-only
//! Snapshots by what their labels call them.

use mvas_host::store::BLOCK;
use serde_json::Value;

use crate::{Shm, labelled};

const A: &str = "0123456789abcdef0123456789abcdef";
const B: &str = "0123ffffffffffff0123456789abcdef";
const C: &str = "c0ffee0000000000c0ffee0000000000";

/// Snapshots as vascriu names them: two called "redis", one that a container engine made.
fn with_labels() -> Shm {
    let shm = Shm::new();
    let run = shm.store().start_run("maker", 4 * BLOCK).unwrap();
    labelled(&run, A, r#"{"v":1,"name":"redis"}"#, &[0]);
    labelled(&run, B, r#"{"v":1,"name":"redis"}"#, &[1]);
    let of_docker = r#"{"v":1,"name":"web","origin":{"engine":"docker","container":"web-1"}}"#;
    labelled(&run, C, of_docker, &[2]);
    shm
}

#[test]
fn ls_shows_names_origins_and_the_beginnings_of_identities() {
    let shm = with_labels();
    let (table, _) = shm.ends(&["snapshots", "ls"], 0);
    let words: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(words[0][..3], ["ID", "NAME", "VASES"], "{table}");
    // By name; the newest first.
    assert_eq!(words[1][..2], [&B[..12], "redis"], "{table}");
    assert_eq!(words[2][..2], [&A[..12], "redis"], "{table}");
    assert_eq!(words[3][..2], [&C[..12], "web"], "{table}");
    assert_eq!(words[3][9..], ["maker", "docker:web-1"], "{table}");

    let list = shm.json(&["snapshots", "ls"], 0);
    assert_eq!(
        (&list[2]["name"], &list[2]["state"]),
        (&C.into(), &"complete".into())
    );
    assert_eq!(list[2]["label"]["name"], "web");
    assert_eq!(list[2]["label"]["origin"]["container"], "web-1");
    let (text, _) = shm.ends(&["snapshots", "show", "web"], 0);
    for line in [
        &format!("id:         {C}\n"),
        "name:       web\n",
        "origin:     docker:web-1\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
    let shown = shm.json(&["snapshots", "show", "c0ff"], 0);
    assert_eq!(
        (&shown["name"], &shown["label"]),
        (&C.into(), &list[2]["label"])
    );
}

#[test]
fn what_a_word_means_must_be_clear_before_anything_is_removed() {
    let shm = with_labels();
    let left = || shm.json(&["snapshots", "ls"], 0).as_array().unwrap().len();
    for words in [
        &["snapshots", "rm", "web", "redis"][..],
        &["snapshots", "rm", "web", "0123"],
        &["snapshots", "show", "redis"],
    ] {
        let (out, err) = shm.ends(words, 125);
        assert!(
            out.is_empty() && err.contains("each of these"),
            "{out}{err}"
        );
        assert!(
            err.contains(A) && err.contains(B) && !err.contains(C),
            "{err}"
        );
    }
    let (out, err) = shm.ends(&["snapshots", "rm", "web", "cafe"], 125);
    assert!(
        out.is_empty() && err.contains("no snapshot cafe"),
        "{out}{err}"
    );
    assert_eq!(left(), 3);
    // One of them, and one that two words mean.
    let (out, _) = shm.ends(&["snapshots", "rm", "0123f", "web", C], 0);
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines.len(), 2, "{out}");
    assert!(
        lines[0].starts_with("redis (0123ffffffff) removed: "),
        "{out}"
    );
    assert!(
        lines[1].starts_with("web (c0ffee000000) removed: "),
        "{out}"
    );
    let removed = shm.json(&["snapshots", "rm", "redis"], 0);
    assert_eq!(
        (&removed[0]["name"], &removed[0]["label"]["name"]),
        (&A.into(), &"redis".into())
    );
    assert_eq!(left(), 0);
}

#[test]
fn a_broken_snapshot_keeps_its_name_and_is_removed_by_name_or_identity() {
    let shm = with_labels();
    for (id, word) in [(A, &A[..8]), (C, "web")] {
        shm.break_manifest(id);
        let (table, _) = shm.ends(&["snapshots", "ls"], 0);
        let is_it = |line: &&str| line.starts_with(&id[..12]);
        let line = table.lines().find(is_it).unwrap();
        assert!(line.contains("BROKEN: ") && !line.contains(" - "), "{line}");
        shm.ends(&["snapshots", "rm", word], 0);
    }
    assert_eq!(shm.listed(B)["label"]["name"], "redis");
}

/// What a guest writes reaches neither a terminal's state nor another snapshot.
#[test]
fn hostile_labels_are_shown_and_do_nothing() {
    let shm = Shm::new();
    let run = shm.store().start_run("maker", 4 * BLOCK).unwrap();
    labelled(
        &run,
        A,
        r#"{"name":"\u001b[2J\u009b2J\u202e","origin":{"engine":"\n"}}"#,
        &[0],
    );
    labelled(&run, B, &format!(r#"{{"name":"{A}"}}"#), &[1]);
    labelled(&run, C, "[[[[", &[2]);
    for words in [
        &["snapshots", "ls"][..],
        &["snapshots", "ls", "--json"],
        &["snapshots", "show", A],
        &["snapshots", "show", A, "--json"],
        &["snapshots", "rm", A],
    ] {
        let (out, err) = shm.ends(words, 0);
        let steers = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
        assert!(!out.contains(steers) && !err.contains(steers), "{out:?}");
    }
    let list = shm.json(&["snapshots", "ls"], 0);
    // It was not the one that only says that it is.
    assert_eq!(
        (&list[0]["name"], &list[0]["label"]["name"]),
        (&B.into(), &A.into())
    );
    assert_eq!(
        (&list[1]["name"], &list[1]["label"]),
        (&C.into(), &Value::Null)
    );
}
