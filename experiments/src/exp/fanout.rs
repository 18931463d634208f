// SPDX-License-Identifier: GPL-2.0-only
//! Sandbox fan-out: copies of a warm Python interpreter, each of which answers one request.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

use super::common;
use crate::copies::{Copy, Made};
use crate::frame::{
    Axis, Case, Claim, Definition, Experiment, Figure, Kind, Machine, Metric, Metrics, Than, Unit,
    metrics,
};
use crate::procfs::available_bytes;
use crate::sandbox;
use crate::subject::{Subject, use_high_pids};
use crate::system::{Snapshot, System};

pub(super) struct Fanout;

/// Name of the snapshot.
const NAME: &str = "fanout";

static DEFINITION: Definition = Definition {
    name: "fanout",
    title: "Sandbox fan-out",
    question: "How long does it take until N sandboxes, copies of one warm Python interpreter with \
        its libraries and data, have each answered a request, and how much memory does each take?",
    axes: &[Axis {
        name: "copies",
        about: "copies that run side by side",
        kind: Kind::Count("copies"),
        quick: &["1", "5"],
        full: &["1", "10", "30", "100"],
    }],
    systems: &[
        System::ColdStart,
        System::Fork,
        System::CriuTmpfs,
        System::Vascriu,
        System::VascriuClone,
    ],
    metrics: &[
        common::ALL,
        common::EACH,
        common::LAST,
        Metric {
            name: "memory_each_bytes",
            about: "what each copy takes of the guest's memory, once it has answered",
            unit: Unit::Bytes,
        },
        Metric {
            name: "same_random",
            about: "copies whose module random draws what another's has drawn",
            unit: Unit::Count,
        },
        Metric {
            name: "same_keys",
            about: "copies whose os.urandom, of which keys are made, gives what another's has given",
            unit: Unit::Count,
        },
    ],
    machine: Machine {
        mem: "10G",
        cpus: 1,
        image: Some("programs"),
    },
    repeats: [1, 3],
    figures: &[
        Figure {
            title: "Until each has answered, by the number of copies",
            metric: "each_ms",
            x: "copies",
            panels: None,
        },
        Figure {
            title: "Memory of each copy",
            metric: "memory_each_bytes",
            x: "copies",
            panels: None,
        },
    ],
    claims: &[
        Claim {
            text: "30 sandboxes answer 3 times sooner than by a cold start of Python",
            paper: None,
            metric: "all_ms",
            system: System::VascriuClone,
            than: Than::System(System::ColdStart),
            at: &[("copies", "30")],
            goal: 3.0,
        },
        Claim {
            text: "They answer sooner than restored by stock CRIU",
            paper: None,
            metric: "all_ms",
            system: System::VascriuClone,
            than: Than::System(System::CriuTmpfs),
            at: &[("copies", "30")],
            goal: 1.0,
        },
        Claim {
            text: "A sandbox takes a fifth of the memory of one that stock CRIU has restored",
            paper: None,
            metric: "memory_each_bytes",
            system: System::VascriuClone,
            than: Than::System(System::CriuTmpfs),
            at: &[("copies", "30")],
            goal: 5.0,
        },
    ],
    notes: &[
        "The sandbox is Debian's python3, which has imported numpy and a dozen modules of the \
         standard library, and holds an array of 16 MiB. Its request, another one for each copy, \
         is an expression that reads all of the array by numpy and uses the standard library; a \
         wrong answer ends the run. The rest of the interpreter's memory is not checked but by \
         that it works.",
        "Copies are made, and asked, one after the other. cold-start starts Python anew, which \
         imports and fills its array: its files are in the page cache, where the uncounted warm-up \
         has brought them. fork has the warm interpreter fork itself (a zygote), without namespaces \
         of its own. criu-tmpfs and vascriu restore one snapshot again and again, each time in a \
         new PID and mount namespace, which has an init; vascriu-clone makes all by one command, \
         which makes namespaces, too, and then asks one after the other.",
        "The warm interpreter's start and its dump are in no number, and its memory and snapshot \
         in none either. Memory is what MemAvailable fell by, by the number of copies: \
         namespaces, their inits and page tables are in it.",
        "A request is a signal and a file; the answer is looked for at least each 5 ms.",
        "same_random and same_keys are of one draw after the request. The copies of a snapshot go \
         on with one state of the module random, if nobody seeds them (Python itself does so after \
         a fork). os.urandom asks the C library, which has random numbers in stock: vascriu's \
         clones must not have them in common, or the run ends; of the others it is counted.",
    ],
};

impl Experiment for Fanout {
    fn definition(&self) -> &'static Definition {
        &DEFINITION
    }

    fn measure_here(&self, case: &Case) -> Result<Metrics> {
        let count = case.point.count("copies")?;
        ensure!(count > 0, "no copies were asked for");
        sandbox::install()?;
        let source = Source::of(case.system)?;
        let before = available_bytes()?;
        let mut made = source.make(case.system, count)?;
        let taken = before.saturating_sub(available_bytes()?);
        let mut measured = common::times_of(&made);
        let same_keys = count - distinct(&mut made.copies, sandbox::key)?;
        ensure!(
            same_keys == 0 || case.system != System::VascriuClone,
            "{same_keys} copies drew a key that another has drawn"
        );
        let same_random = count - distinct(&mut made.copies, sandbox::random)?;
        made.copies.into_iter().try_for_each(Copy::end)?;
        source.end()?;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        measured.extend(metrics([
            ("memory_each_bytes", taken as f64 / count as f64),
            ("same_random", same_random as f64),
            ("same_keys", same_keys as f64),
        ]));
        Ok(measured)
    }
}

/// What copies are made of.
enum Source {
    /// The program.
    Cold,
    /// A warm interpreter.
    Zygote(Mutex<Subject>),
    /// What it was.
    Snapshot(Snapshot),
}

impl Source {
    fn of(system: System) -> Result<Self> {
        if system == System::ColdStart {
            return Ok(Self::Cold);
        }
        // The restores' own processes must not have its PID.
        use_high_pids()?;
        let mut warm = sandbox::start()?;
        if system == System::Fork {
            return Ok(Self::Zygote(warm.into()));
        }
        let snapshot = Snapshot::new(system, NAME)?;
        snapshot.dump(warm.pid)?;
        warm.reap()?;
        Ok(Self::Snapshot(snapshot))
    }

    /// Copies that have answered.
    fn make(&self, system: System, count: usize) -> Result<Made> {
        if system == System::VascriuClone {
            return Made::cloned(NAME, count, 1, sandbox::ask);
        }
        let next = |_| match self {
            Self::Cold => sandbox::start().map(Copy::from),
            Self::Zygote(warm) => {
                let mut warm = warm.lock().unwrap_or_else(PoisonError::into_inner);
                warm.fork().map(Copy::from)
            }
            Self::Snapshot(snapshot) => Copy::restore(&snapshot.restoring()),
        };
        Made::each(count, 1, next, sandbox::ask)
    }

    fn end(self) -> Result<()> {
        match self {
            Self::Cold => Ok(()),
            Self::Zygote(warm) => warm
                .into_inner()
                .unwrap_or_else(PoisonError::into_inner)
                .end(),
            Self::Snapshot(snapshot) => snapshot.delete(),
        }
    }
}

/// How many different numbers the copies draw.
fn distinct(copies: &mut [Copy], draw: fn(&mut Subject) -> Result<u64>) -> Result<usize> {
    let drawn = copies.iter_mut().map(|copy| draw(&mut copy.subject));
    let drawn: Result<HashSet<u64>> = drawn.collect();
    Ok(drawn.context("a copy that has answered before")?.len())
}
