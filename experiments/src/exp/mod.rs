//! The experiments: one file each, and one line here.

mod bill;
mod common;
mod containers;
mod fine;
mod fixed;
pub(crate) mod fleet;
mod goes_on;
mod programs;
mod remap;
mod scaling;
mod size;
pub(crate) mod store;
pub(crate) mod tiers;

use anyhow::{Context, Result};

use crate::frame::Experiment;

/// All of them, in the order of the report.
pub const ALL: &[&dyn Experiment] = &[
    &size::Size,
    &containers::Containers,
    &programs::Programs,
    &fine::Fine,
    &scaling::Scaling,
    &fleet::Fleet,
    &bill::Bill,
    &goes_on::GoesOn,
    &fixed::Fixed,
    &tiers::Tiers,
    &store::Store,
    &remap::Remap,
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
                assert!(d.systems.contains(&claim.system) && d.systems.contains(&claim.than));
                for (axis, value) in claim.at {
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
