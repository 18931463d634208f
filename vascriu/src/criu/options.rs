// SPDX-License-Identifier: GPL-2.0-only
//! CRIU's own options, passed through: which there are in CRIU 4.1.1, which take
//! a value, and which cannot be right together with VASes.

/// An option that is not passed through.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refused {
    /// It contradicts how a VAS snapshot works.
    #[error("`{option}` does not go with vascriu: {why}")]
    NotWithVas {
        /// As it was written.
        option: String,
        /// Why.
        why: &'static str,
    },
    /// Its value is missing.
    #[error("`{0}` needs a value")]
    NoValue(String),
}

/// A command line, taken apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// For vascriu's own parser.
    pub ours: Vec<String>,
    /// For CRIU.
    pub criu: Vec<String>,
}

/// Options of CRIU without a value.
const FLAGS: &[&str] = &[
    "--leave-stopped",
    "-s",
    "--ext-unix-sk",
    "--tcp-established",
    "--tcp-close",
    "--skip-in-flight",
    "--evasive-devices",
    "--link-remap",
    "--shell-job",
    "-j",
    "--file-locks",
    "-l",
    "--ms",
    "--force-irmap",
    "--restore-sibling",
    "-S",
    "--enable-external-sharing",
    "--enable-external-masters",
    "--deprecated",
    "--display-stats",
    "--weak-sysctls",
    "--no-default-config",
    "--skip-file-rwx-check",
    "--mntns-compat-mode",
    "--ghost-fiemap",
    "--log-pid",
    "-v",
    "-v0",
    "-v1",
    "-v2",
    "-v3",
    "-v4",
];

/// Options of CRIU whose value is attached by `=` or not there at all.
const OPTIONAL: &[&str] = &["--verbosity", "--manage-cgroups", "--cpu-cap"];

/// Options of CRIU with a value.
const VALUES: &[&str] = &[
    "--log-file",
    "-o",
    "--root",
    "-r",
    "--action-script",
    "--external",
    "--inherit-fd",
    "--veth-pair",
    "--ext-mount-map",
    "-M",
    "--skip-mnt",
    "--enable-fs",
    "--cgroup-root",
    "--cgroup-props",
    "--cgroup-props-file",
    "--cgroup-dump-controller",
    "--cgroup-yard",
    "--freeze-cgroup",
    "--ghost-limit",
    "--irmap-scan-path",
    "--lsm-profile",
    "--lsm-mount-context",
    "--timeout",
    "--empty-ns",
    "--namespace",
    "-J",
    "--join-ns",
    "--pidfile",
    "--file-validation",
    "--network-lock",
    "--config",
];

/// Of these, files that CRIU would look for from its working directory, which is
/// ours and not the user's.
const PATHS: &[&str] = &["--log-file", "-o", "--pidfile"];

const INCREMENTAL: &str = "nothing is copied, so there is nothing to save by steps";
const ELSEWHERE: &str = "the memory stays in this machine's DRAM";
const OURS: &str = "vascriu sets it";
const LAZY: &str = "the memory is attached at once; there is nothing to load later";

/// Options of CRIU that contradict how a VAS snapshot works.
const REFUSED: &[(&str, &str)] = &[
    ("--prev-images-dir", INCREMENTAL),
    ("--track-mem", INCREMENTAL),
    ("--auto-dedup", INCREMENTAL),
    ("--pre-dump-mode", INCREMENTAL),
    ("--page-server", ELSEWHERE),
    ("--address", ELSEWHERE),
    ("--port", ELSEWHERE),
    ("--ps-socket", ELSEWHERE),
    ("--stream", ELSEWHERE),
    ("--remote", ELSEWHERE),
    ("--lazy-pages", LAZY),
    (
        "--unprivileged",
        "/dev/vas needs the rights that this does without",
    ),
    ("--libdir", OURS),
    ("-L", OURS),
    ("--work-dir", OURS),
    ("-W", OURS),
    ("--status-fd", OURS),
    (
        "--exec-cmd",
        "use a shell: `vascriu restore -d NAME && exec COMMAND`",
    ),
];

/// Takes the arguments behind `vascriu dump` or `vascriu restore` apart. What
/// follows a `--` is CRIU's, whatever it is.
///
/// # Errors
/// An option that cannot be right, or lacks its value.
pub fn split(args: impl IntoIterator<Item = String>) -> Result<Split, Refused> {
    let mut out = Split::default();
    let mut args = args.into_iter();
    let mut verbatim = false;
    while let Some(arg) = args.next() {
        if arg == "--" && !verbatim {
            verbatim = true;
            continue;
        }
        let (name, value) = match arg.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value)),
            _ => (arg.as_str(), None),
        };
        if let Some((_, why)) = REFUSED.iter().find(|(n, _)| *n == name) {
            return Err(Refused::NotWithVas {
                option: name.into(),
                why,
            });
        }
        let takes_value = VALUES.contains(&name) && value.is_none();
        let known = FLAGS.contains(&name) || OPTIONAL.contains(&name) || VALUES.contains(&name);
        if takes_value {
            let value = args.next().ok_or_else(|| Refused::NoValue(arg.clone()))?;
            let value = if PATHS.contains(&name) {
                absolute(value)
            } else {
                value
            };
            out.criu.extend([arg, value]);
        } else if known || verbatim {
            out.criu.push(arg);
        } else {
            out.ours.push(arg);
        }
    }
    Ok(out)
}

fn absolute(path: String) -> String {
    let whole = std::path::absolute(&path)
        .ok()
        .and_then(|p| p.to_str().map(str::to_owned));
    whole.unwrap_or(path)
}

/// The value of the last `names` option in a list of CRIU's options.
#[must_use]
pub fn value<'a>(criu: &'a [String], names: &[&str]) -> Option<&'a str> {
    let mut found = None;
    let mut args = criu.iter();
    while let Some(arg) = args.next() {
        match arg.split_once('=') {
            Some((name, value)) if names.contains(&name) => found = Some(value),
            None if names.contains(&arg.as_str()) => found = args.next().map(String::as_str),
            _ => {}
        }
    }
    found
}

/// Options that need what only a CRIU has that this process starts: its terminal, descriptors and
/// output, or its configuration; or that a request says otherwise.
const OF_A_CHILD: &[&str] = &[
    "--shell-job",
    "--inherit-fd",
    "--action-script",
    "--restore-sibling",
    "--display-stats",
    "--no-default-config",
    "--config",
];

/// The long names of short options; what is not there is of a child.
const LONG: &[(&str, &str)] = &[
    ("-s", "--leave-stopped"),
    ("-l", "--file-locks"),
    ("-o", "--log-file"),
    ("-r", "--root"),
    ("-M", "--ext-mount-map"),
    ("-J", "--join-ns"),
];

/// What CRIU logs unless the user says otherwise: errors.
pub const LOG_LEVEL: i32 = 1;

/// Options for a CRIU that takes no arguments any more.
#[derive(Debug, PartialEq, Eq)]
pub struct Config {
    /// A file of CRIU's configuration.
    pub text: String,
    /// What CRIU logs, from 0 to 4.
    pub log_level: i32,
}

/// The same options as a file; none if they are for a CRIU that this process starts.
#[must_use]
pub fn as_config(args: &[String]) -> Option<Config> {
    let mut text = String::new();
    let mut log_level = LOG_LEVEL;
    let mut args = args.iter().map(String::as_str);
    while let Some(arg) = args.next() {
        if let Some(level) = arg.strip_prefix("-v").or(arg.strip_prefix("--verbosity")) {
            log_level = level.trim_start_matches('=').parse().ok()?;
            continue;
        }
        let long = LONG.iter().find(|(short, _)| *short == arg);
        let arg = long.map_or(arg, |(_, long)| long);
        let name = arg.split_once('=').map_or(arg, |(name, _)| name);
        let takes_value = VALUES.contains(&name);
        let known = takes_value || OPTIONAL.contains(&name) || FLAGS.contains(&name);
        let option = arg.strip_prefix("--")?;
        if !known || OF_A_CHILD.contains(&name) {
            return None;
        }
        let value = (takes_value && name == arg).then(|| args.next());
        let line = match value {
            Some(value) => format!("{option}={}", value?),
            None => option.into(),
        };
        // CRIU reads a file by words, and knows comments and quotes.
        if line.contains(|c: char| c.is_whitespace() || matches!(c, '#' | '"' | '\\')) {
            return None;
        }
        text.push_str(&line);
        text.push('\n');
    }
    Some(Config { text, log_level })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(line: &str) -> Result<Split, Refused> {
        split(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_of_criu_go_to_criu_with_their_values_from_any_place() {
        let s = of("--tcp-established -t 5 --external mnt[a]:b --json -j -o /x.log --name n")
            .expect("split");
        assert_eq!(s.ours.join(" "), "-t 5 --json --name n");
        assert_eq!(
            s.criu.join(" "),
            "--tcp-established --external mnt[a]:b -j -o /x.log"
        );
    }

    #[test]
    fn an_attached_value_stays_attached() {
        let s = of("--manage-cgroups=soft --timeout=5 -t 1").expect("split");
        assert_eq!(s.criu.join(" "), "--manage-cgroups=soft --timeout=5");
    }

    #[test]
    fn what_cannot_be_right_is_refused_with_the_reason() {
        for (name, why) in REFUSED {
            for line in [format!("-t 1 {name} x"), format!("-t 1 -- {name}")] {
                let err = of(&line).expect_err("refused");
                assert!(
                    err.to_string().contains(name) && err.to_string().contains(why),
                    "{err}"
                );
            }
        }
        assert!(of("--prev-images-dir=/x").is_err());
    }

    #[test]
    fn a_missing_value_is_an_error() {
        assert_eq!(
            of("-t 1 --timeout"),
            Err(Refused::NoValue("--timeout".into()))
        );
    }

    #[test]
    fn options_unknown_to_us_reach_criu_behind_a_double_dash_only() {
        let s = of("-t 1 --new-option -- --newer 5").expect("split");
        assert_eq!(s.ours.join(" "), "-t 1 --new-option");
        assert_eq!(s.criu.join(" "), "--newer 5");
    }

    #[test]
    fn options_become_a_file_that_means_the_same() {
        let config = |line: &str| {
            let args: Vec<_> = line.split(' ').map(str::to_owned).collect();
            as_config(&args)
        };
        assert_eq!(
            config("--tcp-established -s -o /x.log --manage-cgroups=soft --ghost-limit 5 -v4"),
            Some(Config {
                text: "tcp-established\nleave-stopped\nlog-file=/x.log\nmanage-cgroups=soft\nghost-limit=5\n"
                    .into(),
                log_level: 4,
            })
        );
        let none = Config {
            text: String::new(),
            log_level: LOG_LEVEL,
        };
        assert_eq!(as_config(&[]), Some(none));
        for line in [
            "--shell-job",
            "-j",
            "--inherit-fd fd[1]:x",
            "--config /x",
            "--newer",
            "-v",
            "--verbosity",
            "-o",
            "--root /a#b",
            "5",
        ] {
            assert_eq!(config(line), None, "{line}");
        }
    }

    #[test]
    fn the_last_value_counts() {
        let s = of("-o /a --log-file=b").expect("split");
        assert_eq!(value(&s.criu, &["-o", "--log-file"]), Some("b"));
        assert_eq!(value(&s.criu, &["--pidfile"]), None);
    }

    proptest! {
        #[test]
        fn no_argument_is_lost_or_made_up(
            args in prop::collection::vec("(-j|--tcp-close|-t|5|x|--json|--timeout=5|-M|.{0,4})", 0..9)
        ) {
            if let Ok(s) = split(args.clone()) {
                let mut got = [s.ours, s.criu].concat();
                let mut all = args.clone();
                if let Some(at) = all.iter().position(|a| a == "--") {
                    // a `--` that is a value stays; the separator goes
                    if got.len() < all.len() { all.remove(at); }
                }
                got.sort();
                all.sort();
                prop_assert!(got == all || args.contains(&"--".to_owned()));
            }
        }
    }
}
