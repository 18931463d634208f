// SPDX-License-Identifier: GPL-2.0-only
//! A warm Python interpreter, seen from outside: `sandbox.py` in the guest, a [`Subject`] that
//! evaluates expressions. In the image `programs`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::subject::{DIR, Subject};

/// The program; it imports numpy and more, and has [`NUMBERS`] numbers as its data.
const SOURCE: &str = include_str!("sandbox.py");
/// Numbers of 8 bytes in its array `data`: each from 0 on, once.
const NUMBERS: u64 = 1 << 21;

#[derive(Debug, Serialize)]
enum Request<'a> {
    Evaluate(&'a str),
}

/// Writes the program to where [`start`] finds it.
///
/// # Errors
/// When that fails.
pub fn install() -> Result<()> {
    fs::create_dir_all(DIR)?;
    Ok(fs::write(Path::new(DIR).join("sandbox.py"), SOURCE)?)
}

/// Starts one and waits until it is warm.
///
/// # Errors
/// When it does not get there.
pub fn start() -> Result<Subject> {
    let mut command = Command::new("python3");
    command.arg(Path::new(DIR).join("sandbox.py"));
    Subject::begin(command)
}

/// The first request to copy `number`, another one to each: the copy uses numpy, all its data
/// and the standard library, and gives the right answer.
///
/// # Errors
/// When it gives another one, or none.
pub fn ask(copy: &mut Subject, number: usize) -> Result<u64> {
    let (expression, should) = question(number);
    let is = evaluate(copy, &expression)?;
    ensure!(
        is == should,
        "copy {number} answered {is}, not {should}, to {expression}"
    );
    Ok(is)
}

/// An expression, and what it is.
fn question(number: usize) -> (String, u64) {
    let number = number as u64;
    let modulus = number + 2;
    let expression = format!("int((data % {modulus}).sum()) + json.loads('[{number}]')[0]");
    let (rounds, rest) = (NUMBERS / modulus, NUMBERS % modulus);
    let below = |n: u64| n * n.saturating_sub(1) / 2;
    (expression, rounds * below(modulus) + below(rest) + number)
}

/// A random number as Python programs draw them.
///
/// # Errors
/// When the copy is gone.
pub fn random(copy: &mut Subject) -> Result<u64> {
    evaluate(copy, "random.getrandbits(63)")
}

/// A random number of which Python programs make keys.
///
/// # Errors
/// When the copy is gone.
pub fn key(copy: &mut Subject) -> Result<u64> {
    evaluate(copy, "int.from_bytes(os.urandom(8), 'little')")
}

fn evaluate(copy: &mut Subject, expression: &str) -> Result<u64> {
    copy.ask(&Request::Evaluate(expression))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_expected_is_what_the_data_are() {
        for number in [0, 1, 5, 99] {
            let modulus = number + 2;
            let sum: u64 = (0..NUMBERS).map(|n| n % modulus).sum();
            let (expression, expected) = question(usize::try_from(number).unwrap());
            assert_eq!(expected, sum + number, "{expression}");
        }
    }

    #[test]
    fn the_program_has_as_many_numbers() {
        let bits = NUMBERS.trailing_zeros();
        let line = format!("data = numpy.arange(1 << {bits}, dtype=numpy.int64)");
        assert!(SOURCE.contains(&line), "{line}");
    }
}
