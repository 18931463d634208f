// SPDX-License-Identifier: GPL-2.0-only
//! Our own programs: built by cargo, found by what cargo reports.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// Something that cargo built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// The name of the target, such as `vascriu` or `guest_dump`.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// The file.
    pub path: PathBuf,
}

/// The kinds of artifacts that go into an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A command.
    Binary,
    /// A shared library for a program that is not Rust.
    Cdylib,
    /// An integration test.
    Test,
}

/// The lines of `cargo --message-format=json` that matter here.
#[derive(Deserialize)]
struct Message {
    reason: String,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// What `cargo metadata` tells, as far as it matters here.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    targets: Vec<Target>,
}

/// Runs `cargo ARGS` in `workspace` and returns what it built.
///
/// # Errors
/// When cargo is missing or fails.
pub fn build(workspace: &Path, args: &[&str]) -> Result<Vec<Artifact>> {
    let json = ["--message-format=json-render-diagnostics"];
    Ok(parse(&run(workspace, &[args, &json].concat())?))
}

/// The integration tests of the workspace whose names begin with `prefix`.
///
/// # Errors
/// When cargo is missing or fails.
pub fn integration_tests(workspace: &Path, prefix: &str) -> Result<Vec<String>> {
    let metadata = run(workspace, &["metadata", "--no-deps", "--format-version=1"])?;
    let metadata: Metadata = serde_json::from_str(&metadata).context("cargo metadata")?;
    Ok(metadata
        .packages
        .into_iter()
        .flat_map(|package| package.targets)
        .filter(|target| target.kind == ["test"] && target.name.starts_with(prefix))
        .map(|target| target.name)
        .collect())
}

fn run(workspace: &Path, args: &[&str]) -> Result<String> {
    // Under `cargo run`, CARGO names the very cargo that runs us.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(workspace)
        .args(args)
        .arg("--locked")
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo: install Rust's stable tool chain")?;
    ensure!(
        output.status.success(),
        "cargo {} failed ({})",
        args.join(" "),
        output.status
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Reads cargo's messages; lines that are not messages are skipped.
#[must_use]
pub fn parse(messages: &str) -> Vec<Artifact> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter_map(artifact)
        .collect()
}

fn artifact(message: Message) -> Option<Artifact> {
    if message.reason != "compiler-artifact" {
        return None;
    }
    let target = message.target?;
    let is = |kind: &str| target.kind.iter().any(|k| k == kind);
    let is_test = message.profile.is_some_and(|p| p.test);
    let (kind, path) = match message.executable {
        Some(path) if is_test && is("test") => (Kind::Test, path),
        Some(path) if !is_test && is("bin") => (Kind::Binary, path),
        None if is("cdylib") => {
            let so = message.filenames.into_iter();
            let mut so = so.filter(|f| f.extension().is_some_and(|e| e == "so"));
            (Kind::Cdylib, so.next()?)
        }
        _ => return None,
    };
    Some(Artifact {
        name: target.name,
        kind,
        path,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn commands_libraries_and_integration_tests_are_found_and_unit_tests_are_not() {
        let messages = r#"
            {"reason":"compiler-artifact","target":{"name":"vascriu","kind":["bin"]},"profile":{"test":false},"filenames":["/t/vascriu"],"executable":"/t/vascriu"}
            {"reason":"compiler-artifact","target":{"name":"vascriu","kind":["bin"]},"profile":{"test":true},"filenames":["/t/vascriu-1"],"executable":"/t/vascriu-1"}
            {"reason":"compiler-artifact","target":{"name":"vas_plugin","kind":["cdylib","rlib"]},"profile":{"test":false},"filenames":["/t/libvas_plugin.rlib","/t/libvas_plugin.so"],"executable":null}
            {"reason":"compiler-artifact","target":{"name":"guest","kind":["test"]},"profile":{"test":true},"filenames":["/t/guest-1"],"executable":"/t/guest-1"}
            {"reason":"compiler-artifact","target":{"name":"serde","kind":["lib"]},"profile":{"test":false},"filenames":["/t/libserde.rlib"],"executable":null}
            {"reason":"build-finished","success":true}
            warning: not a message
        "#;
        let found: Vec<_> = parse(messages)
            .into_iter()
            .map(|a| (a.name, a.kind, a.path))
            .collect();
        assert_eq!(
            found,
            [
                ("vascriu".into(), Kind::Binary, "/t/vascriu".into()),
                (
                    "vas_plugin".into(),
                    Kind::Cdylib,
                    "/t/libvas_plugin.so".into()
                ),
                ("guest".into(), Kind::Test, "/t/guest-1".into()),
            ]
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in ".{0,200}") {
            let _artifacts = parse(&text);
        }
    }

    #[test]
    fn integration_tests_are_listed_by_prefix_and_libraries_are_not() {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        let guest = ["guest", "guest_engines"];
        assert_eq!(integration_tests(root, "guest").unwrap(), guest);
        assert_eq!(integration_tests(root, "mvas_images").unwrap(), [""; 0]);
    }

    #[test]
    fn a_failing_cargo_is_an_error_with_its_arguments() {
        let error = build(Path::new("/"), &["no-such-command"]).unwrap_err();
        assert!(error.to_string().contains("no-such-command"), "{error}");
    }
}
