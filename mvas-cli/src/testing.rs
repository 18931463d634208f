// SPDX-License-Identifier: GPL-2.0-only
//! For the tests of our programs.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// Those that `completions` has.
const SHELLS: [&str; 5] = ["bash", "elvish", "fish", "powershell", "zsh"];

/// The completions of `program`, for every shell, have all commands that its help has and none
/// of `hidden`; another shell is refused by name.
///
/// # Panics
/// They do not.
pub fn assert_completions(program: &str, hidden: &[&str]) {
    let help = said(run(program, &["--help"]));
    let names: Vec<_> = commands(&help).collect();
    assert!(names.contains(&"completions"), "{help}");
    for shell in SHELLS {
        let script = said(run(program, &["completions", shell]));
        let has = |name: &str| words(&script).any(|word| word == name);
        let lacks: Vec<_> = names.iter().filter(|name| !has(name)).collect();
        assert!(lacks.is_empty(), "{shell} lacks {lacks:?}");
    }
    // This script has no descriptions.
    let script = said(run(program, &["completions", "bash"]));
    let tells: Vec<_> = words(&script)
        .filter(|word| hidden.contains(word))
        .collect();
    assert!(tells.is_empty(), "{tells:?}");

    let refused = run(program, &["completions", "tcsh"]);
    let error = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{error}");
    for text in ["tcsh"].iter().chain(&SHELLS) {
        assert!(error.contains(text), "{error}");
    }
}

/// `program man` writes pages into `dir`, among them `some`, and none of `hidden`; where it cannot, it says
/// where.
///
/// # Panics
/// It does not.
pub fn assert_pages(program: &str, dir: &Path, some: &[&str], hidden: &[&str]) {
    let path = |name: &str| dir.join(name);
    said(run(program, &["man", &path("").to_string_lossy()]));
    for name in some {
        let page = fs::read_to_string(path(name)).expect(name);
        assert!(page.contains("Example"), "{page}");
    }
    let name = Path::new(program).file_name().expect("a name");
    for command in hidden {
        let page = path(&format!("{}-{command}.1", name.display()));
        assert!(!page.exists(), "{}", page.display());
    }
    let refused = run(program, &["man", "/no/such"]);
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && error.contains("/no/such"),
        "{error}"
    );
}

fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().expect("starts")
}

fn said(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn words(script: &str) -> impl Iterator<Item = &str> {
    script.split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
}

/// The commands of a help text, less `help` itself.
fn commands(help: &str) -> impl Iterator<Item = &str> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    list.take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
}
