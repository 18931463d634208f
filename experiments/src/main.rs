//! `mvas-exp`: the scripted experiments, host half and guest half.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use mvas_exp::bench::host::Bench;
use mvas_exp::bench::remap::Remap;
use mvas_exp::bench::samples::Plan;
use mvas_exp::host::{self, Machine, Place};
use mvas_exp::workload::{self, Pages};
use mvas_exp::{demo, guest};

/// The scripted experiments. Each boots microVMs and measures in them.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Dumps and restores a loaded Redis by stock CRIU and by vascriu, and in a second microVM
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
    /// Measures stock CRIU to tmpfs against vascriu, and the snapshot store
    #[command(after_help = "Example: mvas-exp bench --sizes-mib 16,256 --rounds 9")]
    Bench {
        /// Sizes of the process's memory, in MiB
        #[arg(long, value_delimiter = ',', default_values_t = [16, 256, 1024, 2048])]
        sizes_mib: Vec<usize>,
        /// How often each is measured; the result is the median
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// One round of small sizes, to see that everything works
        #[arg(long)]
        quick: bool,
        /// Where to write the result
        #[arg(long, value_name = "FILE", default_value = "target/mvas/bench.json")]
        json: PathBuf,
        /// What was measured on the host of this simulated host, as JSON
        #[arg(long, hide = true)]
        outside: Option<String>,
        #[command(flatten)]
        vm: Vm,
    },
    /// A step of the guest half
    #[command(hide = true)]
    Guest {
        /// As JSON
        step: String,
    },
    /// Removes a snapshot store when standard input ends
    #[command(hide = true)]
    Janitor { folder: PathBuf },
    /// The process that `bench` dumps and restores
    #[command(hide = true)]
    Workload {
        #[arg(long)]
        size_mib: usize,
        #[arg(long)]
        pages: Pages,
        #[arg(long, default_value_t = 2019)]
        seed: u64,
        /// The file it answers in
        #[arg(long)]
        answer: PathBuf,
    },
}

/// The microVM that an experiment runs in.
#[derive(Args)]
struct Vm {
    /// Memory of the microVM
    #[arg(long, default_value = "8G")]
    mem: String,
    /// vCPUs of the microVM [default: 2 for the demo, 1 for the bench]
    #[arg(long)]
    cpus: Option<u32>,
    /// What runs it, as `mvasvm run --hw`: auto, kvm or sim
    #[arg(long, default_value = "auto", overrides_with = "hw")]
    hw: String,
}

impl Vm {
    fn machine(&self, default_cpus: u32, disk: Option<(PathBuf, u64)>) -> Machine {
        Machine {
            mem: self.mem.clone(),
            cpus: self.cpus.unwrap_or(default_cpus),
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
        Command::Demo {
            size_mib,
            quick,
            json,
            vm,
        } => run_demo(if quick { 32 } else { size_mib }, &json, &vm),
        Command::Bench {
            sizes_mib,
            rounds,
            quick,
            json,
            outside,
            vm,
        } => {
            let samples = if quick {
                Plan {
                    sizes_mib: vec![16, 32],
                    rounds: 1,
                }
            } else {
                Plan { sizes_mib, rounds }
            };
            let bench = Bench::new(samples, quick, vm.machine(1, None))?;
            run_bench(&bench, outside.as_deref(), &json, &vm)
        }
        Command::Guest { step } => guest::run(&step),
        Command::Janitor { folder } => host::janitor(&folder),
        Command::Workload {
            size_mib,
            pages,
            seed,
            answer,
        } => workload::run(size_mib, pages, seed, &answer),
    }
}

fn run_demo(size_mib: usize, json: &Path, vm: &Vm) -> Result<()> {
    if Place::find(&vm.hw)? == Place::Simulated {
        return host::become_simulated(json, &[]);
    }
    // Room for the images, and as much for the file system itself.
    let disk = (
        json.with_extension("disk"),
        (2 * size_mib as u64 + 256) << 20,
    );
    let report = demo::host::run(size_mib, &vm.machine(2, Some(disk)))?;
    println!("Redis with {size_mib} MiB of data; speed-up against criu-tmpfs:\n");
    println!("{}", report.render());
    println!("Dumped into the snapshot store, microVM killed, restored in a second microVM:\n");
    println!("{}", report.render_second_vm());
    host::save(&report, json)?;
    println!("written to {}", json.display());
    report.verify()
}

fn run_bench(bench: &Bench, outside: Option<&str>, json: &Path, vm: &Vm) -> Result<()> {
    if Place::find(&vm.hw)? == Place::Simulated {
        let native = serde_json::to_string(&bench.remap("native")?)?;
        return host::become_simulated(json, &["--outside".into(), native]);
    }
    let outside: Option<Remap> = outside.map(serde_json::from_str).transpose()?;
    let report = bench.run(outside)?;
    println!("{}", report.render());
    host::save(&report, json)?;
    println!("written to {}", json.display());
    Ok(())
}
