// SPDX-License-Identifier: GPL-2.0-only
//! Completions: on the host, too.

#[test]
fn completions_have_every_command_for_every_shell() {
    mvas_cli::testing::assert_completions(env!("CARGO_BIN_EXE_vascriu"), &[]);
}
