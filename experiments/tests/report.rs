//! A report of made-up samples of all experiments, as a browser shows it.
#![allow(clippy::unwrap_used)] // in helpers, too, a failure is the test's failure

use std::path::Path;
use std::process::{Command, Output};

use fastrand::Rng;
use mvas_exp::exp;
use mvas_exp::frame::plan::{Settings, plan};
use mvas_exp::frame::provenance::Provenance;
use mvas_exp::frame::samples::{self, Line, Sample, Samples};
use mvas_exp::frame::{Case, Experiment, Metrics};

/// Samples as a run leaves them, of numbers that grow with the axes and scatter.
fn make_up(experiment: &dyn Experiment, settings: &Settings, folder: &Path) {
    let definition = experiment.definition();
    let mut random = Rng::with_seed(7);
    let mut measure = |case: &Case| -> Metrics {
        let system = definition.systems.iter().position(|s| *s == case.system);
        let places = definition.axes.iter().map(|axis| {
            let value = case.point.word(axis.name).unwrap();
            1.0 + axis.place(value).unwrap()
        });
        let value = places.product::<f64>() * 100.0 / 4f64.powf(system.unwrap() as f64);
        let metric = |m: &mvas_exp::frame::Metric| {
            let scattered = value * (0.8 + 0.4 * random.f64());
            (m.name.to_owned(), scattered)
        };
        definition.metrics.iter().map(metric).collect()
    };
    let mut file = Samples::create(&samples::path(folder, definition.name)).unwrap();
    let run = Provenance {
        host: "sim".into(),
        cpu: "made up".into(),
        settings: settings.clone(),
        ..Provenance::default()
    };
    file.add(&Line::Run(Box::new(run))).unwrap();
    for case in plan(experiment, settings, "sim").unwrap() {
        let metrics = measure(&case);
        let at_s = 0.0;
        file.add(&Line::Sample(Sample {
            case,
            metrics,
            at_s,
        }))
        .unwrap();
    }
}

fn report(from: &Path, out: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mvas-exp"));
    command.args(["report", "--json", "--from"]).arg(from);
    command.arg("--out").arg(out).output().unwrap()
}

fn looks_good(report: &Path) {
    let look = concat!(env!("CARGO_MANIFEST_DIR"), "/look");
    let status = Command::new(look).arg(report).status().unwrap();
    assert!(status.success(), "{look} {}", report.display());
}

#[test]
fn a_report_of_all_experiments_has_figures_that_can_be_read() {
    for quick in [false, true] {
        // It stays, to be looked at.
        let name = if quick { "report-quick" } else { "report-full" };
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let (from, out) = (dir.join("samples"), dir.join("report"));
        let settings = Settings {
            quick,
            repeat: Some(3),
            ..Settings::default()
        };
        for experiment in exp::ALL {
            make_up(*experiment, &settings, &from);
        }
        let said = report(&from, &out);
        assert!(said.status.success(), "{said:?}");
        let page = std::fs::read_to_string(out.join("index.html")).unwrap();
        let figures = exp::ALL.iter().map(|e| e.definition().figures.len());
        assert_eq!(page.matches("<svg").count(), figures.sum::<usize>());
        for file in ["report.md", "analysis.json"] {
            assert!(out.join(file).exists(), "{file}");
        }
        looks_good(&out);
    }
}

#[test]
fn what_was_not_measured_is_named_and_nothing_at_all_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let said = report(dir.path(), &dir.path().join("report"));
    let error = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(
        !said.status.success() && error.contains("mvas-exp run"),
        "{error}"
    );
}

#[test]
fn a_damaged_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = samples::path(dir.path(), exp::ALL[0].definition().name);
    std::fs::write(&path, "{}\n").unwrap();
    let said = report(dir.path(), &dir.path().join("report"));
    let error = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(
        !said.status.success() && error.contains(path.to_str().unwrap()),
        "{error}"
    );
}
