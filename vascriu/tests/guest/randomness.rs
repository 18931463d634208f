// SPDX-License-Identifier: GPL-2.0-only
//! No two copies share randomness, and each knows that it is a copy.
//!
//! The C library keeps the state of `getrandom()` in memory of its own (droppable, where the
//! vDSO fills it), and asks the kernel for a new one when that has reseeded: every minute, but
//! far more often in the first two minutes after boot. So these tests wait until then.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use serde_json::{Value, json};

use crate::clone::clone;
use crate::harness::{PATIENCE, Test, Workload, good, kib_of, restore, rm, vascriu, wait_until};
use crate::store::forget;
use crate::workload::{self, Options};

/// All tests here.
pub const TESTS: &[Test] = &[
    (
        "the_c_library_has_its_random_numbers_from_droppable_memory",
        uses_vdso,
    ),
    ("twenty_copies_have_different_random_numbers", twenty),
    ("copies_of_a_copy_have_different_random_numbers", of_a_copy),
    ("what_is_wiped_on_fork_is_wiped_in_copies_only", wiped),
    ("a_program_can_tell_that_it_is_a_copy", generations),
];

/// Where there is a store.
pub const TESTS_WITH_STORE: &[Test] = &[(
    "copies_from_the_store_have_different_random_numbers",
    from_the_store,
)];

/// What getrandom() is asked for.
const BYTES: usize = 1024;
/// What the wiped memory held before.
const KEY: u8 = 0x5a;
const PAGE: usize = 4096;
/// The kernel reseeds less often from the 120th second on.
const SETTLED: f64 = 125.0;

fn random() -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    // SAFETY: `bytes` has room for that many.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), BYTES, 0) };
    assert_eq!(got.cast_unsigned(), BYTES, "getrandom");
    bytes
}

/// Memory that is to be wiped on fork, with a key in it.
fn secret() -> &'static mut [u8] {
    // SAFETY: a new anonymous mapping, never unmapped, used through the slice.
    unsafe {
        let at = libc::mmap(
            std::ptr::null_mut(),
            PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        assert_ne!(at, libc::MAP_FAILED, "mmap");
        assert_eq!(libc::madvise(at, PAGE, libc::MADV_WIPEONFORK), 0, "madvise");
        std::slice::from_raw_parts_mut(at.cast(), PAGE)
    }
}

/// The program that is copied: for each SIGUSR1 it writes what it knows into the file that
/// the file `ask` names.
pub fn main(dir: &Path) {
    let _ = nix::unistd::setsid();
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGUSR1);
    signals.thread_block().expect("block");
    let secret = secret();
    secret.fill(KEY);
    random();
    workload::put(&dir.join(format!("ready-{}", nix::unistd::getpid())), "0");
    loop {
        signals.wait().expect("signal");
        let answer = fs::read_to_string(dir.join("ask")).expect("ask");
        let hex: String = random().iter().map(|b| format!("{b:02x}")).collect();
        let origin = fs::read_to_string("/proc/self/vas").unwrap_or_default();
        let said = json!({
            "random": hex,
            "secret": secret.iter().all(|&b| b == KEY),
            "empty": secret.iter().all(|&b| b == 0),
            "origin": origin,
        });
        workload::put(&dir.join(answer), &said.to_string());
    }
}

/// Waits until the kernel reseeds seldom.
pub fn settle() {
    let uptime = || {
        let text = fs::read_to_string("/proc/uptime").expect("uptime");
        let first = text.split(' ').next().expect("a number");
        first.parse::<f64>().expect("a number")
    };
    let left = SETTLED - uptime();
    assert!(left < PATIENCE.as_secs_f64() * 2.0);
    if left > 0.0 {
        std::thread::sleep(Duration::from_secs_f64(left));
    }
}

fn start(dir: &Path) -> Workload {
    settle();
    let options = Options {
        dir: dir.into(),
        random: true,
        ..Options::default()
    };
    Workload::start(&options)
}

/// What the one with this PID says.
pub fn ask(dir: &Path, pid: i32) -> Value {
    let answer = dir.join(format!("answer-{pid}"));
    let _ = fs::remove_file(&answer);
    fs::write(dir.join("ask"), format!("answer-{pid}")).expect("ask");
    // SAFETY: kill takes two integers.
    unsafe { libc::kill(pid, libc::SIGUSR1) };
    wait_until("an answer", || answer.exists());
    serde_json::from_str(&fs::read_to_string(answer).expect("answer")).expect("JSON")
}

/// Mappings whose flags in smaps have this one, and how many KiB of each are resident.
fn mappings_with(pid: i32, flag: &str) -> Vec<u64> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("smaps");
    let mut resident = 0;
    let mut found = Vec::new();
    for line in smaps.lines() {
        if line.starts_with("Rss:") {
            resident = kib_of(line, "Rss:");
        } else if let Some(flags) = line.strip_prefix("VmFlags:")
            && flags.split_whitespace().any(|f| f == flag)
        {
            found.push(resident);
        }
    }
    found
}

/// Asks each, and fails if two say the same, at the beginning or anywhere.
fn all_differ(dir: &Path, pids: impl IntoIterator<Item = i32>) -> usize {
    let said: Vec<Value> = pids.into_iter().map(|p| ask(dir, p)).collect();
    let random = || said.iter().filter_map(|s| s["random"].as_str());
    let whole: HashSet<_> = random().collect();
    let parts: HashSet<_> = random().flat_map(|r| r.as_bytes().chunks(64)).collect();
    println!(
        "{} of {} copies have random numbers of their own",
        whole.len(),
        said.len()
    );
    assert_eq!(whole.len(), said.len(), "all different");
    assert_eq!(parts.len(), said.len() * BYTES / 32, "in every part");
    said.len()
}

fn uses_vdso(dir: &Path) {
    let w = start(dir);
    let state = mappings_with(w.pid, "dp");
    assert!(
        state.iter().any(|&kib| kib > 0),
        "no state in use: {state:?}"
    );
    w.dump("x", &[]);
    let (r, _) = restore("x", &w, &[]);
    assert_eq!(
        mappings_with(r.pid, "dp").len(),
        state.len(),
        "it stays droppable"
    );
    ask(dir, r.pid);
    assert!(
        mappings_with(r.pid, "dp").iter().any(|&kib| kib > 0),
        "and in use"
    );
    r.kill();
    for c in clone("x", 1, &[]) {
        assert_eq!(
            mappings_with(c.pid, "dp"),
            vec![0; state.len()],
            "a copy's is empty"
        );
        c.kill();
    }
    rm(&["x"]);
}

fn twenty(dir: &Path) {
    let w = start(dir);
    ask(dir, w.pid);
    w.dump("x", &[]);
    let all = clone("x", 20, &["--parallel", "2"]);
    assert_eq!(all_differ(dir, all.iter().map(|c| c.pid)), 20);
    assert!(
        all.iter()
            .all(|c| mappings_with(c.pid, "dp") == mappings_with(all[0].pid, "dp"))
    );
    all.iter().for_each(crate::clone::Copy::kill);
    rm(&["x"]);
}

fn of_a_copy(dir: &Path) {
    let w = start(dir);
    w.dump("x", &[]);
    let first = clone("x", 2, &[]);
    ask(dir, first[0].pid);
    w.restored_as(first[0].pid).dump("y", &["--leave-running"]);
    let second = clone("y", 3, &[]);
    let all: Vec<_> = first.iter().chain(&second).collect();
    assert_eq!(all_differ(dir, all.iter().map(|c| c.pid)), 5);
    assert!(
        second
            .iter()
            .all(|c| !mappings_with(c.pid, "dp").is_empty())
    );
    all.iter().for_each(|c| c.kill());
    rm(&["x", "y"]);
}

fn wiped(dir: &Path) {
    let w = start(dir);
    // The C library's is one, too.
    let marked = mappings_with(w.pid, "wf").len();
    assert!(marked > 0);
    w.dump("x", &[]);
    let (r, said) = restore("x", &w, &[]);
    assert_eq!(said["clone"], false);
    assert_eq!(
        ask(dir, r.pid)["secret"],
        true,
        "the one continuation has it"
    );
    assert_eq!(mappings_with(r.pid, "wf").len(), marked);
    let (again, said) = {
        r.kill();
        restore("x", &w, &[])
    };
    assert_eq!(said["clone"], true);
    assert_eq!(ask(dir, again.pid)["empty"], true);
    again.kill();
    for c in clone("x", 2, &[]) {
        assert_eq!(ask(dir, c.pid)["empty"], true);
        assert_eq!(mappings_with(c.pid, "wf").len(), marked, "the flag is kept");
        c.kill();
    }
    rm(&["x"]);
}

fn generations(dir: &Path) {
    let w = start(dir);
    let nothing = format!("snapshot:\t{}\ngeneration:\t0\n", "0".repeat(32));
    assert_eq!(ask(dir, w.pid)["origin"], nothing);
    w.dump("x", &[]);
    let shown = json_of(&["show", "x", "--json"]);
    let mut seen = HashSet::new();
    for c in clone("x", 3, &[]) {
        let origin = ask(dir, c.pid)["origin"].to_string();
        let generation = c.said["generation"].as_str().expect("a number");
        assert!(
            origin.contains(shown["id"].as_str().expect("an identity")),
            "{origin}"
        );
        assert!(
            origin.contains(&format!("generation:\\t{generation}\\n")),
            "{origin}"
        );
        assert!(seen.insert(generation.to_owned()));
        c.kill();
    }
    rm(&["x"]);
}

fn json_of(args: &[&str]) -> Value {
    serde_json::from_str(&good(&mut vascriu(args))).expect("JSON")
}

fn from_the_store(dir: &Path) {
    let w = start(dir);
    ask(dir, w.pid);
    w.dump("x", &["--sync"]);
    let here = clone("x", 2, &[]);
    assert_eq!(all_differ(dir, here.iter().map(|c| c.pid)), 2);
    here.iter().for_each(crate::clone::Copy::kill);
    // As in another microVM, which has the snapshot from the store.
    forget("x");
    let there = clone("x", 3, &[]);
    assert_eq!(all_differ(dir, there.iter().map(|c| c.pid)), 3);
    there.iter().for_each(crate::clone::Copy::kill);
    rm(&["x"]);
}
