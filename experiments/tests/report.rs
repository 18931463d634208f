// SPDX-License-Identifier: GPL-2.0-only
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

fn make_up(experiment: &dyn Experiment, settings: &Settings, folder: &Path) {
    make_up_of("made up", experiment, settings, folder);
}

/// Samples as a run of this program leaves them, of numbers that grow with the axes and scatter.
fn make_up_of(program: &str, experiment: &dyn Experiment, settings: &Settings, folder: &Path) {
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
        program: program.into(),
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

fn publish(from: &Path, folder: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mvas-exp"));
    command.args(["report", "--from"]).arg(from);
    command.arg("--publish").arg(folder).output().unwrap()
}

fn quick() -> Settings {
    Settings {
        quick: true,
        ..Settings::default()
    }
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
fn a_published_report_is_made_again_of_its_samples() {
    let dir = tempfile::tempdir().unwrap();
    let (from, folder) = (dir.path().join("from"), dir.path().join("published"));
    let [first, second] = [exp::ALL[0], exp::ALL[1]];
    make_up(first, &quick(), &from);
    assert!(publish(&from, &folder).status.success());
    // Of a second run, that of the first is kept, but for figures that there are no more.
    std::fs::remove_dir_all(&from).unwrap();
    make_up(second, &quick(), &from);
    let old = format!("figures/{}-of-old.svg", first.definition().name);
    std::fs::write(folder.join(&old), "").unwrap();
    assert!(publish(&from, &folder).status.success());
    assert!(!folder.join(old).exists());
    for e in [first, second] {
        let compressed = samples::compressed_path(&folder.join("samples"), e.definition().name);
        assert!(compressed.exists(), "{}", compressed.display());
    }

    let again = dir.path().join("again");
    let said = report(&folder.join("samples"), &again);
    assert!(said.status.success(), "{said:?}");
    let figures = std::fs::read_dir(folder.join("figures")).unwrap();
    let figures = figures.map(|e| format!("figures/{}", e.unwrap().file_name().display()));
    let pages = ["index.html", "report.md"].map(str::to_owned);
    for file in pages.into_iter().chain(figures) {
        let [published, made] = [&folder, &again].map(|f| std::fs::read(f.join(&file)).unwrap());
        assert!(published == made, "{file}");
    }
}

#[test]
fn damaged_samples_are_not_published() {
    let dir = tempfile::tempdir().unwrap();
    let (from, folder) = (dir.path().join("from"), dir.path().join("published"));
    make_up(exp::ALL[0], &quick(), &from);
    std::fs::write(samples::path(&from, exp::ALL[1].definition().name), "{}\n").unwrap();
    let said = publish(&from, &folder);
    assert!(!said.status.success() && !folder.exists(), "{said:?}");
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
fn what_is_damaged_is_named_and_the_others_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let (from, out) = (dir.path().join("from"), dir.path().join("report"));
    make_up(exp::ALL[1], &quick(), &from);
    let path = samples::path(&from, exp::ALL[0].definition().name);
    std::fs::write(&path, "{}\n").unwrap();
    let said = report(&from, &out);
    let error = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(
        !said.status.success() && error.contains(path.to_str().unwrap()),
        "{error}"
    );
    let page = std::fs::read_to_string(out.join("report.md")).unwrap();
    assert!(page.contains("figures/") && page.contains("Not measured"));
}

#[test]
fn samples_of_other_commits_are_shown_with_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let (from, out) = (dir.path().join("from"), dir.path().join("report"));
    let [first, second] = [exp::ALL[0], exp::ALL[1]];
    for (experiment, commit) in [(first, "aaaa"), (second, "bbbb")] {
        make_up_of(commit, experiment, &quick(), &from);
    }
    assert!(report(&from, &out).status.success());
    let page = std::fs::read_to_string(out.join("report.md")).unwrap();
    let (_, provenance) = page.split_once("## Provenance").unwrap();
    for (experiment, commit) in [(first, "aaaa"), (second, "bbbb")] {
        let title = format!("### {}\n", experiment.definition().title);
        let (_, own) = provenance.split_once(&title).unwrap();
        let own = own.split("###").next().unwrap();
        assert!(own.contains(&format!("program: {commit}")), "{own}");
    }
}
