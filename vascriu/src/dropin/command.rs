// SPDX-License-Identifier: GPL-2.0-only
//! `criu dump`, `criu pre-dump` and `criu restore` on the command line: as the stock CRIU
//! does them, with the images in a directory of their own.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigHandler, Signal};

use super::config::Config;
use super::job::{self, Error, Job, Ready};
use super::request::Refused;
use super::{become_criu, criu, criu_with_plugin, is_wanted};
use crate::criu::order::Order;
use crate::criu::rescue::Frozen;
use crate::snapshot::reference::Reference;
use crate::text;

/// CRIU's short options that take a value; those of `ATTACHED` only in the same word.
const SHORT_VALUES: &[u8] = b"tDorJWLM";
const SHORT_ATTACHED: &[u8] = b"vx";
/// CRIU's long options that take a value.
const LONG_VALUES: &[&str] = &[
    "tree",
    "images-dir",
    "work-dir",
    "log-file",
    "root",
    "libdir",
    "action-script",
    "pidfile",
    "prev-images-dir",
    "external",
    "inherit-fd",
    "veth-pair",
    "ext-mount-map",
    "skip-mnt",
    "enable-fs",
    "cgroup-root",
    "cgroup-props",
    "cgroup-props-file",
    "cgroup-dump-controller",
    "cgroup-yard",
    "freeze-cgroup",
    "ghost-limit",
    "irmap-scan-path",
    "lsm-profile",
    "lsm-mount-context",
    "timeout",
    "empty-ns",
    "join-ns",
    "file-validation",
    "network-lock",
    "config",
    "address",
    "port",
    "ps-socket",
    "status-fd",
    "pre-dump-mode",
    "tls-cacert",
    "tls-cacrl",
    "tls-cert",
    "tls-key",
];

/// A command line of CRIU, as far as it concerns us.
#[derive(Debug, Default, PartialEq, Eq)]
struct Line {
    action: Option<OsString>,
    tree: Option<OsString>,
    images: Option<PathBuf>,
    work: Option<PathBuf>,
    parent: Option<PathBuf>,
    freeze: Option<String>,
    leaves_tasks: bool,
    refused: Option<Refused>,
    /// What CRIU gets: all that is not taken out.
    rest: Vec<OsString>,
}

impl Line {
    /// Takes a command line apart as getopt_long() would.
    fn parse(args: &[OsString]) -> Self {
        let mut line = Self::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let bytes = arg.as_bytes();
            if bytes == b"--" {
                line.rest.push(arg.clone());
                line.rest.extend(args.by_ref().cloned());
            } else if let Some(long) = bytes.strip_prefix(b"--") {
                line.long(arg, long, &mut args);
            } else if bytes.len() > 1 && bytes[0] == b'-' {
                line.short(arg, &mut args);
            } else {
                line.action.get_or_insert_with(|| arg.clone());
                line.rest.push(arg.clone());
            }
        }
        line
    }

    fn long<'a>(
        &mut self,
        arg: &OsStr,
        long: &[u8],
        args: &mut impl Iterator<Item = &'a OsString>,
    ) {
        let end = long.iter().position(|&b| b == b'=');
        let name = String::from_utf8_lossy(&long[..end.unwrap_or(long.len())]).into_owned();
        // As CRIU, by a beginning that only one option has.
        let mut meant = LONG_VALUES.iter().filter(|n| n.starts_with(&name));
        let name = match (LONG_VALUES.contains(&&*name), meant.next(), meant.next()) {
            (false, Some(only), None) => (*only).to_owned(),
            _ => name,
        };
        let attached = end.map(|e| OsString::from_vec(long[e + 1..].to_vec()));
        let takes = LONG_VALUES.contains(&&*name) && attached.is_none();
        let next = if takes { args.next().cloned() } else { None };
        let value = attached.or_else(|| next.clone());
        if !self.take(&name, value.as_deref()) {
            self.rest.push(arg.to_owned());
            self.rest.extend(next);
        }
    }

    fn short<'a>(&mut self, arg: &OsStr, args: &mut impl Iterator<Item = &'a OsString>) {
        let bytes = arg.as_bytes();
        let mut kept = vec![b'-'];
        let mut next = None;
        for (at, &letter) in bytes.iter().enumerate().skip(1) {
            if SHORT_ATTACHED.contains(&letter) {
                kept.extend(&bytes[at..]);
                break;
            }
            if !SHORT_VALUES.contains(&letter) {
                self.leaves_tasks |= letter == b'R' || letter == b's';
                kept.push(letter);
                continue;
            }
            let attached = Some(&bytes[at + 1..]).filter(|v| !v.is_empty());
            let attached = attached.map(|v| OsString::from_vec(v.to_vec()));
            if attached.is_none() {
                next = args.next().cloned();
            }
            let name = match letter {
                b't' => "tree",
                b'D' => "images-dir",
                b'W' => "work-dir",
                b'L' => "libdir",
                _ => "",
            };
            if self.take(name, attached.as_deref().or(next.as_deref())) {
                next = None;
            } else {
                kept.extend(&bytes[at..]);
            }
            break;
        }
        if kept.len() > 1 {
            self.rest.push(OsString::from_vec(kept));
        }
        self.rest.extend(next);
    }

    /// Notes an option; whether CRIU is not to see it, for we say it ourselves.
    fn take(&mut self, name: &str, value: Option<&OsStr>) -> bool {
        let path = || value.map(PathBuf::from);
        match name {
            "images-dir" => self.images = path(),
            "work-dir" => self.work = path(),
            "prev-images-dir" => self.parent = path(),
            "libdir" | "track-mem" => {}
            "tree" => {
                self.tree = value.map(OsStr::to_owned);
                return false;
            }
            "freeze-cgroup" => {
                self.freeze = value.and_then(OsStr::to_str).map(str::to_owned);
                return false;
            }
            "leave-running" | "leave-stopped" => {
                self.leaves_tasks = true;
                return false;
            }
            "lazy-pages" => self.refused = Some(Refused::Lazy),
            "page-server" | "stream" => self.refused = Some(Refused::PageServer),
            "auto-dedup" => self.refused = Some(Refused::Dedup),
            "unprivileged" => self.refused = Some(Refused::Unprivileged),
            _ => return false,
        }
        true
    }

    fn pid(&self) -> Option<i32> {
        self.tree
            .as_ref()?
            .to_str()?
            .parse()
            .ok()
            .filter(|&p| p > 0)
    }

    fn images(&self) -> &Path {
        self.images.as_deref().unwrap_or(Path::new("."))
    }
}

/// Does what the command line says; `args` are those behind CRIU's name.
pub fn run(args: &[OsString]) -> ExitCode {
    let line = Line::parse(args);
    let action = line.action.as_deref().and_then(OsStr::to_str);
    let done = match (action, line.pid()) {
        (Some("pre-dump"), Some(pid)) if is_wanted(pid, None) => pre_dump(&line),
        (Some("dump"), Some(pid)) if is_wanted(pid, None) => dump(&line, pid),
        (Some("restore"), _) if refers(line.images()) => restore(&line),
        _ => return become_criu(criu(args.iter().cloned())),
    };
    done.unwrap_or_else(|e| {
        eprintln!("Error (vascriu): {}", text::chain(&e));
        ExitCode::FAILURE
    })
}

fn refers(images: &Path) -> bool {
    let dir = File::open(images);
    dir.is_ok_and(|dir| !matches!(Reference::load_at(dir.as_fd()), Ok(None)))
}

fn open(path: &Path) -> Result<OwnedFd, Error> {
    let opened = File::open(path).map_err(|e| Error::Directory(path.into(), e))?;
    Ok(opened.into())
}

fn check(line: &Line) -> Result<Config, Error> {
    match &line.refused {
        Some(refused) => Err(refused.clone().into()),
        None => Ok(Config::read(None)?),
    }
}

fn pre_dump(line: &Line) -> Result<ExitCode, Error> {
    job::pre_dump(open(line.images())?.as_fd())?;
    Ok(ExitCode::SUCCESS)
}

/// CRIU, made ready; what it needs of ours stays open as long as `ready`.
fn prepare(line: &Line, ready: &Ready) -> Result<Command, Error> {
    let work = line.work.as_deref().unwrap_or(line.images());
    let images = ready.images.path();
    let mut args: Vec<OsString> = vec!["--images-dir".into(), images.into()];
    args.extend(["--work-dir".into(), work.into()]);
    args.extend(line.rest.iter().cloned());
    let report = ready.report.as_fd().try_clone_to_owned()?;
    let reference = ready.reference.as_ref().map(OwnedFd::try_clone);
    let reference = reference.transpose()?;
    Ok(criu_with_plugin(
        ready.order.clone(),
        Some(report),
        reference,
        args,
    )?)
}

fn restore(line: &Line) -> Result<ExitCode, Error> {
    check(line)?;
    let reference = open(line.images())?;
    let ready = Job::Restore { reference }.ready()?;
    // The restored tasks are to be children of whoever has called us.
    Ok(become_criu(prepare(line, &ready)?))
}

fn dump(line: &Line, pid: i32) -> Result<ExitCode, Error> {
    let config = check(line)?;
    if let Some(parent) = &line.parent
        && !job::is_pre_dump(&line.images().join(parent))
    {
        return Err(Refused::Parent(parent.display().to_string()).into());
    }
    let ready = Job::Dump {
        pid,
        client: None,
        leaves_tasks: line.leaves_tasks || config.leaves_tasks,
        reference: open(line.images())?,
    }
    .ready()?;
    let group = line
        .freeze
        .clone()
        .map(|g| ["--freeze-cgroup".to_owned(), g]);
    let frozen = Frozen::look(group.as_ref().map_or(&[], |g| g));
    let mut command = prepare(line, &ready)?;
    // SAFETY: prctl with an integer is async-signal-safe.
    unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
    let mut criu = command.spawn()?;
    for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP] {
        // SAFETY: SIG_IGN runs no code. They are CRIU's; its end we have to see to.
        unsafe { nix::sys::signal::signal(signal, SigHandler::SigIgn) }?;
    }
    let status = criu.wait()?;
    if let Order::Dump(order) = &ready.order {
        let reference = ready.reference.as_ref().map(AsFd::as_fd);
        job::after_dump(order, pid, reference, &frozen, status.success());
    }
    let code = status.code().or(status.signal().map(|s| 128 + s));
    Ok(code.and_then(|c| u8::try_from(c).ok()).unwrap_or(1).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        Line::parse(&text.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    fn rest(line: &Line) -> String {
        let words: Vec<_> = line.rest.iter().filter_map(|w| w.to_str()).collect();
        words.join(" ")
    }

    #[test]
    fn places_are_taken_out_however_they_are_written() {
        for text in [
            "dump -t 812 -D /i -W /w -j",
            "dump -t 812 -jD/i -W/w",
            "-t 812 --images-dir=/i --work-dir /w dump -j",
            "dump --images /i --work-d=/w -t 812 -j -L /x",
        ] {
            let line = line(text);
            assert_eq!(line.images.as_deref(), Some(Path::new("/i")), "{text}");
            assert_eq!(line.work.as_deref(), Some(Path::new("/w")), "{text}");
            assert_eq!(
                (line.pid(), line.action.as_deref()),
                (Some(812), Some(OsStr::new("dump")))
            );
            let rest = rest(&line);
            assert!(
                rest.contains("-t 812") && rest.contains("-j"),
                "{text}: {rest}"
            );
            assert!(
                !rest.contains("/i") && !rest.contains("/w") && !rest.contains("/x"),
                "{rest}"
            );
        }
    }

    #[test]
    fn values_are_not_taken_for_the_action_or_for_options() {
        let l = line("--external dump -o restore restore -v4 -vD --pidfile -R");
        assert_eq!(l.action.as_deref(), Some(OsStr::new("restore")));
        assert_eq!((l.images.clone(), l.leaves_tasks), (None, false));
        assert_eq!(
            rest(&l),
            "--external dump -o restore restore -v4 -vD --pidfile -R"
        );
    }

    #[test]
    fn what_follows_a_double_dash_is_the_commands() {
        let l = line("restore -d --exec-cmd -- run -D /x");
        assert_eq!(
            (l.images.clone(), l.action.as_deref()),
            (None, Some(OsStr::new("restore")))
        );
        assert_eq!(rest(&l), "restore -d --exec-cmd -- run -D /x");
    }

    #[test]
    fn tasks_that_are_left_are_noticed() {
        for text in [
            "dump -t 1 -R",
            "dump -t 1 -sj",
            "dump -t 1 --leave-running",
            "-t1 --leave-stopped dump",
        ] {
            assert!(line(text).leaves_tasks, "{text}");
        }
        assert!(!line("dump -t 1 -j").leaves_tasks);
    }

    #[test]
    fn what_cannot_be_done_is_noticed() {
        assert_eq!(line("dump -t 1 --lazy-pages").refused, Some(Refused::Lazy));
        assert_eq!(
            line("dump -t 1 --page-server --port 5").refused,
            Some(Refused::PageServer)
        );
        let parent = line("dump -t 1 --prev-images-dir ../a --track-mem");
        assert_eq!(parent.parent.as_deref(), Some(Path::new("../a")));
        assert_eq!(rest(&parent), "dump -t 1");
    }

    #[test]
    fn a_line_without_an_action_is_nobodys() {
        for text in ["--version", "-V", "", "-t 5"] {
            let l = line(text);
            assert!(l.action.as_deref().is_none_or(OsStr::is_empty), "{text}");
        }
    }
}
