//! The microVMs of a run, and their store; the host half.

use anyhow::{Context, Result};

use super::provenance::Guest;
use super::{Case, Definition, Metrics};
use crate::guest::Step;
use crate::host::{Machine, Scratch, Vm, settled_bytes};

/// What an experiment works with.
#[derive(Debug)]
pub struct Lab {
    // The microVMs go before their store.
    vms: Vec<Vm>,
    store: Scratch,
    machine: Machine,
    name: &'static str,
}

impl Lab {
    /// The first microVM, booted.
    ///
    /// # Errors
    /// When it does not boot.
    pub fn open(definition: &Definition) -> Result<Self> {
        Self::on(Scratch::new()?, definition, definition.name)
    }

    /// The same, on this store; its microVMs are called `name`.
    ///
    /// # Errors
    /// When the first does not boot.
    pub fn on(store: Scratch, definition: &Definition, name: &'static str) -> Result<Self> {
        let machine = Machine {
            mem: definition.machine.mem.to_owned(),
            cpus: definition.machine.cpus,
            image: definition.machine.image,
            disk: None,
        };
        let mut lab = Self {
            vms: Vec::new(),
            store,
            machine,
            name,
        };
        lab.vm(0)?;
        Ok(lab)
    }

    /// The microVM of this number; those that are missing are booted.
    ///
    /// # Errors
    /// When one does not boot.
    pub fn vm(&mut self, number: usize) -> Result<&Vm> {
        while self.vms.len() <= number {
            let name = format!("{}-{}", self.name, self.vms.len());
            self.vms.push(Vm::start(&self.machine, &name, &self.store)?);
        }
        self.vms.get(number).context("just booted")
    }

    /// Their store.
    #[must_use]
    pub fn store(&self) -> &Scratch {
        &self.store
    }

    /// Host memory that they and their store take, once the guests have given back what they
    /// freed.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn settled_bytes(&self) -> Result<u64> {
        settled_bytes(&self.store, &self.vms.iter().collect::<Vec<_>>())
    }

    /// Has the guest half measure, in the first microVM.
    ///
    /// # Errors
    /// When it fails.
    pub fn measure_in_guest(&mut self, case: &Case) -> Result<Metrics> {
        self.vm(0)?.ask(&Step::Measure(case.clone()))
    }

    /// What the guest tells of itself.
    ///
    /// # Errors
    /// When it does not.
    pub fn guest(&mut self) -> Result<Guest> {
        self.vm(0)?.ask(&Step::Facts)
    }

    /// The microVM in words.
    #[must_use]
    pub fn machine(&self) -> String {
        let Machine {
            mem, cpus, image, ..
        } = &self.machine;
        let image = image.map_or(String::new(), |image| format!(", {image}"));
        format!("{mem}, {cpus} vCPU{image}")
    }
}
