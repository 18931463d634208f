// SPDX-License-Identifier: GPL-2.0-only
//! Runs experiments; the host half.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::plan::{Settings, plan};
use super::provenance::Provenance;
use super::samples::{self, Line, Sample, Samples};
use super::{Case, Experiment, Lab, Metrics};
use crate::system::ms;

/// Measures all cases of an experiment, or with `resume` those that its file in `folder` does
/// not have.
///
/// # Errors
/// When a case fails; what was measured before is kept.
pub fn run(
    experiment: &dyn Experiment,
    settings: &Settings,
    folder: &Path,
    host: &str,
    resume: bool,
) -> Result<()> {
    let definition = experiment.definition();
    let mut cases = plan(experiment, settings, host)?;
    let mut lab = Lab::open(definition)?;
    let now = Provenance::now(host, lab.guest()?, lab.machine(), settings)?;
    let path = samples::path(folder, definition.name);
    let mut file = if resume && path.exists() {
        let (file, done) = Samples::resume(&path, &now)?;
        // Warm-ups are of this boot.
        cases.retain(|case| case.repeat == 0 || !done.contains(case));
        file
    } else {
        Samples::create(&path)?
    };
    file.add(&Line::Run(Box::new(now)))?;
    let begun = Instant::now();
    let total = cases.len();
    for (number, case) in (1..).zip(cases) {
        let measured = experiment.measure(&mut lab, &case);
        let metrics = measured
            .and_then(finite)
            .with_context(|| format!("{} of {}", case.system, case.point))?;
        eprintln!(
            "{} {number}/{total}: {:<13} {}  {}  ({})",
            definition.name,
            case.system,
            case.point,
            telling(&case, &metrics),
            left(begun.elapsed(), number, total),
        );
        file.add(&Line::Sample(Sample {
            case,
            metrics,
            at_s: ms(begun.elapsed()) / 1e3,
        }))?;
    }
    eprintln!("{}: {}", definition.name, path.display());
    Ok(())
}

/// Results, if each is a number that a file can keep.
fn finite(metrics: Metrics) -> Result<Metrics> {
    for (name, value) in &metrics {
        ensure!(value.is_finite(), "{name} is {value}");
    }
    Ok(metrics)
}

/// The first few results, on one line.
fn telling(case: &Case, metrics: &Metrics) -> String {
    if case.repeat == 0 {
        return "warm-up".into();
    }
    let few = metrics.iter().take(4);
    let few: Vec<_> = few
        .map(|(name, value)| format!("{name} {value:.1}"))
        .collect();
    few.join(", ")
}

/// How long the rest will take, were all cases alike.
fn left(elapsed: Duration, done: u32, total: usize) -> String {
    let rest = u32::try_from(total)
        .unwrap_or(u32::MAX)
        .saturating_sub(done);
    let seconds = (elapsed / done.max(1) * rest).as_secs();
    format!("{} min {:02} s left", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::metrics;

    #[test]
    fn what_is_not_a_number_is_not_kept() {
        let good = metrics([("dump_ms", 1.0)]);
        assert_eq!(finite(good.clone()).unwrap(), good);
        let error = finite(metrics([("dump_ms", f64::NAN)])).unwrap_err();
        assert!(error.to_string().contains("dump_ms"), "{error}");
    }

    #[test]
    fn the_rest_takes_as_long_as_what_is_done() {
        let minute = Duration::from_secs(60);
        assert_eq!(left(minute, 1, 3), "2 min 00 s left");
        assert_eq!(left(minute, 3, 3), "0 min 00 s left");
    }
}
