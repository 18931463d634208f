// SPDX-License-Identifier: GPL-2.0-only
//! Kernel configuration: does a `.config` hold what the fragments asked for?
//!
//! Kconfig silently drops an option whose dependencies are not met. A guest
//! without, say, `CONFIG_USERFAULTFD` would fail much later and far away.

use std::collections::BTreeMap;
use std::fmt;

/// The options of a configuration file: name to value, `n` when not set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options(BTreeMap<String, String>);

/// An option that did not get the asked value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missed {
    option: String,
    asked: String,
    got: String,
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: asked {}, got {}", self.option, self.asked, self.got)
    }
}

impl Options {
    /// Reads a `.config` or a fragment; of an option named twice the last counts.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut options = Self::default();
        options.merge(text);
        options
    }

    /// Adds a fragment; its options override earlier ones.
    pub fn merge(&mut self, text: &str) {
        for line in text.lines().map(str::trim) {
            let parsed = line
                .strip_prefix("# ")
                .and_then(|rest| rest.strip_suffix(" is not set"))
                .map(|name| (name, "n"))
                .or_else(|| line.split_once('='));
            if let Some((name, value)) = parsed
                && name.starts_with("CONFIG_")
            {
                self.0.insert(name.to_string(), value.to_string());
            }
        }
    }

    /// The options of `self` that `config` does not have as asked.
    #[must_use]
    pub fn missed_in(&self, config: &Self) -> Vec<Missed> {
        let value = |name: &str| config.0.get(name).map_or("n", String::as_str);
        self.0
            .iter()
            .filter(|(name, asked)| value(name) != asked.as_str())
            .map(|(name, asked)| Missed {
                option: name.clone(),
                asked: asked.clone(),
                got: value(name).to_string(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_option_that_did_not_take_is_named() {
        let asked = Options::parse(
            "CONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\nCONFIG_D=\"-x\"\n# CONFIG_E is not set\nCONFIG_F=n\n",
        );
        let got =
            Options::parse("CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=m\nCONFIG_D=\"-x\"\n");
        let missed: Vec<String> = asked
            .missed_in(&got)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            missed,
            ["CONFIG_B: asked y, got n", "CONFIG_C: asked n, got m"]
        );
    }

    #[test]
    fn a_later_fragment_overrides_an_earlier_one() {
        let mut asked = Options::parse("CONFIG_A=y\n");
        asked.merge("# CONFIG_A is not set\n");
        assert_eq!(asked.missed_in(&Options::default()), []);
    }

    #[test]
    fn comments_and_blank_lines_are_not_options() {
        assert_eq!(
            Options::parse("# memory\n\n# CONFIG_X=y\n# see CONFIG_Y is not set here\n"),
            Options::default()
        );
    }

    proptest! {
        #[test]
        fn a_configuration_misses_nothing_of_itself(text in "(CONFIG_[A-C]=[ynm]\n|# CONFIG_[A-C] is not set\n){0,8}") {
            let options = Options::parse(&text);
            prop_assert_eq!(options.missed_in(&options), []);
        }
    }
}
