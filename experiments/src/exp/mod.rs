// SPDX-License-Identifier: GPL-2.0-only
//! The experiments: one file each, and one line here.

mod ablation;
mod backing;
mod bill;
mod common;
mod containers;
mod fanout;
mod fine;
mod fixed;
pub(crate) mod fleet;
mod goes_on;
mod kinds;
mod lineage;
mod pressure;
mod programs;
mod remap;
mod rollback;
mod scaling;
mod size;
pub(crate) mod store;
pub(crate) mod tiers;
mod validity;

use anyhow::{Context, Result};

use crate::frame::Experiment;

/// All of them, in the order of the report.
pub const ALL: &[&dyn Experiment] = &[
    &size::Size,
    &kinds::Kinds,
    &containers::Containers,
    &programs::Programs,
    &fine::Fine,
    &scaling::Scaling,
    &fleet::Fleet,
    &bill::Bill,
    &goes_on::GoesOn,
    &fixed::Fixed,
    &rollback::Rollback,
    &lineage::Lineage,
    &fanout::Fanout,
    &tiers::Tiers,
    &store::Store,
    &remap::Remap,
    &pressure::Pressure,
    &ablation::Ablation,
    &backing::Backing,
    &validity::Validity,
];

/// The one of this name.
///
/// # Errors
/// When there is none.
pub fn find(name: &str) -> Result<&'static dyn Experiment> {
    let found = ALL.iter().find(|e| e.definition().name == name);
    let all = || {
        let all: Vec<_> = ALL.iter().map(|e| e.definition().name).collect();
        format!(
            "no experiment is called {name:?}; there are {}",
            all.join(", ")
        )
    };
    found.copied().with_context(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Than;

    #[test]
    fn every_definition_is_whole() {
        for experiment in ALL {
            let d = experiment.definition();
            assert!(std::ptr::eq(find(d.name).unwrap().definition(), d));
            for figure in d.figures {
                assert!(d.metric(figure.metric).is_some(), "{}", figure.title);
                for axis in [Some(figure.x), figure.panels].into_iter().flatten() {
                    assert!(d.axis(axis).is_some(), "{}: {axis}", figure.title);
                }
            }
            for claim in d.claims {
                assert!(d.metric(claim.metric).is_some(), "{}", claim.text);
                assert!(d.systems.contains(&claim.system), "{}", claim.text);
                let elsewhere = match claim.than {
                    Than::System(system) => {
                        assert!(d.systems.contains(&system), "{}", claim.text);
                        &[]
                    }
                    Than::At(values) => values,
                };
                for (axis, value) in claim.at.iter().chain(elsewhere) {
                    d.axis(axis)
                        .expect("an axis")
                        .place(value)
                        .expect("a value");
                }
            }
        }
    }

    #[test]
    fn of_an_unknown_name_the_known_ones_are_told() {
        let error = find("sise").err().expect("an error").to_string();
        assert!(error.contains("size"), "{error}");
    }
}
