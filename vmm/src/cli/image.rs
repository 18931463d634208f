// SPDX-License-Identifier: GPL-2.0-only
//! `mvasvm image`: images of the user's own.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use mvas_images::cache::Cache;
use mvas_images::oci::Source;
use mvas_images::own::{Image, ImageName, Images, Recipe, Suite, package};
use mvasvm::virtio::block::disk::{Disk, DiskError};

use super::note;
use super::paths;
use super::snapshots::text;

/// Make images of your own, list and remove them
///
/// An image is a root file system with what a guest needs of ours in it: the agent, vascriu and
/// CRIU. `mvasvm run --image NAME` boots it, and never writes to it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mvasvm image build db --packages postgresql
  mvasvm image ls
  mvasvm run --image db
  mvasvm image rm db")]
pub(super) struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    Build(BuildArgs),
    Import(ImportArgs),
    Ls(ImageLsArgs),
    Rm(ImageRmArgs),
}

/// Make an image of Debian packages
///
/// First the packages are installed, then the script runs in the new root, then the tar file is
/// unpacked over it. Nothing is started there. It needs mmdebstrap and e2fsprogs on this host, and
/// fakeroot and uidmap where you are not root.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mvasvm image build db --packages postgresql,procps
  mvasvm image build old --from bookworm --packages python3
  mvasvm image build app --packages nodejs --script install.sh --tar app.tar.gz")]
struct BuildArgs {
    /// Its name
    name: ImageName,
    /// Packages besides Debian's smallest system; again, or with commas, for more
    #[arg(long, value_name = "PACKAGES", value_delimiter = ',', value_parser = package)]
    packages: Vec<String>,
    /// The release of Debian
    #[arg(long, value_name = "RELEASE", default_value_t)]
    from: Suite,
    /// A program of this host that runs in the new root, as root there
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// A tar file that is unpacked over it; may be compressed by gzip or zstd
    #[arg(long, value_name = "FILE")]
    tar: Option<PathBuf>,
}

/// Make an image of a container's image
///
/// Its entry point, command, environment, working folder and user are what `mvasvm run` takes. It
/// may be of any distribution. Registries are asked over HTTPS, on this host itself over HTTP;
/// nobody logs in. Devices in the image are left out.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mvasvm image import redis:7 docker.io/library/redis:7
  mvasvm image import app docker-archive:app.tar
  mvasvm image import tools oci:build/image:latest
  mvasvm run --image redis:7 -- --port 7000")]
struct ImportArgs {
    /// Its name here
    name: ImageName,
    /// oci:DIR[:TAG], docker-archive:FILE or REGISTRY/REPOSITORY[:TAG|@DIGEST]
    source: Source,
}

/// List your images
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mvasvm image ls
  mvasvm image ls --json | jq -r '.[].name'")]
struct ImageLsArgs {
    /// As JSON, with everything that is known
    #[arg(long)]
    json: bool,
}

/// Remove images
///
/// Of several, all are removed or none. One that a VM uses is not.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  mvasvm image rm db old")]
struct ImageRmArgs {
    /// The images
    #[arg(required = true)]
    names: Vec<ImageName>,
}

pub(super) fn run(args: ImageArgs) -> Result<u8> {
    let cache = cache()?;
    let images = Images::new(&cache);
    match args.command {
        ImageCommand::Build(args) => build(&images, args)?,
        ImageCommand::Import(args) => made(&args.source.import(&images, &args.name)?)?,
        ImageCommand::Ls(args) => ls(&images, args.json)?,
        ImageCommand::Rm(args) => rm(&images, &args.names)?,
    }
    Ok(0)
}

/// The cache that images are in.
pub(super) fn cache() -> Result<Cache> {
    let root = paths::cache().context("no place for images: set XDG_CACHE_HOME or HOME")?;
    Ok(Cache::at(&root))
}

fn build(images: &Images<'_>, args: BuildArgs) -> Result<()> {
    let recipe = Recipe {
        suite: args.from,
        packages: args.packages,
        script: args.script,
        tar: args.tar,
    };
    made(&recipe.build(images, &args.name)?)
}

fn made(image: &Image) -> Result<()> {
    note(format!(
        "image {}, {} MiB: mvasvm run --image {}",
        image.name,
        image.disk_bytes >> 20,
        image.name
    ));
    Ok(writeln!(io::stdout(), "{}", image.name)?)
}

fn ls(images: &Images<'_>, json: bool) -> Result<()> {
    let images = images.list()?;
    let mut out = io::stdout().lock();
    if json {
        return Ok(text::json(&mut out, &images)?);
    }
    writeln!(out, "{:<24} {:>9}  MADE OF", "NAME", "SIZE")?;
    for image in images {
        let size = format!("{}M", image.disk_bytes >> 20);
        let source = text::shown(&image.info.source);
        writeln!(out, "{:<24} {size:>9}  {source}", image.name.as_str())?;
    }
    Ok(())
}

fn rm(images: &Images<'_>, names: &[ImageName]) -> Result<()> {
    let removed = images.remove(names, |image| match Disk::open(&image.path, false) {
        // What its file has become is no reason to keep it.
        Err(DiskError::Locked(_)) => {
            anyhow::bail!("image {} is in use by a VM: stop that first", image.name)
        }
        opened => Ok(opened.ok()),
    })?;
    for image in removed {
        note(format!(
            "removed {}: {} MiB",
            image.name,
            image.disk_bytes >> 20
        ));
    }
    Ok(())
}
