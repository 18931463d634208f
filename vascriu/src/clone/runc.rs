// SPDX-License-Identifier: GPL-2.0-only
//! Copies of containers: the stock `runc restore`, with the drop-in as its CRIU, from an image
//! directory that has nothing but a reference to the snapshot.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Maker;
use crate::criu::run;
use crate::criu::work::{self, Work};
use crate::dropin::{self, aside};
use crate::snapshot::images::DESCRIPTORS;
use crate::snapshot::reference::Reference;
use crate::text;

const RUNC: &str = "runc";
const CONFIG: &str = "config.json";
/// How long the tasks of a container that was not restored may take to end.
const ENDING: Duration = Duration::from_secs(10);
/// Removes a bundle of ours.
const RM: &str = "/bin/rm";

/// No copy was begun.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none.
    #[error("there is no `runc`: install the package `runc`")]
    NoRunc,
    /// It does not say what there is.
    #[error("`runc list` failed: {0}")]
    List(String),
    /// It cannot be read.
    #[error("{0} is no bundle: a bundle has a `config.json`, as `runc spec` makes it")]
    NoBundle(PathBuf, #[source] io::Error),
    /// It is no JSON.
    #[error("{0} is damaged")]
    Damaged(PathBuf, #[source] serde_json::Error),
    /// The file system of the containers is not there.
    #[error("the bundle's root file system {0} is no directory")]
    NoRoot(PathBuf),
}

/// An OCI bundle.
#[derive(Debug)]
pub struct Bundle {
    path: PathBuf,
    config: Value,
}

/// What makes containers.
#[derive(Debug)]
pub struct Runc {
    /// What they are made of.
    pub bundle: Bundle,
    /// The snapshot.
    pub reference: Reference,
    /// What its first three descriptors were, as runc has written it.
    pub descriptors: Vec<u8>,
    /// More for `runc restore`.
    pub options: Vec<String>,
}

/// A snapshot's name as a container's, which may have no `@`.
#[must_use]
pub fn container_name(snapshot: &str) -> String {
    snapshot.replace('@', "_")
}

/// The numbers that make `NAME-NUMBER` a container that runc has.
///
/// # Errors
/// There is no runc, or it does not work.
pub fn taken_numbers(name: &str) -> Result<Vec<u32>, Error> {
    let out = Command::new(RUNC).args(["list", "-q"]).output();
    let out = out.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Error::NoRunc,
        _ => Error::List(e.to_string()),
    })?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        return Err(Error::List(said.trim().into()));
    }
    let there = String::from_utf8_lossy(&out.stdout).into_owned();
    Ok(numbers(name, &there))
}

fn numbers(name: &str, containers: &str) -> Vec<u32> {
    let number = |line: &str| {
        line.trim()
            .strip_prefix(name)?
            .strip_prefix('-')?
            .parse()
            .ok()
    };
    containers.lines().filter_map(number).collect()
}

impl Bundle {
    /// The bundle in that directory.
    ///
    /// # Errors
    /// It is none.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let none = |e| Error::NoBundle(path.into(), e);
        let dir = path.canonicalize().map_err(none)?;
        let file = dir.join(CONFIG);
        let config = fs::read(&file).map_err(none)?;
        let config = serde_json::from_slice(&config).map_err(|e| Error::Damaged(file, e))?;
        let bundle = Self { path: dir, config };
        match bundle.root() {
            root if root != bundle.path && root.is_dir() => Ok(bundle),
            root => Err(Error::NoRoot(root)),
        }
    }

    fn root(&self) -> PathBuf {
        let root = self.config["root"]["path"].as_str().unwrap_or_default();
        self.path.join(root)
    }

    /// Whether a bundle is for one container only: it names its cgroup.
    fn is_for_one(&self) -> bool {
        !self.group().is_empty()
    }

    fn group(&self) -> &str {
        self.config["linux"]["cgroupsPath"]
            .as_str()
            .unwrap_or_default()
    }

    /// The cgroup of the container `id`, as runc finds it for a process in `own`; `None` where
    /// systemd makes cgroups, and removes them.
    fn group_of(&self, id: &str, own: &str) -> Option<PathBuf> {
        let group = if self.is_for_one() {
            beside(self.group(), id)
        } else {
            id.to_owned()
        };
        // One that is relative is beside runc's own.
        let base = Path::new(own).parent().unwrap_or(Path::new("/"));
        let below_root = base.join(&group);
        let below_root = below_root.strip_prefix("/").ok()?;
        (!group.contains(':')).then(|| Path::new(aside::CGROUPS).join(below_root))
    }

    /// Its configuration for the container `id` with a bundle at `path`, which goes with it.
    fn config_for(&self, id: &str, path: &Path) -> Value {
        let mut config = self.config.clone();
        config["root"]["path"] = json!(self.root());
        // What is relative is so to the bundle.
        for mount in config["mounts"].as_array_mut().into_iter().flatten() {
            let binds = |o: &Value| o == "bind" || o == "rbind";
            let is_bind = mount["type"] == "bind"
                || mount["options"]
                    .as_array()
                    .is_some_and(|o| o.iter().any(binds));
            if let Some(source) = mount["source"].as_str().filter(|_| is_bind) {
                mount["source"] = json!(self.path.join(source));
            }
        }
        config["linux"]["cgroupsPath"] = json!(beside(self.group(), id));
        let gone = json!({"path": RM, "args": ["rm", "-rf", "--", path]});
        match config["hooks"]["poststop"].as_array_mut() {
            Some(hooks) => hooks.push(gone),
            None => config["hooks"]["poststop"] = json!([gone]),
        }
        config
    }

    /// Where the container `id` has its bundle: this one, or one of its own.
    fn of(&self, id: &str) -> io::Result<PathBuf> {
        if !self.is_for_one() {
            return Ok(self.path.clone());
        }
        let path = own_path(id);
        work::make_root()?;
        // What a container has left that went without runc.
        remove(&path)?;
        fs::create_dir(&path)?;
        let config = self.config_for(id, &path).to_string();
        fs::write(path.join(CONFIG), config).inspect_err(|_| drop(remove(&path)))?;
        Ok(path)
    }
}

fn own_path(id: &str) -> PathBuf {
    work::root().join(format!("bundle-{id}"))
}

fn remove(bundle: &Path) -> io::Result<()> {
    match fs::remove_dir_all(bundle) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// The cgroup of the container `id` beside another's: a path, or systemd's `slice:prefix:name`.
fn beside(group: &str, id: &str) -> String {
    let end = group.rfind([':', '/']).map_or(0, |at| at + 1);
    format!("{}{id}", &group[..end])
}

/// Removes the cgroup of a container that was not restored. runc has tried, but not for long:
/// a cgroup whose tasks are still ending cannot be removed. One that has tasks stays.
fn remove_group(group: &Path) {
    let begun = Instant::now();
    while let Err(e) = fs::remove_dir(group)
        && e.kind() == io::ErrorKind::ResourceBusy
        && begun.elapsed() < ENDING
    {
        sleep(Duration::from_millis(10));
    }
}

/// What is made for one `runc restore`.
struct Place {
    work: Work,
}

impl Place {
    fn new(runc: &Runc) -> io::Result<Self> {
        let this = Self {
            work: Work::new().map_err(io::Error::other)?,
        };
        let (images, bin) = (this.join("images"), this.join("bin"));
        fs::create_dir(&images)?;
        fs::create_dir(&bin)?;
        let dir = File::open(&images)?;
        runc.reference.put(dir.as_fd()).map_err(io::Error::other)?;
        fs::write(images.join(DESCRIPTORS), &runc.descriptors)?;
        std::os::unix::fs::symlink(std::env::current_exe()?, bin.join(dropin::NAME))?;
        Ok(this)
    }

    fn join(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    /// A PATH whose CRIU is the drop-in.
    fn path(&self) -> OsString {
        let usual = std::env::var_os("PATH").unwrap_or_default();
        let dirs = std::iter::once(self.join("bin")).chain(std::env::split_paths(&usual));
        std::env::join_paths(dirs).unwrap_or(usual)
    }

    fn command(&self, bundle: &Path) -> Command {
        let mut command = Command::new(RUNC);
        command
            .arg("--log")
            .arg(self.join("runc.log"))
            .args(["restore", "--detach", "--bundle"])
            .arg(bundle)
            .arg("--image-path")
            .arg(self.join("images"))
            .arg("--work-path")
            .arg(self.work.path())
            .arg("--pid-file")
            .arg(self.join("pid"))
            .env("PATH", self.path());
        command
    }

    fn read(&self, name: &str) -> String {
        fs::read(self.join(name))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Why runc failed: what it says, and what CRIU does.
    fn why(&self) -> String {
        let mut lines = vec!["runc's restore failed".to_owned()];
        lines.extend(said(&self.read("runc.log")));
        lines.extend(run::errors(&self.read("restore.log")));
        lines.join("\n  ")
    }
}

/// The messages of errors in a log of runc's.
fn said(log: &str) -> Vec<String> {
    let message = |line: &str| {
        let (head, message) = line.split_once(" msg=")?;
        let message = message.trim_matches('"').replace("\\\"", "\"");
        // Where CRIU's log was, which is gone by then.
        let message = message.split("\\nlog file:").next()?.to_owned();
        head.contains("level=error").then_some(message)
    };
    log.lines().filter_map(message).collect()
}

impl Runc {
    fn restore(&self, id: &str) -> io::Result<Result<i32, String>> {
        let place = Place::new(self)?;
        let bundle = self.bundle.of(id)?;
        let status = place
            .command(&bundle)
            .args(&self.options)
            .arg(id)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        let pid = place.read("pid").trim().parse();
        let why = match (&status, pid) {
            (Ok(status), Ok(pid)) if status.success() => return Ok(Ok(pid)),
            (Ok(status), _) => match status.signal() {
                // It had no time to clear up.
                Some(signal) => {
                    delete(id);
                    format!("runc was killed by signal {signal}")
                }
                None => place.why(),
            },
            (Err(e), _) => format!("cannot run `runc`: {e}"),
        };
        let own = aside::cgroup("self").and_then(|directory| aside::group(&directory));
        if let Some(group) = own.and_then(|own| self.bundle.group_of(id, &own)) {
            remove_group(&group);
        }
        if self.bundle.is_for_one() {
            let _ = remove(&bundle);
        }
        Ok(Err(why))
    }
}

fn delete(id: &str) {
    let _ = Command::new(RUNC)
        .args(["delete", "--force", id])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

impl Maker for Runc {
    fn make(&self, name: &str) -> Result<i32, String> {
        let done = self.restore(name);
        done.map_err(|e| format!("cannot prepare it: {}", text::chain(&e)))?
    }

    fn end(&self, name: &str, _: i32) {
        delete(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_that_are_called_as_copies_have_their_numbers() {
        let there = "web\nweb-2\nweb-x\nnew-web-1\nweb-4\nweb-99999999999\n";
        assert_eq!(numbers("web", there), [2, 4]);
    }

    #[test]
    fn a_copys_cgroup_is_beside_the_bundles() {
        assert_eq!(beside("/docker/4f5e", "web-1"), "/docker/web-1");
        assert_eq!(beside("web", "web-1"), "web-1");
        assert_eq!(
            beside("system.slice:docker:4f5e", "web-1"),
            "system.slice:docker:web-1"
        );
    }

    #[test]
    fn the_cgroup_of_a_copy_is_where_runc_makes_it() {
        let bundle = |group: &str| Bundle {
            path: "/b".into(),
            config: json!({"linux": {"cgroupsPath": group}}),
        };
        let at = |group, own: &str| bundle(group).group_of("c-1", own);
        let path = |p: &str| Some(Path::new(aside::CGROUPS).join(p));
        assert_eq!(at("", "/"), path("c-1"));
        assert_eq!(at("", "/user/shell"), path("user/c-1"));
        assert_eq!(at("/docker/4f5e", "/user/shell"), path("docker/c-1"));
        assert_eq!(at("system.slice:docker:4f5e", "/user/shell"), None);
    }

    #[test]
    fn runcs_errors_are_told_without_its_log() {
        let log = "time=\"1\" level=info msg=x\n\
                   time=\"2\" level=error msg=\"no \\\"c\\\": y\\nlog file: /tmp/restore.log\"\n";
        assert_eq!(said(log), ["no \"c\": y"]);
    }

    #[test]
    fn a_derived_bundle_is_the_bundle_but_for_the_cgroup_and_goes_with_its_container() {
        let dir = tempfile::tempdir().expect("temp dir");
        fs::create_dir(dir.path().join("rootfs")).expect("directory");
        let config = json!({
            "root": {"path": "rootfs"},
            "mounts": [
                {"source": "data", "options": ["rbind"]}, {"source": "/x", "type": "bind"},
                {"source": "proc", "type": "proc"},
            ],
            "linux": {"cgroupsPath": "/a/b"},
        });
        fs::write(dir.path().join(CONFIG), config.to_string()).expect("write");
        let bundle = Bundle::open(dir.path()).expect("a bundle");
        assert!(bundle.is_for_one());

        let derived = bundle.config_for("c-1", Path::new("/run/b"));

        assert_eq!(derived["root"]["path"], json!(bundle.path.join("rootfs")));
        assert_eq!(
            derived["mounts"][0]["source"],
            json!(bundle.path.join("data"))
        );
        assert_eq!(derived["mounts"][1]["source"], "/x");
        assert_eq!(derived["mounts"][2]["source"], "proc");
        assert_eq!(derived["linux"]["cgroupsPath"], "/a/c-1");
        assert_eq!(derived["hooks"]["poststop"][0]["args"][3], "/run/b");
    }

    #[test]
    fn what_is_no_bundle_says_what_one_is() {
        let dir = tempfile::tempdir().expect("temp dir");
        let said = || text::chain(&Bundle::open(dir.path()).expect_err("none"));
        assert!(said().contains("runc spec"), "{}", said());
        fs::write(dir.path().join(CONFIG), "{").expect("write");
        assert!(said().contains("damaged"), "{}", said());
        fs::write(dir.path().join(CONFIG), r#"{"root":{"path":"no"}}"#).expect("write");
        assert!(said().contains("root file system"), "{}", said());
    }
}
