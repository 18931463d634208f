// SPDX-License-Identifier: GPL-2.0-only
//! `mvas-exp`: the scripted experiments, host half and guest half.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Args, CommandFactory, Parser, Subcommand};
use mvas_exp::demo::{self, docker};
use mvas_exp::frame::plan::{self, Settings};
use mvas_exp::frame::{Experiment, list, run};
use mvas_exp::host::{self, Machine, Place};
use mvas_exp::report::Report;
use mvas_exp::system::System;
use mvas_exp::workload;
use mvas_exp::{exp, guest};

/// The scripted experiments. Each boots microVMs and measures in them.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists the experiments
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Runs experiments, and keeps every sample
    #[command(after_help = "Examples:
  mvas-exp run size --quick
  mvas-exp run all --resume
  mvas-exp run size --set size=1G,4G --set pages=huge --system vascriu --repeat 9")]
    Run(Run),
    /// Makes a report, with figures, of the samples that runs have left
    #[command(after_help = "Example: mvas-exp report --from docs/report/samples --out /tmp/report")]
    Report(Report),
    /// Dumps and restores a loaded Redis by stock CRIU and by vascriu, in a second microVM, as
    /// 20 copies, and in a Docker container
    #[command(after_help = "Example: mvas-exp demo --size-mib 256")]
    Demo {
        /// Data to load into Redis, in MiB
        #[arg(long, default_value_t = 1024)]
        size_mib: usize,
        /// Little data, to see that everything works
        #[arg(long)]
        quick: bool,
        /// Where to write the result
        #[arg(long, value_name = "FILE", default_value = "target/mvas/demo.json")]
        json: PathBuf,
        #[command(flatten)]
        vm: Vm,
    },
    #[command(after_help = "Example:
  mvas-exp completions bash > ~/.local/share/bash-completion/completions/mvas-exp")]
    Completions(mvas_cli::Completions),
    /// Writes the manual pages, those of vascriu too: in the guest they would only take room
    #[command(hide = true)]
    Man(mvas_cli::Man),
    /// A step of the guest half
    #[command(hide = true)]
    Guest {
        /// As JSON
        step: String,
    },
    /// Removes a snapshot store when standard input ends
    #[command(hide = true)]
    Janitor { folder: PathBuf },
    /// Has the guest's image as its root, until standard input ends
    #[command(hide = true)]
    ImageRoot { image: PathBuf },
    /// The process that is dumped and restored
    #[command(hide = true)]
    Workload(workload::Options),
}

/// Which experiments, and how.
#[derive(Args)]
struct Run {
    /// Names of experiments, as `ls` has them, or `all`
    #[arg(required = true)]
    names: Vec<String>,
    /// Few values and repetitions, to see that everything works
    #[arg(long)]
    quick: bool,
    /// Values of an axis, in place of the defined ones; of experiments that have it
    #[arg(long, value_name = "AXIS=VALUE[,VALUE…]", value_parser = axis)]
    set: Vec<(String, Vec<String>)>,
    /// The systems to compare [default: all that an experiment has]
    #[arg(long, value_delimiter = ',')]
    system: Vec<System>,
    /// How often each case is measured
    #[arg(long)]
    repeat: Option<u32>,
    /// Decides on the order of the measurements
    #[arg(long, default_value_t = 2019)]
    seed: u64,
    /// Measure only what the folder does not have yet
    #[arg(long)]
    resume: bool,
    /// The folder of the samples, NAME.jsonl for each experiment
    #[arg(long, value_name = "FOLDER", default_value = "target/mvas/samples")]
    out: PathBuf,
    /// What runs the microVMs, as `mvasvm run --hw`: auto, kvm or sim
    #[arg(long, default_value = "auto", overrides_with = "hw")]
    hw: String,
    /// Where this runs: on a simulated host
    #[arg(long, hide = true)]
    simulated: bool,
}

fn axis(text: &str) -> Result<(String, Vec<String>), String> {
    let (name, values) = text.split_once('=').ok_or("write AXIS=VALUE,…")?;
    let values: Vec<String> = values.split(',').map(str::to_owned).collect();
    if values.iter().any(String::is_empty) {
        return Err("there is an empty value".into());
    }
    Ok((name.to_owned(), values))
}

impl Run {
    fn experiments(&self) -> Result<Vec<&'static dyn Experiment>> {
        if self.names == ["all"] {
            return Ok(exp::ALL.to_vec());
        }
        self.names.iter().map(|name| exp::find(name)).collect()
    }

    /// Of one of `all`: axes that only others have are for those.
    fn settings(&self, experiment: &dyn Experiment, all: &[&dyn Experiment]) -> Settings {
        let in_one = |e: &dyn Experiment, axis: &str| e.definition().axis(axis).is_some();
        let has = |(axis, _): &&(String, Vec<String>)| {
            in_one(experiment, axis) || !all.iter().any(|e| in_one(*e, axis))
        };
        Settings {
            quick: self.quick,
            set: self.set.iter().filter(has).cloned().collect(),
            systems: self.system.clone(),
            repeat: self.repeat,
            seed: self.seed,
        }
    }

    fn run(&self) -> Result<()> {
        let experiments = self.experiments()?;
        let place = Place::find(&self.hw)?;
        let host = match place {
            Place::Here if !self.simulated => "kvm",
            _ => "sim",
        };
        for experiment in &experiments {
            plan::plan(*experiment, &self.settings(*experiment, &experiments), host)?;
        }
        if place == Place::Simulated {
            return host::become_simulated(&self.out, &["--simulated".into()]);
        }
        // Hours of the others are not lost by one that fails.
        let mut failed = Vec::new();
        for experiment in &experiments {
            let settings = self.settings(*experiment, &experiments);
            let ran = run::run(*experiment, &settings, &self.out, host, self.resume);
            if let Err(error) = ran {
                let name = experiment.definition().name;
                eprintln!("{name} failed: {error:#}");
                failed.push(name);
            }
        }
        ensure!(
            failed.is_empty(),
            "{} of {} experiments failed, and what they measured before is kept: {}",
            failed.len(),
            experiments.len(),
            failed.join(", ")
        );
        Ok(())
    }
}

/// The microVM that an experiment runs in.
#[derive(Args)]
struct Vm {
    /// Memory of the microVM
    #[arg(long, default_value = "8G")]
    mem: String,
    /// vCPUs of the microVM
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// What runs it, as `mvasvm run --hw`: auto, kvm or sim
    #[arg(long, default_value = "auto", overrides_with = "hw")]
    hw: String,
}

impl Vm {
    fn machine(&self, disk: Option<(PathBuf, u64)>) -> Machine {
        Machine {
            mem: self.mem.clone(),
            cpus: self.cpus,
            image: None,
            disk,
        }
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mvas-exp: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Ls { json } => ls(json),
        Command::Run(run) => run.run(),
        Command::Report(report) => report.write(),
        Command::Demo {
            size_mib,
            quick,
            json,
            vm,
        } => run_demo(if quick { 32 } else { size_mib }, &json, &vm),
        Command::Completions(args) => args.print(&Cli::command()),
        Command::Man(args) => {
            args.write(vascriu::cli::Cli::command())?;
            args.write(Cli::command())
        }
        Command::Guest { step } => guest::run(&step),
        Command::Janitor { folder } => host::janitor(&folder),
        Command::ImageRoot { image } => host::hold_image_root(&image),
        Command::Workload(options) => workload::run(&options),
    }
}

fn ls(json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(&list::all())?);
    } else {
        print!("{}", list::render());
    }
    Ok(())
}

/// Data in the Redis that is in a Docker container, at most: there stock CRIU takes minutes on
/// a simulated host.
const DOCKER_MIB: usize = 128;

fn run_demo(size_mib: usize, json: &Path, vm: &Vm) -> Result<()> {
    if Place::find(&vm.hw)? == Place::Simulated {
        return host::become_simulated(host::folder_of(json), &[]);
    }
    // Room for the images, and as much for the file system itself.
    let disk = (
        json.with_extension("disk"),
        (2 * size_mib as u64 + 256) << 20,
    );
    let docker_mib = size_mib.min(DOCKER_MIB);
    let report = demo::host::run(size_mib, docker_mib, &vm.machine(Some(disk)))?;
    println!("Redis with {size_mib} MiB of data; speed-up against criu-tmpfs:\n");
    println!("{}", report.render());
    println!("Dumped into the snapshot store, microVM killed, restored in a second microVM:\n");
    println!("{}", report.render_second_vm());
    println!("A process with {size_mib} MiB, as copies that run side by side:\n");
    println!("{}", report.clones.render(size_mib));
    println!(
        "Redis with {docker_mib} MiB in a Docker container, checkpointed and started again:\n"
    );
    println!("{}", docker::render(&report.docker));
    host::save(&report, json)?;
    println!("written to {}", json.display());
    report.verify()
}
