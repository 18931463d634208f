// SPDX-License-Identifier: GPL-2.0-only
//! Container engines: which container a process is, where they keep checkpoints, and
//! putting the drop-in before the stock CRIU for them.
//!
//! Engines are known by their files, not by asking their daemons: whoever is being
//! checkpointed must not wait for a daemon that waits for the checkpoint.

pub mod checkpoints;
pub mod export;
pub mod switch;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::process;
use crate::snapshot::label::Origin;
use crate::snapshot::name::{self, Name};

pub use switch::{Status, status};

/// An engine that we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// Docker: dockerd, containerd, runc.
    Docker,
    /// Podman: conmon, crun or runc.
    Podman,
    /// containerd by itself: ctr, nerdctl, CRI.
    Containerd,
    /// runc or crun by itself.
    Runc,
}

/// No engine.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no container engine that vascriu knows: docker, podman, containerd, runc")]
pub struct Unknown(String);

impl Engine {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Docker, Self::Podman, Self::Containerd, Self::Runc];

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Containerd => "containerd",
            Self::Runc => "runc",
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Engine {
    type Err = Unknown;

    fn from_str(text: &str) -> Result<Self, Unknown> {
        let found = Self::ALL.into_iter().find(|e| e.as_str() == text);
        found.ok_or_else(|| Unknown(text.into()))
    }
}

/// Where engines have their files: `/`, but in tests.
#[derive(Debug, Clone)]
pub struct Root(PathBuf);

impl Default for Root {
    fn default() -> Self {
        Self("/".into())
    }
}

impl Root {
    /// A file below it.
    fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn json(&self, path: impl AsRef<Path>) -> Option<Value> {
        serde_json::from_slice(&fs::read(self.join(path)).ok()?).ok()
    }

    /// Docker's data, which its configuration may have elsewhere.
    fn docker(&self) -> PathBuf {
        let config = self.json("etc/docker/daemon.json");
        let named = config.and_then(|c| c["data-root"].as_str().map(PathBuf::from));
        self.join(named.unwrap_or_else(|| "var/lib/docker".into()))
    }

    /// Podman's data.
    fn podman(&self) -> PathBuf {
        let named = self.setting("etc/containers/storage.conf", "graphroot");
        self.join(named.unwrap_or_else(|| "var/lib/containers/storage".into()))
    }

    /// containerd's data.
    fn containerd(&self) -> PathBuf {
        let named = self.setting("etc/containerd/config.toml", "root");
        self.join(named.unwrap_or_else(|| "var/lib/containerd".into()))
    }

    /// The text that a line of a configuration in TOML gives to `key`.
    fn setting(&self, file: &str, key: &str) -> Option<PathBuf> {
        let text = fs::read_to_string(self.join(file)).ok()?;
        let value = |line: &str| {
            let (name, value) = line.split_once('=')?;
            let value = value.trim().trim_matches(['"', '\'']);
            (name.trim() == key && !value.is_empty()).then(|| value.into())
        };
        text.lines().find_map(value)
    }

    /// Which container has this group and this root process.
    fn container(&self, group: &str, pid: i32) -> Option<(Engine, Container)> {
        let parts = group.rsplit('/').filter(|p| !p.is_empty());
        let engines = parts.map(unit).find_map(|(prefix, id)| {
            let name = match prefix {
                "libpod" => return Some((Engine::Podman, self.in_podman(id))),
                _ => self.docker_name(id),
            };
            if let Some(name) = name {
                let id = id.to_owned();
                return Some((Engine::Docker, Container { name, id }));
            }
            self.in_containerd(id).map(|c| (Engine::Containerd, c))
        });
        // The last: Podman's runc has its containers in the same place.
        engines.or_else(|| {
            let id = self.runc(pid)?;
            let name = id.clone();
            Some((Engine::Runc, Container { name, id }))
        })
    }

    fn docker_name(&self, id: &str) -> Option<String> {
        let file = self
            .docker()
            .join("containers")
            .join(id)
            .join("config.v2.json");
        let config: Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
        let name = config["Name"].as_str()?;
        Some(name.trim_start_matches('/').to_owned())
    }

    fn in_podman(&self, id: &str) -> Container {
        let name = |row: &Value| {
            (row["id"].as_str()? == id).then(|| row["names"][0].as_str().map(str::to_owned))?
        };
        let lists = self.podman().read_dir().into_iter().flatten().flatten();
        let found = lists
            .filter(|e| e.file_name().to_string_lossy().ends_with("-containers"))
            .filter_map(|e| fs::read(e.path().join("containers.json")).ok())
            .filter_map(|text| serde_json::from_slice::<Vec<Value>>(&text).ok())
            .find_map(|rows| rows.iter().find_map(name));
        Container {
            name: found.unwrap_or_else(|| id.to_owned()),
            id: id.to_owned(),
        }
    }

    fn in_containerd(&self, id: &str) -> Option<Container> {
        let tasks = self.join("run/containerd/io.containerd.runtime.v2.task");
        let mut namespaces = tasks.read_dir().ok()?.flatten();
        namespaces
            .any(|namespace| namespace.path().join(id).is_dir())
            .then(|| Container {
                name: id.to_owned(),
                id: id.to_owned(),
            })
    }

    /// The container of runc's own whose first process this is.
    fn runc(&self, pid: i32) -> Option<String> {
        let containers = self.join("run/runc").read_dir().ok()?.flatten();
        let mut ids = containers.filter_map(|e| e.file_name().into_string().ok());
        ids.find(|id| {
            let state = self.json(format!("run/runc/{id}/state.json"));
            state.is_some_and(|s| s["init_process_pid"].as_i64() == Some(pid.into()))
        })
    }
}

/// A container.
#[derive(Debug, PartialEq, Eq)]
struct Container {
    /// As people call it.
    name: String,
    /// As its engine does.
    id: String,
}

/// A part of a group's path as systemd names it, `PREFIX-ID.scope`, or bare.
fn unit(part: &str) -> (&str, &str) {
    let bare = part.strip_suffix(".scope").unwrap_or(part);
    match bare.rsplit_once('-') {
        // Its own containers' units; `conmon` has one as well.
        Some((prefix, id)) if part.len() > bare.len() || prefix == "libpod" => (prefix, id),
        _ => ("", bare),
    }
}

/// Whose container the process is. Where no engine's files tell, it is called after
/// `client`, the process that has it dumped, and after its group; processes that nobody but a
/// user has dumped are no container's.
#[must_use]
pub fn of(pid: i32, client: Option<i32>) -> (Option<Engine>, Origin) {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    // One line with cgroup v2; with v1 every controller says the same.
    let group = groups.lines().find_map(|l| l.splitn(3, ':').nth(2));
    let group = group.unwrap_or_default();
    let origin = |engine: &str, container, id: &str| Origin {
        engine: engine.to_owned(),
        container,
        id: (!id.is_empty()).then(|| id.to_owned()),
    };
    if let Some((engine, container)) = Root::default().container(group, pid) {
        let Container { name, id } = container;
        return (Some(engine), origin(engine.as_str(), Some(name), &id));
    }
    let Some(runtime) = client.and_then(|c| process::comm(c).ok()) else {
        return (None, Origin::process());
    };
    let (_, id) = unit(group.rsplit('/').next().unwrap_or_default());
    (by_itself(&runtime), origin(&runtime, None, id))
}

/// The engine that a runtime is where no other has started it; crun is switched as runc is.
fn by_itself(runtime: &str) -> Option<Engine> {
    match runtime {
        "crun" => Some(Engine::Runc),
        _ => runtime.parse().ok(),
    }
}

/// What a snapshot of such a container is called: as the container, as far as snapshots
/// can be called that.
#[must_use]
pub fn name_for(origin: &Origin) -> Option<Name> {
    // Engines show their identities by twelve digits.
    let id = || origin.id.as_ref().map(|id| id.chars().take(12).collect());
    sanitize(&origin.container.clone().or_else(id)?)
}

fn sanitize(text: &str) -> Option<Name> {
    let ok = |c: char| c.is_ascii_alphanumeric() || "._@+-".contains(c);
    let text: String = text
        .trim_start_matches(|c: char| !c.is_ascii_alphanumeric())
        .chars()
        .take(name::MAX)
        .map(|c| if ok(c) { c } else { '-' })
        .collect();
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4f5e6a7b8c9d0e1f2a3b4c5d6e7f8a9b0c1d2e3f4a5b6c7d8e9f0a1b2c3d4e5f";

    fn root(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().expect("temp dir");
        for (path, text) in files {
            let path = dir.path().join(path.replace("ID", ID));
            fs::create_dir_all(path.parent().expect("a parent")).expect("directory");
            fs::write(path, text.replace("ID", ID)).expect("write");
        }
        let root = Root(dir.path().into());
        (dir, root)
    }

    fn found(root: &Root, group: &str) -> Option<(Engine, String)> {
        let (engine, container) = root.container(&group.replace("ID", ID), 812)?;
        assert!(container.id == ID || container.id == container.name);
        Some((engine, container.name))
    }

    #[test]
    fn dockers_containers_are_known_by_their_names() {
        let config = (
            "var/lib/docker/containers/ID/config.v2.json",
            r#"{"Name":"/web"}"#,
        );
        let (_dir, root) = root(&[config]);
        for group in [
            "/system.slice/docker-ID.scope",
            "/docker/ID",
            "/docker/ID/init",
        ] {
            assert_eq!(
                found(&root, group),
                Some((Engine::Docker, "web".into())),
                "{group}"
            );
        }
    }

    #[test]
    fn docker_may_have_its_data_elsewhere() {
        let (_dir, root) = root(&[
            ("etc/docker/daemon.json", r#"{"data-root":"/srv/docker"}"#),
            (
                "srv/docker/containers/ID/config.v2.json",
                r#"{"Name":"/web"}"#,
            ),
        ]);
        assert_eq!(
            found(&root, "/docker/ID"),
            Some((Engine::Docker, "web".into()))
        );
    }

    #[test]
    fn podmans_containers_are_known_by_their_names() {
        let rows = r#"[{"id":"other","names":["no"]},{"id":"ID","names":["db"]}]"#;
        let list = "var/lib/containers/storage/overlay-containers/containers.json";
        // With runc, the container is known to that as well.
        let state = ("run/runc/ID/state.json", r#"{"init_process_pid":812}"#);
        let (_dir, root) = root(&[(list, rows), state]);
        for group in [
            "/machine.slice/libpod-ID.scope",
            "/machine.slice/libpod-ID.scope/container",
            "/libpod_parent/libpod-ID",
        ] {
            assert_eq!(
                found(&root, group),
                Some((Engine::Podman, "db".into())),
                "{group}"
            );
        }
        let (_dir, without) = self::root(&[]);
        let unnamed = found(&without, "/machine.slice/libpod-ID.scope");
        assert_eq!(unnamed, Some((Engine::Podman, ID.into())));
    }

    #[test]
    fn containerds_containers_are_known_by_their_ids() {
        let task = "run/containerd/io.containerd.runtime.v2.task/default/web-1/config.json";
        let (_dir, root) = root(&[(task, "{}")]);
        let web = Some((Engine::Containerd, "web-1".into()));
        assert_eq!(found(&root, "/default/web-1"), web);
        assert_eq!(found(&root, "/default/web-2"), None);
    }

    #[test]
    fn runcs_own_containers_are_known_by_their_first_process() {
        let (_dir, root) = root(&[
            ("run/runc/other/state.json", r#"{"init_process_pid":5}"#),
            ("run/runc/mine/state.json", r#"{"init_process_pid":812}"#),
        ]);
        assert_eq!(
            found(&root, "/anything"),
            Some((Engine::Runc, "mine".into()))
        );
    }

    #[test]
    fn crun_by_itself_is_switched_as_runc_is() {
        assert_eq!(by_itself("runc"), Some(Engine::Runc));
        assert_eq!(by_itself("crun"), Some(Engine::Runc));
        assert_eq!(by_itself("bash"), None);
    }

    #[test]
    fn other_processes_are_no_containers() {
        let (_dir, root) = root(&[]);
        for group in [
            "/",
            "",
            "/user.slice/user-0.slice/session-1.scope",
            "/docker/ID",
        ] {
            assert_eq!(found(&root, group), None, "{group}");
        }
    }

    #[test]
    fn a_snapshot_is_called_as_its_container_as_far_as_it_may_be() {
        let named = |container: Option<&str>, id: Option<&str>| {
            let origin = Origin {
                engine: "docker".into(),
                container: container.map(str::to_owned),
                id: id.map(str::to_owned),
            };
            name_for(&origin).map(|n| n.to_string())
        };
        assert_eq!(named(Some("web"), Some(ID)).as_deref(), Some("web"));
        assert_eq!(named(Some("_web/1 ü"), None).as_deref(), Some("web-1--"));
        assert_eq!(named(None, Some(ID)).as_deref(), Some("4f5e6a7b8c9d"));
        assert_eq!(named(Some("///"), None), None);
        assert_eq!(named(None, None), None);
    }
}
