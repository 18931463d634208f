// SPDX-License-Identifier: GPL-2.0-only
//! Where an image comes from.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result};
use oci_client::Reference;

use super::{Brought, archive, layout, registry};
use crate::own::{Image, ImageName, Images};

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `oci:DIR[:TAG]`: a folder with an image layout.
    Layout {
        /// The folder.
        folder: PathBuf,
        /// Which of its images.
        tag: Option<String>,
    },
    /// `docker-archive:FILE`: what `docker save` wrote.
    Archive(PathBuf),
    /// `REGISTRY/REPO[:TAG|@DIGEST]`
    Registry(Reference),
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("oci:") {
            let (folder, tag) = match path.rsplit_once(':') {
                Some((folder, tag)) if !tag.contains('/') => (folder, Some(tag.to_owned())),
                _ => (path, None),
            };
            if folder.is_empty() || tag.as_deref() == Some("") {
                return Err("write oci:DIR or oci:DIR:TAG".to_owned());
            }
            let folder = folder.into();
            return Ok(Self::Layout { folder, tag });
        }
        if let Some(path) = text.strip_prefix("docker-archive:") {
            if path.is_empty() {
                return Err("write docker-archive:FILE".to_owned());
            }
            return Ok(Self::Archive(path.into()));
        }
        let reference = text.parse().map_err(|e| {
            format!(
                "neither oci:DIR[:TAG], nor docker-archive:FILE, nor an image of a registry: {e}"
            )
        })?;
        Ok(Self::Registry(reference))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layout { folder, tag } => {
                write!(f, "oci:{}", folder.display())?;
                tag.iter().try_for_each(|tag| write!(f, ":{tag}"))
            }
            Self::Archive(path) => write!(f, "docker-archive:{}", path.display()),
            Self::Registry(reference) => reference.fmt(f),
        }
    }
}

impl Source {
    /// Makes an image of it.
    ///
    /// # Errors
    /// As of [`Images::make`]; it cannot be read, is damaged, or has nothing for this machine.
    pub fn import(&self, images: &Images<'_>, name: &ImageName) -> Result<Image> {
        images.make(name, &self.to_string(), |work, _| {
            let brought = self.bring(work);
            brought
                .and_then(|brought| brought.open(work))
                .with_context(|| format!("cannot import {self}"))
        })
    }

    pub(super) fn bring(&self, work: &std::path::Path) -> Result<Brought> {
        match self {
            Self::Layout { folder, tag } => layout::bring(folder, tag.as_deref(), work),
            Self::Archive(path) => archive::bring(path, work),
            Self::Registry(reference) => registry::bring(reference, work),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_survives_being_written() {
        for text in [
            "oci:dir",
            "oci:/a/b:latest",
            "oci:/a:b/c",
            "docker-archive:x.tar",
            "127.0.0.1:5000/app:1",
        ] {
            let source: Source = text.parse().unwrap();
            assert_eq!(source.to_string(), text);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "oci:",
            "oci:x:",
            "docker-archive:",
            "Not An Image",
            "a@b",
        ] {
            assert!(text.parse::<Source>().is_err(), "{text:?} was taken");
        }
    }
}
