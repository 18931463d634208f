// SPDX-License-Identifier: GPL-2.0-only
//! Values of axes.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{Axis, Kind};

/// One value of each axis.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Point(pub BTreeMap<String, String>);

impl Point {
    /// The value of an axis as it was written.
    ///
    /// # Errors
    /// When there is none.
    pub fn word(&self, axis: &str) -> Result<&str> {
        let value = self.0.get(axis).map(String::as_str);
        value.with_context(|| format!("no {axis} was given"))
    }

    /// The same, but with these values.
    #[must_use]
    pub fn with(&self, values: &[(&str, &str)]) -> Self {
        let mut point = self.clone();
        let owned = |(axis, value): &(&str, &str)| ((*axis).to_owned(), (*value).to_owned());
        point.0.extend(values.iter().map(owned));
        point
    }

    /// The value of an axis in MiB.
    ///
    /// # Errors
    /// When there is none, or it is no size.
    pub fn mib(&self, axis: &str) -> Result<usize> {
        mib(self.word(axis)?)
    }

    /// The value of an axis as a number.
    ///
    /// # Errors
    /// When there is none, or it is no number.
    pub fn count(&self, axis: &str) -> Result<usize> {
        count(self.word(axis)?)
    }
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all: Vec<_> = self.0.iter().map(|(a, v)| format!("{a}={v}")).collect();
        f.pad(&all.join(" "))
    }
}

impl Axis {
    /// Where a value stands on this axis; of words, their number.
    ///
    /// # Errors
    /// When it is none of this axis.
    pub fn place(&self, value: &str) -> Result<f64> {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let place = match self.kind {
            Kind::Size => mib(value)? as f64,
            Kind::Count(_) => count(value)? as f64,
            Kind::Word(words) => {
                let at = words.iter().position(|word| *word == value);
                let words = words.join(", ");
                at.with_context(|| format!("{value:?} is none of {words}"))? as f64
            }
        };
        Ok(place)
    }
}

fn mib(text: &str) -> Result<usize> {
    let (number, factor) = match text.strip_suffix('G') {
        Some(number) => (number, 1024),
        None => (text.strip_suffix('M').unwrap_or(text), 1),
    };
    let what = || format!("{text:?} is no size: give a number with M or G");
    let number = number.parse::<usize>().with_context(what)?;
    ensure!(number > 0, "{text:?} is no size: it must be above 0");
    number.checked_mul(factor).with_context(what)
}

fn count(text: &str) -> Result<usize> {
    let number = text.parse();
    number.with_context(|| format!("{text:?} is no whole number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_in_mib() {
        for (text, size) in [("16M", 16), ("2G", 2048), ("7", 7)] {
            assert_eq!(mib(text).unwrap(), size);
        }
        for text in ["", "M", "0", "-1M", "1.5G", "99999999999999999999G"] {
            assert!(mib(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_word_that_an_axis_does_not_have_is_an_error() {
        let axis = Axis {
            name: "pages",
            about: "",
            kind: Kind::Word(&["4k", "huge"]),
            quick: &[],
            full: &[],
        };
        assert!((axis.place("huge").unwrap() - 1.0).abs() < 1e-9);
        let error = axis.place("1g").unwrap_err().to_string();
        assert!(error.contains("4k, huge"), "{error}");
    }
}
