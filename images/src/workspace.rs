// SPDX-License-Identifier: GPL-2.0-only
//! Where the sources of this project are.

use std::path::{Path, PathBuf};

/// The root folder of a checkout of this project.
#[derive(Debug, Clone)]
pub struct Workspace {
    root: PathBuf,
}

/// Why a folder is not a checkout of this project.
#[derive(Debug, thiserror::Error)]
#[error("{} is not a checkout of this project (no guest-kernel/linux in it): \
         name one with --workspace DIR or MVAS_WORKSPACE", .0.display())]
pub struct NotAWorkspace(PathBuf);

impl Workspace {
    /// The checkout at `root`, or, without one, the checkout this program was built from.
    ///
    /// # Errors
    /// When that folder is not a checkout.
    pub fn find(root: Option<&Path>) -> Result<Self, NotAWorkspace> {
        let root = root.map_or_else(
            || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/..")),
            Path::to_path_buf,
        );
        match root.canonicalize() {
            Ok(root) if root.join("guest-kernel/linux").is_dir() => Ok(Self { root }),
            _ => Err(NotAWorkspace(root)),
        }
    }

    /// The root folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A file or folder of the checkout.
    #[must_use]
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }
}
