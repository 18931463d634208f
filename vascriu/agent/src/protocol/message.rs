// SPDX-License-Identifier: GPL-2.0-only
//! Requests and replies: the JSON part.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

/// Text of the operating system (an argument, a path): a JSON string where it is UTF-8, an
/// array of bytes where it is not.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OsText {
    /// UTF-8.
    Utf8(String),
    /// Anything else.
    Raw(Vec<u8>),
}

impl OsText {
    /// As the operating system takes it.
    pub fn as_os_str(&self) -> &OsStr {
        match self {
            Self::Utf8(text) => OsStr::new(text),
            Self::Raw(bytes) => OsStr::from_bytes(bytes),
        }
    }
}

impl<T: Into<OsString>> From<T> for OsText {
    fn from(text: T) -> Self {
        match text.into().into_string() {
            Ok(text) => Self::Utf8(text),
            Err(text) => Self::Raw(text.into_vec()),
        }
    }
}

impl fmt::Debug for OsText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_os_str().fmt(f)
    }
}

impl fmt::Display for OsText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_os_str().display().fmt(f)
    }
}

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub cols: u16,
}

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// The command and its arguments; not empty.
    pub argv: Vec<OsText>,
    /// Its environment: set over the agent's own, or instead of it (`clear_env`).
    #[serde(default)]
    pub env: Vec<(OsText, OsText)>,
    /// Do not inherit the agent's environment.
    #[serde(default)]
    pub clear_env: bool,
    /// Where it runs; the agent's default is the user's home.
    #[serde(default)]
    pub cwd: Option<OsText>,
    /// Run it on a terminal of this size: its output is then one stream, `Stdout`.
    #[serde(default)]
    pub tty: Option<WindowSize>,
    /// Who runs it, instead of the agent's own user (root): a name or a number, alone or with
    /// `:GROUP`, which is either, too.
    #[serde(default)]
    pub user: Option<String>,
}

impl Exec {
    /// `argv` in the agent's environment, without a terminal.
    pub fn new<T: Into<OsText>>(argv: impl IntoIterator<Item = T>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            clear_env: false,
            cwd: None,
            tty: None,
            user: None,
        }
    }
}

/// How a machine goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShutdownKind {
    /// Power off.
    PowerOff,
    /// Reset.
    Reboot,
}

/// What a client asks for; one per session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Run a command: `Started`, then data both ways, then `Ended`.
    Exec(Exec),
    /// Take an archive on `Stdin` and put its one root entry at `dest`: `Ready`, data until
    /// its end, then `Done`. Nothing is seen at `dest` before all of it is there.
    CopyIn {
        /// The file or folder to make; an existing folder takes the entry under its own name.
        dest: OsText,
        /// Name of the root entry at its source.
        name: OsText,
    },
    /// Send `path` as an archive on `Stdout`: `Ready`, data until its end, then `Done`.
    CopyOut {
        /// A file or folder.
        path: OsText,
    },
    /// Connect to this TCP port of the guest's loopback address: `Ready`, then data both ways,
    /// `Stdin` and `Stdout`, each to its end; when both have ended, `Done`.
    Connect {
        /// The port; not 0.
        port: u16,
    },
    /// Say who and how old you are.
    Info,
    /// Write everything to disk, say `Done`, and go down.
    Shutdown(ShutdownKind),
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommandEnd {
    /// By itself, with this exit code.
    Code(u8),
    /// By this signal.
    Signal(i32),
}

impl CommandEnd {
    /// As a shell reports it: the code, or 128 + the signal.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => u8::try_from(128 + signal.clamp(0, 127)).unwrap_or(255),
        }
    }
}

impl fmt::Display for CommandEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(number) => match Signal::try_from(*number) {
                Ok(signal) => write!(f, "signal {signal}"),
                Err(_) => write!(f, "signal {number}"),
            },
        }
    }
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Version of the agent.
    pub agent: String,
    /// Release of the kernel it runs on.
    pub kernel: String,
    /// Host name.
    pub hostname: String,
    /// From the kernel's start until the agent served, milliseconds.
    pub boot_ms: u64,
    /// From the kernel's start until now, milliseconds.
    pub uptime_ms: u64,
}

/// The class of a failure, where a caller treats it apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The command was not found (a shell's exit code 127).
    CommandNotFound,
    /// The command was found but could not be run (126).
    CommandNotRunnable,
    /// The request makes no sense or is not supported here.
    BadRequest,
    /// The operating system refused.
    Os,
}

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The command runs.
    Started {
        /// Its process id in the guest.
        pid: i32,
    },
    /// The command ended, and all of its output was sent. Ends the session.
    Ended(CommandEnd),
    /// Data may flow.
    Ready {
        /// How many bytes of file content are to be expected.
        bytes: u64,
    },
    /// Who answers. Ends the session.
    Info(Info),
    /// All of it was done. Ends the session.
    Done,
    /// It was not done, and nothing is left behind of it. Ends the session.
    Failed {
        /// Its class.
        kind: FailureKind,
        /// What failed, on what, and why.
        message: String,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_argument_survives_the_wire(bytes: Vec<u8>) {
            let text = OsText::from(OsString::from_vec(bytes.clone()));
            let json = serde_json::to_vec(&text).expect("text is serializable");
            let back: OsText = serde_json::from_slice(&json).expect("own output");
            prop_assert_eq!(back.as_os_str().as_bytes(), bytes.as_slice());
        }
    }

    #[test]
    fn a_signal_ends_like_in_a_shell() {
        assert_eq!(CommandEnd::Signal(9).exit_code(), 137);
        assert_eq!(CommandEnd::Code(7).exit_code(), 7);
        assert_eq!(CommandEnd::Signal(i32::MAX).exit_code(), 255);
        assert_eq!(CommandEnd::Signal(i32::MIN).exit_code(), 128);
    }

    #[test]
    fn an_unknown_field_of_exec_is_refused() {
        let json = r#"{"argv":["true"],"detach":true}"#;
        assert!(serde_json::from_str::<Exec>(json).is_err());
    }
}
