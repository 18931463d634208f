// SPDX-License-Identifier: GPL-2.0-only
//! Whether the store is deleted when its user logs out.
//!
//! systemd-logind removes what a user has in `/dev/shm` with the last session (`RemoveIPC=`,
//! logind.conf(5); on unless it is set), what is mounted there as well, and the folder
//! `/run/user/UID`. Not of root and system users, and not of users who linger (loginctl(1)).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The first number of users who are people (systemd's default).
const FIRST_USER: u32 = 1000;
/// Where logind's configuration is, most important first.
const FOLDERS: [&str; 4] = [
    "etc/systemd",
    "run/systemd",
    "usr/local/lib/systemd",
    "usr/lib/systemd",
];

/// The user whose store it is.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    pub uid: u32,
    pub name: &'a str,
}

/// What deletes a store at `path` at its owner's last logout, and what to do about it, on the
/// host whose root is `root`; `None` if nothing does.
pub fn deletes(root: &Path, path: &Path, owner: Owner<'_>) -> Option<(String, String)> {
    let runtime = PathBuf::from(format!("/run/user/{}", owner.uid));
    let is_run_by_logind = root.join("run/systemd/users").is_dir();
    let lingers = root
        .join("var/lib/systemd/linger")
        .join(owner.name)
        .exists();
    if !is_run_by_logind || owner.uid < FIRST_USER || lingers {
        return None;
    }
    let linger = format!("loginctl enable-linger {}", owner.name);
    let elsewhere = "put the store into a tmpfs elsewhere ($MVAS_STORE)";
    let what = format!(
        "logind deletes the store with all snapshots, and the memory of VMs that run, when {} logs out",
        owner.name
    );
    if path.starts_with(runtime) {
        return Some((what, format!("{linger}, or {elsewhere}")));
    }
    if path.starts_with("/dev/shm") && removes_ipc(root) {
        let off = "set RemoveIPC=no in /etc/systemd/logind.conf";
        return Some((what, format!("{linger}, or {off}, or {elsewhere}")));
    }
    None
}

/// Whether logind is configured to remove shared memory.
fn removes_ipc(root: &Path) -> bool {
    let main = FOLDERS.iter().map(|dir| root.join(dir).join("logind.conf"));
    let main = main
        .into_iter()
        .find_map(|path| fs::read_to_string(path).ok());
    // By name; one in a less important folder does not count beside one of its name.
    let mut more = BTreeMap::new();
    for folder in FOLDERS.iter().rev() {
        let files = fs::read_dir(root.join(folder).join("logind.conf.d"));
        for file in files.into_iter().flatten().flatten() {
            if file.path().extension().is_some_and(|end| end == "conf") {
                more.insert(file.file_name(), file.path());
            }
        }
    }
    let more = more
        .values()
        .filter_map(|path| fs::read_to_string(path).ok());
    let all: Vec<String> = main.into_iter().chain(more).collect();
    let mut said = all.iter().flat_map(|text| text.lines()).filter_map(setting);
    said.next_back().unwrap_or(true)
}

/// What a line sets it to; an empty value means the default.
fn setting(line: &str) -> Option<bool> {
    let (name, value) = line.split_once('=')?;
    if name.trim() != "RemoveIPC" {
        return None;
    }
    match value.trim().to_ascii_lowercase().as_str() {
        "0" | "no" | "n" | "false" | "f" | "off" => Some(false),
        "" | "1" | "yes" | "y" | "true" | "t" | "on" => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner<'_> = Owner {
        uid: 1000,
        name: "ann",
    };
    const STORE: &str = "/dev/shm/mvas-1000";
    const LOGIND: (&str, &str) = ("run/systemd/users/.keep", "");
    const OFF: &str = "[Login]\n#RemoveIPC=yes\nRemoveIPC=no\n";

    fn on_host(files: &[(&str, &str)], store: &str, owner: Owner<'_>) -> Option<(String, String)> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        deletes(root.path(), Path::new(store), owner)
    }

    #[test]
    fn a_store_of_somebody_who_logs_in_is_in_danger_and_the_ways_out_are_told() {
        let (what, to_do) = on_host(&[LOGIND], STORE, OWNER).unwrap();
        assert!(what.contains("when ann logs out"), "{what}");
        for words in ["enable-linger ann", "RemoveIPC=no", "MVAS_STORE"] {
            assert!(to_do.contains(words), "{to_do}");
        }
        // Whatever is configured: the folder itself goes.
        let conf = ("etc/systemd/logind.conf", OFF);
        let (_, to_do) = on_host(&[LOGIND, conf], "/run/user/1000/store", OWNER).unwrap();
        assert!(!to_do.contains("RemoveIPC"), "{to_do}");
    }

    #[test]
    fn other_places_users_and_hosts_are_safe() {
        let root = Owner {
            uid: 0,
            name: "root",
        };
        let lingers = ("var/lib/systemd/linger/ann", "");
        for (files, store, owner) in [
            (&[][..], STORE, OWNER),
            (&[LOGIND], STORE, root),
            (&[LOGIND], "/srv/mvas", OWNER),
            (&[LOGIND], "/run/user/1001/store", OWNER),
            (&[LOGIND, lingers], STORE, OWNER),
            (&[LOGIND, lingers], "/run/user/1000/store", OWNER),
        ] {
            assert_eq!(on_host(files, store, owner), None, "{files:?} {store}");
        }
    }

    #[test]
    fn the_last_word_of_the_configuration_counts() {
        let main = ("etc/systemd/logind.conf", OFF);
        let vendor = ("usr/lib/systemd/logind.conf", OFF);
        let later = ("etc/systemd/logind.conf.d/50-x.conf", "RemoveIPC = 1\n");
        let below = ("usr/lib/systemd/logind.conf.d/50-x.conf", OFF);
        let last = ("run/systemd/logind.conf.d/60-x.conf", OFF);
        let other = ("etc/systemd/logind.conf.d/70-x.txt", "RemoveIPC=yes\n");
        for (files, removed) in [
            (&[LOGIND, main][..], false),
            (&[LOGIND, vendor], false),
            (&[LOGIND, main, later], true),
            (&[LOGIND, later, below], true),
            (&[LOGIND, later, below, last, other], false),
        ] {
            let found = on_host(files, STORE, OWNER).is_some();
            assert_eq!(found, removed, "{files:?}");
        }
    }
}
