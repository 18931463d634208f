// SPDX-License-Identifier: GPL-2.0-only
//! Where things are: run-time folders, kernel, image.

use std::env;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use mvas_images::image::Flavor;
use mvas_images::own::Images;
use nix::unistd::{Uid, geteuid};

/// The emulator's program.
const EMULATOR: &str = "qemu-system-x86_64";
/// What brings it, for hints.
pub(crate) const BRING_EMULATOR: &str =
    "`make image`, or apt-get install qemu-system-x86, which is slower";
/// What is run, for hints.
const BUILD: &str = "build it with `make image`, or name another one";

/// The folder with one folder per VM; see [`runtime_path`]. Made if it does not exist; only
/// its owner may enter.
///
/// # Errors
/// It cannot be made, or others may write to it.
pub(crate) fn runtime_dir() -> Result<PathBuf> {
    let asked = env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute() && dir.is_dir());
    let dir = runtime_path(asked, geteuid());
    private_dir(&dir).with_context(|| {
        format!(
            "cannot use {} for run-time files: set XDG_RUNTIME_DIR to a folder of yours",
            dir.display()
        )
    })?;
    Ok(dir)
}

/// `$XDG_RUNTIME_DIR/mvas`; without it (not everybody who runs has logged in) root's is
/// `/run/mvas`, and others' `/tmp/mvas-UID`.
pub(super) fn runtime_path(asked: Option<PathBuf>, user: Uid) -> PathBuf {
    match asked {
        Some(dir) => dir.join("mvas"),
        None if user.is_root() => PathBuf::from("/run/mvas"),
        None => PathBuf::from(format!("/tmp/mvas-{user}")),
    }
}

/// Makes a folder that only its owner may enter.
pub(crate) fn private_dir(dir: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let meta = fs::symlink_metadata(dir)?;
    if !meta.is_dir() || meta.uid() != geteuid().as_raw() {
        bail!("{} is not a folder of this user", dir.display());
    }
    if meta.permissions().mode() & 0o077 != 0 {
        bail!("others may enter {}: chmod 700 it", dir.display());
    }
    Ok(())
}

/// The folder with everything that was built.
pub(crate) fn cache() -> Option<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute())
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))?;
    Some(cache.join("mvas"))
}

/// What was built last of `name`: bzImage, vmlinux, rootfs.ext4.
pub(crate) fn built_last(name: &str) -> Option<PathBuf> {
    Some(cache()?.join("current").join(name))
}

/// The kernel to boot: what was asked for, `$MVAS_KERNEL`, or what was built last.
///
/// # Errors
/// There is none.
pub(crate) fn kernel(asked: Option<&Path>) -> Result<PathBuf> {
    pick("kernel", asked, "MVAS_KERNEL", "bzImage")
}

/// The emulator of simulated hosts, of which [`EMULATOR`] is the name: `$MVAS_QEMU`, what was
/// built last, or what is in `PATH`.
pub(crate) fn emulator() -> Option<PathBuf> {
    let named = env::var_os("MVAS_QEMU").map(PathBuf::from);
    let built = || built_last(EMULATOR).filter(|path| path.exists());
    named.or_else(built).or_else(|| find_program(EMULATOR))
}

fn find_program(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The guest image: what was asked for, `$MVAS_IMAGE`, or what was built last. A word is the name
/// of an image, of the user's own or of ours, or else a file.
///
/// # Errors
/// There is none.
pub(crate) fn image(asked: Option<&Path>) -> Result<PathBuf> {
    let Some((word, name)) = asked.and_then(|path| Some((path, word(path)?))) else {
        return pick("image", asked, "MVAS_IMAGE", Flavor::Default.current());
    };
    if let Some(ours) = Flavor::named(name) {
        let path = built_last(ours.current()).context("no HOME to look for images in")?;
        return path.canonicalize().with_context(|| {
            let target = match ours {
                Flavor::Default => "make image".to_owned(),
                _ => format!("make image-{name}"),
            };
            format!("the image {name} is not built: `{target}` builds it")
        });
    }
    if let Ok(own) = name.parse()
        && let Some(image) = Images::new(&super::image::cache()?).find(&own)?
    {
        return Ok(image.path.canonicalize()?);
    }
    word.canonicalize().with_context(|| {
        format!("there is no image {name}, of yours (mvasvm image ls) or of ours, and no such file")
    })
}

/// What names an image, and is not plainly a path.
fn word(asked: &Path) -> Option<&str> {
    asked.to_str().filter(|text| !text.contains('/'))
}

fn pick(option: &str, asked: Option<&Path>, variable: &str, built: &str) -> Result<PathBuf> {
    let named = asked
        .map(Path::to_owned)
        .or_else(|| env::var_os(variable).map(PathBuf::from));
    let (path, hint) = match named {
        Some(path) => (path, String::new()),
        None => match built_last(built) {
            Some(path) => (path, format!(": {BUILD} with --{option} or ${variable}")),
            None => bail!("no {option} given, and no HOME to look for one in"),
        },
    };
    path.canonicalize()
        .with_context(|| format!("there is no {option} {}{hint}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_names_an_image_and_a_slash_makes_a_path() {
        assert_eq!(word(Path::new("redis:7")), Some("redis:7"));
        assert_eq!(word(Path::new("./redis:7")), None);
        assert_eq!(word(Path::new("/x/rootfs.ext4")), None);
    }

    #[test]
    fn everybody_has_a_runtime_folder() {
        let of = |asked: Option<&str>, user| runtime_path(asked.map(Into::into), Uid::from(user));
        assert_eq!(of(Some("/run/user/7"), 7), Path::new("/run/user/7/mvas"));
        assert_eq!(of(None, 0), Path::new("/run/mvas"));
        assert_eq!(of(None, 7), Path::new("/tmp/mvas-7"));
    }
}
