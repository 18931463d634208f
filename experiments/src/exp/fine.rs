// SPDX-License-Identifier: GPL-2.0-only
//! Fine-grained snapshots: one after the other of a Redis at work.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::frame::{
    Axis, Case, Claim, Definition, Experiment, Figure, Kind, Machine, Metric, Metrics, Than, Unit,
    metrics,
};
use crate::load::{self, Load, Served};
use crate::procfs::available_bytes;
use crate::redis::{self, Client};
use crate::series::{Series, Taken};
use crate::stats::median;
use crate::subject::{DIR, Subject};
use crate::system::{System, ms};

pub(super) struct Fine;

static DEFINITION: Definition = Definition {
    name: "fine",
    title: "Fine-grained snapshots",
    question: "What do the clients of a Redis at work notice of snapshots that are taken of it \
        again and again, and what memory does each take, by size, rate of writes and interval?",
    axes: &[
        Axis {
            name: "size",
            about: "data in Redis",
            kind: Kind::Size,
            quick: &["32M"],
            full: &["256M"],
        },
        Axis {
            name: "rate",
            about: "writes that the client means to do each second",
            kind: Kind::Count("writes/s"),
            quick: &["100"],
            full: &["50", "200", "800"],
        },
        Axis {
            name: "interval",
            about: "milliseconds from the beginning of one snapshot to that of the next",
            kind: Kind::Count("ms"),
            quick: &["1000"],
            full: &["1000", "5000"],
        },
        Axis {
            name: "seconds",
            about: "length of a run",
            kind: Kind::Count("s"),
            quick: &["6"],
            full: &["20"],
        },
    ],
    systems: &[
        System::Nothing,
        System::CriuTmpfs,
        System::CriuPredump,
        System::Vascriu,
        System::Bgsave,
    ],
    metrics: &[
        Metric {
            name: "throughput_per_s",
            about: "writes answered during the run",
            unit: Unit::PerSecond,
        },
        Metric {
            name: "lost_share",
            about: "share of the writes due during the run that were not answered within 100 ms \
                of when they were due",
            unit: Unit::Count,
        },
        Metric {
            name: "p50_ms",
            about: "latency of a write from when it was due, median",
            unit: Unit::Ms,
        },
        Metric {
            name: "p99_ms",
            about: "the same, 99 of 100",
            unit: Unit::Ms,
        },
        Metric {
            name: "p999_ms",
            about: "the same, 999 of 1000",
            unit: Unit::Ms,
        },
        Metric {
            name: "snapshots",
            about: "snapshots taken during the run; the last may have ended after it",
            unit: Unit::Count,
        },
        Metric {
            name: "snapshot_ms",
            about: "one snapshot, the whole command or commands; median",
            unit: Unit::Ms,
        },
        Metric {
            name: "frozen_ms",
            about: "Redis stands still for one snapshot; of bgsave, its fork; median",
            unit: Unit::Ms,
        },
        Metric {
            name: "memory_each_bytes",
            about: "what MemAvailable fell by during the run, by the number of snapshots kept",
            unit: Unit::Bytes,
        },
        Metric {
            name: "interval_stretch",
            about: "how many times longer than wanted the interval really was: 1 where it was \
                held; median",
            unit: Unit::Count,
        },
    ],
    machine: Machine {
        mem: "8G",
        cpus: 1,
        image: None,
    },
    repeats: [1, 3],
    figures: &[
        Figure {
            title: "Latency, 99 of 100 writes",
            metric: "p99_ms",
            x: "interval",
            panels: Some("rate"),
        },
        Figure {
            title: "Writes lost",
            metric: "lost_share",
            x: "interval",
            panels: Some("rate"),
        },
        Figure {
            title: "Time frozen for one snapshot",
            metric: "frozen_ms",
            x: "rate",
            panels: Some("interval"),
        },
        Figure {
            title: "Memory of one snapshot",
            metric: "memory_each_bytes",
            x: "interval",
            panels: Some("rate"),
        },
    ],
    claims: &[
        Claim {
            text: "A snapshot freezes a Redis at work for a tenth of the time",
            paper: None,
            metric: "frozen_ms",
            system: System::Vascriu,
            than: Than::System(System::CriuTmpfs),
            at: &[],
            goal: 10.0,
        },
        Claim {
            text: "It does so for less time than incremental dumps do",
            paper: None,
            metric: "frozen_ms",
            system: System::Vascriu,
            than: Than::System(System::CriuPredump),
            at: &[],
            goal: 1.0,
        },
        Claim {
            text: "The slowest writes wait for a fifth of the time with a snapshot each 5 seconds",
            paper: None,
            metric: "p99_ms",
            system: System::Vascriu,
            than: Than::System(System::CriuTmpfs),
            at: &[("interval", "5000")],
            goal: 5.0,
        },
        Claim {
            text: "A snapshot takes a fifth of the memory with one each second",
            paper: None,
            metric: "memory_each_bytes",
            system: System::Vascriu,
            than: Than::System(System::CriuTmpfs),
            at: &[("interval", "1000")],
            goal: 5.0,
        },
    ],
    notes: &[
        "The client is no part of what is frozen. It has one TCP connection and at most one write \
         under way; a write's latency counts from when it was due, not from when it was sent, so \
         that all that fall due while Redis stands still are late. Each stores 16 KiB at a random \
         key. One that has no answer when the last snapshot ends has waited until then.",
        "CRIU and vascriu dump with --leave-running --tcp-close: the connection is neither locked \
         nor dumped, and goes on. --tcp-established would have what is sent meanwhile thrown away, \
         and sent again by TCP after its timeout (not measured here).",
        "The client, Redis and what takes the snapshots share one CPU; with snapshots that is what \
         writes wait for, too.",
        "Snapshots begin with the run, after one second of writes; the next begins at the interval \
         or when the last has ended. The last two are kept; an older one is removed after each, \
         which is in no snapshot_ms, but the client notices it, of all systems alike.",
        "criu-predump: criu pre-dump, then criu dump, both with --track-mem, each with what \
         changed since the one before; frozen_ms and snapshot_ms are of both together. Each needs \
         all before it, so all are kept.",
        "bgsave: Redis's own BGSAVE to tmpfs, without compression, for values here do not \
         compress; asked each 20 ms whether it has ended. What its child copies of memory while it \
         works is in no memory_each_bytes.",
        "A plain fork is missing: nobody can make another process fork but that process, and \
         Redis's own is bgsave's.",
        "After each run Redis is killed and brought back from the last snapshot. The number of \
         keys, the number of writes done (between those answered before that snapshot began and \
         those sent until it ended) and the values of the last 100 of them must be right, else the \
         run ends with an error.",
    ],
};

/// Snapshots that are kept.
const KEPT: usize = 2;
/// Writes before the run.
const WARM_UP: Duration = Duration::from_secs(1);

impl Experiment for Fine {
    fn definition(&self) -> &'static Definition {
        &DEFINITION
    }

    fn measure_here(&self, case: &Case) -> Result<Metrics> {
        let size = case.point.mib("size")?;
        let keys = redis::values(size);
        let dir = Path::new(DIR).join("fine");
        fs::create_dir_all(&dir)?;
        let server = Subject::of(redis::start(&dir)?)?;
        Client::connect()?.load(size, 2019, |_| ())?;
        let series = match case.system {
            System::Nothing => None,
            system => Some(Series::new(system, server.pid, &dir)?),
        };
        let mut run = Run::new(case, series)?;
        let load = Load::start(case.point.count("rate")?, keys)?;
        sleep(WARM_UP);
        let before = available_bytes()?;
        let begun = load.elapsed();
        run.go(&load)?;
        let served = load.end(&(begun..begun + run.length))?;
        let fell = before.saturating_sub(available_bytes()?);
        server.end()?;
        let measured = run.metrics(&served, fell)?;
        run.check(keys)?;
        fs::remove_dir_all(&dir)?;
        Ok(measured)
    }
}

/// One run.
struct Run {
    series: Option<Series>,
    interval: Duration,
    length: Duration,
    shots: Vec<Shot>,
}

/// One snapshot of it.
struct Shot {
    taken: Taken,
    /// From its beginning to that of the next.
    interval: Duration,
    /// Writes of which the last is the last in it.
    writes: Range<u64>,
}

impl Run {
    fn new(case: &Case, series: Option<Series>) -> Result<Self> {
        let count = |axis| -> Result<u64> { Ok(u64::try_from(case.point.count(axis)?)?) };
        Ok(Self {
            series,
            interval: Duration::from_millis(count("interval")?),
            length: Duration::from_secs(count("seconds")?),
            shots: Vec::new(),
        })
    }

    /// Takes snapshots until the time is over.
    fn go(&mut self, load: &Load) -> Result<()> {
        let begun = Instant::now();
        let mut due = Duration::ZERO;
        while let Some(series) = &mut self.series
            && due < self.length
        {
            sleep(due.saturating_sub(begun.elapsed()));
            let this = begun.elapsed();
            let least = load.answered();
            let taken = series.take()?;
            let writes = least..load.sent() + 1;
            series.prune(KEPT)?;
            due = (this + self.interval).max(begun.elapsed());
            self.shots.push(Shot {
                taken,
                interval: due - this,
                writes,
            });
        }
        sleep(self.length.saturating_sub(begun.elapsed()));
        Ok(())
    }

    fn metrics(&self, served: &Served, fell: u64) -> Result<Metrics> {
        let shots = self.shots.len();
        let mut all = metrics([
            ("throughput_per_s", served.throughput_per_s),
            ("lost_share", served.lost_share),
            ("p50_ms", served.latency_ms(0.5)?),
            ("p99_ms", served.latency_ms(0.99)?),
            ("p999_ms", served.latency_ms(0.999)?),
            ("snapshots", shots as f64),
        ]);
        if let Some(series) = &self.series {
            let of = |of: fn(&Shot) -> Duration| {
                let values: Vec<f64> = self.shots.iter().map(|shot| ms(of(shot))).collect();
                median(&values).context("no snapshot was taken")
            };
            all.extend(metrics([
                ("snapshot_ms", of(|shot| shot.taken.wall)?),
                ("frozen_ms", of(|shot| shot.taken.frozen)?),
                ("memory_each_bytes", fell as f64 / series.len() as f64),
                (
                    "interval_stretch",
                    of(|shot| shot.interval)? / ms(self.interval),
                ),
            ]));
        }
        Ok(all)
    }

    /// Brings Redis back from the last snapshot and checks its data.
    fn check(self, keys: usize) -> Result<()> {
        let (Some(series), Some(last)) = (self.series, self.shots.last()) else {
            return Ok(());
        };
        let server = series.bring_back().context("the last snapshot")?;
        load::check(keys, last.writes.clone())?;
        server.end()
    }
}
