// SPDX-License-Identifier: GPL-2.0-only
//! Long steps: a command with its output in a log file, and its progress shown.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::cache::Cache;

/// A step that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command could not be started.
    #[error(
        "{step}: cannot start {program} (is it installed? `make setup` installs what is needed)"
    )]
    Start {
        /// The step.
        step: String,
        /// The program of the command.
        program: String,
        /// Why it did not start.
        #[source]
        source: io::Error,
    },
    /// The command failed.
    #[error("{step}: {program} failed ({status})\n{tail}\nThe whole log: {}", log.display())]
    Failed {
        /// The step.
        step: String,
        /// The program of the command.
        program: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The last lines of its output.
        tail: String,
        /// The file with all of its output.
        log: PathBuf,
    },
    /// The log file could not be written.
    #[error("{step}: cannot write the log {}", log.display())]
    Log {
        /// The step.
        step: String,
        /// The log file.
        log: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A sequence of commands that write to one log file.
#[derive(Debug)]
pub struct Steps {
    log: PathBuf,
}

/// Lines of the log shown when a command fails.
const TAIL_LINES: usize = 25;
/// How often progress is shown where the output is not a terminal.
const QUIET_INTERVAL: Duration = Duration::from_secs(20);

impl Steps {
    /// Steps that log to `log`, which is emptied.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub fn new(log: &Path) -> Result<Self, Error> {
        log.parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::write(log, ""))
            .map_err(|source| Error::Log {
                step: "begin".into(),
                log: log.to_path_buf(),
                source,
            })?;
        Ok(Self {
            log: log.to_path_buf(),
        })
    }

    /// Steps that log to `logs/<name>.log` of the cache, which is emptied.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub fn of_build(cache: &Cache, name: &str) -> anyhow::Result<Self> {
        Ok(Self::new(&cache.dir("logs")?.join(format!("{name}.log")))?)
    }

    /// Runs `command`, showing what it does and for how long.
    ///
    /// # Errors
    /// When the command cannot start or fails; the message has its last output.
    pub fn run(&self, step: &str, command: &mut Command) -> Result<(), Error> {
        let program = command.get_program().to_string_lossy().into_owned();
        let log_error = |source| Error::Log {
            step: step.into(),
            log: self.log.clone(),
            source,
        };
        let mut log = File::options()
            .append(true)
            .open(&self.log)
            .map_err(log_error)?;
        writeln!(log, "\n==> {step}: {command:?}").map_err(log_error)?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(log_error)?)
            .stderr(log)
            .spawn()
            .map_err(|source| Error::Start {
                step: step.into(),
                program: program.clone(),
                source,
            })?;
        let mut progress = Progress::begin(step, &self.log);
        let status = loop {
            match child.try_wait().map_err(log_error)? {
                Some(status) => break status,
                None => progress.tick(),
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        progress.end(status.success());
        if status.success() {
            return Ok(());
        }
        Err(Error::Failed {
            step: step.into(),
            program,
            status,
            tail: tail(&self.log, TAIL_LINES),
            log: self.log.clone(),
        })
    }
}

/// Shows the progress of one step on standard error: on a terminal one line that
/// is rewritten, else a line now and then.
struct Progress<'a> {
    step: &'a str,
    log: &'a Path,
    begun: Instant,
    shown: Instant,
    terminal: bool,
}

impl<'a> Progress<'a> {
    fn begin(step: &'a str, log: &'a Path) -> Self {
        let now = Instant::now();
        let terminal = io::stderr().is_terminal();
        if !terminal {
            eprintln!("  {step} … (log: {})", log.display());
        }
        Self {
            step,
            log,
            begun: now,
            shown: now,
            terminal,
        }
    }

    fn tick(&mut self) {
        let interval = if self.terminal {
            Duration::from_millis(500)
        } else {
            QUIET_INTERVAL
        };
        if self.shown.elapsed() < interval {
            return;
        }
        self.shown = Instant::now();
        let last: String = tail(self.log, 1).chars().take(48).collect();
        let line = format!(
            "  {} … {} s  {last}",
            self.step,
            self.begun.elapsed().as_secs()
        );
        if self.terminal {
            eprint!("\r\x1b[K{line}");
        } else {
            eprintln!("{line}");
        }
    }

    fn end(&self, success: bool) {
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        let end = if success { "done" } else { "FAILED" };
        eprintln!(
            "{clear}  {}: {end} in {:.1} s",
            self.step,
            self.begun.elapsed().as_secs_f64()
        );
    }
}

/// The last `lines` lines of a file that are not blank; reads no more than its end.
fn tail(path: &Path, lines: usize) -> String {
    const END: u64 = 16 << 10;
    let read = || -> io::Result<Vec<u8>> {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(END)))?;
        let mut end = Vec::new();
        file.read_to_end(&mut end)?;
        Ok(end)
    };
    let end = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&end);
    let mut last: Vec<&str> = text
        .lines()
        .rev()
        .filter(|l| !l.trim().is_empty())
        .take(lines)
        .collect();
    last.reverse();
    last.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps() -> (tempfile::TempDir, Steps) {
        let dir = tempfile::tempdir().unwrap();
        let steps = Steps::new(&dir.path().join("logs/x.log")).unwrap();
        (dir, steps)
    }

    #[test]
    fn output_goes_to_the_log_step_after_step() {
        let (_dir, steps) = steps();
        for word in ["one", "two"] {
            steps
                .run(word, Command::new("echo").arg(format!("said {word}")))
                .unwrap();
        }
        let log = fs::read_to_string(&steps.log).unwrap();
        assert!(log.find("said one\n").unwrap() < log.find("said two\n").unwrap());
    }

    #[test]
    fn a_failure_shows_the_end_of_the_output_and_where_the_rest_is() {
        let (_dir, steps) = steps();
        let mut command = Command::new("sh");
        command.args(["-c", "seq 100; echo broken >&2; exit 3"]);
        let message = steps.run("build", &mut command).unwrap_err().to_string();
        assert!(
            message.contains("build: sh failed (exit status: 3)"),
            "{message}"
        );
        assert!(message.contains("100\nbroken\n"), "{message}");
        assert!(!message.contains("\n50\n"), "{message}");
        assert!(message.contains("x.log"), "{message}");
    }

    #[test]
    fn a_missing_program_is_named_with_what_to_do() {
        let (_dir, steps) = steps();
        let message = steps
            .run("pack", &mut Command::new("no-such-program"))
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("no-such-program") && message.contains("make setup"),
            "{message}"
        );
    }
}
