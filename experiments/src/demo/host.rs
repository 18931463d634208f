// SPDX-License-Identifier: GPL-2.0-only
//! The host half of the demo: three microVMs, one after the other, on one snapshot store.

use anyhow::Result;

use super::clones::{self, Clones};
use super::docker::DockerRun;
use super::guest::{First, Restored};
use super::{Report, SecondVm};
use crate::guest::Step;
use crate::host::{Machine, Scratch, Vm};

/// Where the guest finds the disk of its machine.
const DISK: &str = "/dev/vdb";

/// Runs the demo with `size_mib` MiB of data, `docker_mib` in the container. `machine` has a
/// disk.
///
/// # Errors
/// When a step fails. Different data after a restore is a result, not an error.
pub fn run(size_mib: usize, docker_mib: usize, machine: &Machine) -> Result<Report> {
    let store = Scratch::new()?;
    let vm = Vm::start(machine, "demo", &store)?;
    let First { runs, kept } = vm.ask(&Step::Demo {
        size_mib,
        disk: DISK.into(),
    })?;
    eprintln!("killing the microVM");
    vm.kill()?;
    let other = Machine {
        disk: None,
        ..machine.clone()
    };
    let vm = Vm::start(&other, "demo-second", &store)?;
    let restored: Restored = vm.ask(&Step::DemoAgain {
        expected: kept.expected,
    })?;
    let clones: Clones = vm.ask(&Step::DemoClones {
        size_mib,
        count: clones::COUNT,
    })?;
    vm.kill()?;
    let with_docker = Machine {
        image: Some("containers"),
        // Where two vCPUs share a CPU, what starts many processes is several times slower.
        cpus: 1,
        ..other
    };
    let vm = Vm::start(&with_docker, "demo-docker", &store)?;
    let docker: Vec<DockerRun> = vm.ask(&Step::DemoDocker {
        size_mib: docker_mib,
    })?;
    Ok(Report {
        size_mib,
        runs,
        second_vm: SecondVm {
            dump_ms: kept.dump_ms,
            store_ms: kept.store_ms,
            frozen_ms: kept.frozen_ms,
            restore_ms: restored.restore_ms,
            memory_restore_ms: restored.memory_restore_ms,
            data_equal: restored.differs.is_none(),
            differs: restored.differs,
        },
        docker,
        clones,
    })
}
