//! `vas.json`: which VAS holds the memory of which task of a snapshot.
//!
//! It lies beside CRIU's images. The plugin adds a line at each capture, so that
//! a failing write fails the dump; the file is valid JSON after each. What makes
//! a snapshot whole is not this file but the kernel: all its VASes are committed,
//! which happens at once and last.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::device::{Session, VAS_ACCESS_READ, VasFile, VasId};
use crate::process::{self, Vpid};

/// Its name in the image directory.
pub const FILE: &str = "vas.json";
/// While it is written anew.
const NEW: &str = ".vas.json.new";
/// Version of the format that is written, and the only one that is read.
pub const VERSION: u32 = 1;
/// More than a file of a million tasks has.
const MAX_BYTES: u64 = 256 << 20;

/// What can go wrong with a `vas.json`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none.
    #[error("no {FILE} in {dir}: these images were not made by vascriu")]
    Missing {
        /// The image directory.
        dir: String,
    },
    /// It cannot be read or written.
    #[error("{call} {path} failed")]
    Io {
        /// What was tried.
        call: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// It is no such file.
    #[error("{path} is damaged")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// It is of another version.
    #[error("{path} has version {found}; this vascriu reads version {VERSION}")]
    Version {
        /// Which file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// Two tasks have one PID.
    #[error("two tasks of the snapshot have PID {0} inside their namespaces")]
    Twice(Vpid),
    /// The VASes went with the boot that they were made in.
    #[error("the snapshot's memory is gone: it was taken in another boot ({taken}; now {now})")]
    OtherBoot {
        /// Then.
        taken: String,
        /// Now.
        now: String,
    },
    /// One VAS is gone.
    #[error("the memory of task {vpid} ({comm}) is gone: its VAS {vas} was deleted")]
    VasGone {
        /// The task.
        vpid: Vpid,
        /// Its command name.
        comm: String,
        /// The VAS's name.
        vas: String,
    },
    /// The dump never came to its end.
    #[error(
        "the snapshot is not whole: its dump did not come to an end (VAS {vas} is not committed)"
    )]
    NotWhole {
        /// The VAS's name.
        vas: String,
    },
    /// `/dev/vas` failed.
    #[error(transparent)]
    Device(#[from] crate::device::Error),
    /// `/proc` failed.
    #[error(transparent)]
    Process(#[from] process::Error),
}

/// One task of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Its PID in its innermost namespace.
    pub vpid: Vpid,
    /// Its PID where it was dumped from.
    pub pid: i32,
    /// Its start, in clock ticks since boot.
    pub started: u64,
    /// Its command name.
    pub comm: String,
    /// The VAS that holds its memory.
    pub vas: VasId,
    /// That VAS's name.
    pub vas_name: String,
    /// Captured VMAs.
    pub vmas: u64,
    /// Captured 4 KiB pages.
    pub pages: u64,
    /// Of these, in huge pages.
    pub huge_pages: u64,
    /// Captured swapped pages.
    pub swap_pages: u64,
    /// How long the capture took, in microseconds.
    pub capture_us: u64,
}

impl Task {
    /// Whether the task that was dumped goes on; one that was killed does not,
    /// even if it has not come to its end yet.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        process::started(self.pid).is_ok_and(|s| s == self.started)
            && !process::is_ending(self.pid)
            && !process::PidFd::open(self.pid).is_ok_and(|p| p.is_dead())
    }
}

/// What holds for the whole snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// [`VERSION`].
    pub version: u32,
    /// The boot that the VASes live in.
    pub boot_id: String,
    /// The snapshot's name: the VASes are called `NAME:VPID`.
    pub name: String,
    /// The CRIU that the plugin is made for.
    pub criu: String,
    /// Seconds since the epoch.
    pub created: u64,
}

/// A whole `vas.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// What holds for all.
    #[serde(flatten)]
    pub header: Header,
    /// The tasks, in the order of their capture: parents before children.
    pub tasks: Vec<Task>,
}

const END: &str = "\n]}\n";

/// Writes a `vas.json` task by task.
#[derive(Debug)]
pub struct Writer {
    file: File,
    end: u64,
    vpids: HashSet<Vpid>,
}

impl Writer {
    /// Starts the file in the directory `dir`, replacing one that is there.
    ///
    /// # Errors
    /// The file system's.
    pub fn create(dir: BorrowedFd<'_>, header: &Header) -> Result<Self, Error> {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC | libc::O_CLOEXEC;
        let file = openat(dir, flags).map_err(|e| io_error("creating", FILE.as_ref(), e))?;
        let mut text = to_json(header)?;
        text.pop(); // the closing brace
        text.push_str(",\"tasks\":[");
        let mut writer = Self {
            file,
            end: 0,
            vpids: HashSet::new(),
        };
        writer.put(&text)?;
        Ok(writer)
    }

    /// Adds a task.
    ///
    /// # Errors
    /// The file system's, or the task is already there.
    pub fn add(&mut self, task: &Task) -> Result<(), Error> {
        if self.vpids.contains(&task.vpid) {
            return Err(Error::Twice(task.vpid));
        }
        let comma = if self.vpids.is_empty() { "" } else { "," };
        self.put(&format!("{comma}\n{}", to_json(task)?))?;
        self.vpids.insert(task.vpid);
        Ok(())
    }

    fn put(&mut self, text: &str) -> Result<(), Error> {
        self.file
            .write_all_at(format!("{text}{END}").as_bytes(), self.end)
            .map_err(|e| io_error("writing", FILE.as_ref(), e))?;
        self.end += text.len() as u64;
        Ok(())
    }
}

fn to_json(value: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|e| Error::Damaged {
        path: FILE.into(),
        source: e,
    })
}

fn io_error(call: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io {
        call,
        path: path.into(),
        source,
    }
}

fn openat(dir: BorrowedFd<'_>, flags: i32) -> io::Result<File> {
    let name = std::ffi::CString::new(FILE)?;
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    let fd = unsafe { libc::openat(dir.as_raw_fd(), name.as_ptr(), flags, 0o600) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}

impl Manifest {
    /// Reads the `vas.json` of the image directory `dir`.
    ///
    /// # Errors
    /// None there, damaged, of another version.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(FILE);
        let file = File::open(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::Missing {
                dir: dir.display().to_string(),
            },
            _ => io_error("opening", &path, e),
        })?;
        Self::read(file, path)
    }

    /// As [`Manifest::load`], of an open directory.
    ///
    /// # Errors
    /// As [`Manifest::load`].
    pub fn load_at(dir: BorrowedFd<'_>) -> Result<Self, Error> {
        let file = openat(dir, libc::O_RDONLY | libc::O_CLOEXEC).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::Missing {
                dir: "the image directory".into(),
            },
            _ => io_error("opening", FILE.as_ref(), e),
        })?;
        Self::read(file, FILE.into())
    }

    fn read(file: File, path: PathBuf) -> Result<Self, Error> {
        let mut text = String::new();
        io::Read::read_to_string(&mut io::Read::take(file, MAX_BYTES), &mut text)
            .map_err(|e| io_error("reading", &path, e))?;
        Self::parse(&text, path)
    }

    /// Reads the text of a `vas.json`; `path` names it in errors.
    ///
    /// # Errors
    /// Damaged, of another version.
    pub fn parse(text: &str, path: PathBuf) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let damaged = |source| Error::Damaged {
            path: path.clone(),
            source,
        };
        let Versioned { version } = serde_json::from_str(text).map_err(damaged)?;
        if version != VERSION {
            return Err(Error::Version {
                path,
                found: version,
            });
        }
        let manifest: Self = serde_json::from_str(text).map_err(damaged)?;
        let mut vpids: Vec<_> = manifest.tasks.iter().map(|t| t.vpid).collect();
        vpids.sort_unstable();
        match vpids.windows(2).find(|w| w[0] == w[1]) {
            Some(w) => Err(Error::Twice(w[0])),
            None => Ok(manifest),
        }
    }

    /// Writes the `vas.json` of the image directory `dir`: whole, or not at all.
    ///
    /// # Errors
    /// The file system's.
    pub fn save(&self, dir: &Path) -> Result<(), Error> {
        let (new, path) = (dir.join(NEW), dir.join(FILE));
        fs::write(&new, to_json(self)?).map_err(|e| io_error("writing", &new, e))?;
        fs::rename(&new, &path).map_err(|e| io_error("creating", &path, e))
    }

    /// Opens every VAS for reading, in the order of the tasks.
    ///
    /// # Errors
    /// The snapshot is of another boot, was never finished, or a VAS is gone.
    pub fn open_all(&self, session: &Session) -> Result<Vec<VasFile>, Error> {
        let now = process::boot_id()?;
        if now != self.header.boot_id {
            return Err(Error::OtherBoot {
                taken: self.header.boot_id.clone(),
                now,
            });
        }
        let open = |task: &Task| {
            let gone = || Error::VasGone {
                vpid: task.vpid,
                comm: task.comm.clone(),
                vas: task.vas_name.clone(),
            };
            let vas = session
                .vas(task.vas, VAS_ACCESS_READ)
                .map_err(|e| match e {
                    crate::device::Error::Gone { .. } => gone(),
                    e => e.into(),
                })?;
            let stat = vas.stat()?;
            if stat.name != task.vas_name {
                return Err(gone());
            }
            if !stat.committed {
                return Err(Error::NotWhole { vas: stat.name });
            }
            Ok(vas)
        };
        self.tasks.iter().map(open).collect()
    }

    /// Captured pages of all tasks, huge and swapped ones too.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.tasks.iter().map(|t| t.pages + t.swap_pages).sum()
    }

    /// Microseconds that all captures took.
    #[must_use]
    pub fn capture_us(&self) -> u64 {
        self.tasks.iter().map(|t| t.capture_us).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use proptest::prelude::*;

    use super::*;

    fn header() -> Header {
        Header {
            version: VERSION,
            boot_id: "b".into(),
            name: "n".into(),
            criu: "4.1.1".into(),
            created: 1,
        }
    }

    prop_compose! {
        fn task()(vpid in 1..i32::MAX, comm in ".{0,15}", vas in 1u64.., pages: u32) -> Task {
            Task {
                vpid: Vpid(vpid), pid: vpid, started: 1, comm, vas: VasId(vas),
                vas_name: format!("n:{vpid}"), vmas: 1, pages: pages.into(), huge_pages: 0,
                swap_pages: 0, capture_us: 3,
            }
        }
    }

    proptest! {
        #[test]
        fn what_was_written_task_by_task_is_read_back(
            tasks in prop::collection::vec(task(), 0..8)
        ) {
            let dir = tempfile::tempdir().expect("temp dir");
            let fd = File::open(dir.path()).expect("directory");
            let mut writer = Writer::create(fd.as_fd(), &header()).expect("create");
            let mut kept: Vec<Task> = Vec::new();
            for task in tasks {
                prop_assert_eq!(&Manifest::load(dir.path()).expect("valid at every step").tasks, &kept);
                let twice = kept.iter().any(|t| t.vpid == task.vpid);
                prop_assert_eq!(writer.add(&task).is_err(), twice);
                if !twice { kept.push(task); }
            }
            let whole = Manifest { header: header(), tasks: kept };
            prop_assert_eq!(Manifest::load(dir.path()).expect("load"), whole.clone());
            prop_assert_eq!(Manifest::load_at(fd.as_fd()).expect("load"), whole.clone());
            whole.save(dir.path()).expect("save");
            prop_assert_eq!(Manifest::load(dir.path()).expect("load"), whole);
            prop_assert_eq!(dir.path().read_dir().expect("dir").count(), 1);
        }

        #[test]
        fn damage_is_an_error_and_never_a_panic(cut in 0usize..400, junk in any::<u8>()) {
            let text = serde_json::to_string(&Manifest { header: header(), tasks: vec![] }).expect("json");
            let mut bytes = text.into_bytes();
            bytes.truncate(cut);
            bytes.push(junk);
            let _ = Manifest::parse(&String::from_utf8_lossy(&bytes), "x".into());
        }
    }

    #[test]
    fn another_version_is_named_in_the_error() {
        let err = Manifest::parse(r#"{"version":2,"new":true}"#, "x".into()).expect_err("refused");
        assert!(matches!(err, Error::Version { found: 2, .. }));
    }

    #[test]
    fn a_pid_twice_is_refused() {
        let t = r#"{"vpid":1,"pid":1,"started":1,"comm":"a","vas":1,"vas_name":"n:1","vmas":1,"pages":1,"huge_pages":0,"swap_pages":0,"capture_us":1}"#;
        let text = format!(
            r#"{{"version":1,"boot_id":"b","name":"n","criu":"4","created":1,"tasks":[{t},{t}]}}"#
        );
        assert!(matches!(
            Manifest::parse(&text, "x".into()),
            Err(Error::Twice(Vpid(1)))
        ));
    }

    #[test]
    fn a_directory_without_the_file_says_so() {
        let dir = tempfile::tempdir().expect("temp dir");
        assert!(matches!(
            Manifest::load(dir.path()),
            Err(Error::Missing { .. })
        ));
    }
}
