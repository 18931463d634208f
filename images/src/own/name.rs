// SPDX-License-Identifier: GPL-2.0-only
//! Names of images.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::image::Flavor;

const MAX: usize = 128;

/// The name of an image of the user's own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ImageName(String);

impl ImageName {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ImageName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
        let first = text.bytes().next().unwrap_or_default();
        if !first.is_ascii_alphanumeric() || !text.bytes().all(plain) || text.len() > MAX {
            return Err(format!(
                "a name begins with a letter or digit, has these and . _ : - and {MAX} of them at most"
            ));
        }
        if Flavor::named(text).is_some() {
            return Err(format!("{text} is an image of ours"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_word_that_leads_nowhere() {
        for good in ["a", "redis:7", "my-db_2.1", "7"] {
            assert!(good.parse::<ImageName>().is_ok(), "{good}");
        }
        let long = "x".repeat(MAX + 1);
        for bad in ["", ".x", "a/b", "..", "-x", "a b", "ä", "default", &long] {
            assert!(bad.parse::<ImageName>().is_err(), "{bad}");
        }
    }
}
