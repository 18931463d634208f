// SPDX-License-Identifier: GPL-2.0-only
//! A JVM and Python: each runs a small server of ours, with its data on its own heap. Their
//! protocol is a line to ask and a line to answer: `load WORDS`, `get INDEX`, `state`.

use std::fs;
use std::io::{BufRead, Write};
use std::path::Path;
use std::process::{Child, Command};

use anyhow::{Context, Result, ensure};

use super::{Program, net, spawn};
use crate::criu::timed;

/// One of the two.
pub(super) struct Interpreter {
    port: u16,
    /// Its command, once its program is in the folder.
    command: fn(&Path) -> Result<Command>,
}

pub(super) const JVM: Interpreter = Interpreter {
    port: 8081,
    command: java,
};
pub(super) const PYTHON: Interpreter = Interpreter {
    port: 8082,
    command: python,
};

/// The compiler is a module of the runtime; a process that only runs is then without it.
fn java(dir: &Path) -> Result<Command> {
    let source = dir.join("Heap.java");
    fs::write(&source, include_str!("Heap.java"))?;
    let mut compile = Command::new("java");
    compile
        .args(["-m", "jdk.compiler/com.sun.tools.javac.Main", "-d"])
        .arg(dir)
        .arg(&source);
    timed(&mut compile)?;
    let mut java = Command::new("java");
    java.args(["-XX:+UseSerialGC", "-XX:-UsePerfData", "-Xmx1g"])
        .args(["-Djava.net.preferIPv4Stack=true", "-cp"])
        .arg(dir)
        .arg("Heap");
    Ok(java)
}

fn python(dir: &Path) -> Result<Command> {
    let script = dir.join("heap.py");
    fs::write(&script, include_str!("heap.py"))?;
    let mut python = Command::new("python3");
    python.arg(script).env("OPENBLAS_NUM_THREADS", "1");
    Ok(python)
}

impl Interpreter {
    fn say(&self, request: &str) -> Result<String> {
        let mut server = net::connect(self.port)?;
        server
            .get_mut()
            .write_all(format!("{request}\n").as_bytes())?;
        let mut line = String::new();
        server.read_line(&mut line)?;
        let line = line.strip_suffix('\n');
        Ok(line.context("the connection broke")?.to_owned())
    }
}

impl Program for Interpreter {
    fn start(&self, dir: &Path, _size_mib: usize) -> Result<Child> {
        spawn((self.command)(dir)?.arg(self.port.to_string()), dir)
    }

    fn load(&self, size_mib: usize) -> Result<()> {
        let words = (size_mib << 20) / 8;
        let said = self.say(&format!("load {words}"))?;
        ensure!(said == words.to_string(), "load answered {said}");
        Ok(())
    }

    fn ask(&self) -> Result<()> {
        let said = self.say("get 4711")?;
        ensure!(said == word(4711).to_string(), "word 4711 is {said}");
        Ok(())
    }

    fn state(&self) -> Result<String> {
        self.say("state")
    }

    fn is_busy(&self, _pid: i32) -> Result<bool> {
        net::is_connected(self.port)
    }
}

/// What both programs store at an index.
fn word(index: u64) -> u64 {
    (index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_programs_compute_the_words_that_are_expected() {
        assert_ne!(word(0), word(1));
        for source in [include_str!("Heap.java"), include_str!("heap.py")] {
            assert!(source.to_uppercase().contains("0X9E3779B97F4A7C15"));
        }
    }
}
