// SPDX-License-Identifier: GPL-2.0-only
//! Which cases an experiment has, and in which order they are measured.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use fastrand::Rng;
use serde::{Deserialize, Serialize};

use super::{Axis, Case, Definition, Experiment, Point};
use crate::system::System;

/// How an experiment is run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The quick values of axes and repeats, instead of the full ones.
    pub quick: bool,
    /// Values of axes in place of the defined ones.
    pub set: BTreeMap<String, Vec<String>>,
    /// The systems, in place of all.
    pub systems: Vec<System>,
    /// How often each case is measured, in place of the defined number.
    pub repeat: Option<u32>,
    /// Decides on the order.
    pub seed: u64,
}

impl Settings {
    /// Values of an axis.
    fn values(&self, axis: &Axis) -> Result<Vec<String>> {
        let defined = if self.quick { axis.quick } else { axis.full };
        let defined = || defined.iter().map(|v| (*v).to_owned()).collect();
        let values = self.set.get(axis.name).cloned().unwrap_or_else(defined);
        for value in &values {
            axis.place(value)
                .map_err(|e| e.context(format!("--set {}", axis.name)))?;
        }
        Ok(values)
    }

    /// How often each case is measured.
    #[must_use]
    pub fn repeats(&self, definition: &Definition) -> u32 {
        let [quick, full] = definition.repeats;
        self.repeat.unwrap_or(if self.quick { quick } else { full })
    }
}

/// All cases on a host of this kind, in the order in which they are measured: a warm-up of each system; then round by
/// round, in each all cases in an order of its own, so that what drifts drifts for all.
///
/// # Errors
/// When the settings do not fit the experiment.
pub fn plan(experiment: &dyn Experiment, settings: &Settings, host: &str) -> Result<Vec<Case>> {
    let definition = experiment.definition();
    for name in settings.set.keys() {
        if definition.axis(name).is_none() {
            let axes: Vec<_> = definition.axes.iter().map(|a| a.name).collect();
            bail!(
                "{} has no axis {name}; it has {}",
                definition.name,
                axes.join(", ")
            );
        }
    }
    let mut points = points(definition, settings)?;
    points.retain(|point| experiment.fits_host(host, point));
    let wanted = |s: &System| settings.systems.is_empty() || settings.systems.contains(s);
    let mut round = Vec::new();
    for &system in definition.systems.iter().filter(|s| wanted(s)) {
        for point in &points {
            if experiment.fits(system, point) {
                round.push(Case {
                    experiment: definition.name.to_owned(),
                    system,
                    point: point.clone(),
                    repeat: 0,
                });
            }
        }
    }
    ensure!(
        !round.is_empty(),
        "{}: nothing of this can be measured on this host ({host})",
        definition.name
    );
    // The first point of each system: what has the programs read.
    let mut cases: Vec<Case> = Vec::new();
    for case in &round {
        if !cases.iter().any(|warm| warm.system == case.system) {
            cases.push(case.clone());
        }
    }
    let mut random = Rng::with_seed(settings.seed);
    for repeat in 1..=settings.repeats(definition) {
        random.shuffle(&mut round);
        cases.extend(round.iter().cloned().map(|case| Case { repeat, ..case }));
    }
    Ok(cases)
}

/// Every combination of values.
fn points(definition: &Definition, settings: &Settings) -> Result<Vec<Point>> {
    let mut points = vec![Point::default()];
    for axis in definition.axes {
        let values = settings.values(axis)?;
        points = points
            .iter()
            .flat_map(|point| {
                values.iter().map(|value| {
                    let mut point = point.clone();
                    point.0.insert(axis.name.to_owned(), value.clone());
                    point
                })
            })
            .collect();
    }
    Ok(points)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exp;

    fn quick(seed: u64) -> Settings {
        Settings {
            quick: true,
            seed,
            ..Settings::default()
        }
    }

    #[test]
    fn every_experiment_has_a_quick_and_a_full_plan() {
        for experiment in exp::ALL {
            for quick in [true, false] {
                let settings = Settings {
                    quick,
                    ..Settings::default()
                };
                for host in ["kvm", "sim"] {
                    let cases = plan(*experiment, &settings, host).unwrap();
                    assert!(cases.iter().any(|c| c.repeat == 1));
                }
            }
        }
    }

    #[test]
    fn a_round_has_each_case_once_in_an_order_of_its_own() {
        let settings = Settings {
            repeat: Some(3),
            ..quick(7)
        };
        let cases = plan(exp::ALL[0], &settings, "sim").unwrap();
        let round = |repeat| {
            let of = cases.iter().filter(|c| c.repeat == repeat);
            of.map(|c| (c.system.to_string(), c.point.clone()))
                .collect::<Vec<_>>()
        };
        let (mut first, mut second) = (round(1), round(2));
        assert_ne!(first, second);
        first.sort();
        second.sort();
        assert_eq!(first, second);
        first.dedup();
        assert_eq!(first.len(), second.len());
        assert_eq!(cases, plan(exp::ALL[0], &settings, "sim").unwrap());
        assert_ne!(
            cases,
            plan(
                exp::ALL[0],
                &Settings {
                    seed: 8,
                    ..settings
                },
                "sim"
            )
            .unwrap()
        );
    }

    #[test]
    fn settings_that_do_not_fit_are_errors() {
        for (axis, value) in [("colour", "red"), ("size", "red"), ("pages", "1g")] {
            let mut settings = quick(1);
            settings.set.insert(axis.into(), vec![value.into()]);
            let error = plan(exp::find("size").unwrap(), &settings, "sim").unwrap_err();
            assert!(format!("{error:#}").contains(axis), "{error:#}");
        }
    }

    #[test]
    fn what_a_host_cannot_do_is_left_out_and_refused_where_it_is_all() {
        let validity = exp::find("validity").unwrap();
        let levels = |host| {
            let cases = plan(validity, &quick(1), host).unwrap();
            let mut levels: Vec<_> = cases.iter().map(|c| c.point.0["levels"].clone()).collect();
            levels.sort();
            levels.dedup();
            levels
        };
        assert_eq!(levels("kvm"), ["hardware"]);
        assert_eq!(levels("sim"), ["one", "two"]);
        let mut settings = quick(1);
        settings.set.insert("levels".into(), vec!["one".into()]);
        let error = plan(validity, &settings, "kvm").unwrap_err().to_string();
        assert!(error.contains("this host (kvm)"), "{error}");
    }
}
