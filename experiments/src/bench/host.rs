//! The bench as a whole; the host half.

use anyhow::{Context, Result};

use super::clones::{self, Plan as Clones};
use super::drain;
use super::remap::{self, Remap};
use super::samples::{Plan, Sample};
use super::{Report, SCALING_MIB, Stored, summarize, verify};
use crate::checks;
use crate::guest::Step;
use crate::host::{Machine, Scratch, Vm};
use crate::system::System;

/// What to measure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bench {
    /// In one guest.
    pub samples: Plan,
    /// Over several.
    pub clones: Clones,
    /// How many in one guest, one after the other.
    pub scaling: usize,
    /// Memory that is drained and remapped, in MiB.
    pub drain_mib: usize,
    /// The first microVM.
    pub machine: Machine,
    /// Memory of each further one, as `mvasvm --mem` takes it.
    pub other_mem: String,
}

/// The most that is drained: the goals are set for it.
const DRAIN_MIB: usize = 1024;
/// The most that a copy has.
const CLONE_MIB: usize = 512;

impl Bench {
    /// The goals' sizes, as far as `samples` goes.
    ///
    /// # Errors
    /// When there is nothing to measure.
    pub fn new(samples: Plan, quick: bool, machine: Machine) -> Result<Self> {
        let largest = samples.sizes_mib.iter().copied().max().unwrap_or(0);
        if largest == 0 || samples.rounds == 0 {
            anyhow::bail!("nothing to measure: give at least one size and one round");
        }
        // Where samples tell what stock CRIU takes for as much, if possible.
        let fitting = samples.sizes_mib.iter().copied();
        let drain_mib = fitting.filter(|size| *size <= DRAIN_MIB).max();
        Ok(Self {
            drain_mib: drain_mib.unwrap_or(DRAIN_MIB),
            clones: Clones {
                size_mib: largest.min(CLONE_MIB),
                copies: if quick { 4 } else { 8 },
                vms: if quick { 2 } else { 4 },
            },
            scaling: if quick { 20 } else { 100 },
            samples,
            machine,
            other_mem: "2G".into(),
        })
    }

    /// Measures remapping on this host.
    ///
    /// # Errors
    /// As [`remap::measure`].
    pub fn remap(&self, host: &str) -> Result<Remap> {
        let store = Scratch::new()?;
        remap::measure(host, self.drain_mib as u64, store.path())
    }

    /// Measures everything on this host, beside what was measured outside of it.
    ///
    /// # Errors
    /// When a step fails, or memory is not as it should be.
    pub fn run(&self, outside: Option<Remap>) -> Result<Report> {
        let host = if outside.is_some() {
            "simulated"
        } else {
            "native"
        };
        let mut remap = Vec::from_iter(outside);
        remap.push(self.remap(host)?);

        let store = Scratch::new()?;
        let mut vms = vec![Vm::start(&self.machine, "bench", &store)?];
        let samples: Vec<Sample> = vms[0].ask(&Step::Samples(self.samples.clone()))?;
        verify(&samples)?;
        let drain = drain::measure(&vms[0], &store, self.drain_mib, self.samples.rounds)?;
        let scaling = vms[0].ask(&Step::DemoClones {
            size_mib: SCALING_MIB,
            count: self.scaling,
        })?;
        for number in 2..=self.clones.vms {
            let machine = Machine {
                mem: self.other_mem.clone(),
                disk: None,
                ..self.machine.clone()
            };
            let vm = Vm::start(&machine, &format!("bench-{number}"), &store)?;
            vm.ask::<()>(&Step::WarmUp)
                .context("a further microVM does not work")?;
            vms.push(vm);
        }
        let clones = clones::measure(&vms, &store, self.clones)?;

        let (stored, rows) = summarize(&samples)
            .into_iter()
            .partition(|row| row.system == System::VascriuStore);
        let stored = Stored {
            rows: stored,
            drain,
            clones,
            scaling,
            remap,
        };
        Ok(Report {
            checks: checks::check_all(&rows, &stored),
            rows,
            store: stored,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bench(sizes_mib: &[usize], rounds: usize) -> Result<Bench> {
        let samples = Plan {
            sizes_mib: sizes_mib.to_vec(),
            rounds,
        };
        let machine = Machine {
            mem: "8G".into(),
            cpus: 1,
            image: None,
            disk: None,
        };
        Bench::new(samples, false, machine)
    }

    #[test]
    fn the_goals_sizes_are_taken_where_there_is_enough() {
        let sizes = |sizes: &[usize]| {
            let bench = bench(sizes, 1).unwrap();
            (bench.drain_mib, bench.clones.size_mib)
        };
        assert_eq!(sizes(&[16, 256, 1024, 2048]), (1024, 512));
        assert_eq!(sizes(&[16, 32]), (32, 32));
        assert_eq!(sizes(&[2048]), (1024, 512));
    }

    #[test]
    fn nothing_to_measure_is_an_error() {
        assert!(bench(&[], 5).is_err() && bench(&[16], 0).is_err());
        assert!(bench(&[0], 1).is_err());
    }
}
