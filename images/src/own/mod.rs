// SPDX-License-Identifier: GPL-2.0-only
//! Images of the user's own: `images/NAME/` of the cache, `rootfs.ext4` and `image.json`.
//!
//! An image is made as `.building-NAME` under its own lock, and renamed when it is whole. What a
//! killed process left is removed by the next that makes or removes an image.

mod debian;
mod name;
mod pack;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::cache::{self, BUILDING, Cache};
use crate::rootfs::Layer;
use crate::step::Steps;

pub use debian::{Recipe, Suite, package};
pub use name::ImageName;

/// Kind of their cache entries.
pub const KIND: &str = "images";
/// The root file system of an image.
pub const ROOTFS: &str = "rootfs.ext4";
const INFO: &str = "image.json";
/// Prefix of the name of an image that is being removed.
const REMOVING: &str = ".removing-";

/// What an image says about how it is run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The command's beginning, which stays when the user gives arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// The command's end, which the user's arguments replace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// The environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Where the command runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Who runs it: NAME, UID, each with `:GROUP` or without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// `image.json`: what is known about an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// What it was made of.
    pub source: String,
    /// When, seconds since 1970.
    pub created: u64,
    /// How it is run.
    #[serde(default)]
    pub settings: Settings,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Image {
    /// Its name.
    pub name: ImageName,
    /// Its root file system.
    pub path: PathBuf,
    /// What it takes on the disk, bytes.
    pub disk_bytes: u64,
    /// What it was made of, and how it is run.
    #[serde(flatten)]
    pub info: Info,
}

/// What the settings of the image are whose root file system is `rootfs`; `None`: it is none of
/// the user's own.
///
/// # Errors
/// They cannot be read.
pub fn settings(rootfs: &Path) -> Result<Option<Settings>> {
    if rootfs.file_name().is_none_or(|name| name != ROOTFS) {
        return Ok(None);
    }
    match fs::read(rootfs.with_file_name(INFO)) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => {
            let info: Info = serde_json::from_slice(&read?)
                .with_context(|| format!("{INFO} beside {} is damaged", rootfs.display()))?;
            Ok(Some(info.settings))
        }
    }
}

/// All images of the user.
#[derive(Debug)]
pub struct Images<'a> {
    cache: &'a Cache,
}

impl<'a> Images<'a> {
    /// The images in a cache.
    #[must_use]
    pub fn new(cache: &'a Cache) -> Self {
        Self { cache }
    }

    fn folder(&self, name: &ImageName) -> PathBuf {
        self.cache.root().join(KIND).join(name.as_str())
    }

    /// An image; `None`: there is none of this name.
    ///
    /// # Errors
    /// What is known about it cannot be read.
    pub fn find(&self, name: &ImageName) -> Result<Option<Image>> {
        let folder = self.folder(name);
        if !folder.is_dir() {
            return Ok(None);
        }
        let info = fs::read(folder.join(INFO))?;
        let info = serde_json::from_slice(&info)
            .with_context(|| format!("{} is damaged", folder.join(INFO).display()))?;
        Ok(Some(Image {
            name: name.clone(),
            path: folder.join(ROOTFS),
            disk_bytes: cache::disk_bytes(&folder),
            info,
        }))
    }

    /// All, sorted by name.
    ///
    /// # Errors
    /// The cache cannot be read.
    pub fn list(&self) -> Result<Vec<Image>> {
        let mut images = Vec::new();
        for name in self.entries("")? {
            // One that goes meanwhile is no error.
            images.extend(self.find(&name)?);
        }
        images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(images)
    }

    /// The names of what is there, behind a prefix.
    fn entries(&self, prefix: &str) -> Result<Vec<ImageName>> {
        let listing = match fs::read_dir(self.cache.root().join(KIND)) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            listing => listing?,
        };
        let mut names = Vec::new();
        for entry in listing {
            let name = entry?.file_name();
            let name = name.to_str().and_then(|name| name.strip_prefix(prefix));
            names.extend(name.and_then(|name| name.parse::<ImageName>().ok()));
        }
        Ok(names)
    }

    /// Makes an image of layers, which `layers` brings into the folder it is given, with our tools
    /// over them.
    ///
    /// # Errors
    /// There is one of this name, or it cannot be made; nothing is there then.
    pub fn make(
        &self,
        name: &ImageName,
        source: &str,
        layers: impl FnOnce(&Path, &Steps) -> Result<(Vec<Layer>, Settings)>,
    ) -> Result<Image> {
        self.refuse_existing(name)?;
        let tools = pack::tools(self.cache)?;
        let lock = lock_name(name);
        let _lock = self.cache.lock(&lock, || {
            eprintln!("  waiting for another build of {name} …");
        })?;
        self.refuse_existing(name)?;
        let steps = Steps::of_build(self.cache, &lock)?;
        self.cache
            .make(KIND, name.as_str(), |out| -> Result<()> {
                let work = out.join("work");
                fs::create_dir(&work)?;
                let (mut layers, settings) = layers(&work, &steps)?;
                layers.push(tools);
                let workdir = settings.workdir.as_deref();
                pack::pack(&layers, workdir, &work, &out.join(ROOTFS), &steps)?;
                cache::remove(&work)?;
                let since = SystemTime::now().duration_since(UNIX_EPOCH);
                let info = Info {
                    source: source.to_owned(),
                    created: since.map_or(0, |since| since.as_secs()),
                    settings,
                };
                Ok(fs::write(
                    out.join(INFO),
                    serde_json::to_vec_pretty(&info)?,
                )?)
            })
            .with_context(|| format!("there is no image {name}, as it could not be made"))?;
        self.sweep()?;
        self.find(name)?.context("it was removed just now")
    }

    fn refuse_existing(&self, name: &ImageName) -> Result<()> {
        if self.folder(name).exists() {
            bail!("there is an image {name}: remove it first (mvasvm image rm {name})");
        }
        Ok(())
    }

    /// Removes images that `in_use` (which gets the root file system, and keeps whoever wants to
    /// use it out while its answer lives) does not refuse.
    ///
    /// # Errors
    /// One is not there, or in use: none is removed then; or one cannot be removed.
    pub fn remove<T>(
        &self,
        names: &[ImageName],
        in_use: impl Fn(&Image) -> Result<T>,
    ) -> Result<Vec<Image>> {
        let mut images = Vec::new();
        for name in names {
            let image = self.find(name)?;
            images.push(image.with_context(|| format!("there is no image {name}"))?);
        }
        images.sort_by(|a, b| a.name.cmp(&b.name));
        images.dedup_by(|a, b| a.name == b.name);
        let locks: Vec<T> = images.iter().map(&in_use).collect::<Result<_>>()?;
        for image in &images {
            let folder = self.folder(&image.name);
            let gone = folder.with_file_name(format!("{REMOVING}{}", image.name));
            cache::remove(&gone)?;
            fs::rename(&folder, &gone)?;
        }
        drop(locks);
        self.sweep()?;
        Ok(images)
    }

    /// Removes what killed processes left, and what is being removed.
    fn sweep(&self) -> Result<()> {
        let folder = self.cache.root().join(KIND);
        for prefix in [BUILDING, REMOVING] {
            for name in self.entries(prefix)? {
                // Who makes it holds its lock.
                if let Some(_lock) = self.cache.try_lock(&lock_name(&name))? {
                    cache::remove(&folder.join(format!("{prefix}{name}")))?;
                }
            }
        }
        Ok(())
    }
}

/// Of the lock and the log.
fn lock_name(name: &ImageName) -> String {
    format!("own-image-{name}")
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
