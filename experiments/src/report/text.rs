// SPDX-License-Identifier: GPL-2.0-only
//! Numbers, axes and commands in words; for figures and both kinds of page.

use clap::ValueEnum;

use super::analysis::{Judged, Results, Row, Summary, Verdict};
use super::figure::Drawing;
use crate::frame::plan::Settings;
use crate::frame::provenance::Provenance;
use crate::frame::{Axis, Claim, Definition, Figure, Kind, Metric, Point, Than, Unit};
use crate::stats::Interval;
use crate::system::System;

/// The heading of the report.
pub const TITLE: &str = "VAS-CRIU in a microVM: experiments";

/// What a reader must know first.
pub const ABOUT: &str = "All numbers are medians, with 95 % confidence intervals by bootstrap (of \
    few measurements these are no wider than the measurements are apart, and so too narrow); n is \
    how often each was measured. Bold is how many times better it is than the first system at the \
    same point. Error bars are the intervals.";

/// What else, of samples from a simulated host.
pub const SIMULATED: &str = "Measured on a simulated host, where all code runs about ten times \
    slower, and memory accesses more so: only ratios mean something.";

/// The headings of the claims.
pub const CLAIMS: [&str; 7] = ["claim", "who", "paper", "ours", "goal", "at", "verdict"];

/// A number with about three digits.
#[must_use]
pub fn number(value: f64) -> String {
    let decimals = match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        0.1.. => 3,
        _ => 5,
    };
    trimmed(&format!("{value:.decimals$}"))
}

fn trimmed(number: &str) -> String {
    if !number.contains('.') {
        return number.to_owned();
    }
    let short = number.trim_end_matches('0').trim_end_matches('.');
    if short == "-0" { "0" } else { short }.to_owned()
}

/// Bytes in the greatest unit of which there is one.
#[must_use]
pub fn bytes(value: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut scaled = value;
    let mut unit = 0;
    while scaled.abs() >= 1024.0 && unit + 1 < units.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    format!("{} {}", number(scaled), units[unit])
}

/// A value of a metric, without its unit where the heading has it.
#[must_use]
pub fn value(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Bytes => bytes(value),
        Unit::Ms | Unit::PerSecond | Unit::Count => number(value),
    }
}

/// A metric with its unit.
#[must_use]
pub fn metric(metric: &Metric) -> String {
    match metric.unit {
        Unit::Ms => format!("{} (ms)", metric.about),
        Unit::PerSecond => format!("{} (per second)", metric.about),
        Unit::Bytes | Unit::Count => metric.about.to_owned(),
    }
}

/// A value of an axis.
#[must_use]
pub fn place(axis: &Axis, value: &str) -> String {
    match (axis.kind, axis.place(value)) {
        (Kind::Size, Ok(mib)) => bytes(mib * f64::from(1 << 20)),
        _ => value.to_owned(),
    }
}

/// What an axis is, with its unit.
#[must_use]
pub fn axis(axis: &Axis) -> String {
    match axis.kind {
        Kind::Count(unit) if !axis.about.contains(unit) => format!("{} ({unit})", axis.about),
        _ => axis.about.to_owned(),
    }
}

/// A point, of these axes.
#[must_use]
pub fn point<'a>(axes: impl Iterator<Item = &'a Axis>, point: &Point) -> String {
    let one = |axis: &Axis| {
        let value = place(axis, point.word(axis.name).ok()?);
        Some(format!("{} = {value}", axis.name))
    };
    axes.filter_map(one).collect::<Vec<_>>().join(", ")
}

/// `3.4 (3.1–3.9)`.
#[must_use]
pub fn summary(unit: Unit, summary: &Summary) -> String {
    let interval = summary.interval.map(|i| interval(unit, i));
    let median = value(unit, summary.median);
    interval.map_or(median.clone(), |interval| format!("{median} ({interval})"))
}

/// `3.1–3.9`.
#[must_use]
pub fn interval(unit: Unit, Interval { low, high }: Interval) -> String {
    format!("{}–{}", value(unit, low), value(unit, high))
}

/// How often a row was measured.
#[must_use]
pub fn times_measured(row: &Row) -> String {
    let n = row.metrics.values().map(|summary| summary.n).max();
    n.unwrap_or(0).to_string()
}

/// How many times better it was measured to be.
#[must_use]
pub fn ours(judged: &Judged) -> String {
    let Some(measured) = &judged.measured else {
        return "–".into();
    };
    let ratio = number(measured.ratio);
    match measured.interval {
        Some(at) => format!("{ratio}x ({}x)", interval(Unit::Count, at)),
        None => format!("{ratio}x"),
    }
}

/// What became of a claim.
#[must_use]
pub fn verdict(judged: &Judged) -> &'static str {
    match (judged.verdict, judged.is_sure()) {
        (Verdict::Reached, true) => "✓ reached",
        (Verdict::Reached, false) => "✓ reached, but not for sure",
        (Verdict::Missed, true) => "✗ missed",
        (Verdict::Missed, false) => "✗ missed, but not for sure",
        (Verdict::NotMeasured, _) => "not measured",
    }
}

/// What a claim compares with.
#[must_use]
pub fn than(definition: &Definition, claim: &Claim) -> String {
    match claim.than {
        Than::System(system) => system.to_string(),
        Than::At(values) => {
            let at = Point::default().with(values);
            format!("at {}", point(definition.axes.iter(), &at))
        }
    }
}

/// Where a claim was judged.
#[must_use]
pub fn judged_at(definition: &Definition, judged: &Judged) -> String {
    let at = judged.measured.as_ref().map(|m| &m.point);
    at.map_or("–".into(), |at| point(definition.axes.iter(), at))
}

/// What runs an experiment again.
#[must_use]
pub fn command(name: &str, settings: &Settings) -> String {
    let mut command = format!("target/release/mvas-exp run {name}");
    if settings.quick {
        command += " --quick";
    }
    for (axis, values) in &settings.set {
        command += &format!(" --set {axis}={}", values.join(","));
    }
    let systems: Vec<_> = settings.systems.iter().map(ToString::to_string).collect();
    if !systems.is_empty() {
        command += &format!(" --system {}", systems.join(","));
    }
    if let Some(repeat) = settings.repeat {
        command += &format!(" --repeat {repeat}");
    }
    command + &format!(" --seed {}", settings.seed)
}

/// What makes the image that an experiment needs.
#[must_use]
pub fn prepare(definition: &Definition) -> String {
    let flavor = definition.machine.image;
    flavor.map_or("make image".into(), |flavor| format!("make image-{flavor}"))
}

/// What runs an experiment again as it was run, or, if it was not, for the first time.
#[must_use]
pub fn commands(results: &Results) -> String {
    let definition = results.definition;
    let settings = results.runs.last().map(|run| &run.settings);
    let run = match settings {
        Some(settings) => command(definition.name, settings),
        None => format!("target/release/mvas-exp run {}", definition.name),
    };
    format!(
        "{}\n{run}\ntarget/release/mvas-exp report",
        prepare(definition)
    )
}

/// What a system is.
#[must_use]
pub fn about(system: System) -> String {
    let value = system.to_possible_value();
    let help = value.and_then(|value| value.get_help().map(ToString::to_string));
    help.unwrap_or_default()
}

/// The heading of a figure.
#[must_use]
pub fn caption(definition: &Definition, figure: &Figure, drawing: &Drawing) -> String {
    let at = point(definition.axes.iter(), &drawing.at);
    if at.is_empty() {
        figure.title.to_owned()
    } else {
        format!("{}, at {at}", figure.title)
    }
}

/// Whether samples are from a simulated host.
#[must_use]
pub fn is_simulated(results: &Results) -> bool {
    results.runs.iter().any(|run| run.host == "sim")
}

/// The runs of different origin, each with when it was begun and, after a kill, gone on with.
#[must_use]
pub fn runs(results: &Results) -> Vec<(Vec<u64>, &Provenance)> {
    let mut runs: Vec<(Vec<u64>, &Provenance)> = Vec::new();
    for run in &results.runs {
        match runs.last_mut() {
            Some((begun, last)) if last.differs(run).is_none() => begun.push(run.begun),
            _ => runs.push((vec![run.begun], run)),
        }
    }
    runs
}

/// Where samples come from, line by line.
#[must_use]
pub fn provenance(begun: &[u64], run: &Provenance) -> [(&'static str, String); 8] {
    let begun: Vec<_> = begun.iter().map(|begun| date(*begun)).collect();
    let host = match run.host.as_str() {
        "sim" => "simulated".into(),
        host => host.to_owned(),
    };
    [
        ("begun", begun.join(", ")),
        ("program", run.program.clone()),
        ("host", host),
        ("CPU", run.cpu.clone()),
        ("guest kernel", run.kernel.clone()),
        ("CRIU", run.criu.clone()),
        ("microVM", run.machine.clone()),
        ("settings", settings(&run.settings)),
    ]
}

/// All settings, in words.
fn settings(settings: &Settings) -> String {
    command("", settings)
        .split_once(" --")
        .map_or(String::new(), |(_, options)| format!("--{options}"))
}

/// `2026-11-28 23:42 UTC`.
#[must_use]
pub fn date(epoch_s: u64) -> String {
    let (mut days, minutes) = (epoch_s / 86_400, epoch_s / 60 % 1440);
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute) = (minutes / 60, minutes % 60);
    format!(
        "{year}-{month:02}-{:02} {hour:02}:{minute:02} UTC",
        days + 1
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_about_three_digits() {
        let all = [
            (12_345.6, "12346"),
            (100.4, "100"),
            (33.33, "33.3"),
            (2.0, "2"),
            (0.125, "0.125"),
            (0.000_04, "0.00004"),
            (-0.000_001, "0"),
            (0.0, "0"),
        ];
        for (value, text) in all {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn bytes_are_in_the_greatest_unit_of_which_there_is_one() {
        let all = [(0.0, "0 B"), (1536.0, "1.5 KiB"), (-2e9, "-1.86 GiB")];
        for (value, text) in all {
            assert_eq!(bytes(value), text);
        }
        assert_eq!(bytes(f64::from(1 << 30)), "1 GiB");
    }

    #[test]
    fn a_date_is_in_utc() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(date(951_868_800), "2000-03-01 00:00 UTC");
        assert_eq!(date(1_798_761_599), "2026-12-31 23:59 UTC");
    }

    #[test]
    fn a_run_is_told_as_the_command_that_repeats_it() {
        let settings = Settings {
            quick: true,
            set: [("size".to_owned(), vec!["1G".to_owned(), "4G".to_owned()])].into(),
            systems: vec![System::Vascriu, System::CriuDisk],
            repeat: Some(9),
            seed: 7,
        };
        assert_eq!(
            command("size", &settings),
            "target/release/mvas-exp run size --quick --set size=1G,4G \
             --system vascriu,criu-disk --repeat 9 --seed 7"
        );
    }
}
