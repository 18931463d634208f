// SPDX-License-Identifier: GPL-2.0-only
//! Names of snapshots.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, de};

/// Longest name: it must fit the label, twice.
pub const MAX: usize = 100;

/// Not a name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{0}` is no snapshot name: 1 to {MAX} of [A-Za-z0-9._@+-], beginning with a letter or digit"
)]
pub struct Invalid(String);

/// The name of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Name(String);

impl Name {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let ok = |b: u8| b.is_ascii_alphanumeric() || b"._@+-".contains(&b);
        let first = text
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric());
        if first && text.len() <= MAX && text.bytes().all(ok) {
            Ok(Self(text.into()))
        } else {
            Err(Invalid(text.into()))
        }
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_a_name_needs_no_escapes_anywhere(text in ".*") {
            if let Ok(name) = text.parse::<Name>() {
                prop_assert_eq!(serde_json::to_string(&name).expect("json"), format!("\"{text}\""));
                prop_assert!(!text.contains('/') && !text.contains(':') && !text.starts_with('.'));
            }
        }
    }

    #[test]
    fn bad_names_are_refused() {
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "-x",
            ".x",
            "a:b",
            "ä",
            &"x".repeat(MAX + 1),
        ] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }
}
