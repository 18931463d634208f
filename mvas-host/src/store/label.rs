// SPDX-License-Identifier: GPL-2.0-only
//! Labels: what whoever made a snapshot says of it. `labels/NAME`, a small file for each, so
//! that one can be replaced without a manifest being written again.

use std::fs;
use std::io::{Read, Write};
use std::str::FromStr;

use super::error::failed;
use super::id::SnapshotName;
use super::manifest::Head;
use super::{Locked, Store, StoreError, catalog};
use crate::locked;

/// Where a label is written before it takes its name. No snapshot is called so, and only one
/// is written at a time: the store is locked.
pub(super) const UNFINISHED: &str = ".new";

/// A snapshot's label: at most 1023 bytes of text without control characters. Guests write it,
/// so it is shown, and nothing follows from it.
///
/// ```
/// use mvas_host::store::Label;
/// assert_eq!(r#"{"name":"redis"}"#.parse::<Label>()?.as_str(), r#"{"name":"redis"}"#);
/// assert!("a\nb".parse::<Label>().is_err());
/// # Ok::<(), mvas_host::store::StoreError>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Label(String);

impl Label {
    /// The most bytes in a label.
    pub const MAX: usize = 1023;

    /// The label as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Label {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        match text.len() <= Self::MAX && !text.contains(char::is_control) {
            true => Ok(Self(text.to_owned())),
            false => Err(StoreError::Label),
        }
    }
}

impl Store {
    /// Gives a complete snapshot that `may` be labelled, and has the label `from`, the label `to`,
    /// at once: whoever reads it, and whenever this process is killed, it has the one or the
    /// other.
    ///
    /// # Errors
    /// There is no such snapshot or it may not be; it has another label; there is no space.
    pub fn set_label(
        &self,
        name: &SnapshotName,
        from: &Label,
        to: &Label,
        may: impl Fn(&Head) -> bool,
    ) -> Result<(), StoreError> {
        let locked = self.lock()?;
        let catalog = locked.catalog()?;
        if !catalog.heads.iter().any(|(n, head)| n == name && may(head)) {
            return Err(StoreError::NotFound(name.clone()));
        }
        if locked.label(name)? != *from {
            return Err(StoreError::Relabelled(name.clone()));
        }
        locked.put_label(name, to)
    }
}

impl Locked<'_> {
    /// The label of a snapshot; an empty one if it has none, or one that is damaged.
    pub fn label(&self, name: &SnapshotName) -> Result<Label, StoreError> {
        Ok(self.read_label(name)?.unwrap_or_default())
    }

    /// As [`Self::label`]; `None` if it is damaged.
    pub fn read_label(&self, name: &SnapshotName) -> Result<Option<Label>, StoreError> {
        let path = self.dir().label(name);
        let Some(file) = catalog::open(&path)? else {
            return Ok(Some(Label::default()));
        };
        let mut bytes = Vec::new();
        let read = file.take(Label::MAX as u64 + 1).read_to_end(&mut bytes);
        read.map_err(failed("read", &path))?;
        let text = String::from_utf8(bytes).ok();
        Ok(text.and_then(|text| text.parse().ok()))
    }

    /// Writes a label, over one that is there.
    pub fn put_label(&self, name: &SnapshotName, label: &Label) -> Result<(), StoreError> {
        let (new, path) = (self.dir().labels().join(UNFINISHED), self.dir().label(name));
        let mut options = locked::options();
        let file = options.create(true).truncate(true).open(&new);
        let written = file.and_then(|mut file| file.write_all(label.0.as_bytes()));
        let put = written.and_then(|()| fs::rename(&new, &path));
        put.map_err(|e| {
            let _ = fs::remove_file(&new); // or whoever sweeps next does it
            failed("write", &path)(e)
        })
    }

    /// Labels whose snapshots are gone or never were complete, and one that was not finished:
    /// file names.
    pub fn stale_labels(&self) -> Result<Vec<String>, StoreError> {
        let mut stale = Vec::new();
        for file in self.dir().list("labels")? {
            let is_stale = match file.parse::<SnapshotName>() {
                Ok(name) => catalog::open(&self.dir().manifest(&name))?.is_none(),
                Err(_) => file == UNFINISHED,
            };
            if is_stale {
                stale.push(file);
            }
        }
        Ok(stale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_label_is_any_text_without_control_characters(text in "\\PC{0,300}|.{0,20}") {
            let expected = text.len() <= 1023 && text.chars().all(|c| !c.is_control());
            let label = text.parse::<Label>();
            prop_assert_eq!(label.is_ok(), expected);
            prop_assert!(label.is_err() || label.unwrap().as_str() == text);
        }
    }

    #[test]
    fn what_could_steer_a_terminal_or_is_too_long_is_no_label() {
        let long = "x".repeat(1024);
        for text in ["\x1b[2J", "a\0", "a\n", "\t", "\x7f", "\u{9b}2J", &long] {
            assert!(text.parse::<Label>().is_err(), "{text:?}");
        }
        for text in ["", "{\"name\":\"größe 🦀\"}", &long[1..]] {
            assert!(text.parse::<Label>().is_ok(), "{text:?}");
        }
    }
}
