// SPDX-License-Identifier: GPL-2.0-only
//! Tests of container engines that use vascriu without knowing.
//!
//! The image builder installs this program as `/usr/lib/mvas/tests/guest_engines`; in the
//! guest of the flavor `containers` it runs its tests: those of `make test`, and with
//! `--include-ignored` the long ones, too. Anywhere else they are ignored.

mod docker;
mod dockerd;
mod harness;
mod oci;
mod podman;
mod redis;

use libtest_mimic::{Arguments, Trial};

use harness::{Test, prepare, run};

fn main() {
    let in_guest = std::env::current_exe().is_ok_and(|exe| exe.starts_with("/usr/lib/mvas"));
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    if in_guest && !arguments.list {
        prepare();
    }
    let trial = |&(name, test): &Test, runs: bool| {
        let test = move || {
            run(test);
            Ok(())
        };
        Trial::test(name, test).with_ignored_flag(!(in_guest && runs))
    };
    let short = [docker::TESTS, podman::TESTS, oci::TESTS].concat();
    let long = [docker::LONG_TESTS, dockerd::LONG_TESTS, podman::LONG_TESTS].concat();
    let mut trials: Vec<_> = short.iter().map(|t| trial(t, true)).collect();
    if in_guest {
        trials.extend(long.iter().map(|t| trial(t, false)));
    }
    libtest_mimic::run(&arguments, trials).exit();
}
