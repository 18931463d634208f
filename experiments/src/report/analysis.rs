// SPDX-License-Identifier: GPL-2.0-only
//! From samples to medians, intervals and verdicts.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::frame::provenance::Provenance;
use crate::frame::samples::{Line, Sample};
use crate::frame::{Case, Claim, Definition, Point, Than, Unit};
use crate::stats::{self, Interval};
use crate::system::System;

/// What is known of one experiment.
#[derive(Debug, Serialize)]
pub struct Results {
    /// The experiment.
    pub name: &'static str,
    /// What it is.
    #[serde(skip)]
    pub definition: &'static Definition,
    /// The runs that the samples are from.
    pub runs: Vec<Provenance>,
    /// The results, in the order of the axes' values and of the systems.
    pub rows: Vec<Row>,
    /// What became of each claim.
    pub claims: Vec<Judged>,
}

/// The results of one system at one point.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Where.
    pub point: Point,
    /// Whose.
    pub system: System,
    /// By metric; without those of which a value is not finite.
    pub metrics: BTreeMap<String, Summary>,
}

/// All that was measured of one metric at one point.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Their median.
    pub median: f64,
    /// Where the true median is; of one value nobody knows.
    pub interval: Option<Interval>,
    /// How many there are.
    pub n: usize,
    #[serde(skip)]
    values: Vec<f64>,
}

/// A claim, and what was measured of it.
#[derive(Debug, Serialize)]
pub struct Judged {
    /// The claim.
    #[serde(skip)]
    pub claim: &'static Claim,
    /// In words.
    pub text: &'static str,
    /// How many times better it must be.
    pub goal: f64,
    /// What became of it.
    pub verdict: Verdict,
    /// What was measured, if it was.
    pub measured: Option<Measured>,
}

/// How many times better a system is than what its claim compares it with.
#[derive(Debug, Serialize)]
pub struct Measured {
    /// Where.
    pub point: Point,
    /// The ratio of the medians.
    pub ratio: f64,
    /// Where the true ratio is.
    pub interval: Option<Interval>,
}

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The measured ratio reaches the goal.
    Reached,
    /// It does not.
    Missed,
    /// There are no samples to judge it by.
    NotMeasured,
}

impl Results {
    /// Of these lines of a samples file.
    ///
    /// # Errors
    /// When a sample is not of this experiment as it is now.
    pub fn of(definition: &'static Definition, lines: Vec<Line>) -> Result<Self> {
        let mut runs = Vec::new();
        let mut values: BTreeMap<_, BTreeMap<String, Vec<f64>>> = BTreeMap::new();
        for line in lines {
            match line {
                Line::Run(run) => runs.push(*run),
                // A warm-up.
                Line::Sample(sample) if sample.case.repeat == 0 => {}
                Line::Sample(Sample { case, metrics, .. }) => {
                    let key = (places(definition, &case)?, case.system, case.point);
                    let of_case = values.entry(key).or_default();
                    for (metric, value) in metrics {
                        of_case.entry(metric).or_default().push(value);
                    }
                }
            }
        }
        let row = |((_, system, point), metrics): (_, BTreeMap<String, Vec<f64>>)| Row {
            point,
            system,
            metrics: metrics
                .into_iter()
                .filter_map(|(metric, values)| Some((metric, Summary::of(values)?)))
                .collect(),
        };
        let rows: Vec<Row> = values.into_iter().map(row).collect();
        let judge = |claim| Judged::of(definition, claim, &rows);
        Ok(Self {
            name: definition.name,
            definition,
            runs,
            claims: definition.claims.iter().map(judge).collect(),
            rows,
        })
    }

    /// Whether there is anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The systems that were measured, in the order of the definition.
    #[must_use]
    pub fn systems(&self) -> Vec<System> {
        let has = |system: &System| self.rows.iter().any(|row| row.system == *system);
        let all = self.definition.systems.iter().copied();
        all.filter(has).collect()
    }

    /// How many times better than the first system the one of this row is at the same point.
    #[must_use]
    pub fn times_better(&self, row: &Row, metric: &str) -> Option<f64> {
        let first = *self.definition.systems.first()?;
        let same = |r: &&Row| r.system == first && r.point == row.point;
        let base = self
            .rows
            .iter()
            .find(same)
            .filter(|_| row.system != first)?;
        let unit = self.definition.metric(metric)?.unit;
        Some(compare(unit, row.metrics.get(metric)?, base.metrics.get(metric)?)?.0)
    }
}

/// Where a case stands on each axis, by which rows are in order.
fn places(definition: &Definition, case: &Case) -> Result<Vec<u64>> {
    let here = || format!("{} of {}", case.system, case.point);
    let other = "it is of another experiment, or of another version of this one";
    ensure!(
        case.experiment == definition.name && definition.systems.contains(&case.system),
        "{} {}: {other}",
        case.experiment,
        here()
    );
    let place = |axis: &crate::frame::Axis| axis.place(case.point.word(axis.name)?);
    // Of numbers that are not negative the bits are in the numbers' order.
    let bits = definition
        .axes
        .iter()
        .map(|axis| Ok(place(axis)?.to_bits()));
    let all: Result<_> = bits.collect();
    all.with_context(|| format!("{}: {other}", here()))
}

/// Of some rows those at one value, the last there is, of each axis but `free`.
#[must_use]
pub fn at_the_last<'a>(
    definition: &Definition,
    mut rows: Vec<&'a Row>,
    free: &[&str],
) -> Vec<&'a Row> {
    for axis in definition.axes.iter().filter(|a| !free.contains(&a.name)) {
        let place = |row: &Row| axis.place(row.point.word(axis.name).ok()?).ok();
        let last = rows.iter().filter_map(|row| place(row)).reduce(f64::max);
        rows.retain(|row| place(row) == last);
    }
    rows
}

impl Summary {
    fn of(values: Vec<f64>) -> Option<Self> {
        let finite = values.iter().all(|value| value.is_finite());
        Some(Self {
            median: stats::median(&values).filter(|_| finite)?,
            interval: stats::median_interval(&values),
            n: values.len(),
            values,
        })
    }
}

/// In comparisons less memory than this counts as this much: what a system measures of itself is
/// not exact, and may be nothing.
const LEAST_BYTES: f64 = 262_144.0;

/// How many times better one is than another; no number where it would be divided by zero.
fn compare(unit: Unit, better: &Summary, than: &Summary) -> Option<(f64, Option<Interval>)> {
    let least = if unit == Unit::Bytes {
        LEAST_BYTES
    } else {
        0.0
    };
    let at_least = |s: &Summary| Summary::of(s.values.iter().map(|v| v.max(least)).collect());
    let (better, than) = (&at_least(better)?, &at_least(than)?);
    let (over, under) = match unit {
        Unit::PerSecond => (better, than),
        Unit::Ms | Unit::Bytes | Unit::Count => (than, better),
    };
    let ratio = over.median / under.median;
    let interval = stats::ratio_interval(&over.values, &under.values);
    (under.median > 0.0).then_some((ratio, interval))
}

impl Judged {
    fn of(definition: &Definition, claim: &'static Claim, rows: &[Row]) -> Self {
        let measured = Measured::of(definition, claim, rows);
        Self {
            claim,
            text: claim.text,
            goal: claim.goal,
            verdict: match &measured {
                None => Verdict::NotMeasured,
                Some(measured) if measured.ratio >= claim.goal => Verdict::Reached,
                Some(_) => Verdict::Missed,
            },
            measured,
        }
    }

    /// Whether the whole interval is on one side of the goal.
    #[must_use]
    pub fn is_sure(&self) -> bool {
        let interval = self.measured.as_ref().and_then(|m| m.interval);
        interval.is_some_and(|i| self.goal <= i.low || i.high < self.goal)
    }
}

impl Measured {
    fn of(definition: &Definition, claim: &Claim, rows: &[Row]) -> Option<Self> {
        let other = |row: &Row| {
            let (system, point) = match claim.than {
                Than::System(system) => (system, row.point.clone()),
                Than::At(values) => (row.system, row.point.with(values)),
            };
            let is_other = |r: &&Row| r.system == system && r.point == point;
            let other = rows.iter().find(is_other)?;
            // What is no better than itself says nothing.
            let differs = !std::ptr::eq(other, row);
            other.metrics.get(claim.metric).filter(|_| differs)
        };
        let fits = |row: &&Row| {
            let at = |(axis, value): &(&str, &str)| row.point.word(axis).ok() == Some(value);
            row.system == claim.system
                && claim.at.iter().all(at)
                && row.metrics.contains_key(claim.metric)
                && other(row).is_some()
        };
        let row = *at_the_last(definition, rows.iter().filter(fits).collect(), &[]).first()?;
        let unit = definition.metric(claim.metric)?.unit;
        let (ratio, interval) = compare(unit, row.metrics.get(claim.metric)?, other(row)?)?;
        Some(Self {
            point: row.point.clone(),
            ratio,
            interval,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Kind;
    use crate::report::fixture::{definition, sample};
    use System::{CriuTmpfs, Vascriu};

    const COPIES: Kind = Kind::Count("copies");

    fn results(unit: Unit, lines: Vec<Line>) -> Results {
        Results::of(definition(COPIES, unit), lines).unwrap()
    }

    #[test]
    fn a_warm_up_does_not_count() {
        let lines = [(0, 1000.0), (1, 1.0), (2, 3.0), (3, 2.0)];
        let lines = lines.map(|(repeat, m)| sample(Vascriu, "1", "plain", repeat, m));
        let results = results(Unit::Ms, lines.into());
        let summary = &results.rows[0].metrics["m"];
        assert_eq!((summary.median, summary.n), (2.0, 3));
        let interval = summary.interval.unwrap();
        assert_eq!((interval.low, interval.high), (1.0, 3.0));
    }

    #[test]
    fn rows_are_in_the_order_of_the_axes_values() {
        let lines = ["10", "9", "100"].map(|x| sample(Vascriu, x, "plain", 1, 1.0));
        let results = results(Unit::Ms, lines.into());
        let order = results.rows.iter().map(|row| row.point.word("x").unwrap());
        assert_eq!(order.collect::<Vec<_>>(), ["9", "10", "100"]);
    }

    #[test]
    fn what_is_not_a_number_has_no_median() {
        for bad in [f64::NAN, f64::INFINITY] {
            let lines = [1.0, bad].map(|m| sample(Vascriu, "1", "plain", 1, m));
            let results = results(Unit::Ms, lines.into());
            assert!(results.rows[0].metrics.is_empty());
            assert_eq!(results.claims[0].verdict, Verdict::NotMeasured);
        }
    }

    #[test]
    fn a_claim_is_judged_at_the_last_value_that_both_systems_have() {
        let lines = vec![
            sample(CriuTmpfs, "1", "plain", 1, 3.0),
            sample(Vascriu, "1", "plain", 1, 2.0),
            sample(CriuTmpfs, "8", "plain", 1, 9.0),
            sample(Vascriu, "8", "plain", 1, 3.0),
            sample(CriuTmpfs, "8", "fancy", 1, 90.0),
            sample(Vascriu, "8", "fancy", 1, 3.0),
            sample(Vascriu, "64", "plain", 1, 3.0),
        ];
        let results = results(Unit::Ms, lines);
        let judged = &results.claims[0];
        let measured = judged.measured.as_ref().unwrap();
        assert_eq!(judged.verdict, Verdict::Reached);
        assert_eq!((measured.ratio, measured.interval), (3.0, None));
        assert_eq!(measured.point.word("x").unwrap(), "8");
        // One measurement of each makes nobody sure.
        assert!(!judged.is_sure());
    }

    #[test]
    fn a_claim_may_compare_a_system_with_itself_elsewhere() {
        let lines = |last: f64| {
            vec![
                sample(Vascriu, "1", "plain", 1, 2.0),
                sample(Vascriu, "8", "plain", 1, 5.0),
                sample(Vascriu, "64", "plain", 1, last),
                sample(Vascriu, "64", "fancy", 1, 99.0),
                sample(CriuTmpfs, "1", "plain", 1, 999.0),
            ]
        };
        let judged = |lines| results(Unit::Ms, lines).claims.swap_remove(1);
        for (last, ratio, verdict) in [
            (3.0, 2.0 / 3.0, Verdict::Reached),
            (8.0, 0.25, Verdict::Missed),
        ] {
            let judged = judged(lines(last));
            let measured = judged.measured.unwrap();
            assert_eq!((measured.ratio, judged.verdict), (ratio, verdict));
            assert_eq!(measured.point.word("x").unwrap(), "64");
        }
        // Nothing is compared with itself at the same point.
        let alone = vec![sample(Vascriu, "1", "plain", 1, 2.0)];
        assert_eq!(judged(alone).verdict, Verdict::NotMeasured);
    }

    #[test]
    fn of_rates_more_is_better_and_of_times_less() {
        let lines = || {
            [(CriuTmpfs, 1.0), (Vascriu, 4.0)]
                .map(|(system, m)| sample(system, "1", "plain", 1, m))
                .into()
        };
        let verdict = |unit| results(unit, lines()).claims[0].verdict;
        assert_eq!(verdict(Unit::PerSecond), Verdict::Reached);
        assert_eq!(verdict(Unit::Ms), Verdict::Missed);
        let results = results(Unit::PerSecond, lines());
        let [base, other] = &results.rows[..] else {
            panic!("{results:?}")
        };
        assert_eq!(results.times_better(base, "m"), None);
        assert_eq!(results.times_better(other, "m"), Some(4.0));
    }

    #[test]
    fn nothing_is_divided_by_zero() {
        let lines = [CriuTmpfs, Vascriu].map(|system| sample(system, "1", "plain", 1, 0.0));
        let results = results(Unit::Ms, lines.into());
        assert_eq!(results.claims[0].verdict, Verdict::NotMeasured);
    }

    #[test]
    fn no_memory_counts_as_the_least_that_can_be_told() {
        let all = [(CriuTmpfs, 1e9), (Vascriu, 0.0)];
        let lines = all.map(|(system, bytes)| sample(system, "1", "plain", 1, bytes));
        let results = results(Unit::Bytes, lines.into());
        assert_eq!(
            results.times_better(&results.rows[1], "m"),
            Some(1e9 / LEAST_BYTES)
        );
    }

    #[test]
    fn a_sample_of_another_version_of_the_experiment_is_an_error() {
        for (x, mode) in [("one", "plain"), ("1", "bold")] {
            let line = sample(Vascriu, x, mode, 1, 1.0);
            let of = Results::of(definition(COPIES, Unit::Ms), vec![line]);
            let error = format!("{:#}", of.unwrap_err());
            assert!(
                error.contains("another version") && error.contains(x),
                "{error}"
            );
        }
    }
}
