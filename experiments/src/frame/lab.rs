// SPDX-License-Identifier: GPL-2.0-only
//! The microVMs of a run, and their store; the host half.

use anyhow::{Context, Result, ensure};

use super::provenance::Guest;
use super::{Case, Definition, Metrics};
use crate::guest::Step;
use crate::host::{ImageRoot, Machine, Scratch, Vm, settled_bytes};

/// What an experiment works with.
#[derive(Debug)]
pub struct Lab {
    // The microVMs go before their store.
    vms: Vec<Vm>,
    store: Scratch,
    machine: Machine,
    name: &'static str,
    here: Option<ImageRoot>,
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
            here: None,
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

    /// Has the guest half measure in the guest's image, but on this host: without a microVM.
    ///
    /// # Errors
    /// When it fails, or this host's kernel is not the guest's: then it would be another system.
    pub fn measure_on_host(&mut self, case: &Case) -> Result<Metrics> {
        if self.here.is_none() {
            let here = ImageRoot::open()?;
            let (on_host, in_guest) = (here.ask::<Guest>(&Step::Facts)?, self.guest()?);
            ensure!(
                on_host == in_guest,
                "without a microVM this is another system: {on_host:?} here, {in_guest:?} there"
            );
            self.here = Some(here);
        }
        let here = self.here.as_ref().context("just opened")?;
        here.ask(&Step::Measure(case.clone()))
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
