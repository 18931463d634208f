//! What the plugin tells the command about one run of CRIU: a file whose path
//! the command passes in the environment.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::process::Vpid;

/// Environment variable: the snapshot's name.
pub const ENV_NAME: &str = "VASCRIU_NAME";
/// Environment variable: where to write the report.
pub const ENV_REPORT: &str = "VASCRIU_REPORT";

/// One attach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// The task inside its namespaces.
    pub vpid: Vpid,
    /// The task as CRIU sees it.
    pub pid: i32,
    /// Resident 4 KiB pages that it now shares with its VAS.
    pub pages: u64,
    /// How long it took, in microseconds.
    pub us: u64,
}

/// What the plugin did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Why it failed, as a sentence.
    pub error: Option<String>,
    /// What it attached.
    pub attached: Vec<Attach>,
}

impl Report {
    /// Writes the report where the environment says; without the command there
    /// is nobody to read it. A failure is not worth failing CRIU for.
    pub fn save(&self) {
        if let (Some(path), Ok(text)) = (std::env::var_os(ENV_REPORT), serde_json::to_vec(self)) {
            let _ = fs::write(path, text);
        }
    }

    /// Reads a report; none where the plugin did not come to write one.
    #[must_use]
    pub fn load(path: &Path) -> Self {
        fs::read(path)
            .ok()
            .and_then(|t| serde_json::from_slice(&t).ok())
            .unwrap_or_default()
    }
}

/// An error and its causes on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
