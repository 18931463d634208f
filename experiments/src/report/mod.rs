// SPDX-License-Identifier: GPL-2.0-only
//! The report: all that samples tell, as one HTML page, and as Markdown with its figures beside
//! it. It runs nothing: what it shows is in the samples and in the definitions.

pub mod analysis;
pub mod figure;
#[cfg(test)]
mod fixture;
pub mod html;
pub mod markdown;
mod scale;
pub mod text;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::exp;
use crate::frame::{Experiment, Figure, samples};
use analysis::{Results, Verdict};
use figure::Drawing;

/// What is reported.
#[derive(Debug, Args)]
pub struct Report {
    /// Names of experiments, as `ls` has them [default: all]
    names: Vec<String>,
    /// The folder of the samples
    #[arg(long, value_name = "FOLDER", default_value = "target/mvas/samples")]
    from: PathBuf,
    /// The folder to write the report to
    #[arg(long, value_name = "FOLDER", default_value = "target/mvas/report")]
    out: PathBuf,
    /// Put the samples, compressed, into the folder's `samples`, in place of those that are there
    /// of the same experiments, and make the report of all that are there then
    #[arg(long, value_name = "FOLDER", conflicts_with = "out")]
    publish: Option<PathBuf>,
    /// Write the medians, intervals and verdicts as analysis.json, too
    #[arg(long)]
    json: bool,
}

impl Report {
    /// Makes it.
    ///
    /// # Errors
    /// When there are no samples, or it cannot be written; also when some are damaged, but then
    /// there is a report of all others.
    pub fn write(&self) -> Result<()> {
        let experiments: Vec<&'static dyn Experiment> = if self.names.is_empty() {
            exp::ALL.to_vec()
        } else {
            let named = self.names.iter().map(|name| exp::find(name));
            named.collect::<Result<_>>()?
        };
        match &self.publish {
            None => self.make(&experiments, &self.from, &self.out),
            Some(folder) => {
                let samples = folder.join("samples");
                publish(&experiments, &self.from, &samples)?;
                self.make(exp::ALL, &samples, folder)
            }
        }
    }

    fn make(&self, of: &[&'static dyn Experiment], from: &Path, out: &Path) -> Result<()> {
        let mut left_out = Vec::new();
        let all = of.iter().map(|experiment| {
            // The others, which may be of other commits, are not lost by one.
            read(*experiment, from).or_else(|error| {
                let definition = experiment.definition();
                eprintln!("{} is left out: {error:#}", definition.name);
                left_out.push(definition.name);
                Results::of(definition, Vec::new())
            })
        });
        let all: Vec<Results> = all.collect::<Result<_>>()?;
        ensure!(
            all.iter().any(|results| !results.is_empty()),
            "{} has no samples: run `mvas-exp run NAME` first",
            from.display()
        );
        let sections = all.into_iter().map(Section::of);
        let sections: Vec<Section> = sections.collect::<Result<_>>()?;
        write(out, &sections)?;
        if self.json {
            let all: Vec<_> = sections.iter().map(|section| &section.results).collect();
            let text = serde_json::to_string_pretty(&all)? + "\n";
            save(&out.join("analysis.json"), &text)?;
        }
        print!("{}", told(&sections));
        println!("written to {}", out.join("index.html").display());
        ensure!(
            left_out.is_empty(),
            "the report is without {}: measure it again, or take its samples away",
            left_out.join(", ")
        );
        Ok(())
    }
}

/// An experiment, its results and its figures.
#[derive(Debug)]
pub struct Section {
    /// The results.
    pub results: Results,
    /// Those figures of which something was measured.
    pub figures: Vec<(&'static Figure, Drawing)>,
}

impl Section {
    /// Draws the figures.
    ///
    /// # Errors
    /// When one cannot be drawn.
    pub fn of(results: Results) -> Result<Self> {
        let mut figures = Vec::new();
        for figure in results.definition.figures {
            let drawn = figure::draw(&results, figure);
            let drawn = drawn.with_context(|| format!("{}: {}", results.name, figure.title))?;
            figures.extend(drawn.map(|drawing| (figure, drawing)));
        }
        Ok(Self { results, figures })
    }

    /// The name of the file of a figure.
    #[must_use]
    pub fn file(&self, figure: &Figure) -> String {
        let letter = |c: char| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        };
        let title: String = figure.title.chars().map(letter).collect();
        format!("figures/{}-{title}.svg", self.results.name)
    }
}

/// The results of an experiment; without its file there are none.
fn read(experiment: &dyn Experiment, folder: &Path) -> Result<Results> {
    let definition = experiment.definition();
    let Some(path) = samples::find(folder, definition.name)? else {
        return Results::of(definition, Vec::new());
    };
    Results::of(definition, samples::read(&path)?).with_context(|| path.display().to_string())
}

/// Compresses the samples that there are of these experiments; none, if some are not good for a
/// report.
fn publish(experiments: &[&'static dyn Experiment], from: &Path, to: &Path) -> Result<()> {
    let mut found = Vec::new();
    for experiment in experiments {
        let name = experiment.definition().name;
        if let Some(path) = samples::find(from, name)? {
            read(*experiment, from)?;
            found.push((path, samples::compressed_path(to, name)));
        }
    }
    ensure!(
        !found.is_empty(),
        "{} has no samples: run `mvas-exp run NAME` first",
        from.display()
    );
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    found
        .iter()
        .try_for_each(|(path, compressed)| samples::compress(path, compressed))
}

/// Writes both pages and the figures.
fn write(out: &Path, sections: &[Section]) -> Result<()> {
    let figures = out.join("figures");
    fs::create_dir_all(&figures).with_context(|| format!("cannot make {}", figures.display()))?;
    remove_figures(&figures).with_context(|| format!("old figures in {}", figures.display()))?;
    for section in sections {
        for (figure, drawing) in &section.figures {
            save(&out.join(section.file(figure)), &drawing.svg)?;
        }
    }
    save(&out.join("index.html"), &html::page(sections))?;
    save(&out.join("report.md"), &markdown::page(sections))
}

/// Removes the figures of an earlier report: it may have had some that this one does not.
fn remove_figures(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_ours = |e: &&dyn Experiment| name.starts_with(&format!("{}-", e.definition().name));
        if name.ends_with(".svg") && exp::ALL.iter().any(is_ours) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn save(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// What became of the claims, and what is missing.
fn told(sections: &[Section]) -> String {
    let mut told = String::new();
    for results in sections.iter().map(|section| &section.results) {
        if results.is_empty() {
            told += &format!("{}: not measured\n", results.name);
            continue;
        }
        let is = |verdict| {
            results
                .claims
                .iter()
                .filter(|c| c.verdict == verdict)
                .count()
        };
        told += &format!(
            "{}: {} claims reached, {} missed, {} not measured\n",
            results.name,
            is(Verdict::Reached),
            is(Verdict::Missed),
            is(Verdict::NotMeasured)
        );
    }
    told
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::process::Command;

    use super::*;
    use crate::frame::{Kind, Unit};
    use fixture::{sample, samples, section};

    #[test]
    fn figures_of_all_kinds_of_axes_can_be_read_in_a_browser() {
        const WORDS: Kind = Kind::Word(&[
            "a-rather-long-word",
            "another-long-word",
            "short",
            "the-last-of-them",
        ]);
        const COPIES: Kind = Kind::Count("copies");
        let one = sample(fixture::SYSTEMS[0], "1", "plain", 1, 3.0);
        let counts = ["1", "2", "5", "10", "20", "50", "100", "200", "500", "1000"];
        let percents = ["0", "1", "10", "25", "50", "75", "100"];
        let sections = [
            section(
                WORDS,
                Unit::Ms,
                samples(&[
                    "a-rather-long-word",
                    "another-long-word",
                    "short",
                    "the-last-of-them",
                ]),
            ),
            section(WORDS, Unit::PerSecond, samples(&["short"])),
            section(COPIES, Unit::Bytes, samples(&counts)),
            section(COPIES, Unit::Count, samples(&percents)),
            section(COPIES, Unit::Ms, samples(&["7"])),
            section(COPIES, Unit::Ms, vec![one]),
            section(
                Kind::Size,
                Unit::Bytes,
                samples(&["1M", "2M", "3M", "512M", "1G", "16G"]),
            ),
            section(Kind::Size, Unit::Ms, Vec::new()),
        ];
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &sections).unwrap();
        assert_eq!(look(dir.path()), "");
    }

    #[test]
    fn a_browser_finds_what_cannot_be_read() {
        let sections = [section(Kind::Size, Unit::Ms, samples(&["1M", "2M"]))];
        let page = html::page(&sections);
        let dir = tempfile::tempdir().unwrap();
        let damaged = |what: &str, by: &str| {
            save(&dir.path().join("index.html"), &page.replace(what, by)).unwrap();
            look(dir.path())
        };
        for (what, by, complaint) in [
            ("<polygon", "<path", "0 marks instead of"),
            (
                "</svg>",
                "<text x='9' y='15'>over</text></svg>",
                "overlaps over",
            ),
            (
                "</svg>",
                "<text x='740' y='340'>too long</text></svg>",
                "leaves the figure",
            ),
            (
                "<nav>",
                "<nav style='width: 2000px'>",
                "wider than the window",
            ),
        ] {
            let said = damaged(what, by);
            assert!(!chromium() || said.contains(complaint), "{said}");
        }
    }

    /// What a browser has to say against a report.
    fn look(folder: &Path) -> String {
        let look = concat!(env!("CARGO_MANIFEST_DIR"), "/look");
        let said = Command::new(look).arg(folder).output().unwrap();
        let complaints = String::from_utf8_lossy(&said.stderr).into_owned();
        assert_eq!(said.status.success(), complaints.is_empty(), "{said:?}");
        complaints
    }

    fn chromium() -> bool {
        Command::new("chromium").arg("--version").output().is_ok()
    }

    #[test]
    fn each_figure_has_a_file_of_its_own() {
        for experiment in exp::ALL {
            let section = Section::of(Results::of(experiment.definition(), Vec::new()).unwrap());
            let section = section.unwrap();
            let figures = experiment.definition().figures;
            let files: BTreeSet<_> = figures.iter().map(|figure| section.file(figure)).collect();
            assert_eq!(files.len(), figures.len(), "{files:?}");
        }
    }
}
