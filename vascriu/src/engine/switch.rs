// SPDX-License-Identifier: GPL-2.0-only
//! Switching engines to vascriu, and back.
//!
//! All engines look `criu` up in PATH, so one link there, before the stock CRIU, is found by
//! all. For which of them it is more than the stock CRIU stands in a file that the drop-in
//! reads at each dump. What refers to a snapshot is restored from it in any case: no other
//! CRIU could.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Engine, Root};
use crate::process;

/// The link that engines find. The PATH of services and of root has its directory first.
pub const LINK: &str = "/usr/local/sbin/criu";
/// For which engines.
const FILE: &str = "/etc/vascriu/engines.json";
/// The PATH that podman gives its monitor, and systemd its services.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An engine cannot be switched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("{0} {1} failed")]
    Io(&'static str, PathBuf, #[source] io::Error),
    /// What we have written there is something else now.
    #[error("{0} is damaged: remove it, and enable what shall be")]
    Damaged(PathBuf, #[source] serde_json::Error),
    /// There is another program where the link goes.
    #[error(
        "{0} is there and is not vascriu: move it away (`VASCRIU_CRIU` names a CRIU elsewhere)"
    )]
    Taken(PathBuf),
}

/// What is said in the file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Switches {
    engines: BTreeSet<Engine>,
}

/// A device and an inode: a file, whatever its name.
type Identity = (u64, u64);

fn identity(path: &Path) -> Option<Identity> {
    let meta = fs::metadata(path).ok()?;
    let runs = meta.is_file() && meta.permissions().mode() & 0o111 != 0;
    runs.then(|| (meta.dev(), meta.ino()))
}

impl Root {
    fn switches(&self) -> Result<Switches, Error> {
        let path = self.join(FILE);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|e| Error::Damaged(path, e)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Switches::default()),
            Err(e) => Err(Error::Io("reading", path, e)),
        }
    }

    fn save(&self, switches: &Switches) -> Result<String, Error> {
        let path = self.join(FILE);
        let failed = |call| {
            let path = path.clone();
            move |e| Error::Io(call, path, e)
        };
        if switches.engines.is_empty() {
            fs::remove_file(&path).map_err(failed("removing"))?;
            // Others may keep something there.
            let _ = fs::remove_dir(path.parent().unwrap_or(&path));
            return Ok(format!("removed {}", path.display()));
        }
        fs::create_dir_all(path.parent().unwrap_or(&path)).map_err(failed("creating"))?;
        let new = path.with_extension("new");
        let text = serde_json::to_vec_pretty(switches).unwrap_or_default();
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .map_err(failed("writing"))?;
        Ok(format!("wrote {}", path.display()))
    }

    /// Puts the link there; says so, if it was not.
    fn link(&self, us: &Path) -> Result<Option<String>, Error> {
        let link = self.join(LINK);
        if link.symlink_metadata().is_ok() {
            return match identity(&link) == identity(us) {
                true => Ok(None),
                false => Err(Error::Taken(link)),
            };
        }
        let made =
            fs::create_dir_all(link.parent().unwrap_or(&link)).and_then(|()| symlink(us, &link));
        made.map_err(|e| Error::Io("linking", link.clone(), e))?;
        Ok(Some(format!(
            "linked {} to {}",
            link.display(),
            us.display()
        )))
    }

    /// Removes the link, if it is one to us, wherever we are now.
    fn unlink(&self, us: &Path) -> Result<Option<String>, Error> {
        let link = self.join(LINK);
        let named = fs::read_link(&link).ok();
        if named.is_none() || (named.as_deref() != Some(us) && identity(&link) != identity(us)) {
            return Ok(None);
        }
        fs::remove_file(&link).map_err(|e| Error::Io("removing", link.clone(), e))?;
        Ok(Some(format!("removed {}", link.display())))
    }

    fn enable(&self, engine: Engine, us: &Path) -> Result<Vec<String>, Error> {
        let mut switches = self.switches()?;
        // First the link: alone it changes nothing.
        let mut done: Vec<_> = self.link(us)?.into_iter().collect();
        if switches.engines.insert(engine) {
            done.push(self.save(&switches)?);
        }
        Ok(done)
    }

    fn disable(&self, engine: Engine, us: &Path) -> Result<Vec<String>, Error> {
        let mut switches = self.switches()?;
        let mut done = Vec::new();
        if switches.engines.remove(&engine) {
            done.push(self.save(&switches)?);
        }
        if switches.engines.is_empty() {
            done.extend(self.unlink(us)?);
        }
        Ok(done)
    }
}

fn us() -> PathBuf {
    env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into())
}

/// Has the engine dump into memory; says what was changed for that: nothing, where it
/// does already.
///
/// # Errors
/// See [`Error`].
pub fn enable(engine: Engine) -> Result<Vec<String>, Error> {
    Root::default().enable(engine, &us())
}

/// Has the engine use the stock CRIU; says what was changed for that.
///
/// # Errors
/// See [`Error`].
pub fn disable(engine: Engine) -> Result<Vec<String>, Error> {
    Root::default().disable(engine, &us())
}

/// Whether the engine dumps into memory. Where that cannot be read, none does.
#[must_use]
pub fn is_on(engine: Engine) -> bool {
    let switches = Root::default().switches();
    switches.is_ok_and(|s| s.engines.contains(&engine))
}

/// How an engine stands to vascriu.
#[derive(Debug, Serialize)]
pub struct Status {
    /// The engine.
    pub engine: Engine,
    /// Whether it is on this machine.
    pub installed: bool,
    /// Whether it was enabled.
    pub enabled: bool,
    /// Whether all is as it was wanted.
    pub ok: bool,
    /// In words.
    pub says: String,
}

/// How the engines of this machine stand to vascriu, those that were enabled included.
#[must_use]
pub fn status() -> Vec<Status> {
    let path = env::var_os("PATH").unwrap_or_else(|| USUAL_PATH.into());
    let of = |engine| {
        let installed = look_up(program(engine), &path).is_some();
        let enabled = is_on(engine);
        let (ok, says) = match (enabled, installed) {
            (false, _) => (true, "uses the stock CRIU".to_owned()),
            (true, false) => (false, "is enabled, but not installed".to_owned()),
            (true, true) => found_by(engine, &path),
        };
        Status {
            engine,
            installed,
            enabled,
            ok,
            says,
        }
    };
    let all = Engine::ALL.into_iter().map(of);
    all.filter(|s| s.installed || s.enabled).collect()
}

fn program(engine: Engine) -> &'static str {
    match engine {
        Engine::Docker => "dockerd",
        Engine::Podman => "podman",
        Engine::Containerd => "containerd",
        Engine::Runc => "runc",
    }
}

fn look_up(program: &str, path: &OsString) -> Option<PathBuf> {
    let mut found = env::split_paths(path).map(|dir| dir.join(program));
    found.find(|p| identity(p).is_some())
}

/// Which CRIU the engine finds, and whether that is us.
fn found_by(engine: Engine, own: &OsString) -> (bool, String) {
    let (who, path) = match engine {
        // Docker leaves it to containerd, which may be one of its own.
        Engine::Docker | Engine::Containerd => match running("containerd") {
            Some((pid, path)) => (format!("containerd ({pid})"), path),
            None => ("a service".to_owned(), USUAL_PATH.into()),
        },
        Engine::Podman | Engine::Runc => ("it".to_owned(), own.clone()),
    };
    match look_up("criu", &path) {
        Some(found) if identity(&found) == identity(Path::new("/proc/self/exe")) => (
            true,
            format!("dumps into memory: {who} finds {}", found.display()),
        ),
        found => {
            let found = found.map_or("no criu".to_owned(), |f| f.display().to_string());
            let path = path.display();
            (
                false,
                format!(
                    "is enabled, but {who} finds {found}: its PATH must have /usr/local/sbin first, and is {path}"
                ),
            )
        }
    }
}

/// A running program of this name, and its PATH.
fn running(name: &str) -> Option<(i32, OsString)> {
    process::all()
        .filter(|&pid| process::comm(pid).is_ok_and(|c| c == name))
        .find_map(|pid| {
            let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
            let path = environ
                .split(|&b| b == 0)
                .find_map(|v| v.strip_prefix(b"PATH="));
            let path = path.map(|p| OsString::from_vec(p.to_vec()));
            Some((pid, path.unwrap_or_else(|| USUAL_PATH.into())))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Machine {
        dir: tempfile::TempDir,
        root: Root,
        us: PathBuf,
    }

    impl Machine {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("temp dir");
            let us = dir.path().join("vascriu");
            fs::write(&us, "").expect("write");
            fs::set_permissions(&us, fs::Permissions::from_mode(0o755)).expect("mode");
            let root = Root(dir.path().into());
            Self { dir, root, us }
        }

        fn files(&self) -> Vec<PathBuf> {
            fn below(dir: &Path) -> Vec<PathBuf> {
                let entries = dir.read_dir().expect("directory").flatten();
                let mut all: Vec<_> = entries
                    .flat_map(|e| {
                        if e.path().is_dir() {
                            below(&e.path())
                        } else {
                            vec![e.path()]
                        }
                    })
                    .collect();
                all.sort();
                all
            }
            below(self.dir.path())
        }
    }

    #[test]
    fn what_enable_made_disable_undoes() {
        let m = Machine::new();
        let before = m.files();
        let done = m.root.enable(Engine::Docker, &m.us).expect("enabled");
        assert_eq!(done.len(), 2, "{done:?}");
        assert_eq!(identity(&m.root.join(LINK)), identity(&m.us));
        let undone = m.root.disable(Engine::Docker, &m.us).expect("disabled");
        assert_eq!(undone.len(), 2, "{undone:?}");
        assert_eq!(m.files(), before);
    }

    #[test]
    fn a_second_time_changes_nothing() {
        let m = Machine::new();
        m.root.enable(Engine::Podman, &m.us).expect("enabled");
        let files = m.files();
        assert_eq!(
            m.root.enable(Engine::Podman, &m.us).expect("again"),
            [""; 0]
        );
        assert_eq!(m.files(), files);
        m.root.disable(Engine::Podman, &m.us).expect("disabled");
        assert_eq!(
            m.root.disable(Engine::Podman, &m.us).expect("again"),
            [""; 0]
        );
    }

    #[test]
    fn each_engine_is_switched_by_itself() {
        let m = Machine::new();
        for engine in [Engine::Docker, Engine::Runc] {
            m.root.enable(engine, &m.us).expect("enabled");
        }
        m.root.disable(Engine::Docker, &m.us).expect("disabled");
        let on = m.root.switches().expect("read").engines;
        assert_eq!(on.into_iter().collect::<Vec<_>>(), [Engine::Runc]);
        assert!(m.root.join(LINK).exists());
    }

    #[test]
    fn a_criu_that_is_not_ours_is_neither_replaced_nor_removed() {
        let m = Machine::new();
        let other = m.root.join(LINK);
        fs::create_dir_all(other.parent().expect("a parent")).expect("directory");
        fs::write(&other, "another").expect("write");
        let refused = m.root.enable(Engine::Docker, &m.us);
        assert!(matches!(refused, Err(Error::Taken(_))));
        assert_eq!(
            m.root.disable(Engine::Docker, &m.us).expect("nothing"),
            [""; 0]
        );
        assert_eq!(fs::read_to_string(&other).expect("read"), "another");
    }

    #[test]
    fn a_damaged_file_is_not_overwritten() {
        let m = Machine::new();
        m.root.enable(Engine::Docker, &m.us).expect("enabled");
        fs::write(m.root.join(FILE), "{").expect("write");
        let refused = m.root.enable(Engine::Runc, &m.us);
        assert!(matches!(refused, Err(Error::Damaged(..))));
    }
}
