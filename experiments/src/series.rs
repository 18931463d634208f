// SPDX-License-Identifier: GPL-2.0-only
//! Snapshots of a process that goes on, one after the other: old ones go, one comes back.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::criu::{self, timed};
use crate::redis::{self, Client, Reply};
use crate::subject::Subject;
use crate::system::{CLOSED, GOING_ON, Snapshot, System};
use crate::vas;

/// How long Redis may take to save or to load its data.
const PATIENCE: Duration = Duration::from_secs(600);

/// Snapshots of one process by one system.
#[derive(Debug)]
pub struct Series {
    way: Way,
    pid: i32,
    dir: PathBuf,
    kept: VecDeque<u32>,
    number: u32,
}

#[derive(Debug)]
enum Way {
    /// CRIU: all of it each time.
    Whole,
    /// CRIU: what changed, in two steps.
    Incremental,
    Vas,
    /// Redis does it, when asked.
    Bgsave(Client),
}

/// What one snapshot took.
#[derive(Debug, Clone, Copy)]
pub struct Taken {
    /// From asking for it until it was there.
    pub wall: Duration,
    /// While the process stood still.
    pub frozen: Duration,
}

impl Series {
    /// Of the process `pid`; what are files goes to `dir`. Of `bgsave` it is a Redis that works
    /// there.
    ///
    /// # Errors
    /// When the system cannot do this.
    pub fn new(system: System, pid: i32, dir: &Path) -> Result<Self> {
        let way = match system {
            System::CriuTmpfs => Way::Whole,
            System::CriuPredump => Way::Incremental,
            System::Vascriu => Way::Vas,
            System::Bgsave => Way::Bgsave(bgsaver()?),
            other => bail!("{other} does not take one snapshot after the other"),
        };
        Ok(Self {
            way,
            pid,
            dir: dir.to_owned(),
            kept: VecDeque::new(),
            number: 0,
        })
    }

    /// Takes one.
    ///
    /// # Errors
    /// When the system fails.
    pub fn take(&mut self) -> Result<Taken> {
        self.number += 1;
        let taken = match &mut self.way {
            Way::Bgsave(client) => {
                let taken = bgsave(client)?;
                // Redis does not allow to choose another name.
                fs::rename(self.dir.join(RDB), self.dir.join(rdb(self.number)))?;
                taken
            }
            Way::Incremental => self.take_what_changed()?,
            Way::Whole | Way::Vas => {
                let dump = self.snapshot(self.number).take(self.pid)?;
                Taken {
                    wall: dump.wall,
                    frozen: dump.frozen,
                }
            }
        };
        self.kept.push_back(self.number);
        Ok(taken)
    }

    /// What changed since the last dump while the process runs, then what has changed since
    /// that while it is frozen. Each refers to the one before.
    fn take_what_changed(&self) -> Result<Taken> {
        let before = format!("../{}", self.number - 1);
        let parent: &[&str] = match self.kept.is_empty() {
            true => &[],
            false => &["--prev-images-dir", &before],
        };
        let first = format!("{}-pre", self.number);
        let more = [&["--track-mem"], parent].concat();
        let pre = criu::pre_dump(self.pid, &self.dir.join(&first), &more)?;
        let parent = format!("../{first}");
        let more = [
            &["--track-mem", "--prev-images-dir", &parent],
            &GOING_ON[..],
        ]
        .concat();
        let dump = criu::dump_with(self.pid, &self.images(self.number), &more)?;
        Ok(Taken {
            wall: pre.wall + dump.wall,
            frozen: pre.frozen + dump.frozen,
        })
    }

    /// Removes the oldest, but for the last `keep`. Those that others refer to all stay.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn prune(&mut self, keep: usize) -> Result<()> {
        if matches!(self.way, Way::Incremental) {
            return Ok(());
        }
        while self.kept.len() > keep
            && let Some(oldest) = self.kept.pop_front()
        {
            match self.way {
                Way::Bgsave(_) => fs::remove_file(self.dir.join(rdb(oldest)))?,
                _ => self.snapshot(oldest).delete()?,
            }
        }
        Ok(())
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Brings the last one back, when the process is gone, and removes all.
    ///
    /// # Errors
    /// When the system fails.
    pub fn bring_back(mut self) -> Result<Subject> {
        let last = *self.kept.back().context("no snapshot was taken")?;
        let server = if let Way::Bgsave(_) = self.way {
            fs::copy(self.dir.join(rdb(last)), self.dir.join(RDB))?;
            let server = Subject::of(redis::start(&self.dir)?)?;
            wait_until_loaded()?;
            server
        } else {
            self.restore(last)?
        };
        self.prune(0)?;
        Ok(server)
    }

    /// Puts the `nth` of those that there are in the place of the process, and keeps all.
    ///
    /// # Errors
    /// When there are not so many, or the system fails.
    pub fn go_back(&self, mut process: Subject, nth: usize) -> Result<Subject> {
        let number = self.kept.get(nth);
        let number = *number.with_context(|| format!("there is no snapshot {nth}"))?;
        match self.snapshot(number) {
            Snapshot::Vas(name) => {
                process.reap_beside();
                timed(vas::rolling_back(&name).arg(CLOSED))?;
                Ok(Subject::at(self.pid))
            }
            _ => {
                process.end_alone()?;
                self.restore(number)
            }
        }
    }

    fn restore(&self, number: u32) -> Result<Subject> {
        timed(self.snapshot(number).restoring().arg(CLOSED))?;
        Ok(Subject::at(self.pid))
    }

    fn images(&self, number: u32) -> PathBuf {
        self.dir.join(number.to_string())
    }

    fn snapshot(&self, number: u32) -> Snapshot {
        match self.way {
            Way::Vas => Snapshot::Vas(format!("series-{number}")),
            _ => Snapshot::Stock(self.images(number)),
        }
    }
}

/// Where Redis saves to and loads from.
const RDB: &str = "dump.rdb";

fn rdb(number: u32) -> String {
    format!("{number}.rdb")
}

/// A connection to a Redis that does not try to compress what does not.
fn bgsaver() -> Result<Client> {
    let mut client = Client::connect()?;
    client.command(&[b"CONFIG", b"SET", b"rdbcompression", b"no"])?;
    Ok(client)
}

/// `BGSAVE` until its file is there.
fn bgsave(client: &mut Client) -> Result<Taken> {
    let begun = Instant::now();
    client.command(&[b"BGSAVE"])?;
    while info(client, "rdb_bgsave_in_progress")? != "0" {
        ensure!(begun.elapsed() < PATIENCE, "BGSAVE does not end");
        sleep(Duration::from_millis(20));
    }
    let wall = begun.elapsed();
    let status = info(client, "rdb_last_bgsave_status")?;
    ensure!(status == "ok", "BGSAVE: {status}");
    let micros = info(client, "latest_fork_usec")?.parse()?;
    Ok(Taken {
        wall,
        frozen: Duration::from_micros(micros),
    })
}

/// A line of `INFO`.
fn info(client: &mut Client, name: &str) -> Result<String> {
    let Reply::Bulk(Some(text)) = client.command(&[b"INFO", b"persistence", b"stats"])? else {
        bail!("INFO answered nothing");
    };
    let text = String::from_utf8_lossy(&text);
    let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
    let found = pairs.find(|(key, _)| *key == name);
    let (_, value) = found.with_context(|| format!("INFO does not tell {name}"))?;
    Ok(value.to_owned())
}

fn wait_until_loaded() -> Result<()> {
    let mut client = Client::connect()?;
    let begun = Instant::now();
    while info(&mut client, "loading")? != "0" {
        ensure!(begun.elapsed() < PATIENCE, "Redis does not load its file");
        sleep(Duration::from_millis(20));
    }
    Ok(())
}
