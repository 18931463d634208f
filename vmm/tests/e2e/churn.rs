// SPDX-License-Identifier: GPL-2.0-only
//! Random operations on snapshots in one guest (`guest churn`): for minutes, and until its
//! monitor is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::{PATIENCE, Vm, mvasvm, show, succeed, text, wait_for};
use crate::store::{GUEST, Shelf};

/// What these tests may be told by the environment.
pub fn number(name: &str, default: u64) -> u64 {
    match env::var(name) {
        Ok(value) => value.parse().unwrap_or_else(|e| panic!("{name}: {e}")),
        Err(_) => default,
    }
}

/// `MVAS_SEED`, or a new one; it is printed.
pub fn seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let seed = number("MVAS_SEED", now.expect("after 1970").as_secs());
    println!("MVAS_SEED={seed}");
    seed
}

/// Guest memory that its allocator has free in whole blocks: that is reported to the host.
/// But of a zone that is hardly larger than its watermark nothing is.
fn free_blocks(vm: &Vm) -> u64 {
    let info = vm.good(&["cat", "/proc/buddyinfo"]);
    let of_line = |line: &str| -> u64 {
        let counts = line.split_whitespace().skip(4).zip(0..);
        let whole = counts.filter(|(_, order)| *order >= 9);
        whole
            .map(|(count, order)| count.parse::<u64>().expect("a count") << (order + 12))
            .sum()
    };
    let reported = info.lines().filter(|line| !line.contains(" DMA "));
    reported.map(of_line).sum()
}

/// A day's operations squeezed: `MVAS_CHURN_SECONDS` makes it longer.
#[test]
fn random_operations_keep_every_snapshot_right_and_leak_nothing() {
    const MEM: u64 = 1 << 30;
    let seconds = format!("seconds={}", number("MVAS_CHURN_SECONDS", 50));
    let seed = format!("seed={}", seed());
    let shelf = Shelf::new();
    let vm = shelf.vm("churn", &[]);
    let ran = vm.exec(&[GUEST, "churn", &seed, &seconds]);
    assert!(ran.status.success(), "{}", show(&ran));
    let said = text(&ran.stdout);
    for line in said.lines().filter(|line| line.starts_with("after ")) {
        println!("{line}");
    }
    // The guest's kernel has said nothing alarming.
    let log = vm.good(&["dmesg"]);
    for alarm in ["WARNING", "BUG", "Oops", "INFO: ", "Bad page"] {
        assert!(!log.contains(alarm), "{log}");
    }
    // Nothing is kept in the store, and what is free in the guest is the host's again.
    assert_eq!(shelf.names(), [""; 0]);
    shelf.is_right();
    let (mut host, mut guest) = (0, 0);
    wait_for("free memory to go back", || {
        guest = MEM - free_blocks(&vm);
        host = shelf.ram_bytes();
        host <= guest
    });
    println!("of the guest's memory {guest} bytes are in use, {host} on the host");
    drop(vm);
    shelf.is_empty();
}

/// Snapshots that must and may be there, with what `verify` takes to know their data.
#[derive(Default)]
struct Expected {
    must: BTreeMap<String, String>,
    may: BTreeMap<String, String>,
}

impl Expected {
    fn read(words: &str) -> Self {
        let mut this = Self::default();
        // The last line may be cut off.
        for line in words.split_inclusive('\n') {
            let Some((verb, what)) = line.strip_suffix('\n').and_then(|l| l.split_once(' ')) else {
                continue;
            };
            match verb {
                "storing" => {
                    let name = what.split(':').next().unwrap_or_default();
                    this.may.insert(name.to_owned(), what.to_owned());
                }
                "stored" => {
                    let known = this.may.remove(what).expect("it was being stored");
                    this.must.insert(what.to_owned(), known);
                }
                "removing" => {
                    let known = this.must.remove(what);
                    this.may.extend(known.map(|known| (what.to_owned(), known)));
                }
                "removed" => drop(this.may.remove(what)),
                _ => {}
            }
        }
        this
    }
}

/// A churn that goes on until its VM is killed.
struct Endless {
    child: Child,
    /// For each line that was read: whether it says that a snapshot is complete.
    lines: Receiver<bool>,
    /// Reads and answers; returns all it has read.
    reader: JoinHandle<String>,
}

impl Endless {
    fn start(vm: &Vm, seed: u64) -> Self {
        let seed = format!("seed={seed}");
        let words = ["exec", &vm.0, "--", GUEST, "churn", &seed];
        let mut child = mvasvm(&[&words[..], &["seconds=100000", "heard"]].concat())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("mvasvm starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
        let (read, lines) = channel();
        let reader = thread::spawn(move || {
            let mut words = String::new();
            loop {
                let from = words.len();
                if out.read_line(&mut words).expect("output") == 0 {
                    return words;
                }
                let _ = read.send(words[from..].starts_with("stored "));
                if words[from..].starts_with("storing ") || words[from..].starts_with("removing ") {
                    let _ = stdin.write_all(b"\n");
                }
            }
        });
        Self {
            child,
            lines,
            reader,
        }
    }

    /// Waits for so many lines, and for a snapshot to have been complete.
    fn wait_lines(&self, count: u64) {
        let (mut lines, mut stored) = (0, false);
        while lines < count || !stored {
            let line = self.lines.recv_timeout(PATIENCE);
            stored |= line.expect("the churn goes on");
            lines += 1;
        }
    }

    /// All it has said, when its VM is gone.
    fn words(mut self) -> String {
        self.child.wait().expect("its end");
        self.reader.join().expect("no panic")
    }
}

/// `MVAS_KILLS` says how often.
#[test]
fn a_monitor_killed_at_any_time_leaves_snapshots_whole_or_absent() {
    let seed = seed();
    let kills = number("MVAS_KILLS", 3);
    let shelf = Shelf::new();
    let mut verified = 0;
    // The last VM only verifies what the one before left.
    let mut left: Vec<String> = Vec::new();
    for round in 0..=kills {
        let vm = shelf.vm("plugged", &[]);
        let words = [
            &[GUEST, "verify"][..],
            &left.iter().map(String::as_str).collect::<Vec<_>>(),
        ];
        vm.good(&words.concat());
        verified += left.len();
        assert_eq!(shelf.names(), [""; 0]);
        if round == kills {
            break;
        }
        let churn = Endless::start(&vm, seed.wrapping_add(round));
        // Some operations later, and within one.
        let mut random = Rng::with_seed(seed.wrapping_add(round));
        churn.wait_lines(random.u64(6..22));
        thread::sleep(Duration::from_millis(random.u64(..1500)));
        kill(Pid::from_raw(vm.pid()), Signal::SIGKILL).expect("kill");
        let words = churn.words();
        wait_for("the end of the VM", || {
            !succeed(&["ls"]).contains("plugged")
        });

        shelf.is_right();
        let found: BTreeSet<String> = shelf.names().into_iter().collect();
        let Expected { must, may } = Expected::read(&words);
        println!(
            "kill {round}: must {:?}, may {:?}, found {found:?}",
            must.keys(),
            may.keys()
        );
        let lost: Vec<_> = must.keys().filter(|name| !found.contains(*name)).collect();
        assert!(lost.is_empty(), "lost: {lost:?}\n{words}");
        let known = |name: &String| must.get(name).or_else(|| may.get(name)).cloned();
        let all = found.iter().map(known).collect::<Option<Vec<_>>>();
        left = all.unwrap_or_else(|| panic!("made of nothing: {found:?}\n{words}"));
    }
    assert!(verified > 0, "no snapshot was ever complete");
    shelf.is_right();
}
