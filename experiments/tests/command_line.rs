// SPDX-License-Identifier: GPL-2.0-only
//! What the command line tells of itself.

use mvas_cli::testing::{assert_completions, assert_pages};

const MVAS_EXP: &str = env!("CARGO_BIN_EXE_mvas-exp");
const HIDDEN: [&str; 5] = ["guest", "image-root", "janitor", "man", "workload"];

#[test]
fn completions_have_every_command_but_hidden_ones() {
    assert_completions(MVAS_EXP, &HIDDEN);
}

#[test]
fn every_command_has_a_page_those_of_vascriu_too() {
    let dir = tempfile::tempdir().expect("a folder");
    let some = ["mvas-exp-run.1", "vascriu.1", "vascriu-dump.1"];
    assert_pages(MVAS_EXP, dir.path(), &some, &HIDDEN);
}
