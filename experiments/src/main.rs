//! `mvas-exp`: the scripted experiments, host half and guest half.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand};
use mvas_exp::host::{self, Machine};
use mvas_exp::workload::{self, Pages};
use mvas_exp::{bench, checks, demo};

/// The scripted experiments. Each boots a microVM and measures in it.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Dumps and restores a loaded Redis by stock CRIU and by vascriu
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
    /// Measures stock CRIU to tmpfs against vascriu, over sizes and page sizes
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
        #[command(flatten)]
        vm: Vm,
    },
    /// The guest half of `demo`
    #[command(hide = true)]
    GuestDemo {
        #[arg(long)]
        size_mib: usize,
        /// A block device; its content is lost
        #[arg(long)]
        disk: PathBuf,
    },
    /// The guest half of `bench`
    #[command(hide = true)]
    GuestBench {
        #[arg(long, value_delimiter = ',')]
        sizes_mib: Vec<usize>,
        #[arg(long)]
        rounds: usize,
    },
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
    #[arg(long, default_value = "auto")]
    hw: String,
}

impl Vm {
    fn machine(&self, default_cpus: u32, disk: Option<(PathBuf, u64)>) -> Machine {
        Machine {
            mem: self.mem.clone(),
            hw: self.hw.clone(),
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
        } => {
            let size_mib = if quick { 32 } else { size_mib };
            // Room for the images, and as much for the file system itself.
            let disk = (
                json.with_extension("disk"),
                (2 * size_mib as u64 + 256) << 20,
            );
            let args = [
                "guest-demo",
                "--disk",
                "/dev/vdb",
                "--size-mib",
                &size_mib.to_string(),
            ]
            .map(String::from);
            let report: demo::Report = host::run_in_guest(&vm.machine(2, Some(disk)), &args)?;
            println!("Redis with {size_mib} MiB of data; speed-up against criu-tmpfs:\n");
            println!("{}", report.render());
            host::save(&report, &json)?;
            println!("written to {}", json.display());
            report.verify()
        }
        Command::Bench {
            sizes_mib,
            rounds,
            quick,
            json,
            vm,
        } => {
            let (sizes_mib, rounds) = if quick {
                (vec![16, 32], 1)
            } else {
                (sizes_mib, rounds)
            };
            if sizes_mib.is_empty() || rounds == 0 {
                bail!("nothing to measure: give at least one size and one round");
            }
            let sizes: Vec<String> = sizes_mib.iter().map(ToString::to_string).collect();
            let args = [
                "guest-bench",
                "--sizes-mib",
                &sizes.join(","),
                "--rounds",
                &rounds.to_string(),
            ]
            .map(String::from);
            let samples: Vec<bench::Sample> = host::run_in_guest(&vm.machine(1, None), &args)?;
            let rows = bench::summarize(&samples);
            println!("{}", bench::render(&rows));
            let checks = checks::check_all(&rows);
            for check in &checks {
                println!("{check}");
            }
            host::save(&bench::Report { rows, checks }, &json)?;
            println!("written to {}", json.display());
            bench::verify(&samples)
        }
        Command::GuestDemo { size_mib, disk } => {
            print_json(&demo::run(&demo::Plan { size_mib, disk })?)
        }
        Command::GuestBench { sizes_mib, rounds } => {
            print_json(&bench::run(&bench::Plan { sizes_mib, rounds })?)
        }
        Command::Workload {
            size_mib,
            pages,
            seed,
            answer,
        } => workload::run(size_mib, pages, seed, &answer),
    }
}

fn print_json(result: &impl serde::Serialize) -> Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, result)?;
    writeln!(out)?;
    Ok(())
}
