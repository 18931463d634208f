// SPDX-License-Identifier: GPL-2.0-only
//! Names of VM runs and of snapshots.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::StoreError;

/// One life of a monitor: random, never 0, never used again. As text 16 hexadecimal digits.
///
/// ```
/// use mvas_host::store::RunId;
/// let id: RunId = "00000000000000ff".parse()?;
/// assert_eq!((id.get(), id.to_string()), (255, "00000000000000ff".to_owned()));
/// assert!("ff".parse::<RunId>().is_err());
/// # Ok::<(), mvas_host::store::StoreError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId(u64);

impl RunId {
    const DIGITS: usize = 16;

    pub(super) fn random() -> io::Result<Self> {
        let mut bytes = [0; 8];
        loop {
            File::open("/dev/urandom")?.read_exact(&mut bytes)?;
            if let Some(id) = Self::new(u64::from_le_bytes(bytes)) {
                return Ok(id);
            }
        }
    }

    /// The run of this number; `None` for 0.
    pub fn new(number: u64) -> Option<Self> {
        (number != 0).then_some(Self(number))
    }

    /// As a number.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for RunId {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let ok = text.len() == Self::DIGITS && text.bytes().all(lower_hex);
        ok.then(|| u64::from_str_radix(text, 16).ok().and_then(Self::new))
            .flatten()
            .ok_or_else(|| StoreError::RunId(text.to_owned()))
    }
}

impl TryFrom<String> for RunId {
    type Error = StoreError;

    fn try_from(text: String) -> Result<Self, StoreError> {
        text.parse()
    }
}

impl From<RunId> for String {
    fn from(id: RunId) -> Self {
        id.to_string()
    }
}

/// Name of a snapshot: 1 to 127 ASCII letters, digits and `._:@+-`, the first a letter or a
/// digit. So it is a file name, and fits the kernel's `char[128]`.
///
/// ```
/// use mvas_host::store::SnapshotName;
/// assert!("redis-1".parse::<SnapshotName>().is_ok());
/// assert!("../etc".parse::<SnapshotName>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotName(String);

impl SnapshotName {
    /// The most bytes in a name.
    pub const MAX: usize = 127;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SnapshotName {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._:@+-".contains(&b);
        let starts_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if starts_well && text.len() <= Self::MAX && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(StoreError::Name(text.to_owned()))
        }
    }
}

impl TryFrom<String> for SnapshotName {
    type Error = StoreError;

    fn try_from(text: String) -> Result<Self, StoreError> {
        text.parse()
    }
}

impl From<SnapshotName> for String {
    fn from(name: SnapshotName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_run_id_is_read_back_from_its_text(number in 1u64..) {
            let id = RunId::new(number).unwrap();
            prop_assert_eq!(id.to_string().parse::<RunId>().unwrap(), id);
        }

        #[test]
        fn a_name_that_is_taken_is_a_plain_file_name(text in ".{0,200}") {
            if let Ok(name) = text.parse::<SnapshotName>() {
                prop_assert_eq!(name.as_str(), &text);
                prop_assert!(!text.is_empty() && text.len() <= 127);
                prop_assert!(!text.starts_with('.') && !text.contains(['/', '\0']));
            }
        }
    }

    #[test]
    fn other_text_is_no_run_id() {
        for text in [
            "",
            "0",
            "0000000000000000",
            "00000000000000FF",
            "+0000000000000ff",
            "g000000000000000",
        ] {
            assert!(text.parse::<RunId>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_that_could_leave_the_folder_or_look_like_options_are_refused() {
        let long = "a".repeat(128);
        for text in [
            "", ".", "..", ".a", "-a", "a/b", "a b", "ä", "a\0", "a\n", &long,
        ] {
            assert!(text.parse::<SnapshotName>().is_err(), "{text:?}");
        }
        for text in ["a", "0", "redis:8G@host+x_1.2-3", &long[1..]] {
            assert!(text.parse::<SnapshotName>().is_ok(), "{text:?}");
        }
    }

    #[test]
    fn random_ids_differ() {
        assert_ne!(RunId::random().unwrap(), RunId::random().unwrap());
    }
}
