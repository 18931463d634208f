// SPDX-License-Identifier: GPL-2.0-only
//! Tests of vascriu against the real kernel and the real CRIU.
//!
//! The image builder installs this program as `/usr/lib/mvas/tests/guest`; there,
//! in the guest and as root, it runs its tests (`make test` does so). Anywhere
//! else they are ignored. `guest workload …` is what the tests dump and restore;
//! `guest churn …`, `verify`, `start` and `ask` are for the tests of whole microVMs.

mod bad_input;
mod branch;
mod bundle;
mod churn;
mod clone;
mod container;
mod crash;
mod drain;
mod failures;
mod frames;
mod harness;
mod killed;
mod object;
mod randomness;
mod runtimes;
mod service;
mod snapshots;
mod store;
mod watchdog;
mod workload;

use libtest_mimic::{Arguments, Trial};
use vascriu::device::Session;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("workload") => return workload::main(&args[2..]),
        Some("churn") => return churn::main(&args[2..]),
        Some("verify") => return churn::verify(&args[2..]),
        Some("start") => return churn::start(&args[2..]),
        Some("refusing") => return failures::refusing(&args[2..]),
        Some("ask") => return churn::ask(&args[2..]),
        _ => {}
    }
    let in_guest = std::env::current_exe().is_ok_and(|exe| exe.starts_with("/usr/lib/mvas"));
    let has_store = Session::open().is_ok_and(|s| s.has_store().unwrap_or(false));
    let everywhere = [
        snapshots::TESTS,
        object::TESTS,
        container::TESTS,
        killed::TESTS,
        bad_input::TESTS,
        failures::TESTS,
        crash::TESTS,
        clone::TESTS,
        clone::net::TESTS,
        clone::limits::TESTS,
        clone::runc::TESTS,
        branch::TESTS,
        randomness::TESTS,
        runtimes::TESTS,
        service::TESTS,
    ]
    .concat();
    let all = [
        (everywhere.as_slice(), true),
        (store::TESTS, has_store),
        (drain::TESTS, has_store),
        (randomness::TESTS_WITH_STORE, has_store),
        (store::TESTS_WITHOUT, !has_store),
    ];
    let trial = |&(name, test): &harness::Test, runs: bool| {
        let run = move || {
            harness::in_clean_guest(test);
            Ok(())
        };
        Trial::test(name, run).with_ignored_flag(!(in_guest && runs))
    };
    let trials = all
        .iter()
        .flat_map(|&(tests, runs)| tests.iter().map(move |t| trial(t, runs)))
        .collect();
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials).exit();
}
