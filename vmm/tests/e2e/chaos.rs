// SPDX-License-Identifier: GPL-2.0-only
//! Anything may be killed at any time: two microVMs on one store that gets full do random
//! operations, and CRIU, vascriu, guests and monitors are killed or stopped meanwhile.
//! Afterwards every live task's memory is right, every complete snapshot restores, and nothing
//! is left. `MVAS_CHAOS_SECONDS` says how long, `MVAS_SEED` what happens (but not exactly when).

use std::collections::BTreeMap;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::churn::{number, seed};
use crate::host::{Vm, end_of, mvasvm, show, succeed, text, wait_for};
use crate::store::{GUEST, Shelf};

const NAMES: [&str; 2] = ["chaos-a", "chaos-b"];
/// The most that there is at once.
const TASKS: usize = 3;
const SNAPSHOTS: usize = 5;
const COPIES: &str = "2";
/// Bytes that snapshots may have together: some dumps find the store full.
const LIMIT: &str = "96M";

/// A complete snapshot.
struct Kept {
    /// The VM that may see it.
    at: usize,
    /// The task that it is of, as it will be.
    life: Life,
    /// Whether it is promised to outlive the guest: vascriu said so.
    stored: bool,
}

/// A workload as it was, or will be, at one time.
#[derive(Debug, Clone)]
struct Life {
    pid: String,
    seed: u64,
    /// How often it has checked itself.
    generation: u64,
}

/// What went on in a VM when something was killed.
enum During {
    Dump { task: Life, name: String },
    Restore { task: Life },
    Clone { task: Life },
    Remove { name: String, kept: Kept },
}

struct World {
    random: Rng,
    /// Before the store: they end first.
    vms: Vec<Vm>,
    shelf: Shelf,
    /// Those that run, with the VM they run in.
    tasks: Vec<(usize, Life)>,
    snapshots: BTreeMap<String, Kept>,
    count: u64,
    /// Whether something was killed or stopped beside the last command.
    disturbed: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let shelf = Shelf::new();
        let vms = NAMES.iter().map(|name| boot(&shelf, name)).collect();
        Self {
            random: Rng::with_seed(seed),
            vms,
            shelf,
            tasks: Vec::new(),
            snapshots: BTreeMap::new(),
            count: 0,
            disturbed: false,
        }
    }

    fn step(&mut self) {
        self.count += 1;
        match self.random.usize(..18) {
            0..=2 => self.start(),
            3..=4 => self.check(),
            5..=8 => self.dump(),
            9..=11 => self.restore(),
            12..=13 => self.clone_one(),
            14 => self.remove(),
            15 => self.evict(),
            16 => self.press(),
            _ => self.kill_vm(),
        }
    }

    fn start(&mut self) {
        if self.tasks.len() >= TASKS {
            return;
        }
        let at = self.random.usize(..self.vms.len());
        let seed = self.count;
        let words = [
            format!("seed={seed}"),
            format!("mib={}", self.random.usize(4..24)),
        ];
        let pid = self.vms[at].good(&[GUEST, "start", &words[0], &words[1]]);
        let pid = pid.trim().to_owned();
        println!("{}: started {pid} of {seed}", NAMES[at]);
        let generation = 0;
        self.tasks.push((
            at,
            Life {
                pid,
                seed,
                generation,
            },
        ));
    }

    /// Has a task check its memory.
    fn check(&mut self) {
        if let Some(i) = self.any_task() {
            let (at, life) = &mut self.tasks[i];
            is_right(&self.vms[*at], life);
        }
    }

    fn dump(&mut self) {
        let Some(i) = self.any_task() else {
            return;
        };
        if self.snapshots.len() >= SNAPSHOTS {
            return self.remove();
        }
        let (at, task) = self.tasks.swap_remove(i);
        let name = format!("s{}", self.count);
        let words = [
            "vascriu", "dump", "-t", &task.pid, "--name", &name, "--sync",
        ];
        let child = self.begin(at, &words);
        self.end(
            at,
            child,
            During::Dump {
                task,
                name: name.clone(),
            },
        );
    }

    fn restore(&mut self) {
        let fits = |(name, kept): (&String, &Kept)| {
            let free = self.tasks.iter().all(|(_, t)| t.pid != kept.life.pid);
            free.then(|| (name.clone(), kept.at, kept.life.clone()))
        };
        let all: Vec<_> = self.snapshots.iter().filter_map(fits).collect();
        let Some((name, at, task)) = self.random.choice(all) else {
            return;
        };
        if self.tasks.len() < TASKS {
            let child = self.begin(at, &["vascriu", "restore", &name, "-d"]);
            self.end(at, child, During::Restore { task });
        }
    }

    /// Makes copies of a snapshot, and ends them again.
    fn clone_one(&mut self) {
        let Some(name) = self.random.choice(self.snapshots.keys()).cloned() else {
            return;
        };
        let Kept { at, ref life, .. } = self.snapshots[&name];
        let task = life.clone();
        let child = self.begin(at, &["vascriu", "clone", &name, "-n", COPIES]);
        self.end(at, child, During::Clone { task });
    }

    fn remove(&mut self) {
        let Some(name) = self.random.choice(self.snapshots.keys()).cloned() else {
            return;
        };
        let kept = self.snapshots.remove(&name).expect("chosen");
        let at = kept.at;
        let child = self.begin(at, &["vascriu", "rm", &name]);
        self.end(at, child, During::Remove { name, kept });
    }

    fn evict(&mut self) {
        let Some(name) = self.random.choice(self.snapshots.keys()).cloned() else {
            return;
        };
        let at = self.snapshots[&name].at;
        // It may not be in this guest's memory.
        let ran = self.vms[at].exec(&["vascriu", "evict", &name]);
        println!("{}: evict {name}: {:?}", NAMES[at], ran.status.code());
    }

    /// Memory is short in a guest for a while.
    fn press(&mut self) {
        let at = self.random.usize(..self.vms.len());
        let most = self.random.usize(100..500);
        println!("{}: {most} MiB are taken", NAMES[at]);
        let take = format!(
            "head -c {most}M /dev/zero > /dev/shm/chaos; echo 3 > /proc/sys/vm/drop_caches; rm -f /dev/shm/chaos"
        );
        self.vms[at].exec(&["sh", "-c", &take]);
    }

    fn kill_vm(&mut self) {
        let at = self.random.usize(..self.vms.len());
        println!("{}: its monitor is killed", NAMES[at]);
        self.kill_monitor(at);
        self.boot_again(at);
    }

    /// Starts a command in a VM, and perhaps has something happen to it.
    fn begin(&mut self, at: usize, words: &[&str]) -> Child {
        println!("{}: {}", NAMES[at], words.join(" "));
        let child = mvasvm(&[&["exec", NAMES[at], "--"], words].concat())
            .spawn()
            .expect("mvasvm starts");
        let fault = self.random.usize(..8);
        self.disturbed = fault < 5;
        if self.disturbed {
            thread::sleep(Duration::from_millis(self.random.u64(..1200)));
        }
        let vm = &self.vms[at];
        match fault {
            0 => drop(vm.exec(&["pkill", "-9", "-x", "criu"])),
            1 => drop(vm.exec(&["pkill", "-9", "-x", "vascriu"])),
            2 => self.kill_monitor(at),
            3 => drop(succeed(&["kill", NAMES[at]])),
            4 => {
                let monitor = Pid::from_raw(vm.pid());
                kill(monitor, Signal::SIGSTOP).expect("stopped");
                thread::sleep(Duration::from_millis(self.random.u64(..2000)));
                kill(monitor, Signal::SIGCONT).expect("continued");
            }
            _ => return child,
        }
        println!("{}: fault {fault}", NAMES[at]);
        child
    }

    /// Waits for it, and finds out what has come of it: all of it, or nothing.
    fn end(&mut self, at: usize, child: Child, during: During) {
        let status = end_of(child);
        let lives = succeed(&["ls"]).contains(NAMES[at]);
        if lives {
            // Without vascriu CRIU goes on, and is finished only when it has ended.
            let finish = "while pgrep -x criu; do sleep 0.05; done";
            self.vms[at].good(&["sh", "-c", finish]);
        } else {
            self.boot_again(at);
        }
        let good = status.success();
        match during {
            During::Dump { task, name } => {
                let complete = self.has(at, &name);
                let runs = self.runs(at, &task);
                println!(
                    "{}: {name} is complete: {complete}; {} runs: {runs}",
                    NAMES[at], task.pid
                );
                assert!(complete || !good, "a dump that succeeded left nothing");
                assert!(!(good && runs), "a dump that succeeded left its task");
                if runs {
                    self.tasks.push((at, task.clone()));
                }
                if complete {
                    let stored = good || self.drains(at, &name);
                    let kept = Kept {
                        at,
                        life: task,
                        stored,
                    };
                    self.snapshots.insert(name, kept);
                }
            }
            During::Restore { task } => {
                let runs = self.runs(at, &task);
                println!("{}: {} runs: {runs}", NAMES[at], task.pid);
                let promised = good && lives;
                assert!(runs || !promised, "a restore that succeeded left nothing");
                if runs {
                    self.tasks.push((at, task));
                }
            }
            During::Clone { task } => {
                let copies = self.end_copies(at, &task);
                println!("{}: {copies} copies of {}", NAMES[at], task.pid);
                let all = copies.to_string() == COPIES;
                // Whatever kills vascriu kills their supervisors.
                assert!(all || !good || self.disturbed, "copies are missing");
            }
            During::Remove { name, kept } => {
                if self.has(at, &name) {
                    assert!(!good, "what was removed is there");
                    self.snapshots.insert(name, kept);
                }
            }
        }
        for (_, task) in self.tasks.iter_mut().filter(|(of, _)| *of == at) {
            is_right(&self.vms[at], task);
        }
    }

    fn has(&self, at: usize, name: &str) -> bool {
        let list = self.vms[at].json(&["vascriu", "ls"]);
        let rows = list["snapshots"].as_array().expect("snapshots");
        rows.iter().any(|row| row["name"] == name)
    }

    /// Wants copies of a task to be right, and ends them; says how many there were. Nobody else
    /// has a vascriu that runs.
    fn end_copies(&self, at: usize, task: &Life) -> usize {
        let vm = &self.vms[at];
        // One that is half made is ending by now.
        let find = "sleep 0.3; pgrep -x vascriu";
        let found = text(&vm.exec(&["sh", "-c", find]).stdout);
        let supervisors: Vec<&str> = found.lines().collect();
        for supervisor in &supervisors {
            let inside = ["nsenter", "-t", supervisor, "-p", "-m"];
            is_right_by(vm, &inside, &mut task.clone());
            let supervisor = Life {
                pid: (*supervisor).to_owned(),
                ..task.clone()
            };
            end(vm, &supervisor);
        }
        supervisors.len()
    }

    /// Asks for it to be stored, for which there may be no room.
    fn drains(&self, at: usize, name: &str) -> bool {
        let ran = self.vms[at].exec(&["vascriu", "drain", name, "--sync"]);
        println!("{}: drain {name}: {:?}", NAMES[at], ran.status.code());
        ran.status.success()
    }

    fn runs(&self, at: usize, task: &Life) -> bool {
        let there = self.vms[at].exec(&["test", "-e", &format!("/proc/{}", task.pid)]);
        there.status.success()
    }

    fn any_task(&mut self) -> Option<usize> {
        (!self.tasks.is_empty()).then(|| self.random.usize(..self.tasks.len()))
    }

    fn kill_monitor(&self, at: usize) {
        kill(Pid::from_raw(self.vms[at].pid()), Signal::SIGKILL).expect("kill");
        wait_for("the end of the VM", || {
            !succeed(&["ls"]).contains(NAMES[at])
        });
    }

    /// Its tasks went with it, its stored snapshots did not.
    fn boot_again(&mut self, at: usize) {
        self.tasks.retain(|(of, _)| *of != at);
        self.shelf.is_right();
        // The one that ended is dropped first: that ends whatever has its name.
        drop(self.vms.remove(at));
        self.vms.insert(at, boot(&self.shelf, NAMES[at]));
        let mut all = std::mem::take(&mut self.snapshots);
        all.retain(|name, kept| {
            let there = kept.at != at || self.has(at, name);
            assert!(there || !kept.stored, "{name} is lost");
            there
        });
        self.snapshots = all;
    }

    /// All is right, and nothing is left.
    fn settle(mut self) {
        for (at, mut task) in std::mem::take(&mut self.tasks) {
            is_right(&self.vms[at], &mut task);
            end(&self.vms[at], &task);
        }
        for (name, mut kept) in std::mem::take(&mut self.snapshots) {
            let vm = &self.vms[kept.at];
            vm.good(&["vascriu", "restore", &name, "-d"]);
            is_right(vm, &mut kept.life);
            end(vm, &kept.life);
            vm.good(&["vascriu", "rm", &name]);
        }
        for vm in &self.vms {
            vm.good(&["vascriu", "gc"]);
            assert_eq!(vm.good(&["ls", "/sys/kernel/vas"]), "");
            let work = "ls -d /run/vascriu/work-* 2>/dev/null; pgrep -x 'criu|vascriu'";
            assert_eq!(text(&vm.exec(&["sh", "-c", work]).stdout), "");
            let log = vm.good(&["dmesg"]);
            for alarm in ["WARNING", "BUG", "Oops", "INFO: ", "Bad page"] {
                assert!(!log.contains(alarm), "{log}");
            }
        }
        assert_eq!(self.shelf.names(), [""; 0]);
        self.shelf.is_right();
        self.vms.clear();
        self.shelf.is_empty();
    }
}

fn boot(shelf: &Shelf, name: &str) -> Vm {
    shelf.vm(name, &["--store-limit", LIMIT])
}

/// Wants a task to have its memory.
#[track_caller]
fn is_right(vm: &Vm, task: &mut Life) {
    is_right_by(vm, &[], task);
}

/// Wants a task to have its memory, asked by a command that `way` runs.
#[track_caller]
fn is_right_by(vm: &Vm, way: &[&str], task: &mut Life) {
    task.generation += 1;
    let ask = [GUEST, "ask", &task.pid, &task.seed.to_string()];
    let answer = vm.exec(&[way, &ask].concat());
    let expected = format!("ok {} of {}\n", task.generation, task.seed);
    assert_eq!(
        String::from_utf8_lossy(&answer.stdout),
        expected,
        "{}",
        show(&answer)
    );
}

fn end(vm: &Vm, task: &Life) {
    let end = format!(
        "kill -9 {0}; while [ -e /proc/{0} ]; do sleep 0.05; done",
        task.pid
    );
    vm.good(&["sh", "-c", &end]);
}

#[test]
fn whatever_is_killed_nothing_that_was_promised_is_lost() {
    let seed = seed();
    let seconds = number("MVAS_CHAOS_SECONDS", 20);
    let mut world = World::new(seed);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(seconds) {
        world.step();
    }
    println!("{} operations", world.count);
    world.settle();
}
