// SPDX-License-Identifier: GPL-2.0-only
//! Snapshots as people know them: by the names that their labels give them.

use std::cmp::Reverse;
use std::fmt::Write as _;

use anyhow::{Result, bail};
use mvas_host::store::{SnapshotEntry, SnapshotName, SnapshotState, Store, StoreError};
use serde::Serialize;
use serde_json::{Map, Value};

use super::text::shown;

/// Digits of an identity.
const DIGITS: usize = 32;
/// As many are shown in tables.
const SHORT: usize = 12;
/// So many name a snapshot.
const FEWEST: usize = 4;

/// A snapshot in the store, and what its label says.
#[derive(Debug, Serialize)]
pub(super) struct Listed {
    #[serde(flatten)]
    pub entry: SnapshotEntry,
    /// A guest wrote it. `None`: it is no JSON object.
    pub label: Option<Map<String, Value>>,
}

impl Listed {
    /// All snapshots, by the names that people gave them; of one name the newest first. Those
    /// without a name come last.
    pub fn all(store: &Store) -> Result<Vec<Self>, StoreError> {
        let mut all: Vec<Self> = store.snapshots()?.into_iter().map(Self::from).collect();
        all.sort_by_cached_key(|listed| {
            let created = match &listed.entry.state {
                SnapshotState::Complete(facts) => facts.created_ns,
                SnapshotState::Broken { .. } => 0,
            };
            let name = listed.name().map(str::to_owned);
            (name.is_none(), name, Reverse(created))
        });
        Ok(all)
    }

    /// What people call it.
    pub fn name(&self) -> Option<&str> {
        let name = self.label.as_ref()?.get("name")?.as_str()?;
        (!name.is_empty()).then_some(name)
    }

    /// Its identity, as far as it is shown in tables.
    pub fn id(&self) -> &str {
        let id = self.entry.name.as_str();
        match id.len() == DIGITS && is_hex(id) {
            true => &id[..SHORT],
            false => id,
        }
    }

    /// Whose tasks it has: the engine, and the container where there is one.
    pub fn origin(&self) -> Option<String> {
        let origin = self.label.as_ref()?.get("origin")?;
        let engine = origin.get("engine")?.as_str()?;
        let container = ["container", "id"].map(|key| origin.get(key).and_then(Value::as_str));
        Some(match container {
            [Some(name), _] => format!("{engine}:{name}"),
            [None, Some(id)] => format!("{engine}:{}", id.chars().take(SHORT).collect::<String>()),
            [None, None] => engine.to_owned(),
        })
    }

    /// For a message: its name, if it has one, and its identity.
    pub fn called(&self) -> String {
        match self.name() {
            Some(name) => format!("{} ({})", shown(name), self.id()),
            None => self.id().to_owned(),
        }
    }

    /// Whether `word` may mean it: its name, or the beginning of its identity.
    fn may_be(&self, word: &str) -> bool {
        let begins = word.len() >= FEWEST && is_hex(word);
        self.name() == Some(word) || (begins && self.entry.name.as_str().starts_with(word))
    }
}

impl From<SnapshotEntry> for Listed {
    fn from(entry: SnapshotEntry) -> Self {
        let label = serde_json::from_str(entry.label.as_str()).ok();
        Self { entry, label }
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The one snapshot that a word means. Nothing is guessed: labels are what guests write, so a
/// whole identity means that snapshot and no other, and anything else must fit only one.
pub(super) fn find<'a>(all: &'a [Listed], word: &SnapshotName) -> Result<&'a Listed> {
    if let Some(listed) = all.iter().find(|listed| listed.entry.name == *word) {
        return Ok(listed);
    }
    let fitting: Vec<_> = all.iter().filter(|l| l.may_be(word.as_str())).collect();
    match fitting[..] {
        [] => Err(StoreError::NotFound(word.clone()).into()),
        [listed] => Ok(listed),
        _ => {
            let mut lines = String::new();
            for listed in fitting {
                let name = listed.name().map_or("-".to_owned(), shown);
                let _ = write!(lines, "\n  {} {name}", listed.entry.name);
            }
            bail!("{word} may mean each of these; say which, by the first digits:{lines}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(id: &str, label: &str) -> Listed {
        Listed::from(SnapshotEntry {
            name: id.parse().unwrap(),
            label: label.parse().unwrap(),
            state: SnapshotState::Broken {
                reason: "a test".to_owned(),
            },
        })
    }

    fn found<'a>(all: &'a [Listed], word: &str) -> Result<&'a str, String> {
        let found = find(all, &word.parse().unwrap());
        found
            .map(|l| l.entry.name.as_str())
            .map_err(|e| e.to_string())
    }

    const A: &str = "0123456789abcdef0123456789abcdef";
    const B: &str = "0123ffff89abcdef0123456789abcdef";
    const C: &str = "beef456789abcdef0123456789abcdef";

    #[test]
    fn a_name_an_identity_or_its_beginning_will_do_if_it_fits_only_one() {
        let all = [
            listed(A, r#"{"name":"redis"}"#),
            listed(B, r#"{"name":"redis"}"#),
            listed(C, r#"{"name":"db","origin":{"engine":"docker"}}"#),
            listed("by-hand", "no json"),
        ];
        for (word, id) in [
            (A, A),
            (&A[..5], A),
            (&B[..5], B),
            (&C[..4], C),
            ("db", C),
            ("by-hand", "by-hand"),
        ] {
            assert_eq!(found(&all, word), Ok(id), "{word}");
        }
        for word in ["bee", "012", "by-han", "redi", "4567", "no"] {
            let error = found(&all, word).unwrap_err();
            assert!(error.contains("there is no snapshot"), "{word}: {error}");
        }
        for word in ["redis", "0123"] {
            let error = found(&all, word).unwrap_err();
            assert!(error.contains(A) && error.contains(B), "{word}: {error}");
            assert!(!error.contains(C), "{word}: {error}");
        }
    }

    #[test]
    fn no_label_takes_the_place_of_another_snapshot() {
        let lies = |name: &str| listed(C, &format!(r#"{{"name":"{name}"}}"#));
        assert_eq!(found(&[listed(A, ""), lies(A)], A), Ok(A));
        let error = found(&[listed(A, ""), lies(&A[..6])], &A[..6]).unwrap_err();
        assert!(error.contains(A) && error.contains(C), "{error}");
        let clear = r#"{"name":"\u001b[2J"}"#;
        let all = [listed(A, clear), listed(B, clear)];
        let error = found(&all, "0123").unwrap_err();
        assert!(error.contains(r"\u{1b}[2J"), "{error:?}");
        assert!(!error.contains('\x1b'), "{error:?}");
    }

    #[test]
    fn a_label_that_is_something_else_says_nothing() {
        for label in [
            "",
            "x",
            "[]",
            "null",
            "{",
            r#"{"name":7,"origin":"docker"}"#,
            r#"{"name":"","origin":{"engine":{}}}"#,
            r#"{"name":null,"origin":{"container":"web"}}"#,
            &"[".repeat(1000),
        ] {
            let listed = listed(A, label);
            assert_eq!((listed.name(), listed.origin()), (None, None), "{label}");
            assert_eq!(listed.called(), &A[..12], "{label}");
        }
    }

    #[test]
    fn the_origin_names_engine_and_container() {
        for (label, origin) in [
            (r#"{"engine":"process"}"#, "process"),
            (r#"{"engine":"docker","container":"web"}"#, "docker:web"),
            (
                r#"{"engine":"runc","id":"0123456789abcdef"}"#,
                "runc:0123456789ab",
            ),
        ] {
            let label = format!(r#"{{"origin":{label}}}"#);
            assert_eq!(listed(A, &label).origin().as_deref(), Some(origin));
        }
    }
}
