// SPDX-License-Identifier: GPL-2.0-only
//! The report: facts, and what to do.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::facts::{Confinement, Memory};
use super::kvm::{KvmHost, KvmKind};
use super::store::StorePlace;
use crate::cli::paths;

/// A remapped guest has up to one mapping for each 2 MiB of its memory.
const MAPS_WANTED: u64 = 1 << 20;

/// The whole report.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// MicroVMs can run here, on KVM or simulated.
    pub usable: bool,
    /// What `mvasvm run` would use: `kvm`, `sim` or `none`.
    runs_on: &'static str,
    kvm: KvmHost,
    memory: Memory,
    sandbox: Confinement,
    store: StorePlace,
    simulation: Simulation,
    kernel: Built,
    image: Built,
    /// What to do, most important first.
    advice: Vec<Advice>,
}

/// What the simulated host needs.
#[derive(Debug, Serialize)]
struct Simulation {
    usable: bool,
    qemu: Option<PathBuf>,
}

/// A file that is booted.
#[derive(Debug, Serialize)]
struct Built {
    path: Option<PathBuf>,
    error: Option<String>,
}

/// Something missing.
#[derive(Debug, Serialize)]
struct Advice {
    what: String,
    do_this: String,
}

impl Report {
    pub fn make() -> Self {
        let kvm = KvmHost::look();
        let memory = Memory::look();
        let kernel = Built::of(paths::kernel(None));
        let image = Built::of(paths::image(None));
        let qemu = paths::emulator();
        let simulation = Simulation {
            usable: qemu.is_some() && kernel.path.is_some(),
            qemu,
        };
        let runs_on = match (kvm.why_unusable(), simulation.usable) {
            (None, _) => "kvm",
            (Some(_), true) => "sim",
            (Some(_), false) => "none",
        };
        let mut report = Self {
            usable: runs_on != "none",
            runs_on,
            kvm,
            memory,
            sandbox: Confinement::look(),
            store: StorePlace::look(),
            simulation,
            kernel,
            image,
            advice: Vec::new(),
        };
        report.advise();
        report
    }

    fn advise(&mut self) {
        let mut advice = Vec::new();
        let mut add = |what: &str, do_this: String| {
            let what = what.to_owned();
            advice.push(Advice { what, do_this });
        };
        match (&self.kvm.kind, &self.kvm.error) {
            (KvmKind::Software, _) => add(
                "KVM emulates in software and cannot boot Linux",
                "use a machine with VMX or SVM; until then microVMs run on a simulated host".into(),
            ),
            (_, Some(error)) => add("KVM cannot be used", error.clone()),
            (_, None) => {}
        }
        if self.kvm.nested_paging == Some(false) {
            add(
                "nested paging is off: every page-table change of a guest is slow",
                "load kvm_intel with ept=1, or kvm_amd with npt=1".into(),
            );
        }
        if self.kvm.why_unusable().is_some() && self.simulation.qemu.is_none() {
            add(
                "there is no emulator for a simulated host",
                paths::BRING_EMULATOR.into(),
            );
        }
        for (built, what) in [(&self.kernel, "guest kernel"), (&self.image, "guest image")] {
            if let Some(error) = &built.error {
                add(&format!("no {what}"), error.clone());
            }
        }
        let shmem = self.memory.thp_shmem.as_deref();
        if !matches!(shmem, Some("always" | "within_size" | "advise" | "force")) {
            add(
                "no huge pages behind guest memory: remapping is about 10 times slower",
                "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled".into(),
            );
        }
        if let Some((what, do_this)) = &self.store.deleted_at_logout {
            add(what, do_this.clone());
        }
        if self.store.lacks_huge_pages() {
            add(
                "no huge pages behind snapshots: remapping is about 10 times slower",
                format!("mvasvm store mount --store {}", self.store.path.display()),
            );
        }
        if self.memory.overcommit == Some(2) {
            add(
                "no overcommit: a guest cannot have more memory than there is free",
                "sysctl vm.overcommit_memory=1".into(),
            );
        }
        if self
            .memory
            .max_map_count
            .is_some_and(|count| count < MAPS_WANTED)
        {
            add(
                "few mappings per process: at most 128 GiB of a guest can be remapped piece by piece",
                format!("sysctl vm.max_map_count={MAPS_WANTED}"),
            );
        }
        if !self.sandbox.seccomp {
            add(
                "no seccomp filters: the monitor's system calls are not confined",
                "use a kernel with CONFIG_SECCOMP_FILTER".into(),
            );
        }
        if self.sandbox.landlock == 0 {
            add(
                "no Landlock: which files the monitor's threads open is not confined",
                "use Linux 5.13 or later with CONFIG_SECURITY_LANDLOCK, and landlock in lsm="
                    .into(),
            );
        }
        self.advice = advice;
    }
}

impl Built {
    fn of(found: anyhow::Result<PathBuf>) -> Self {
        match found {
            Ok(path) => Self {
                path: Some(path),
                error: None,
            },
            Err(error) => Self {
                path: None,
                error: Some(format!("{error:#}")),
            },
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: Option<u64>| match bytes {
            Some(bytes) => format!("{} GiB", bytes >> 30),
            None => "unknown".to_owned(),
        };
        let path = |path: &Option<PathBuf>| match path {
            Some(path) => path.display().to_string(),
            None => "missing".to_owned(),
        };
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "unknown".to_owned());
        let num =
            |value: Option<u64>| value.map_or_else(|| "unknown".to_owned(), |n| n.to_string());
        let nested = match self.kvm.nested_paging {
            Some(true) => ", nested paging",
            Some(false) => ", no nested paging",
            None => "",
        };
        let cpus = match self.kvm.max_cpus {
            Some(max) => format!(", up to {max} vCPUs"),
            None => String::new(),
        };
        let memory = &self.memory;
        let rows = [
            ("KVM", format!("{}{nested}{cpus}", self.kvm.kind)),
            (
                "memory",
                format!(
                    "{}, {} available",
                    gib(memory.total_bytes),
                    gib(memory.available_bytes)
                ),
            ),
            (
                "huge pages",
                format!(
                    "anonymous {}, memory files {}, {} reserved",
                    text(&memory.thp),
                    text(&memory.thp_shmem),
                    num(memory.hugetlb_pages)
                ),
            ),
            (
                "limits",
                format!(
                    "vm.overcommit_memory {}, vm.max_map_count {}",
                    num(memory.overcommit),
                    num(memory.max_map_count)
                ),
            ),
            (
                "store",
                format!(
                    "{} ({}, huge pages {})",
                    self.store.path.display(),
                    text(&self.store.file_system),
                    text(&self.store.huge)
                ),
            ),
            ("sandbox", self.sandbox.to_string()),
            ("QEMU", path(&self.simulation.qemu)),
            ("kernel", path(&self.kernel.path)),
            ("image", path(&self.image.path)),
        ];
        for (name, value) in rows {
            writeln!(f, "{name:<11} {value}")?;
        }
        let verdict = match self.runs_on {
            "kvm" => "microVMs run on this host's KVM",
            "sim" => "microVMs run on a simulated host (about 10 times slower)",
            _ => "microVMs cannot run here",
        };
        writeln!(f, "\n{verdict}")?;
        for Advice { what, do_this } in &self.advice {
            writeln!(f, "- {what}:\n  {do_this}")?;
        }
        Ok(())
    }
}
