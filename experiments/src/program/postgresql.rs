// SPDX-License-Identifier: GPL-2.0-only
//! PostgreSQL: a tree of processes, each in a session of its own, with shared memory. Its cluster
//! is on tmpfs; the table's pages are only in shared memory, for nothing writes them to its file.

use std::ffi::OsStr;
use std::fs;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::{Context, Result, ensure};
use nix::unistd::User;

use super::{Program, spawn};
use crate::criu::timed;
use crate::procfs::children;
use crate::subject::DIR;

pub(super) struct PostgreSql;

const USER: &str = "postgres";
/// Of the socket, which clients know.
const SOCKETS: &str = "/run/mvas-exp/program-postgresql/sockets";
/// Rows of a MiB: 8 fill a page of 8 KiB.
const ROWS: usize = 1024;
/// What row `k` holds, in SQL.
const VALUE: &str = "repeat(md5(k::text), 30)";

impl Program for PostgreSql {
    fn start(&self, dir: &Path, size_mib: usize) -> Result<Child> {
        let data = dir.join("data");
        let sockets = Path::new(SOCKETS);
        fs::create_dir_all(sockets)?;
        give(dir)?;
        give(sockets)?;
        timed(as_user("cp").arg("-a").args([&template()?, &data]))?;
        let buffers = format!("shared_buffers={}MB", size_mib * 3 / 2 + 64);
        let mut command = as_user(program("postgres")?);
        command.arg("-D").arg(&data).args(["-k", SOCKETS]);
        for setting in SETTINGS.iter().copied().chain([buffers.as_str()]) {
            command.args(["-c", setting]);
        }
        spawn(&mut command, dir)
    }

    fn load(&self, size_mib: usize) -> Result<()> {
        if !Path::new(SOCKETS).join(".s.PGSQL.5432").exists() || sql("SELECT 1").is_err() {
            return Err(Error::from(ErrorKind::ConnectionRefused).into());
        }
        let rows = size_mib * ROWS;
        sql("CREATE UNLOGGED TABLE t (k int PRIMARY KEY, v text STORAGE PLAIN)")?;
        sql(&format!(
            "INSERT INTO t SELECT k, {VALUE} FROM generate_series(1, {rows}) k"
        ))?;
        // What the first to read a row writes to its page is written here.
        sql("VACUUM t").map(drop)
    }

    fn ask(&self) -> Result<()> {
        let said = sql(&format!("SELECT v = {VALUE} FROM t WHERE k = 7"))?;
        ensure!(said == "t", "row 7 is not as it was: {said}");
        Ok(())
    }

    fn state(&self) -> Result<String> {
        sql("SELECT count(*) || ' rows, digest ' || md5(string_agg(md5(v), '' ORDER BY k)) FROM t")
    }

    fn is_busy(&self, pid: i32) -> Result<bool> {
        let names = children(pid)?
            .into_iter()
            .map(|child| fs::read_to_string(format!("/proc/{child}/cmdline")));
        // A process that serves a client has that in its name.
        Ok(names.flatten().any(|name| name.contains("[local]")))
    }
}

const SETTINGS: &[&str] = &[
    "listen_addresses=",
    "max_connections=8",
    "huge_pages=off",
    // Files, which are there after the restore; POSIX's would be in /dev/shm.
    "dynamic_shared_memory_type=mmap",
    // Nothing writes the table's pages out.
    "checkpoint_timeout=1d",
    "max_wal_size=16GB",
    "bgwriter_lru_maxpages=0",
    "fsync=off",
    // Nothing works on its own beside the measurement.
    "autovacuum=off",
    "max_parallel_workers_per_gather=0",
    "work_mem=256MB",
];

/// A cluster to be copied, made by the first who asks.
fn template() -> Result<PathBuf> {
    let dir = Path::new(DIR).join("postgresql-template");
    if !dir.exists() {
        fs::create_dir_all(&dir)?;
        give(&dir)?;
        let mut initdb = as_user(program("initdb")?);
        initdb
            .args(["--no-sync", "--no-locale", "--auth=trust", "-D"])
            .arg(dir.join("data"));
        timed(initdb.current_dir(&dir))?;
    }
    Ok(dir.join("data"))
}

/// Debian has a folder of programs for each major version, and one version.
fn program(name: &str) -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").context("PostgreSQL is not installed")?;
    let mut paths = versions
        .flatten()
        .map(|version| version.path().join("bin").join(name));
    paths
        .find(|path| path.exists())
        .with_context(|| format!("PostgreSQL has no {name}"))
}

/// A command of PostgreSQL's user, in an IPC namespace of its own: CRIU takes System V shared
/// memory only together with the namespace that it is in.
fn as_user(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--ipc", "setpriv", "--reuid", USER, "--regid", USER])
        .arg("--clear-groups")
        .arg(program);
    command
}

fn give(dir: &Path) -> Result<()> {
    let user = User::from_name(USER)?.with_context(|| format!("no user {USER}"))?;
    chown(dir, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    Ok(())
}

/// One statement, by the client that everybody has.
fn sql(statement: &str) -> Result<String> {
    let mut psql = Command::new("psql");
    psql.args(["-h", SOCKETS, "-U", USER, "-d", "postgres", "-X", "-Atqc"])
        .arg(statement);
    let said = timed(&mut psql)?.stdout;
    Ok(String::from_utf8(said)?.trim().to_owned())
}
