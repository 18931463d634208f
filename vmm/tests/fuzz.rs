// SPDX-License-Identifier: GPL-2.0-only
//! The fuzz targets without a fuzzer: their seeds, and these with some bytes changed.
//! `fuzz/README.md` says how to have the input chosen by what it covers.

#[path = "../../fuzz/src/lib.rs"]
mod targets;

use std::path::{Path, PathBuf};
use std::{env, fs, panic};

use fastrand::Rng;

/// A target's body and its seeds.
type Target = (fn(&[u8]), fn() -> Vec<Vec<u8>>);

/// Runs the seeds in `fuzz/seeds` and those that the target makes, then `MVAS_FUZZ_RUNS` (300)
/// changed ones.
fn exercise(name: &str, (run, seeds): Target) {
    let mut inputs = seeds();
    if env::var_os("MVAS_FUZZ_SEEDS").is_some() {
        write(name, &inputs);
    }
    for entry in fs::read_dir(folder(name)).expect("seeds") {
        inputs.push(fs::read(entry.expect("a seed").path()).expect("a seed"));
    }
    for input in &inputs {
        run(input);
    }
    let runs = env::var("MVAS_FUZZ_RUNS").map_or(300, |runs| runs.parse().expect("a number"));
    let mut random = Rng::with_seed(runs);
    for _ in 0..runs {
        let changed = change(&mut random, &inputs);
        if panic::catch_unwind(|| run(&changed)).is_err() {
            let kept = env::temp_dir().join(format!("mvas-fuzz-{name}"));
            fs::write(&kept, &changed).expect("a file");
            panic!("the input that failed is in {}", kept.display());
        }
    }
}

fn folder(name: &str) -> PathBuf {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds");
    seeds.join(name)
}

/// `MVAS_FUZZ_SEEDS`: writes what is committed as a target's seeds.
fn write(name: &str, seeds: &[Vec<u8>]) {
    let folder = folder(name);
    fs::create_dir_all(&folder).expect("a folder");
    for (number, seed) in seeds.iter().enumerate() {
        fs::write(folder.join(number.to_string()), seed).expect("a seed");
    }
}

/// An input with a few bytes changed, left out or doubled, or its beginning with another's end.
fn change(random: &mut Rng, inputs: &[Vec<u8>]) -> Vec<u8> {
    let mut input = random.choice(inputs).cloned().unwrap_or_default();
    for _ in 0..random.usize(1..6) {
        let at = random.usize(..=input.len());
        let to = random.usize(at..=input.len().min(at + 40));
        match random.u8(..5) {
            0 if at < input.len() => input[at] = random.u8(..),
            1 => drop(input.splice(at..to, [])),
            2 => drop(input.splice(at..at, input[at..to].to_vec())),
            3 => {
                let other = &inputs[random.usize(..inputs.len())];
                let from = random.usize(..=other.len());
                input.splice(at.., other[from..].iter().copied());
            }
            _ if at < input.len() => input[at] ^= 1 << random.u8(..8),
            _ => input.push(random.u8(..)),
        }
    }
    input
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            exercise(stringify!($name), (targets::$name::run, targets::$name::seeds));
        })*
    };
}

targets!(agent archive chain manifest meta mmio vsock);
