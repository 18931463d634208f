// SPDX-License-Identifier: GPL-2.0-only
//! What is behind the guest's memory on the host, and what that costs who touches it.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::common;
use crate::criu::timed;
use crate::frame::{
    Axis, Case, Claim, Definition, Experiment, Figure, Kind, Lab, Machine, Metric, Metrics, Than,
    Unit, metrics,
};
use crate::host::Scratch;
use crate::procfs::available_bytes;
use crate::subject::Subject;
use crate::system::{Snapshot, System, ms};
use crate::workload::Pages;

pub(super) struct Backing;

const ON: &str = "on";
const OFF: &str = "off";
const HUGE: &str = "huge";
const SMALL: &str = "4k";

static DEFINITION: Definition = Definition {
    name: "backing",
    title: "What is behind the guest's memory",
    question: "What do a dump and a restore take by what the host does for memory that the guest \
        newly touches: whether free memory was given back, and by which pages it comes again?",
    axes: &[
        Axis {
            name: "reporting",
            about: "whether the guest gives its free memory back",
            kind: Kind::Word(&[ON, OFF]),
            quick: &[ON, OFF],
            full: &[ON, OFF],
        },
        Axis {
            name: "host-pages",
            about: "the host's pages behind the guest's memory",
            kind: Kind::Word(&[HUGE, SMALL]),
            quick: &[HUGE, SMALL],
            full: &[HUGE, SMALL],
        },
        Axis {
            name: "size",
            about: "memory of the process",
            kind: Kind::Size,
            quick: &["32M"],
            full: &["256M"],
        },
    ],
    systems: &[System::CriuTmpfs, System::Vascriu],
    metrics: &[
        common::DUMP,
        common::RESTORE,
        Metric {
            name: "start_ms",
            about: "a new process, until it has filled its memory",
            unit: Unit::Ms,
        },
        Metric {
            name: "host_bytes",
            about: "host memory that the microVM takes in the end",
            unit: Unit::Bytes,
        },
    ],
    machine: Machine {
        mem: "2G",
        cpus: 1,
        image: None,
    },
    repeats: [1, 5],
    figures: &[
        figure("Dump", "dump_ms"),
        figure("Restore", "restore_ms"),
        figure("A new process", "start_ms"),
        figure("Host memory", "host_bytes"),
    ],
    claims: &[
        Claim {
            text: "Free memory that was given back makes stock CRIU's dump no slower, by more \
                than a quarter",
            ..stock(
                "dump_ms",
                &[("reporting", ON), ("host-pages", HUGE)],
                &[("reporting", OFF)],
            )
        },
        Claim {
            text: "Free memory that was given back makes stock CRIU's restore no slower, by more \
                than a quarter",
            ..stock(
                "restore_ms",
                &[("reporting", ON), ("host-pages", HUGE)],
                &[("reporting", OFF)],
            )
        },
        Claim {
            text: "With 4 KiB pages behind the memory stock CRIU's dump is no slower, by more \
                than a quarter",
            ..stock(
                "dump_ms",
                &[("reporting", ON), ("host-pages", SMALL)],
                &[("host-pages", HUGE)],
            )
        },
        Claim {
            text: "With 4 KiB pages behind memory that was not given back stock CRIU's dump is no \
                slower, by more than a quarter",
            ..stock(
                "dump_ms",
                &[("reporting", OFF), ("host-pages", SMALL)],
                &[("host-pages", HUGE)],
            )
        },
    ],
    notes: &[
        "The process has huge pages. Before each measurement another one has filled nine tenths of \
         the free memory and has ended, and the guest was idle for 6 seconds: on, the host has got \
         that memory back, and what is touched then it gives anew, as zeroes; off, it is still \
         there.",
        "off: the guest's driver has given up the store's device, by which alone it reports free \
         memory (it is unbound). So vascriu keeps its snapshots in the guest, in all cases.",
        "4k: a microVM of its own, whose memory and store are a tmpfs with huge=never; the second \
         measurement in it counts, when its programs are in the page cache.",
        "Host memory is what the store's files and the monitor have, when the process has ended. \
         In the end the process checks all its memory; a single bad page ends the run.",
    ],
};

const fn figure(title: &'static str, metric: &'static str) -> Figure {
    Figure {
        title,
        metric,
        x: "reporting",
        panels: Some("host-pages"),
    }
}

/// Of stock CRIU at one point and at another.
const fn stock(
    metric: &'static str,
    at: &'static [(&'static str, &'static str)],
    than: &'static [(&'static str, &'static str)],
) -> Claim {
    Claim {
        text: "",
        paper: None,
        metric,
        system: System::CriuTmpfs,
        than: Than::At(than),
        at,
        goal: 0.8,
    }
}

impl Experiment for Backing {
    fn definition(&self) -> &'static Definition {
        &DEFINITION
    }

    fn measure(&self, lab: &mut Lab, case: &Case) -> Result<Metrics> {
        if case.point.word("host-pages")? == HUGE {
            return measure_in(lab, case);
        }
        let store = Scratch::with_small_pages()?;
        let mut lab = Lab::on(store, &DEFINITION, "backing-small")?;
        // Once to have programs read.
        measure_in(&mut lab, case)?;
        measure_in(&mut lab, case)
    }

    fn measure_here(&self, case: &Case) -> Result<Metrics> {
        report_free_memory(case.point.word("reporting")? == ON)?;
        let free_mib = usize::try_from(available_bytes()? >> 20)?;
        Subject::start_with_seed(free_mib / 10 * 9, Pages::Huge, 1)?.end()?;
        sleep(REPORTED);

        let snapshot = Snapshot::new(case.system, "backing")?;
        let begun = Instant::now();
        let mut process = Subject::start(case.point.mib("size")?, Pages::Huge)?;
        let start = begun.elapsed();
        let dump = snapshot.dump(process.pid)?;
        process.reap()?;
        let restore = timed(&mut snapshot.restoring())?;
        Subject::at(process.pid).end_intact()?;
        snapshot.delete()?;
        Ok(metrics([
            ("dump_ms", ms(dump.wall)),
            ("restore_ms", ms(restore.wall)),
            ("start_ms", ms(start)),
        ]))
    }
}

fn measure_in(lab: &mut Lab, case: &Case) -> Result<Metrics> {
    let mut measured = lab.measure_in_guest(case)?;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let host = lab.settled_bytes()? as f64;
    measured.insert("host_bytes".into(), host);
    Ok(measured)
}

/// A guest reports free memory every two seconds.
const REPORTED: Duration = Duration::from_secs(6);

const DRIVER: &str = "/sys/bus/virtio/drivers/virtio-vas";
const DEVICES: &str = "/sys/bus/virtio/devices";

/// Has the guest give its free memory back, or not: the driver of the store's device does it.
fn report_free_memory(on: bool) -> Result<()> {
    let (action, device) = if on {
        ("bind", device_without_driver()?)
    } else {
        ("unbind", device_of_driver()?)
    };
    // It is so already.
    let Some(device) = device else {
        return Ok(());
    };
    fs::write(Path::new(DRIVER).join(action), &device)
        .with_context(|| format!("cannot {action} {device}"))?;
    let bound = device_of_driver()?.is_some();
    ensure!(bound == on, "{device} did not {action}");
    Ok(())
}

fn device_of_driver() -> Result<Option<String>> {
    let names = names_in(DRIVER)?;
    Ok(names.into_iter().find(|name| name.starts_with("virtio")))
}

/// Of all devices only this driver's is ever without one.
fn device_without_driver() -> Result<Option<String>> {
    let has_none = |name: &String| !Path::new(DEVICES).join(name).join("driver").exists();
    Ok(names_in(DEVICES)?.into_iter().find(has_none))
}

fn names_in(folder: &str) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| folder.to_owned())?;
    let name = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    Ok(entries.flatten().map(name).collect())
}
