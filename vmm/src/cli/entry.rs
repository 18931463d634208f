// SPDX-License-Identifier: GPL-2.0-only
//! What `run` runs in the guest: the user's command, or the image's.

use std::ffi::OsString;

use mvas_agent::protocol::Exec;
use mvas_images::own::Settings;

/// The user's words are arguments of the image's entry point, or, where it has none, the command.
/// Without words the image's own arguments are taken. No word at all: a login is wanted.
pub(super) fn entry(settings: Settings, command: Vec<OsString>) -> Exec {
    let mut argv: Vec<OsString> = settings.entrypoint.iter().map(OsString::from).collect();
    match command.is_empty() {
        true => argv.extend(settings.cmd.iter().map(OsString::from)),
        false => argv.extend(command),
    }
    let mut exec = Exec::new(argv);
    let env = settings.env.into_iter();
    exec.env = env
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    exec.cwd = settings.workdir.map(Into::into);
    exec.user = settings.user;
    exec
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(entrypoint: &[&str], cmd: &[&str], command: &[&str]) -> Vec<String> {
        let owned = |words: &[&str]| words.iter().map(ToString::to_string).collect();
        let settings = Settings {
            entrypoint: owned(entrypoint),
            cmd: owned(cmd),
            ..Settings::default()
        };
        let command = command.iter().map(OsString::from).collect();
        let exec = entry(settings, command);
        exec.argv.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn words_are_the_command_or_what_the_entry_point_gets() {
        assert_eq!(argv(&["init"], &["serve"], &[]), ["init", "serve"]);
        assert_eq!(argv(&["init"], &["serve"], &["x", "y"]), ["init", "x", "y"]);
        assert_eq!(argv(&[], &["sh"], &[]), ["sh"]);
        assert_eq!(argv(&[], &["sh"], &["ls", "/"]), ["ls", "/"]);
        assert!(argv(&[], &[], &[]).is_empty());
    }

    #[test]
    fn environment_folder_and_user_are_the_images() {
        let settings = Settings {
            env: [("A".to_owned(), "1".to_owned())].into(),
            workdir: Some("/data".to_owned()),
            user: Some("999:999".to_owned()),
            ..Settings::default()
        };
        let exec = entry(settings, vec!["true".into()]);
        assert_eq!(exec.env, [("A".to_owned().into(), "1".to_owned().into())]);
        assert_eq!(exec.cwd, Some("/data".to_owned().into()));
        assert_eq!(exec.user.as_deref(), Some("999:999"));
    }
}
