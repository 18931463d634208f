//! The demo: a loaded Redis, dumped and restored by each system, with proof that
//! it holds the same data.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde::{Deserialize, Serialize};

use crate::criu::timed;
use crate::redis::{self, Client, State};
use crate::system::{Snapshot, System, ms};
use crate::table;

/// What to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Data to load into Redis, in MiB.
    pub size_mib: usize,
    /// A block device for the disk file system; its content is lost.
    pub disk: PathBuf,
}

/// One dump and restore, times in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// What dumped and restored.
    pub system: System,
    /// The whole dump.
    pub dump_ms: f64,
    /// The whole restore.
    pub restore_ms: f64,
    /// How long Redis was frozen in the dump.
    pub frozen_ms: f64,
    /// The memory step of the dump.
    pub memory_dump_ms: f64,
    /// The memory step of the restore.
    pub memory_restore_ms: f64,
    /// Bytes of the image files.
    pub image_bytes: u64,
    /// Whether Redis holds exactly the same data after the restore.
    pub data_equal: bool,
    /// What differs, if something does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub differs: Option<String>,
}

/// The results as they are written to `demo.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Data in Redis, in MiB.
    pub size_mib: usize,
    /// One per system.
    pub runs: Vec<Run>,
}

impl Report {
    /// What differs after a restore.
    ///
    /// # Errors
    /// Names every system after whose restore Redis held other data.
    pub fn verify(&self) -> Result<()> {
        let wrong: Vec<String> = self
            .runs
            .iter()
            .filter(|r| !r.data_equal)
            .map(|r| {
                format!(
                    "{}: {}",
                    r.system,
                    r.differs.as_deref().unwrap_or("other data")
                )
            })
            .collect();
        anyhow::ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    }

    /// The table for people.
    #[must_use]
    pub fn render(&self) -> String {
        let header = [
            "system",
            "dump ms",
            "restore ms",
            "frozen ms",
            "memory dump ms",
            "memory restore ms",
            "images",
            "dump",
            "restore",
            "same data",
        ];
        let baseline = self.runs.iter().find(|r| r.system == System::CriuTmpfs);
        let row = |run: &Run| {
            let times = |of: fn(&Run) -> f64| {
                baseline.map_or(String::new(), |b| table::times(of(b), of(run)))
            };
            vec![
                run.system.to_string(),
                table::ms(run.dump_ms),
                table::ms(run.restore_ms),
                table::ms(run.frozen_ms),
                table::ms(run.memory_dump_ms),
                table::ms(run.memory_restore_ms),
                table::bytes(run.image_bytes),
                times(|r| r.dump_ms),
                times(|r| r.restore_ms),
                if run.data_equal { "yes" } else { "NO" }.to_string(),
            ]
        };
        table::render(&header, &self.runs.iter().map(row).collect::<Vec<_>>())
    }
}

/// Where the experiment works, on tmpfs.
const DIR: &str = "/run/mvas-exp";

/// Runs the demo; the guest half.
///
/// # Errors
/// When a step fails. Different data after a restore is a result, not an error.
pub fn run(plan: &Plan) -> Result<Report> {
    let dir = Path::new(DIR);
    let disk = dir.join("disk");
    fs::create_dir_all(&disk)?;
    eprintln!("making a file system on {}", plan.disk.display());
    timed(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&plan.disk))?;
    timed(Command::new("mount").arg(&plan.disk).arg(&disk))?;

    // So that no system pays for reading the programs from the image.
    timed(Command::new("vascriu").arg("check"))?;

    let mut server = redis::start(dir)?;
    let pid = i32::try_from(server.id())?;
    let expected = load(plan.size_mib)?;
    redis::wait_until_idle(pid)?;

    let mut runs = Vec::new();
    for (system, snapshot) in [
        (System::CriuDisk, Snapshot::Stock(disk.join("images"))),
        (System::CriuTmpfs, Snapshot::Stock(dir.join("images"))),
        (System::Vascriu, Snapshot::Vas("demo".into())),
    ] {
        eprintln!("{system}: dump");
        let dump = snapshot
            .dump(pid)
            .with_context(|| format!("{system}: dump"))?;
        if runs.is_empty() {
            // The first dump killed our child: its PID must be free for the restore.
            server.wait()?;
        }
        if system == System::CriuDisk {
            forget_cached(&disk.join("images"))?;
        }
        eprintln!("{system}: restore");
        let restore = snapshot
            .restore()
            .with_context(|| format!("{system}: restore"))?;
        eprintln!("{system}: comparing the data");
        let differs = difference(&expected)?;
        redis::wait_until_idle(pid)?;
        snapshot.delete()?;
        runs.push(Run {
            system,
            dump_ms: ms(dump.wall),
            restore_ms: ms(restore.wall),
            frozen_ms: ms(dump.frozen),
            memory_dump_ms: ms(dump.memory),
            memory_restore_ms: ms(restore.memory),
            image_bytes: dump.image_bytes,
            data_equal: differs.is_none(),
            differs,
        });
    }
    Ok(Report {
        size_mib: plan.size_mib,
        runs,
    })
}

fn load(size_mib: usize) -> Result<State> {
    let begun = Instant::now();
    let mut client = Client::connect()?;
    let mut told = 0;
    client.load(size_mib, 2019, |mib| {
        if mib >= told + 128 {
            told = mib;
            eprintln!(
                "loading Redis: {mib} of {size_mib} MiB, {} s",
                begun.elapsed().as_secs()
            );
        }
    })?;
    eprintln!(
        "loading Redis: done in {} s; taking the digest of its data",
        begun.elapsed().as_secs()
    );
    client.state()
}

/// What Redis holds differently from `expected`, or does not do any more.
fn difference(expected: &State) -> Result<Option<String>> {
    let mut client = Client::connect().context("after the restore")?;
    if let Err(error) = client.write_and_read() {
        return Ok(Some(format!("{error:#}")));
    }
    let now = client.state()?;
    Ok((now != *expected).then(|| {
        format!(
            "{} keys with digest {} before, {} keys with digest {} after the restore",
            expected.keys, expected.digest, now.keys, now.digest
        )
    }))
}

/// Writes the files in `dir` to the disk and drops them from the page cache, so
/// that a restore reads the disk.
fn forget_cached(dir: &Path) -> Result<()> {
    eprintln!("writing the images to the disk");
    for entry in fs::read_dir(dir)? {
        let file = fs::File::open(entry?.path())?;
        file.sync_all()?;
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(system: System, ms: f64, differs: Option<&str>) -> Run {
        Run {
            system,
            dump_ms: ms,
            restore_ms: ms,
            frozen_ms: ms,
            memory_dump_ms: ms,
            memory_restore_ms: ms,
            image_bytes: 1 << 30,
            data_equal: differs.is_none(),
            differs: differs.map(Into::into),
        }
    }

    fn report(differs: Option<&str>) -> Report {
        Report {
            size_mib: 1024,
            runs: vec![
                run(System::CriuDisk, 4000.0, None),
                run(System::CriuTmpfs, 2000.0, None),
                run(System::Vascriu, 100.0, differs),
            ],
        }
    }

    #[test]
    fn different_data_is_an_error_that_says_what_differs() {
        assert!(report(None).verify().is_ok());
        let error = report(Some("3 keys before, 2 keys after"))
            .verify()
            .unwrap_err();
        assert_eq!(error.to_string(), "vascriu: 3 keys before, 2 keys after");
    }

    #[test]
    fn the_table_compares_with_stock_criu_on_tmpfs() {
        let table = report(None).render();
        let lines: Vec<&str> = table.lines().collect();
        assert!(
            lines[2].contains("criu-disk") && lines[2].contains("0.5x"),
            "{table}"
        );
        assert!(
            lines[4].contains("vascriu") && lines[4].contains("20.0x"),
            "{table}"
        );
        assert!(report(Some("x")).render().contains("NO"));
    }

    #[test]
    fn the_report_has_the_promised_names() {
        let json = serde_json::to_value(report(None)).unwrap();
        let run = &json["runs"][2];
        assert_eq!(run["system"], "vascriu");
        assert_eq!(run["image_bytes"], 1 << 30);
        assert_eq!(run["data_equal"], true);
        for name in [
            "dump_ms",
            "restore_ms",
            "frozen_ms",
            "memory_dump_ms",
            "memory_restore_ms",
        ] {
            assert!(run[name].is_f64(), "{name}");
        }
    }
}
