// SPDX-License-Identifier: GPL-2.0-only
//! A day's worth of snapshots in minutes: `guest churn seed=N seconds=S` does random
//! operations, knows what each must find, and in the middle and at the end puts everything
//! away and wants the guest as it was. `guest verify NAME:PID:SEED:GENERATION…` restores
//! what a churn said, in another microVM, and removes it.
//!
//! It tells on standard output what it is about to do and what it has done, so that who
//! kills the microVM knows which snapshots there must be in the store:
//! `storing NAME:PID:SEED:GENERATION`, `stored NAME`, `removing NAME`, `removed NAME`. With
//! `heard` among its arguments, it waits after `storing` and `removing` for a line on standard
//! input: what it does next must not be known here only.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::{Value, json as value};

use crate::frames::Frames;
use crate::harness::{
    TMP, Workload, all_vases, bad, dump, end_workloads, good, json, ls, rm, vascriu, wait_until,
    work_dirs,
};
use crate::store::forget;
use crate::workload::Options;

/// The most that there is at once.
const LIVE: usize = 3;
const SNAPSHOTS: usize = 6;

/// One of those that fit.
fn pick<T>(random: &mut Rng, all: &[T], fits: impl Fn(&T) -> bool) -> Option<usize> {
    random.choice(
        (0..all.len())
            .filter(|&i| fits(&all[i]))
            .collect::<Vec<_>>(),
    )
}

/// In one write, so that a kill cannot cut it.
fn tell(text: &str) {
    let mut out = std::io::stdout();
    // Nobody may listen any more.
    let _ = out.write_all(format!("{text}\n").as_bytes());
    let _ = out.flush();
}

/// As [`tell`], of what changes the store.
fn announce(text: &str) {
    tell(text);
    if std::env::args().any(|arg| arg == "heard") {
        let heard = std::io::stdin().read_line(&mut String::new());
        assert!(matches!(heard, Ok(1..)), "nobody listens");
    }
}

/// A workload at some point of its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Life {
    /// Its root's PID, as it sees itself.
    pid: i32,
    seed: u64,
    /// How often it has checked itself.
    generation: u64,
}

impl Life {
    fn dir(self) -> PathBuf {
        Path::new(TMP).join(self.seed.to_string())
    }

    /// Wants all of it to be right, which is its next generation.
    #[track_caller]
    fn check(&mut self, workload: &Workload) {
        self.generation += 1;
        let expected = format!("ok {} of {}", self.generation, self.seed);
        assert_eq!(workload.ask(), Ok(expected));
    }
}

/// A snapshot, and what must come back from it.
#[derive(Debug, Clone)]
struct Snapshot {
    name: String,
    life: Life,
    /// As `ls` says.
    kept: String,
}

impl Snapshot {
    /// Restores it and wants exactly its data.
    #[track_caller]
    fn restore(&self) -> (Workload, Life) {
        let mut life = self.life;
        fs::create_dir_all(life.dir()).expect("directory");
        let said = json(&mut vascriu(&["restore", &self.name, "-d", "--json"]));
        let pid = said["pid"].as_i64().and_then(|p| p.try_into().ok());
        let workload = Workload::at(pid.expect("a PID"), life.pid, &life.dir());
        life.check(&workload);
        (workload, life)
    }
}

impl std::fmt::Display for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Life {
            pid,
            seed,
            generation,
        } = self.life;
        write!(f, "{}:{pid}:{seed}:{generation}", self.name)
    }
}

impl FromStr for Snapshot {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        fn number<T: FromStr>(field: Option<&str>) -> Option<T> {
            field?.parse().ok()
        }
        let mut fields = text.split(':');
        let name = fields.next().unwrap_or_default().to_owned();
        let life = (|| {
            Some(Life {
                pid: number(fields.next())?,
                seed: number(fields.next())?,
                generation: number(fields.next())?,
            })
        })();
        Ok(Self {
            name,
            life: life.ok_or_else(|| format!("{text} is not NAME:PID:SEED:GENERATION"))?,
            kept: "in_store_only".to_owned(),
        })
    }
}

struct Churn {
    random: Rng,
    live: Vec<(Workload, Life)>,
    snapshots: Vec<Snapshot>,
    /// Operations, which also number workloads and snapshots.
    count: u64,
}

impl Churn {
    fn step(&mut self) {
        self.count += 1;
        match self.random.usize(..20) {
            0..=2 => self.start(),
            3..=4 => self.check(),
            5..=8 => self.dump(),
            9..=12 => self.restore(),
            13 => self.evict(),
            14 => self.drain(),
            15 => self.forget(),
            16..=17 => self.remove(),
            18 => self.end_one(),
            _ => shrink(),
        }
        self.look();
    }

    fn start(&mut self) {
        if self.live.len() >= LIVE {
            return;
        }
        let mut life = Life {
            pid: 0,
            seed: self.count,
            generation: 0,
        };
        fs::create_dir_all(life.dir()).expect("directory");
        let workload = Workload::start(&Options {
            dir: life.dir(),
            mib: 4 + 2 * self.random.usize(..10),
            seed: life.seed,
            huge: self.random.bool(),
            threads: self.random.usize(..3),
            children: self.random.usize(..3),
            ..Options::default()
        });
        life.pid = workload.pid;
        tell(&format!("started {life:?}"));
        self.live.push((workload, life));
    }

    fn check(&mut self) {
        if let Some(i) = pick(&mut self.random, &self.live, |_| true) {
            let (workload, life) = &mut self.live[i];
            life.check(workload);
        }
    }

    fn dump(&mut self) {
        let Some(i) = pick(&mut self.random, &self.live, |_| true) else {
            return;
        };
        if self.snapshots.len() >= SNAPSHOTS {
            return self.remove();
        }
        let (how, kept) = [
            (&[][..], "draining"),
            (&["--sync"], "stored"),
            (&["--guest-only"], "hot"),
        ][self.random.usize(..3)];
        let goes_on = self.random.bool();
        let (workload, life) = &self.live[i];
        let snapshot = Snapshot {
            name: format!("s{}", self.count),
            life: *life,
            kept: kept.to_owned(),
        };
        if kept != "hot" {
            announce(&format!("storing {snapshot}"));
        }
        let mut command = dump(workload.pid, &snapshot.name);
        command.args(how);
        if goes_on {
            command.arg("--leave-running");
        }
        let said = json(&mut command);
        assert_eq!(
            (&said["kept"], &said["store_error"]),
            (&value!(kept), &Value::Null)
        );
        if kept == "stored" {
            tell(&format!("stored {}", snapshot.name));
        }
        self.snapshots.push(snapshot);
        if !goes_on {
            let (workload, _) = self.live.swap_remove(i);
            is_gone(&[workload.pid]);
        }
    }

    fn restore(&mut self) {
        let live: Vec<i32> = self.live.iter().map(|(_, life)| life.pid).collect();
        let free = |s: &Snapshot| !live.contains(&s.life.pid);
        let Some(i) = pick(&mut self.random, &self.snapshots, free) else {
            return;
        };
        let snapshot = &mut self.snapshots[i];
        tell(&format!("restoring {snapshot}, {}", snapshot.kept));
        self.live.push(snapshot.restore());
        if matches!(snapshot.kept.as_str(), "cold" | "in_store_only") {
            snapshot.kept = "stored".to_owned();
        }
    }

    fn evict(&mut self) {
        // One on its way may arrive right now.
        let stays = |s: &Snapshot| !matches!(s.kept.as_str(), "draining" | "in_store_only");
        let Some(i) = pick(&mut self.random, &self.snapshots, stays) else {
            return;
        };
        let snapshot = &mut self.snapshots[i];
        tell(&format!("evicting {}, {}", snapshot.name, snapshot.kept));
        let mut command = vascriu(&["evict", &snapshot.name]);
        if snapshot.kept == "hot" {
            bad(&mut command, &["not in the store"]);
        } else {
            good(&mut command);
            snapshot.kept = "cold".to_owned();
        }
    }

    fn drain(&mut self) {
        let Some(i) = pick(&mut self.random, &self.snapshots, |s| s.kept == "hot") else {
            return;
        };
        let snapshot = &mut self.snapshots[i];
        announce(&format!("storing {snapshot}"));
        let mut command = vascriu(&["drain", &snapshot.name]);
        snapshot.kept = "draining".to_owned();
        if self.random.bool() {
            command.arg("--sync");
            snapshot.kept = "stored".to_owned();
        }
        good(&mut command);
        if snapshot.kept == "stored" {
            tell(&format!("stored {}", snapshot.name));
        }
    }

    /// As after a reboot of the guest.
    fn forget(&mut self) {
        let stored = |s: &Snapshot| matches!(s.kept.as_str(), "stored" | "cold");
        if let Some(i) = pick(&mut self.random, &self.snapshots, stored) {
            let snapshot = &mut self.snapshots[i];
            tell(&format!("forgetting {}", snapshot.name));
            forget(&snapshot.name);
            snapshot.kept = "in_store_only".to_owned();
        }
    }

    fn remove(&mut self) {
        if let Some(i) = pick(&mut self.random, &self.snapshots, |_| true) {
            let Snapshot { name, .. } = self.snapshots.swap_remove(i);
            announce(&format!("removing {name}"));
            rm(&[&name]);
            tell(&format!("removed {name}"));
        }
    }

    fn end_one(&mut self) {
        if let Some(i) = pick(&mut self.random, &self.live, |_| true) {
            end(&self.live.swap_remove(i).0);
        }
    }

    /// Compares `ls` with what must be there.
    fn look(&mut self) {
        let rows = ls();
        assert_eq!(rows.len(), self.snapshots.len(), "{rows:?}");
        for snapshot in &mut self.snapshots {
            let row = rows.iter().find(|r| r["name"] == *snapshot.name);
            let row = row.unwrap_or_else(|| panic!("{snapshot:?} is not listed: {rows:?}"));
            let kept = row["state"].as_str().expect("a word");
            match (snapshot.kept.as_str(), kept) {
                (then, now) if then == now => {}
                ("draining", "stored" | "cold") => tell(&format!("stored {}", snapshot.name)),
                // The shrinker has.
                ("stored", "cold") => {}
                _ => panic!("{snapshot:?} is now {row}"),
            }
            kept.clone_into(&mut snapshot.kept);
        }
    }

    /// Puts everything away.
    fn settle(&mut self) {
        for (workload, life) in &mut self.live {
            life.check(workload);
            end(workload);
        }
        self.live.clear();
        while !self.snapshots.is_empty() {
            self.remove();
        }
        self.look();
        assert_eq!(all_vases(), Vec::<String>::new());
        assert_eq!(work_dirs(), Vec::<String>::new());
        let _ = fs::remove_dir_all(TMP);
    }
}

/// The shrinker, as memory pressure calls it: what is stored turns cold.
fn shrink() {
    tell("shrinking");
    fs::write("/proc/sys/vm/drop_caches", "2").expect("drop_caches");
}

fn is_gone(pids: &[i32]) {
    let there = |pid: &i32| Path::new("/proc").join(pid.to_string()).exists();
    wait_until("PIDs to be free", || !pids.iter().any(there));
}

/// Ends a tree, and waits until its PIDs are free.
fn end(workload: &Workload) {
    let pids = workload.tree();
    workload.kill();
    is_gone(&pids);
}

const PIDS: &str = "/proc/sys/kernel";

/// Lets PIDs be as high as [`far_pids`] makes them.
fn room_for_far_pids() {
    fs::write(Path::new(PIDS).join("pid_max"), "4194304").expect("PIDs");
}

/// PIDs from here on that nothing else in a guest has, now or after its reboot.
fn far_pids() {
    const FAR: u32 = 100_000;
    room_for_far_pids();
    let last = Path::new(PIDS).join("ns_last_pid");
    let now = fs::read_to_string(&last).expect("PIDs");
    if now.trim().parse::<u32>().expect("a number") < FAR {
        fs::write(last, FAR.to_string()).expect("PIDs");
    }
}

/// `guest churn`.
pub fn main(args: &[String]) {
    let number = |name: &str| {
        let value = args.iter().find_map(|a| a.strip_prefix(name));
        value.and_then(|v| v.strip_prefix('=')).map(|v| v.parse())
    };
    let seed: u64 = number("seed").expect("seed=N").expect("a number");
    let seconds = number("seconds").expect("seconds=S").expect("a number");
    tell(&format!("seed {seed}"));
    far_pids();
    end_workloads();
    let mut churn = Churn {
        random: Rng::with_seed(seed),
        live: Vec::new(),
        snapshots: Vec::new(),
        count: 0,
    };
    let mut half = || {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(seconds) / 2 {
            churn.step();
        }
        churn.settle();
        churn.count
    };
    // What leaks does so in both halves; what only fills its caches does in the first.
    let first = half();
    let before = Frames::settled();
    tell(&format!("after {first} operations: {before:?}"));
    let all = half();
    Frames::are_no_more_than(&before);
    tell(&format!("after {all} operations: {:?}", Frames::settled()));
}

/// `guest start seed=N OPTION…`: a workload, as `guest workload` takes its options; says its
/// PID.
pub fn start(args: &[String]) {
    far_pids();
    let mut options = Options::parse(args);
    options.dir = Path::new(TMP).join(options.seed.to_string());
    let _ = fs::remove_dir_all(&options.dir);
    fs::create_dir_all(&options.dir).expect("directory");
    tell(&Workload::start(&options).pid.to_string());
}

/// `guest ask PID SEED`: has a workload check itself, perhaps one that was restored in
/// another guest; says what it answers.
pub fn ask(args: &[String]) {
    let [pid, seed] = args else {
        panic!("PID SEED");
    };
    let dir = Path::new(TMP).join(seed);
    fs::create_dir_all(&dir).expect("directory");
    let pid = pid.parse().expect("a PID");
    tell(&Workload::at(pid, pid, &dir).ask().unwrap_or_else(|e| e));
}

/// `guest verify`.
pub fn verify(args: &[String]) {
    room_for_far_pids();
    for text in args {
        let snapshot: Snapshot = text.parse().expect("a snapshot");
        let (workload, _) = snapshot.restore();
        end(&workload);
        tell(&format!("verified {}", snapshot.name));
        rm(&[&snapshot.name]);
    }
    assert_eq!(all_vases(), Vec::<String>::new());
}
