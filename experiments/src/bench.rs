//! The bench: stock CRIU to tmpfs against vascriu, over memory sizes and page
//! sizes; interleaved, in one guest, medians.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::checks::Check;
use crate::stats::{median, range};
use crate::system::{Snapshot, System, ms};
use crate::table;
use crate::workload::Pages;

/// What to measure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Sizes of the process's memory, in MiB.
    pub sizes_mib: Vec<usize>,
    /// How often each is measured.
    pub rounds: usize,
}

impl Plan {
    /// The measurements of one round, in order: the systems alternate.
    fn round(&self) -> Vec<(usize, Pages, System)> {
        let mut round = Vec::new();
        for &size in &self.sizes_mib {
            for pages in [Pages::Huge, Pages::Small] {
                for system in [System::CriuTmpfs, System::Vascriu] {
                    round.push((size, pages, system));
                }
            }
        }
        round
    }
}

/// One measurement, in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Size of the process's memory.
    pub size_mib: usize,
    /// Its pages.
    pub pages: Pages,
    /// What dumped and restored it.
    pub system: System,
    /// The whole dump.
    pub dump_ms: f64,
    /// The whole restore.
    pub restore_ms: f64,
    /// How long the process was frozen.
    pub frozen_ms: f64,
    /// The memory step of the dump.
    pub memory_dump_ms: f64,
    /// The memory step of the restore.
    pub memory_restore_ms: f64,
    /// Pages that were not as before, after the restore.
    pub bad_pages: u64,
}

/// The medians of a size, pages and system.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Size of the process's memory.
    pub size_mib: usize,
    /// Its pages.
    pub pages: Pages,
    /// What dumped and restored it.
    pub system: System,
    /// The whole dump.
    pub dump_ms: f64,
    /// The whole restore.
    pub restore_ms: f64,
    /// How long the process was frozen.
    pub frozen_ms: f64,
    /// The memory step of the dump.
    pub memory_dump_ms: f64,
    /// The memory step of the restore.
    pub memory_restore_ms: f64,
    /// Number of measurements.
    pub samples: usize,
    /// The fastest and the slowest dump.
    pub dump_range_ms: (f64, f64),
    /// The fastest and the slowest restore.
    pub restore_range_ms: (f64, f64),
}

impl Default for Row {
    fn default() -> Self {
        Self {
            size_mib: 0,
            pages: Pages::Small,
            system: System::CriuTmpfs,
            dump_ms: 0.0,
            restore_ms: 0.0,
            frozen_ms: 0.0,
            memory_dump_ms: 0.0,
            memory_restore_ms: 0.0,
            samples: 0,
            dump_range_ms: (0.0, 0.0),
            restore_range_ms: (0.0, 0.0),
        }
    }
}

/// The results as they are written to `bench.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The medians.
    pub rows: Vec<Row>,
    /// The goals.
    pub checks: Vec<Check>,
}

/// The medians of `samples`, in the order of their first appearance.
#[must_use]
pub fn summarize(samples: &[Sample]) -> Vec<Row> {
    let key = |s: &Sample| (s.size_mib, s.pages, s.system);
    let mut seen = Vec::new();
    for sample in samples {
        if !seen.contains(&key(sample)) {
            seen.push(key(sample));
        }
    }
    let row = |wanted: (usize, Pages, System)| {
        let group: Vec<&Sample> = samples.iter().filter(|s| key(s) == wanted).collect();
        let column = |of: fn(&Sample) -> f64| group.iter().map(|s| of(s)).collect::<Vec<f64>>();
        let (dump, restore) = (column(|s| s.dump_ms), column(|s| s.restore_ms));
        Some(Row {
            size_mib: wanted.0,
            pages: wanted.1,
            system: wanted.2,
            dump_ms: median(&dump)?,
            restore_ms: median(&restore)?,
            frozen_ms: median(&column(|s| s.frozen_ms))?,
            memory_dump_ms: median(&column(|s| s.memory_dump_ms))?,
            memory_restore_ms: median(&column(|s| s.memory_restore_ms))?,
            samples: group.len(),
            dump_range_ms: range(&dump)?,
            restore_range_ms: range(&restore)?,
        })
    };
    seen.into_iter().filter_map(row).collect()
}

/// What is wrong with the samples: a page that was not as before.
///
/// # Errors
/// Names every measurement with bad pages.
pub fn verify(samples: &[Sample]) -> Result<()> {
    let bad: BTreeSet<String> = samples
        .iter()
        .filter(|s| s.bad_pages != 0)
        .map(|s| {
            format!(
                "{} at {} MiB of {} pages: {} pages differ after the restore",
                s.system, s.size_mib, s.pages, s.bad_pages
            )
        })
        .collect();
    ensure!(
        bad.is_empty(),
        "{}",
        bad.into_iter().collect::<Vec<_>>().join("\n")
    );
    Ok(())
}

/// The table for people: pairs of rows with their speed-up.
#[must_use]
pub fn render(rows: &[Row]) -> String {
    let header = [
        "memory",
        "pages",
        "system",
        "dump ms",
        "restore ms",
        "frozen ms",
        "memory dump ms",
        "memory restore ms",
        "dump",
        "restore",
        "mem. dump",
        "mem. restore",
    ];
    let stock = |row: &Row| {
        rows.iter().find(|r| {
            (r.size_mib, r.pages, r.system) == (row.size_mib, row.pages, System::CriuTmpfs)
        })
    };
    let cells = |row: &Row| {
        let times = |of: fn(&Row) -> f64| {
            let stock = stock(row).filter(|_| row.system != System::CriuTmpfs);
            stock.map_or(String::new(), |s| table::times(of(s), of(row)))
        };
        vec![
            format!("{} MiB", row.size_mib),
            row.pages.to_string(),
            row.system.to_string(),
            table::ms(row.dump_ms),
            table::ms(row.restore_ms),
            table::ms(row.frozen_ms),
            table::ms(row.memory_dump_ms),
            table::ms(row.memory_restore_ms),
            times(|r| r.dump_ms),
            times(|r| r.restore_ms),
            times(|r| r.memory_dump_ms),
            times(|r| r.memory_restore_ms),
        ]
    };
    table::render(&header, &rows.iter().map(cells).collect::<Vec<_>>())
}

/// Runs all measurements; the guest half.
///
/// # Errors
/// When a dump or restore fails.
pub fn run(plan: &Plan) -> Result<Vec<Sample>> {
    let dir = Path::new("/run/mvas-exp");
    fs::create_dir_all(dir)?;
    let round = plan.round();
    for system in [System::CriuTmpfs, System::Vascriu] {
        eprintln!("warming up {system}");
        measure(dir, 16, Pages::Small, system)?;
    }
    let mut samples = Vec::new();
    let mut eta = Eta::new(round.iter().map(|(size, ..)| size + 256).sum::<usize>() * plan.rounds);
    for number in 1..=plan.rounds {
        for &(size, pages, system) in &round {
            let sample = measure(dir, size, pages, system).with_context(|| {
                format!("{system} at {size} MiB of {pages} pages, round {number}")
            })?;
            eprintln!(
                "round {number}/{}: {size:>4} MiB {pages:<4} {system:<10} dump {:>8} ms, restore {:>8} ms  ({})",
                plan.rounds,
                table::ms(sample.dump_ms),
                table::ms(sample.restore_ms),
                eta.after(size + 256),
            );
            samples.push(sample);
        }
    }
    Ok(samples)
}

/// Tells how long all the work will still take, from the work done so far.
#[derive(Debug)]
struct Eta {
    begun: Instant,
    total: usize,
    done: usize,
}

impl Eta {
    fn new(total: usize) -> Self {
        Self {
            begun: Instant::now(),
            total,
            done: 0,
        }
    }

    fn after(&mut self, work: usize) -> String {
        self.done += work;
        let seconds = remaining(self.begun.elapsed(), self.done, self.total).as_secs();
        format!("{} min {:02} s left", seconds / 60, seconds % 60)
    }
}

fn remaining(elapsed: Duration, done: usize, total: usize) -> Duration {
    let done = u32::try_from(done).unwrap_or(u32::MAX).max(1);
    let left = u32::try_from(total)
        .unwrap_or(u32::MAX)
        .saturating_sub(done);
    elapsed / done * left
}

/// One measurement: a new process, its dump and its restore.
fn measure(dir: &Path, size_mib: usize, pages: Pages, system: System) -> Result<Sample> {
    let mut subject = Subject::start(dir, size_mib, pages)?;
    let snapshot = match system {
        System::Vascriu => Snapshot::Vas("bench".into()),
        System::CriuTmpfs | System::CriuDisk => Snapshot::Stock(dir.join("images")),
    };
    let dump = snapshot.dump(subject.pid)?;
    subject.reap()?;
    let restore = snapshot.restore()?;
    let bad_pages = subject.count_bad_pages()?;
    subject.end()?;
    snapshot.delete()?;
    Ok(Sample {
        size_mib,
        pages,
        system,
        dump_ms: ms(dump.wall),
        restore_ms: ms(restore.wall),
        frozen_ms: ms(dump.frozen),
        memory_dump_ms: ms(dump.memory),
        memory_restore_ms: ms(restore.memory),
        bad_pages,
    })
}

/// The process that is dumped and restored.
#[derive(Debug)]
struct Subject {
    pid: i32,
    child: Child,
    answer: PathBuf,
}

/// How long a process may take to fill or check its memory.
const PATIENCE: Duration = Duration::from_secs(300);

impl Subject {
    fn start(dir: &Path, size_mib: usize, pages: Pages) -> Result<Self> {
        let answer = dir.join("answer");
        remove_if_there(&answer)?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["workload", "--size-mib", &size_mib.to_string()])
            .args(["--pages", &pages.to_string()])
            .arg("--answer")
            .arg(&answer)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = in_new_session(&mut command)
            .spawn()
            .context("cannot start the workload")?;
        let pid = i32::try_from(child.id())?;
        let mut subject = Self { pid, child, answer };
        let ready = subject.wait_for_answer(|s| Ok(s.child.try_wait()?.is_some()));
        ensure!(ready? == 0, "the workload does not begin well");
        if pages == Pages::Huge {
            subject.require_huge_pages(size_mib)?;
        }
        Ok(subject)
    }

    /// Waits for the process to write its answer; `ended` tells whether it died.
    fn wait_for_answer(&mut self, ended: impl Fn(&mut Self) -> Result<bool>) -> Result<u64> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if let Ok(answer) = fs::read_to_string(&self.answer) {
                remove_if_there(&self.answer)?;
                return Ok(answer.parse()?);
            }
            if ended(self)? {
                bail!("the workload ended by itself");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("the workload does not answer");
    }

    /// Makes sure that the kernel gave the huge pages that were asked for.
    fn require_huge_pages(&self, size_mib: usize) -> Result<()> {
        let smaps = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid))?;
        let huge_kib = smaps
            .lines()
            .find_map(|line| line.strip_prefix("AnonHugePages:"))
            .and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<usize>().ok())
            .context("smaps_rollup tells no AnonHugePages")?;
        ensure!(
            huge_kib >= size_mib * 1024 / 10 * 9,
            "only {} of {size_mib} MiB are in huge pages: is the guest short of memory?",
            huge_kib / 1024
        );
        Ok(())
    }

    /// Takes the exit status of the process that the dump killed: its PID must
    /// be free for the restore.
    fn reap(&mut self) -> Result<()> {
        self.child.wait()?;
        Ok(())
    }

    fn count_bad_pages(&mut self) -> Result<u64> {
        kill(Pid::from_raw(self.pid), Signal::SIGUSR1).context("the restored process is gone")?;
        self.wait_for_answer(|s| Ok(!is_alive(s.pid)))
    }

    /// Ends the restored process and waits until its memory is free again.
    fn end(&mut self) -> Result<()> {
        kill(Pid::from_raw(self.pid), Signal::SIGKILL)?;
        let begun = Instant::now();
        while is_alive(self.pid) {
            ensure!(
                begun.elapsed() < PATIENCE,
                "the restored process does not end"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

fn is_alive(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Makes `command` run in a session of its own, as a service does: CRIU dumps
/// whole sessions.
pub fn in_new_session(command: &mut Command) -> &mut Command {
    use std::os::unix::process::CommandExt;
    // SAFETY: setsid is async-signal-safe, and nothing else runs in the new process.
    unsafe { command.pre_exec(|| Ok(nix::unistd::setsid().map(drop)?)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(system: System, dump_ms: f64, bad_pages: u64) -> Sample {
        Sample {
            size_mib: 16,
            pages: Pages::Huge,
            system,
            dump_ms,
            restore_ms: 2.0 * dump_ms,
            frozen_ms: 1.0,
            memory_dump_ms: 1.0,
            memory_restore_ms: 1.0,
            bad_pages,
        }
    }

    #[test]
    fn rows_are_medians_of_their_group() {
        let samples = [
            sample(System::CriuTmpfs, 30.0, 0),
            sample(System::Vascriu, 3.0, 0),
            sample(System::CriuTmpfs, 10.0, 0),
            sample(System::CriuTmpfs, 20.0, 0),
        ];
        let rows = summarize(&samples);
        assert_eq!(rows.len(), 2);
        assert_eq!(
            (rows[0].dump_ms, rows[0].restore_ms, rows[0].samples),
            (20.0, 40.0, 3)
        );
        assert_eq!(rows[0].dump_range_ms, (10.0, 30.0));
        assert_eq!((rows[1].system, rows[1].dump_ms), (System::Vascriu, 3.0));
    }

    #[test]
    fn bad_pages_are_named() {
        assert!(verify(&[sample(System::Vascriu, 1.0, 0)]).is_ok());
        let error = verify(&[sample(System::Vascriu, 1.0, 7)])
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "vascriu at 16 MiB of huge pages: 7 pages differ after the restore"
        );
    }

    #[test]
    fn the_table_tells_the_speed_up_of_vascriu_only() {
        let rows = summarize(&[
            sample(System::CriuTmpfs, 30.0, 0),
            sample(System::Vascriu, 3.0, 0),
        ]);
        let table = render(&rows);
        let lines: Vec<&str> = table.lines().collect();
        assert!(!lines[2].contains('x'), "{table}");
        assert!(lines[3].contains("10.0x"), "{table}");
    }

    #[test]
    fn a_round_alternates_the_systems_over_all_sizes_and_pages() {
        let plan = Plan {
            sizes_mib: vec![16, 32],
            rounds: 1,
        };
        let round = plan.round();
        assert_eq!(round.len(), 8);
        assert!(round.chunks(2).all(|pair| pair[0].2 == System::CriuTmpfs
            && pair[1].2 == System::Vascriu
            && pair[0].0 == pair[1].0
            && pair[0].1 == pair[1].1));
    }

    #[test]
    fn the_remaining_time_follows_the_work_done() {
        let ten = Duration::from_secs(10);
        assert_eq!(remaining(ten, 1, 4), Duration::from_secs(30));
        assert_eq!(remaining(ten, 4, 4), Duration::ZERO);
        assert_eq!(remaining(ten, 5, 4), Duration::ZERO);
    }

    #[test]
    fn the_report_has_the_promised_names() {
        let rows = summarize(&[sample(System::CriuTmpfs, 30.0, 0)]);
        let json = serde_json::to_value(Report {
            rows,
            checks: vec![],
        })
        .unwrap();
        let row = &json["rows"][0];
        assert_eq!(row["size_mib"], 16);
        assert_eq!(row["pages"], "huge");
        assert_eq!(row["system"], "criu-tmpfs");
        for name in [
            "dump_ms",
            "restore_ms",
            "memory_dump_ms",
            "memory_restore_ms",
        ] {
            assert!(row[name].is_f64(), "{name}");
        }
    }
}
