// SPDX-License-Identifier: GPL-2.0-only
//! Images of Debian's packages.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result};
use fs_err as fs;

use super::{Image, ImageName, Images, Settings};
use crate::debian::{self, SUITE};
use crate::oci::blob;
use crate::rootfs::{Layer, Rules};
use crate::step::Steps;

/// Where the script is while it runs.
const SCRIPT: &str = "mvas-script";

/// A release of Debian.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suite(String);

impl Default for Suite {
    fn default() -> Self {
        Self(SUITE.to_owned())
    }
}

impl FromStr for Suite {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        match text.bytes().all(plain) && text.starts_with(|first: char| first.is_ascii_lowercase())
        {
            true => Ok(Self(text.to_owned())),
            false => Err("a release is a word such as trixie".to_owned()),
        }
    }
}

impl std::fmt::Display for Suite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A package's name, as Debian's policy has it.
///
/// # Errors
/// It is none.
pub fn package(text: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b);
    let begins = text.starts_with(|first: char| first.is_ascii_alphanumeric());
    match begins && text.len() > 1 && text.bytes().all(plain) {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is no package's name")),
    }
}

/// What an image is built of.
#[derive(Debug, Clone, Default)]
pub struct Recipe {
    /// The release.
    pub suite: Suite,
    /// Packages besides the smallest system that has `apt`.
    pub packages: Vec<String>,
    /// A program that runs in the new root after the packages are installed.
    pub script: Option<PathBuf>,
    /// A tar file that is unpacked over it then.
    pub tar: Option<PathBuf>,
}

impl Recipe {
    fn source(&self) -> String {
        let mut source = format!("debian {}", self.suite);
        for package in &self.packages {
            source.push(' ');
            source.push_str(package);
        }
        for file in [&self.script, &self.tar].into_iter().flatten() {
            source.push_str(&format!(" {}", file.display()));
        }
        source
    }

    /// Builds the image.
    ///
    /// # Errors
    /// As of [`Images::make`]; a file cannot be read; a package cannot be installed; the script
    /// fails.
    pub fn build(&self, images: &Images<'_>, name: &ImageName) -> Result<Image> {
        for file in [&self.script, &self.tar].into_iter().flatten() {
            fs::File::open(file)?;
        }
        images.make(name, &self.source(), |work, steps| {
            let mut layers = vec![self.install(work, steps)?];
            if let Some(path) = &self.tar {
                layers.push(Layer {
                    name: path.display().to_string(),
                    file: blob::plain(fs::File::open(path)?.into_parts().0, work)?,
                    rules: Rules::Plain,
                });
            }
            Ok((layers, Settings::default()))
        })
    }

    fn install(&self, work: &Path, steps: &Steps) -> Result<Layer> {
        let out = work.join("debian.tar");
        let packages: Vec<&str> = self.packages.iter().map(String::as_str).collect();
        let mut command = debian::system(&packages, &self.suite.0, &out);
        if let Some(script) = &self.script {
            let script = quoted(&std::path::absolute(script)?)?;
            for hook in [
                format!("upload {script} /{SCRIPT}"),
                format!("chmod 755 \"$1\"/{SCRIPT}"),
                format!("chroot \"$1\" /{SCRIPT}"),
                format!("rm \"$1\"/{SCRIPT}"),
            ] {
                command.arg(format!("--customize-hook={hook}"));
            }
        }
        let what = match packages.len() {
            0 => format!("installing Debian {}", self.suite),
            n => format!("installing Debian {} and {n} packages", self.suite),
        };
        steps.run(&what, &mut command)?;
        Ok(Layer {
            name: "Debian".to_owned(),
            file: fs::File::open(&out)?.into_parts().0,
            rules: Rules::Plain,
        })
    }
}

/// A path as a word of mmdebstrap's hooks.
fn quoted(path: &Path) -> Result<String> {
    let text = path.to_str().filter(|text| !text.contains(['\'', '\n']));
    let text =
        text.with_context(|| format!("rename {}: it has a quote in its name", path.display()))?;
    Ok(format!("'{text}'"))
}
