// SPDX-License-Identifier: GPL-2.0-only
//! The identity of a snapshot, and the names of the VASes that it is made of.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::process::Vpid;

const IMAGES: &str = "images";
const SHARED: &str = "shared";

/// 128 random bits: the same for ever, and never another snapshot's. As text it is 32
/// lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId([u8; 16]);

/// Not an identity.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is no identity of a snapshot: 32 digits of 0-9 and a-f")]
pub struct Invalid(String);

/// What a VAS holds of its snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Member {
    /// CRIU's images, and the snapshot's label.
    Images,
    /// Memory that tasks share by `MAP_SHARED`.
    Shared,
    /// The memory of a task.
    Task(Vpid),
}

impl SnapshotId {
    /// A new one.
    ///
    /// # Panics
    /// Where the kernel has no random numbers, which is before its first process only.
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        // SAFETY: `bytes` is a live buffer of that length.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        // Up to 256 bytes come whole, whatever signals do.
        assert_eq!(got, 16, "getrandom() failed");
        Self(bytes)
    }

    /// As the kernel takes it.
    #[must_use]
    pub fn bytes(self) -> [u8; 16] {
        self.0
    }

    /// Its first digits, to show where people look.
    #[must_use]
    pub fn short(self) -> String {
        self.to_string()[..12].to_owned()
    }

    /// The VAS that holds the images.
    #[must_use]
    pub fn images_vas(self) -> String {
        format!("{self}:{IMAGES}")
    }

    /// The VAS that holds the shared memory.
    #[must_use]
    pub fn shared_vas(self) -> String {
        format!("{self}:{SHARED}")
    }

    /// The VAS that holds the memory of a task.
    #[must_use]
    pub fn task_vas(self, task: Vpid) -> String {
        format!("{self}:{task}")
    }
}

/// Which snapshot a VAS of this name belongs to, and as what.
#[must_use]
pub fn parse_vas(name: &str) -> Option<(SnapshotId, Member)> {
    let (id, member) = name.split_once(':')?;
    let member = match member {
        IMAGES => Member::Images,
        SHARED => Member::Shared,
        _ => {
            // Only as we write it: no sign, no leading zeroes.
            let vpid = Vpid(member.parse().ok().filter(|&v| v > 0)?);
            (vpid.to_string() == member).then_some(Member::Task(vpid))?
        }
    };
    Some((id.parse().ok()?, member))
}

impl FromStr for SnapshotId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let number = (text.len() == 32 && text.bytes().all(digit))
            .then(|| u128::from_str_radix(text, 16).ok())
            .flatten();
        let number = number.ok_or_else(|| Invalid(text.chars().take(64).collect()))?;
        Ok(Self(number.to_be_bytes()))
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnapshotId({self})")
    }
}

impl Serialize for SnapshotId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SnapshotId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_identity_survives_as_text_and_in_the_names_of_its_vases(bytes: [u8; 16], vpid in 1..i32::MAX) {
            let id = SnapshotId(bytes);
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            prop_assert_eq!(parse_vas(&id.images_vas()), Some((id, Member::Images)));
            prop_assert_eq!(parse_vas(&id.shared_vas()), Some((id, Member::Shared)));
            prop_assert_eq!(parse_vas(&id.task_vas(Vpid(vpid))), Some((id, Member::Task(Vpid(vpid)))));
            let json = serde_json::to_string(&id).expect("json");
            prop_assert_eq!(serde_json::from_str::<SnapshotId>(&json).expect("json"), id);
        }

        #[test]
        fn what_is_parsed_is_what_would_be_written(name in "[0-9a-f]{30,34}:[0-9+ -]{0,4}") {
            if let Some((id, Member::Task(vpid))) = parse_vas(&name) {
                prop_assert_eq!(id.task_vas(vpid), name);
            }
        }
    }

    #[test]
    fn two_identities_are_two() {
        assert_ne!(SnapshotId::random(), SnapshotId::random());
    }

    #[test]
    fn vases_of_others_belong_to_no_snapshot() {
        let id = "0123456789abcdef0123456789abcdef";
        for other in [
            "web:1",
            "web",
            id,
            &format!("{id}:"),
            &format!("{id}:0"),
            &format!("{id}:01"),
            &format!("{id}:+1"),
            &format!("{id}:1:2"),
            &format!("{id}:image"),
            &format!("{}:1", id.to_uppercase()),
        ] {
            assert_eq!(parse_vas(other), None, "{other}");
        }
    }
}
