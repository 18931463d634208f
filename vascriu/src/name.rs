//! Names of snapshots.

use std::fmt;
use std::str::FromStr;

use crate::process::Vpid;

/// Longest name: `NAME:VPID` must fit a VAS name of 127 bytes.
pub const MAX: usize = 100;
const IMAGES: &str = "images";

/// Not a name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{0}` is no snapshot name: 1 to {MAX} of [A-Za-z0-9._@+-], beginning with a letter or digit"
)]
pub struct Invalid(String);

/// The name of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct Name(String);

impl Name {
    /// `COMM-PID-TIME`, of what there is of the three.
    #[must_use]
    pub fn for_task(comm: &str, pid: i32, time: u128) -> Self {
        let letters = |c: &char| c.is_ascii_alphanumeric() || "._@+-".contains(*c);
        let comm: String = comm.chars().filter(letters).take(16).collect();
        let comm = comm.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
        let comm = if comm.is_empty() { "task" } else { comm };
        Self(format!("{comm}-{pid}-{time}"))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The VAS that holds the memory of a task.
    #[must_use]
    pub fn task_vas(&self, task: Vpid) -> String {
        format!("{self}:{task}")
    }

    /// The VAS that holds the images, where the snapshot goes to the snapshot store.
    #[must_use]
    pub fn images_vas(&self) -> String {
        format!("{self}:{IMAGES}")
    }

    /// Whether a VAS of this name is one of this snapshot's.
    #[must_use]
    pub fn owns(&self, vas: &str) -> bool {
        let rest = vas
            .strip_prefix(&self.0)
            .and_then(|rest| rest.strip_prefix(':'));
        rest.is_some_and(|r| r == IMAGES || r.parse().map(Vpid).is_ok())
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
        fn a_default_name_is_always_a_name(comm in ".*", pid in 1.., time: u64) {
            let name = Name::for_task(&comm, pid, time.into());
            prop_assert_eq!(name.as_str().parse::<Name>(), Ok(name.clone()));
        }

        #[test]
        fn no_name_leaves_its_directory(text in ".*") {
            if let Ok(name) = text.parse::<Name>() {
                prop_assert!(!name.as_str().contains('/') && !name.as_str().starts_with('.'));
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

    #[test]
    fn a_snapshot_owns_its_own_vases_only() {
        let name: Name = "web".parse().expect("valid");
        assert!(name.owns("web:1") && name.owns(&name.task_vas(Vpid(7))));
        assert!(name.owns(&name.images_vas()) && !name.owns("web-2:images"));
        assert!(!name.owns("web") && !name.owns("web:x") && !name.owns("web-2:1"));
    }
}
