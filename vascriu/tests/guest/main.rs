//! Tests of vascriu against the real kernel and the real CRIU.
//!
//! The image builder installs this program as `/usr/lib/mvas/tests/guest`; there,
//! in the guest and as root, it runs its tests (`make test` does so). Anywhere
//! else they are ignored. `guest workload …` is what the tests dump and restore.

mod bad_input;
mod container;
mod crash;
mod drain;
mod failures;
mod harness;
mod snapshots;
mod store;
mod watchdog;
mod workload;

use libtest_mimic::{Arguments, Trial};
use vascriu::device::Session;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|a| a == "workload") {
        workload::main(&args[2..]);
        return;
    }
    let in_guest = std::env::current_exe().is_ok_and(|exe| exe.starts_with("/usr/lib/mvas"));
    let has_store = Session::open().is_ok_and(|s| s.has_store().unwrap_or(false));
    let everywhere = [
        snapshots::TESTS,
        container::TESTS,
        bad_input::TESTS,
        failures::TESTS,
        crash::TESTS,
    ]
    .concat();
    let all = [
        (everywhere.as_slice(), true),
        (store::TESTS, has_store),
        (drain::TESTS, has_store),
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
