// SPDX-License-Identifier: GPL-2.0-only
//! The results, kept one by one: `NAME.jsonl`, to which lines are only added. Of a run that was
//! killed a last line may be half: it is taken for not there.
//!
//! Those that are published are compressed, `NAME.jsonl.gz`, and are only read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};

use super::provenance::Provenance;
use super::{Case, Metrics};

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// A run begins, or goes on: the samples below are from it.
    Run(Box<Provenance>),
    /// Something was measured.
    Sample(Sample),
}

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// What was measured.
    #[serde(flatten)]
    pub case: Case,
    /// The results.
    pub metrics: Metrics,
    /// Seconds from the beginning of the run.
    pub at_s: f64,
}

/// The file of one experiment.
#[derive(Debug)]
pub struct Samples {
    file: File,
    path: PathBuf,
}

/// Where the samples of an experiment are, in the folder of all.
#[must_use]
pub fn path(folder: &Path, experiment: &str) -> PathBuf {
    folder.join(format!("{experiment}.jsonl"))
}

/// Where they are when they are compressed.
#[must_use]
pub fn compressed_path(folder: &Path, experiment: &str) -> PathBuf {
    folder.join(format!("{experiment}.jsonl.gz"))
}

/// The samples of an experiment that a folder has, compressed or not.
///
/// # Errors
/// When it has both: nobody knows which are meant.
pub fn find(folder: &Path, experiment: &str) -> Result<Option<PathBuf>> {
    let plain = path(folder, experiment);
    let compressed = compressed_path(folder, experiment);
    ensure!(
        !plain.exists() || !compressed.exists(),
        "{} is there twice, compressed and not: remove one",
        plain.display()
    );
    let mut both = [plain, compressed].into_iter();
    Ok(both.find(|path| path.exists()))
}

/// Compresses a file of samples, which may be compressed. The same samples become the same file.
///
/// # Errors
/// When one cannot be read or the other not be written.
pub fn compress(from: &Path, to: &Path) -> Result<()> {
    let written = || {
        let text = text_of(from)?;
        let temporary = to.with_extension("tmp");
        let mut encoder = GzEncoder::new(File::create(&temporary)?, Compression::best());
        encoder.write_all(text.as_bytes())?;
        encoder.finish()?;
        fs::rename(&temporary, to)
    };
    written().with_context(|| format!("cannot compress {} to {}", from.display(), to.display()))
}

fn text_of(path: &Path) -> io::Result<String> {
    if path.extension().is_none_or(|extension| extension != "gz") {
        return fs::read_to_string(path);
    }
    io::read_to_string(GzDecoder::new(File::open(path)?))
}

/// Reads what there is.
///
/// # Errors
/// When the file cannot be read, or a line but the last is damaged.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let text = text_of(path).with_context(|| format!("cannot read {}", path.display()))?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let line = |(number, line): (usize, &str)| {
        serde_json::from_str(line)
            .with_context(|| format!("{}: line {} is damaged", path.display(), number + 1))
    };
    whole.lines().enumerate().map(line).collect()
}

impl Samples {
    /// Begins a new file.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(path: &Path) -> Result<Self> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    /// Goes on with a file, where that is of the same origin; also which cases it has.
    ///
    /// # Errors
    /// When it is damaged, or of another program, kernel, machine or setting.
    pub fn resume(path: &Path, now: &Provenance) -> Result<(Self, Vec<Case>)> {
        let mut done = Vec::new();
        let mut whole = String::new();
        for line in read(path)? {
            whole += &serde_json::to_string(&line)?;
            whole.push('\n');
            match line {
                Line::Run(then) => {
                    let differs = then.differs(now);
                    ensure!(
                        differs.is_none(),
                        "{} cannot be resumed: its {} is another one; without --resume it is begun anew",
                        path.display(),
                        differs.unwrap_or_default()
                    );
                }
                Line::Sample(sample) => done.push(sample.case),
            }
        }
        // Without the half of a line that a kill may have left.
        let temporary = path.with_extension("tmp");
        fs::write(&temporary, whole).and_then(|()| fs::rename(&temporary, path))?;
        let file = OpenOptions::new().append(true).open(path)?;
        let path = path.to_owned();
        Ok((Self { file, path }, done))
    }

    /// Adds a line, in one piece.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&mut self, line: &Line) -> Result<()> {
        let text = serde_json::to_string(line)? + "\n";
        let written = self.file.write_all(text.as_bytes());
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Point, metrics};
    use crate::system::System;

    fn sample(repeat: u32) -> Line {
        Line::Sample(Sample {
            case: Case {
                experiment: "size".into(),
                system: System::Vascriu,
                point: Point([("size".to_owned(), "1G".to_owned())].into()),
                repeat,
            },
            metrics: metrics([("dump_ms", 1.5)]),
            at_s: 2.0,
        })
    }

    #[test]
    fn a_run_that_was_killed_goes_on_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path(), "size");
        let now = Provenance::default();
        let mut file = Samples::create(&path).unwrap();
        file.add(&Line::Run(Box::new(now.clone()))).unwrap();
        file.add(&sample(1)).unwrap();
        let mut text = fs::read(&path).unwrap();
        text.extend(b"{\"sample\":{\"exp");
        fs::write(&path, text).unwrap();

        let (mut file, done) = Samples::resume(&path, &now).unwrap();
        assert_eq!(done.iter().map(|c| c.repeat).collect::<Vec<_>>(), [1]);
        file.add(&sample(2)).unwrap();
        let lines = read(&path).unwrap();
        assert_eq!(lines[1..], [sample(1), sample(2)]);

        let other = Provenance {
            kernel: "another".into(),
            ..now
        };
        let error = Samples::resume(&path, &other).unwrap_err().to_string();
        assert!(error.contains("kernel"), "{error}");
    }

    #[test]
    fn compressed_samples_are_the_same_and_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let (plain, compressed) = (path(dir.path(), "x"), compressed_path(dir.path(), "x"));
        assert_eq!(find(dir.path(), "x").unwrap(), None);
        Samples::create(&plain).unwrap().add(&sample(1)).unwrap();
        compress(&plain, &compressed).unwrap();
        let bytes = fs::read(&compressed).unwrap();
        for from in [&plain, &compressed] {
            compress(from, &compressed).unwrap();
            assert_eq!(fs::read(&compressed).unwrap(), bytes);
        }
        assert_eq!(read(&compressed).unwrap(), [sample(1)]);
        let error = find(dir.path(), "x").unwrap_err().to_string();
        assert!(error.contains("twice"), "{error}");
        fs::remove_file(&plain).unwrap();
        assert_eq!(find(dir.path(), "x").unwrap(), Some(compressed));
    }

    #[test]
    fn compressed_samples_that_are_cut_off_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (plain, compressed) = (path(dir.path(), "x"), compressed_path(dir.path(), "x"));
        Samples::create(&plain).unwrap().add(&sample(1)).unwrap();
        compress(&plain, &compressed).unwrap();
        let bytes = fs::read(&compressed).unwrap();
        fs::write(&compressed, &bytes[..bytes.len() / 2]).unwrap();
        let error = read(&compressed).unwrap_err().to_string();
        assert!(error.contains("x.jsonl.gz"), "{error}");
    }

    #[test]
    fn a_damaged_line_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        fs::write(&path, "{}\n{}\n").unwrap();
        let error = format!("{:#}", read(&path).unwrap_err());
        assert!(error.contains("line 1"), "{error}");
    }
}
