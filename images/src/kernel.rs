// SPDX-License-Identifier: GPL-2.0-only
//! The guest kernel and its self-tests, from Debian's source package.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::cache::{self, Cache};
use crate::kconfig::Options;
use crate::key::{Inputs, Key, files_below};
use crate::step::Steps;
use crate::workspace::Workspace;

/// The Debian package with the kernel source.
pub const SOURCE_PACKAGE: &str = "linux-source-6.12";
/// Kind of the cache entries of the self-tests.
pub const SELFTESTS: &str = "selftests";
/// Part of every key here: raise it when this file builds differently.
const RECIPE: &str = "1";

/// A flavor of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavor {
    /// The kernel that people use and that is measured.
    Release,
    /// With KASAN, lockdep and `DEBUG_VM`, for tests.
    Debug,
}

impl Flavor {
    /// Kind of its cache entries, name of its lock and its work folder.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Self::Release => "kernel",
            Self::Debug => "kernel-debug",
        }
    }

    /// Its configuration fragments in `guest-kernel/config/`, in order.
    fn fragments(self) -> &'static [&'static str] {
        match self {
            Self::Release => &["mvas.config"],
            Self::Debug => &["mvas.config", "debug.config"],
        }
    }

    /// The names under `current/` and the files of the entry they point to.
    fn current(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Release => &[("bzImage", "bzImage"), ("vmlinux", "vmlinux")],
            Self::Debug => &[("bzImage-debug", "bzImage")],
        }
    }
}

/// Builds the kernel and its self-tests.
#[derive(Debug)]
pub struct Builder<'a> {
    cache: &'a Cache,
    workspace: &'a Workspace,
    tarball: PathBuf,
    source_key: Key,
    compiler: String,
}

impl<'a> Builder<'a> {
    /// Looks at all inputs: the source package, our files, the compiler.
    ///
    /// # Errors
    /// When the source package or the compiler is missing, or a file unreadable.
    pub fn new(cache: &'a Cache, workspace: &'a Workspace) -> Result<Self> {
        let tarball = PathBuf::from(format!("/usr/src/{SOURCE_PACKAGE}.tar.xz"));
        ensure!(
            tarball.is_file(),
            "no kernel source at {}: run `make setup`, or install the Debian package {SOURCE_PACKAGE}",
            tarball.display()
        );
        let source_key = Inputs::new("source")
            .text("recipe", RECIPE)
            .file("tarball", &tarball)?
            .tree("linux", &workspace.path("guest-kernel/linux"))?
            .tree("patches", &workspace.path("guest-kernel/patches"))?
            .key();
        Ok(Self {
            cache,
            workspace,
            tarball,
            source_key,
            compiler: format!("{}{}", version_of("gcc")?, version_of("ld")?),
        })
    }

    /// The key of a flavor's cache entry.
    ///
    /// # Errors
    /// When a configuration fragment cannot be read.
    pub fn kernel_key(&self, flavor: Flavor) -> Result<Key> {
        let mut inputs = Inputs::new(flavor.kind())
            .with_key("source", &self.source_key)
            .text("compiler", &self.compiler);
        for fragment in self.fragments(flavor) {
            inputs = inputs.file("fragment", &fragment)?;
        }
        Ok(inputs.key())
    }

    /// The key of the self-tests' cache entry.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn selftests_key(&self) -> Result<Key> {
        Ok(Inputs::new(SELFTESTS)
            .with_key("source", &self.source_key)
            .text("compiler", &self.compiler)
            .tree("selftests", &self.workspace.path("guest-kernel/selftests"))?
            .key())
    }

    /// Finds or builds the kernel and points `current/` to it.
    ///
    /// # Errors
    /// When the build fails.
    pub fn kernel(&self, flavor: Flavor) -> Result<PathBuf> {
        let key = self.kernel_key(flavor)?;
        let _lock = self.lock(flavor)?;
        let entry = self
            .cache
            .find_or_build(flavor.kind(), &key, |dir| self.build_kernel(flavor, dir))?;
        for (name, file) in flavor.current() {
            self.cache.set_current(name, &entry.join(file))?;
        }
        Ok(entry)
    }

    /// Finds or builds the self-tests.
    ///
    /// # Errors
    /// When the build fails.
    pub fn selftests(&self) -> Result<PathBuf> {
        let key = self.selftests_key()?;
        // They are built in the source tree of the release kernel.
        let _lock = self.lock(Flavor::Release)?;
        self.cache
            .find_or_build(SELFTESTS, &key, |dir| self.build_selftests(dir))
    }

    fn lock(&self, flavor: Flavor) -> Result<cache::Lock, cache::Error> {
        self.cache
            .lock(flavor.kind(), || cache::waiting(flavor.kind()))
    }

    fn fragments(&self, flavor: Flavor) -> Vec<PathBuf> {
        let dir = self.workspace.path("guest-kernel/config");
        flavor.fragments().iter().map(|f| dir.join(f)).collect()
    }

    fn build_kernel(&self, flavor: Flavor, out: &Path) -> Result<()> {
        let steps = Steps::of_build(self.cache, flavor.kind())?;
        let tree = self.prepare_tree(flavor, &steps)?;
        self.configure(flavor, &tree, &steps)?;
        steps.run(
            &format!(
                "building the {} (minutes when it is new to ccache)",
                flavor.kind()
            ),
            self.make(&tree)?.args(["bzImage", "vmlinux"]),
        )?;
        for (from, to) in [
            ("arch/x86/boot/bzImage", "bzImage"),
            ("vmlinux", "vmlinux"),
            (".config", "config"),
        ] {
            let from = tree.join(from);
            fs::copy(&from, out.join(to)).with_context(|| format!("no {}", from.display()))?;
        }
        Ok(())
    }

    fn build_selftests(&self, out: &Path) -> Result<()> {
        let sources = self.workspace.path("guest-kernel/selftests");
        let steps = Steps::of_build(self.cache, SELFTESTS)?;
        let tree = self.prepare_tree(Flavor::Release, &steps)?;
        steps.run(
            "installing the kernel headers",
            self.make(&tree)?.arg("headers"),
        )?;
        let mut make = self.make(&sources)?;
        make.arg(format!("KSRC={}", tree.display()))
            .arg(format!("OUT={}", out.display()));
        steps.run("building the kernel self-tests", &mut make)?;
        Ok(())
    }

    /// The patched source tree: always at the same path, so that ccache and a
    /// build of the self-tests find it again.
    fn prepare_tree(&self, flavor: Flavor, steps: &Steps) -> Result<PathBuf> {
        let work = self.cache.dir("work")?.join(flavor.kind());
        let tree = work.join(SOURCE_PACKAGE);
        let stamp = work.join("source.key");
        if fs::read_to_string(&stamp).is_ok_and(|key| key == self.source_key.to_string()) {
            return Ok(tree);
        }
        cache::remove(&work)?;
        fs::create_dir_all(&work)?;
        steps.run(
            "unpacking the kernel source",
            Command::new("tar")
                .arg("--use-compress-program=xz -T0")
                .args(["--exclude=drivers/gpu/drm/amd/include/asic_reg", "-xf"])
                .arg(&self.tarball)
                .arg("-C")
                .arg(&work),
        )?;
        for patch in files_below(&self.workspace.path("guest-kernel/patches"))? {
            if patch.extension().is_none_or(|e| e != "patch") {
                continue;
            }
            let name = patch.file_name().unwrap_or_default().to_string_lossy();
            steps.run(
                &format!("applying {name}"),
                Command::new("patch")
                    .args(["-p1", "--batch", "--forward", "--fuzz=0", "--directory"])
                    .arg(&tree)
                    .arg("--input")
                    .arg(&patch),
            )?;
        }
        let overlay = self.workspace.path("guest-kernel/linux");
        steps.run(
            "adding the files of MVAS",
            Command::new("cp")
                .args(["-R", "--"])
                .arg(overlay.join("."))
                .arg(&tree),
        )?;
        fs::write(&stamp, self.source_key.to_string())?;
        Ok(tree)
    }

    fn configure(&self, flavor: Flavor, tree: &Path, steps: &Steps) -> Result<()> {
        let mut fragments = vec![tree.join("kernel/configs/kvm_guest.config")];
        fragments.extend(self.fragments(flavor));
        steps.run(
            "making the default configuration",
            self.make(tree)?.arg("x86_64_defconfig"),
        )?;
        steps.run(
            "merging our configuration",
            Command::new(tree.join("scripts/kconfig/merge_config.sh"))
                .current_dir(tree)
                .args(["-m", ".config"])
                .args(&fragments),
        )?;
        steps.run(
            "completing the configuration",
            self.make(tree)?.arg("olddefconfig"),
        )?;

        let mut asked = Options::default();
        for fragment in self.fragments(flavor) {
            asked.merge(&fs::read_to_string(&fragment)?);
        }
        let got = Options::parse(&fs::read_to_string(tree.join(".config"))?);
        let missed = asked.missed_in(&got);
        if !missed.is_empty() {
            let list: Vec<String> = missed.iter().map(|m| format!("  {m}")).collect();
            bail!(
                "the kernel configuration does not take what guest-kernel/config/ asks for \
                 (an option may have been renamed, or depend on another one):\n{}",
                list.join("\n")
            );
        }
        Ok(())
    }

    /// `make` in `dir`: quiet, parallel, through ccache, and reproducible.
    fn make(&self, dir: &Path) -> Result<Command> {
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        let mut make = Command::new("make");
        // Not the flags of a `make` that runs us, nor another kernel build's settings.
        for variable in [
            "MAKEFLAGS",
            "MFLAGS",
            "MAKELEVEL",
            "ARCH",
            "CROSS_COMPILE",
            "KBUILD_OUTPUT",
            "O",
        ] {
            make.env_remove(variable);
        }
        make.arg("-C")
            .arg(dir)
            .arg(format!("-j{jobs}"))
            .args(["CC=ccache gcc", "HOSTCC=ccache gcc"])
            .env("CCACHE_DIR", self.cache.dir("ccache")?)
            .env("CCACHE_NOHASHDIR", "1")
            .env("KBUILD_BUILD_TIMESTAMP", "Thu, 01 Jan 1970 00:00:00 +0000")
            .env("KBUILD_BUILD_USER", "mvas")
            .env("KBUILD_BUILD_HOST", "mvas")
            .env("KBUILD_BUILD_VERSION", "1");
        Ok(make)
    }
}

fn version_of(program: &str) -> Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .with_context(|| format!("cannot run {program}: run `make setup`"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_string())
}
