// SPDX-License-Identifier: GPL-2.0-only
//! The instrument: what an experiment is, and how any of them is run and kept.
//!
//! An [`Experiment`] is one file in [`crate::exp`]: a [`Definition`], and how one [`Case`] of it
//! is measured. All else is done here, for all of them alike: [`plan`] makes the cases and their
//! order, [`lab`] has the microVMs, [`run`] measures what is missing, and [`samples`] keeps every
//! single result, with where it comes from ([`provenance`]). [`crate::report`] reads only those.

pub mod lab;
pub mod list;
pub mod plan;
pub mod point;
pub mod provenance;
pub mod run;
pub mod samples;

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

pub use lab::Lab;
pub use point::Point;

use crate::system::System;

/// One experiment.
pub trait Experiment: Sync {
    /// What it asks, varies, compares and measures.
    fn definition(&self) -> &'static Definition;

    /// Whether a system can do this at all.
    fn fits(&self, system: System, point: &Point) -> bool {
        let _ = (system, point);
        true
    }

    /// Whether it can be measured at such a point on a host of this kind ([`Provenance`]) at all.
    ///
    /// [`Provenance`]: provenance::Provenance::host
    fn fits_host(&self, host: &str, point: &Point) -> bool {
        let _ = (host, point);
        true
    }

    /// Measures one case; the host half. By itself it leaves all to the guest half.
    ///
    /// # Errors
    /// When a step fails, or memory is not as it should be.
    fn measure(&self, lab: &mut Lab, case: &Case) -> Result<Metrics> {
        lab.measure_in_guest(case)
    }

    /// Measures one case; the guest half. By itself it has none.
    ///
    /// # Errors
    /// When a step fails, or memory is not as it should be.
    fn measure_here(&self, case: &Case) -> Result<Metrics> {
        bail!("{} is measured from the host", case.experiment)
    }
}

/// What an experiment is. All of it is data: a list, a plan and a report are made from it.
#[derive(Debug)]
pub struct Definition {
    /// As the command line has it.
    pub name: &'static str,
    /// Heading in the report.
    pub title: &'static str,
    /// What it answers.
    pub question: &'static str,
    /// What is varied.
    pub axes: &'static [Axis],
    /// What is compared; the first is what the others are compared with.
    pub systems: &'static [System],
    /// What is measured.
    pub metrics: &'static [Metric],
    /// The microVM.
    pub machine: Machine,
    /// How often each case is measured: quick, full.
    pub repeats: [u32; 2],
    /// What the report draws.
    pub figures: &'static [Figure],
    /// What the report judges.
    pub claims: &'static [Claim],
    /// What else a reader must know to understand the numbers.
    pub notes: &'static [&'static str],
}

impl Definition {
    /// The metric of this name.
    #[must_use]
    pub fn metric(&self, name: &str) -> Option<&'static Metric> {
        self.metrics.iter().find(|metric| metric.name == name)
    }

    /// The axis of this name.
    #[must_use]
    pub fn axis(&self, name: &str) -> Option<&'static Axis> {
        self.axes.iter().find(|axis| axis.name == name)
    }
}

/// Something that is varied.
#[derive(Debug)]
pub struct Axis {
    /// As `--set` has it.
    pub name: &'static str,
    /// What it is, for people.
    pub about: &'static str,
    /// What its values are.
    pub kind: Kind,
    /// Values of a quick run.
    pub quick: &'static [&'static str],
    /// Values of a full run.
    pub full: &'static [&'static str],
}

/// What the values of an axis are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Memory: a number with M or G.
    Size,
    /// A whole number of something.
    Count(&'static str),
    /// One of these words.
    Word(&'static [&'static str]),
}

/// Something that is measured.
#[derive(Debug)]
pub struct Metric {
    /// As samples have it.
    pub name: &'static str,
    /// What it is, for people.
    pub about: &'static str,
    /// Its unit.
    pub unit: Unit,
}

/// The unit of a metric; of all but `PerSecond`, less is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Milliseconds.
    Ms,
    /// Bytes.
    Bytes,
    /// Operations per second.
    PerSecond,
    /// A number of something, or a share.
    Count,
}

/// A microVM that an experiment runs in.
#[derive(Debug)]
pub struct Machine {
    /// Its memory, as `mvasvm --mem` takes it.
    pub mem: &'static str,
    /// Number of its vCPUs. One, where that is enough: a simulated host has only one CPU.
    pub cpus: u32,
    /// The flavor of its image, if not the default.
    pub image: Option<&'static str>,
}

/// A figure: one metric over one axis, a line for each system.
#[derive(Debug)]
pub struct Figure {
    /// What it shows.
    pub title: &'static str,
    /// The metric.
    pub metric: &'static str,
    /// The axis across.
    pub x: &'static str,
    /// The axis of which each value has a panel of its own.
    pub panels: Option<&'static str>,
}

/// How many times better one system is than another, or than itself elsewhere, at one point.
#[derive(Debug)]
pub struct Claim {
    /// What is claimed.
    pub text: &'static str,
    /// What the paper says, if it does.
    pub paper: Option<&'static str>,
    /// The metric.
    pub metric: &'static str,
    /// The better one.
    pub system: System,
    /// What it is better than.
    pub than: Than,
    /// Where, but for axes of which the last value counts.
    pub at: &'static [(&'static str, &'static str)],
    /// How many times better it must be.
    pub goal: f64,
}

/// What a claim compares with.
#[derive(Debug, Clone, Copy)]
pub enum Than {
    /// Another system at the same point.
    System(System),
    /// The same system where these axes have other values.
    At(&'static [(&'static str, &'static str)]),
}

/// One measurement to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// The experiment.
    pub experiment: String,
    /// What does it.
    pub system: System,
    /// With these values of the axes.
    pub point: Point,
    /// From 1 on; 0 is a warm-up, which does not count.
    pub repeat: u32,
}

/// What was measured, by metric.
pub type Metrics = BTreeMap<String, f64>;

/// Metrics of these.
#[must_use]
pub fn metrics<const N: usize>(all: [(&str, f64); N]) -> Metrics {
    all.map(|(name, value)| (name.to_owned(), value)).into()
}
