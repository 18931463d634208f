// SPDX-License-Identifier: GPL-2.0-only
//! The guest image: Debian's packages, our programs, the tests, in one ext4 file.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::unistd::Uid;

use crate::cache::{Cache, waiting};
use crate::cargo::{self, Artifact, Kind};
use crate::debian::{self, SUITE};
use crate::key::{Inputs, Key};
use crate::step::Steps;
use crate::tools;
use crate::workspace::Workspace;

/// Which image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Flavor {
    /// The guest of every microVM, unless told otherwise
    Default,
    /// The same, with Docker, containerd, Podman and crun, and their services running
    Containers,
    /// The same as the default, with programs that experiments snapshot: servers, a JVM, Python
    Programs,
}

impl Flavor {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Default, Self::Containers, Self::Programs];

    /// The one of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        clap::ValueEnum::from_str(name, false).ok()
    }

    /// Kind of the cache entries with Debian's packages only.
    #[must_use]
    pub fn base(self) -> &'static str {
        match self {
            Self::Default => "base",
            Self::Containers => "base-containers",
            Self::Programs => "base-programs",
        }
    }

    /// Kind of the cache entries with whole images.
    #[must_use]
    pub fn image(self) -> &'static str {
        match self {
            Self::Default => "image",
            Self::Containers => "image-containers",
            Self::Programs => "image-programs",
        }
    }

    /// Its name under `current/`.
    #[must_use]
    pub fn current(self) -> &'static str {
        match self {
            Self::Default => "rootfs.ext4",
            Self::Containers => "rootfs-containers.ext4",
            Self::Programs => "rootfs-programs.ext4",
        }
    }

    /// The lists of its packages in the checkout.
    fn recipes(self) -> &'static [&'static str] {
        match self {
            Self::Default => &["images/recipe/packages"],
            Self::Containers => &[
                "images/recipe/packages",
                "images/recipe/packages.containers",
            ],
            Self::Programs => &["images/recipe/packages", "images/recipe/packages.programs"],
        }
    }

    /// The folders of the checkout that lie over its packages.
    fn overlays(self) -> &'static [&'static str] {
        match self {
            Self::Default | Self::Programs => &["images/rootfs"],
            Self::Containers => &["images/rootfs", "images/rootfs.containers"],
        }
    }
}

/// What is left out besides, below `/usr`.
const OF_ENGINES: [&str; 3] = [
    "libexec/podman/podman-testing",
    "bin/containerd-shim",
    "bin/containerd-shim-runc-v1",
];
/// Part of every key here: raise it when this file builds differently.
const RECIPE: &str = "1";

/// Where a program goes in the image.
const PLACES: [(&str, Kind, &str); 4] = [
    ("vascriu", Kind::Binary, "usr/bin/vascriu"),
    ("mvas-exp", Kind::Binary, "usr/bin/mvas-exp"),
    ("mvas-agent", Kind::Binary, "usr/lib/mvas/agent"),
    ("vas_plugin", Kind::Cdylib, "usr/lib/vascriu/vas_plugin.so"),
];

/// What runs once for every snapshot is linked statically, at a fixed address: the dynamic
/// linker's mappings and relocations took longer than all that `vascriu ls` does.
const STATIC: &[&str] = &["vascriu"];
/// The guest's architecture, as Rust names it.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const STATIC_FLAGS: &str = "rustflags=['-Ctarget-feature=+crt-static','-Crelocation-model=static']";

/// Integration tests with this prefix need the guest and go into the image.
const GUEST_TEST: &str = "guest";
/// Where they go.
const TESTS: &str = "usr/lib/mvas/tests";
/// Where the kernel's self-tests go.
const SELFTESTS: &str = "usr/lib/mvas/selftests";

/// Builds the guest image.
#[derive(Debug)]
pub struct Builder<'a> {
    cache: &'a Cache,
    workspace: &'a Workspace,
    flavor: Flavor,
}

impl<'a> Builder<'a> {
    /// A builder of images of this checkout.
    #[must_use]
    pub fn new(cache: &'a Cache, workspace: &'a Workspace, flavor: Flavor) -> Self {
        Self {
            cache,
            workspace,
            flavor,
        }
    }

    /// The key of the entry with Debian's packages.
    ///
    /// # Errors
    /// When the recipe cannot be read.
    pub fn base_key(&self) -> Result<Key> {
        let mut inputs = Inputs::new(self.flavor.base())
            .text("recipe", RECIPE)
            .text("suite", SUITE);
        for recipe in self.flavor.recipes() {
            inputs = inputs.file("packages", &self.workspace.path(recipe))?;
        }
        Ok(inputs.key())
    }

    /// Finds or makes the tar file with Debian's packages.
    ///
    /// # Errors
    /// When mmdebstrap fails.
    pub fn base(&self) -> Result<PathBuf> {
        let key = self.base_key()?;
        let kind = self.flavor.base();
        let _lock = self.cache.lock(kind, || waiting("base image"))?;
        let entry = self.cache.find_or_build(kind, &key, |out| -> Result<()> {
            let recipes = self.flavor.recipes().iter();
            let recipes = recipes.map(|r| fs::read_to_string(self.workspace.path(r)));
            let recipes = recipes.collect::<Result<Vec<_>, _>>()?.concat();
            let packages = package_list(&recipes);
            let mut mmdebstrap = debian::system(&packages, SUITE, &out.join("base.tar"));
            for path in OF_ENGINES {
                debian::leave_out(&mut mmdebstrap, path);
            }
            Ok(Steps::of_build(self.cache, kind)?.run(
                &format!("installing {} Debian packages", packages.len()),
                &mut mmdebstrap,
            )?)
        })?;
        Ok(entry.join("base.tar"))
    }

    /// Finds or makes the image with our programs and the self-tests of the
    /// kernel, and points `current/` to it.
    ///
    /// # Errors
    /// When a program does not build or the image cannot be packed.
    pub fn image(&self, selftests: &Path) -> Result<PathBuf> {
        let base = self.base()?;
        let files = self.our_files(selftests)?;
        let pack = self.workspace.path("images/recipe/pack");
        let overlays = self.flavor.overlays().iter();
        let overlays: Vec<_> = overlays.map(|o| self.workspace.path(o)).collect();
        let kind = self.flavor.image();
        let mut inputs = Inputs::new(kind)
            .text("recipe", RECIPE)
            .with_key("base", &self.base_key()?)
            .file("pack", &pack)?;
        for overlay in &overlays {
            inputs = inputs.tree("rootfs", overlay)?;
        }
        for (to, from) in &files {
            inputs = inputs.file(to, from)?;
        }
        let _lock = self.cache.lock(kind, || waiting("image"))?;
        let entry = self
            .cache
            .find_or_build(kind, &inputs.key(), |out| -> Result<()> {
                // A temporary folder beside, as `out` is what the cache keeps.
                let work = tempfile::tempdir_in(self.cache.dir("work")?)?;
                let stage = work.path().join("stage");
                for (to, from) in &files {
                    copy(from, &stage.join(to))?;
                }
                // Only root may make files of other users; fakeroot lets anybody pretend to.
                let mut command = if Uid::effective().is_root() {
                    Command::new(&pack)
                } else {
                    let mut fakeroot = Command::new("fakeroot");
                    fakeroot.arg(&pack);
                    fakeroot
                };
                command
                    .arg(work.path().join("tree"))
                    .arg(out.join("rootfs.ext4"))
                    .arg(&base)
                    .args(&overlays)
                    .arg(&stage);
                Ok(Steps::of_build(self.cache, kind)?.run("packing the image", &mut command)?)
            })?;
        let image = entry.join("rootfs.ext4");
        if self.flavor == Flavor::Default {
            tools::build(self.cache, &base, &self.base_key()?, &files)?;
        }
        self.cache.set_current(self.flavor.current(), &image)?;
        Ok(image)
    }

    /// Builds our programs; returns pairs of the path in the image and the file.
    fn our_files(&self, selftests: &Path) -> Result<Vec<(String, PathBuf)>> {
        // The whole workspace, as `make` builds it: of a part, cargo would choose other
        // features of shared dependencies and build them again.
        let root = self.workspace.root();
        let mut built = cargo::build(root, &["build", "--release", "--workspace"])?;
        let tests = cargo::integration_tests(root, GUEST_TEST)?;
        if !tests.is_empty() {
            let mut build = vec!["test", "--release", "--workspace", "--no-run"];
            build.extend(tests.iter().flat_map(|name| ["--test", name]));
            built.extend(cargo::build(root, &build)?);
        }
        built.retain(|a| !STATIC.contains(&a.name.as_str()));
        let config = format!("target.{TARGET}.{STATIC_FLAGS}");
        let mut build = vec![
            "build",
            "--release",
            "--target",
            TARGET,
            "--config",
            &config,
        ];
        build.extend(STATIC.iter().flat_map(|name| ["--bin", name]));
        built.extend(cargo::build(root, &build)?);
        let mut files = places(&built);
        for (name, _, place) in PLACES {
            let found = files.iter().any(|(to, _)| to == place);
            ensure!(found, "cargo built no {name} for /{place} of the image");
        }
        for file in crate::key::files_below(selftests)? {
            if fs::metadata(&file)?.permissions().mode() & 0o100 == 0 {
                continue; // made on the way to the programs
            }
            let relative = file.strip_prefix(selftests)?.display();
            files.push((format!("{SELFTESTS}/{relative}"), file.clone()));
        }
        files.sort();
        Ok(files)
    }
}

/// The packages of a recipe: one a line, with comments after `#`.
fn package_list(recipe: &str) -> Vec<&str> {
    recipe
        .lines()
        .filter_map(|line| line.split('#').next())
        .flat_map(str::split_whitespace)
        .collect()
}

/// Where each artifact goes; those with no place in the image are left out.
fn places(built: &[Artifact]) -> Vec<(String, PathBuf)> {
    built
        .iter()
        .filter_map(|artifact| {
            let place = if artifact.kind == Kind::Test {
                let wanted = artifact.name.starts_with(GUEST_TEST);
                wanted.then(|| format!("{TESTS}/{}", artifact.name))
            } else {
                PLACES
                    .iter()
                    .find(|(name, kind, _)| *name == artifact.name && *kind == artifact.kind)
                    .map(|(_, _, place)| (*place).to_string())
            };
            Some((place?, artifact.path.clone()))
        })
        .collect()
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let parent = to.parent().unwrap_or(to);
    fs::create_dir_all(parent)
        .and_then(|()| fs::copy(from, to).map(drop))
        .and_then(|()| {
            let mode = fs::metadata(from)?.permissions().mode();
            let mode = if mode & 0o100 == 0 { 0o644 } else { 0o755 };
            fs::set_permissions(to, fs::Permissions::from_mode(mode))
        })
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_may_have_comments_and_several_packages_a_line() {
        let recipe = "# tools\ncriu  runc # containers\n\nprocps\n#strace\n";
        assert_eq!(package_list(recipe), ["criu", "runc", "procps"]);
    }

    #[test]
    fn only_tests_that_need_the_guest_and_known_programs_go_into_the_image() {
        let artifact = |name: &str, kind| Artifact {
            name: name.into(),
            kind,
            path: format!("/t/{name}").into(),
        };
        let built = [
            artifact("vascriu", Kind::Binary),
            artifact("vas_plugin", Kind::Cdylib),
            artifact("guest_dump", Kind::Test),
            artifact("cli", Kind::Test),
            artifact("helper", Kind::Binary),
        ];
        let to: Vec<String> = places(&built).into_iter().map(|(to, _)| to).collect();
        assert_eq!(
            to,
            [
                "usr/bin/vascriu",
                "usr/lib/vascriu/vas_plugin.so",
                "usr/lib/mvas/tests/guest_dump"
            ]
        );
    }
}
