// SPDX-License-Identifier: GPL-2.0-only
//! The label of a snapshot: what a listing shows of it, kept on its `images` VAS and in
//! the store. Restoring trusts nothing of it.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use mvas_abi::vas::VAS_LABEL_MAX;
use serde::{Deserialize, Serialize};

use super::id::SnapshotId;
use super::name::Name;

/// Version of the format that is written, and the only one that is read.
pub const VERSION: u32 = 1;
/// As the kernel's `TASK_COMM_LEN`, without its end.
const COMM_MAX: usize = 15;
/// As `HOST_NAME_MAX`.
const MACHINE_MAX: usize = 64;
const ENGINE_MAX: usize = 16;
const CONTAINER_MAX: usize = 128;
/// Engines use 64 digits.
const CONTAINER_ID_MAX: usize = 64;

/// Who had the tasks dumped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// `process`, `runc`, `docker`, `podman`, `containerd`, …
    pub engine: String,
    /// The container, as people call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The container, as its engine calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

impl Origin {
    /// Processes that are no container's.
    #[must_use]
    pub fn process() -> Self {
        Self {
            engine: "process".into(),
            container: None,
            id: None,
        }
    }
}

/// What is said of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// [`VERSION`].
    v: u32,
    /// What people call it. Of two snapshots with the same name the newer has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// The name that it was dumped under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub series: Option<Name>,
    /// Who had it dumped.
    pub origin: Origin,
    /// Host name of the machine that it was dumped on.
    pub machine: String,
    /// When it was dumped, in seconds since the epoch.
    pub created: u64,
    /// When it may be removed, in seconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// The snapshot that its tasks were restored from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<SnapshotId>,
    /// How many tasks.
    #[serde(default)]
    pub tasks: u32,
    /// Command name of the root of the tree.
    #[serde(default)]
    pub comm: String,
    /// Captured 4 KiB pages.
    #[serde(default)]
    pub pages: u64,
    /// Its tasks went on after the dump: whatever is restored is a copy.
    #[serde(default)]
    pub left_running: bool,
    /// How often it was restored.
    #[serde(default)]
    pub restored: u64,
}

/// Printable ASCII that JSON does not escape, not more than `max` of it.
fn plain(text: &str, max: usize) -> String {
    let plain = |c: char| {
        if (c.is_ascii_graphic() || c == ' ') && c != '"' && c != '\\' {
            c
        } else {
            '?'
        }
    };
    text.chars().take(max).map(plain).collect()
}

/// Seconds since the epoch.
#[must_use]
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// This machine's host name.
#[must_use]
pub fn machine() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    plain(name.trim_end(), MACHINE_MAX)
}

impl Label {
    /// The label of a snapshot that is being made here and now.
    #[must_use]
    pub fn new(name: Option<Name>, origin: Origin) -> Self {
        Self {
            v: VERSION,
            series: name.clone(),
            name,
            origin,
            machine: machine(),
            created: now(),
            expires: None,
            parent: None,
            tasks: 0,
            comm: String::new(),
            pages: 0,
            left_running: false,
            restored: 0,
        }
    }

    /// Reads the text of a label; none where it is not one that we can read.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let label: Self = serde_json::from_str(text).ok()?;
        (label.v == VERSION).then_some(label)
    }

    /// The text of the label. What is too long for it is cut, so it always fits.
    #[must_use]
    pub fn text(&self) -> String {
        let mut label = self.clone();
        let short = |text: &mut Option<String>, max| {
            *text = text.take().map(|t| plain(&t, max));
        };
        label.comm = plain(&label.comm, COMM_MAX);
        label.machine = plain(&label.machine, MACHINE_MAX);
        label.origin.engine = plain(&label.origin.engine, ENGINE_MAX);
        short(&mut label.origin.container, CONTAINER_MAX);
        short(&mut label.origin.id, CONTAINER_ID_MAX);
        let text = serde_json::to_string(&label).unwrap_or_default();
        debug_assert!(text.len() < VAS_LABEL_MAX, "{text}");
        text
    }

    /// Whether its time is over.
    #[must_use]
    pub fn has_expired(&self) -> bool {
        self.expires.is_some_and(|e| e <= now())
    }

    /// Whether the next restore is not the continuation of its tasks, but a copy.
    #[must_use]
    pub fn makes_clones(&self) -> bool {
        self.left_running || self.restored > 0
    }

    /// What it is one of many of: the name that it was dumped under, or its container.
    #[must_use]
    pub fn series(&self) -> Option<&str> {
        let container = self
            .origin
            .container
            .as_deref()
            .or(self.origin.id.as_deref());
        self.series.as_ref().map(Name::as_str).or(container)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::name;
    use super::*;

    fn longest() -> Label {
        let long: Name = "n".repeat(name::MAX).parse().expect("a name");
        let mut label = Label::new(Some(long), Origin::process());
        label.created = u64::MAX;
        label.expires = Some(u64::MAX);
        label.parent = Some(SnapshotId::random());
        label.tasks = u32::MAX;
        label.pages = u64::MAX;
        label.restored = u64::MAX;
        label
    }

    proptest! {
        #[test]
        fn a_label_always_fits_and_is_read_back(
            comm in ".{0,20}", machine in ".{0,80}", engine in ".{0,30}",
            container in prop::option::of(".{0,300}"), id in prop::option::of("\\PC{0,300}"),
            left_running: bool
        ) {
            let label = Label {
                comm, machine, origin: Origin { engine, container, id }, left_running, ..longest()
            };
            let text = label.text();
            prop_assert!(text.len() < VAS_LABEL_MAX && text.is_ascii());
            let back = Label::parse(&text).expect("a label");
            prop_assert_eq!(back.text(), text);
            prop_assert_eq!((back.name, back.pages), (label.name, label.pages));
        }

        #[test]
        fn damage_is_no_label_and_no_panic(text in ".{0,300}", cut in 0usize..300) {
            let _ = Label::parse(&text);
            let mut good = longest().text();
            good.truncate(cut);
            prop_assert_eq!(Label::parse(&good), None);
        }
    }

    #[test]
    fn another_version_is_not_read() {
        let text = longest().text().replacen("\"v\":1", "\"v\":2", 1);
        assert_eq!(Label::parse(&text), None);
    }

    #[test]
    fn tasks_that_ended_at_the_dump_come_back_once() {
        let mut label = Label::new(None, Origin::process());
        assert!(!label.makes_clones());
        label.restored = 1;
        assert!(label.makes_clones());
        label.restored = 0;
        label.left_running = true;
        assert!(label.makes_clones());
    }
}
