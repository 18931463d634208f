// SPDX-License-Identifier: GPL-2.0-only
//! The demo: a loaded Redis, dumped and restored by each system, with proof that
//! it holds the same data; from the snapshot store, in another microVM; as many copies of a
//! process; and in a Docker container.

pub mod clones;
pub mod docker;
pub mod guest;
pub mod host;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::system::System;
use crate::table;
use crate::times::Times;
use clones::Clones;
use docker::DockerRun;

/// One dump and restore.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// What dumped and restored.
    pub system: System,
    /// The times.
    #[serde(flatten)]
    pub times: Times,
    /// Bytes of the image files.
    pub image_bytes: u64,
    /// Whether Redis holds exactly the same data after the restore.
    pub data_equal: bool,
    /// What differs, if something does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub differs: Option<String>,
}

/// A dump into the snapshot store in one microVM, which is killed then, and a restore in
/// another one; times in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SecondVm {
    /// The whole dump, until the snapshot was complete in the store.
    pub dump_ms: f64,
    /// Of it, what the store took.
    pub store_ms: f64,
    /// How long Redis was frozen in the dump.
    pub frozen_ms: f64,
    /// The whole restore, with what it brings from the store.
    pub restore_ms: f64,
    /// The memory step of the restore.
    pub memory_restore_ms: f64,
    /// Whether Redis holds exactly the same data there.
    pub data_equal: bool,
    /// What differs, if something does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub differs: Option<String>,
}

/// The results as they are written to `demo.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Data in Redis, in MiB.
    pub size_mib: usize,
    /// One per system.
    pub runs: Vec<Run>,
    /// From one microVM to another.
    pub second_vm: SecondVm,
    /// In a Docker container, one per system.
    pub docker: Vec<DockerRun>,
    /// Many copies of one snapshot.
    pub clones: Clones,
}

impl Report {
    /// What differs after a restore.
    ///
    /// # Errors
    /// Names every restore after which Redis held other data, and copies that are not
    /// what they should be.
    pub fn verify(&self) -> Result<()> {
        let wrong = |name: String, equal: bool, differs: &Option<String>| {
            let differs = differs.as_deref().unwrap_or("other data");
            (!equal).then(|| format!("{name}: {differs}"))
        };
        let second = &self.second_vm;
        let runs = self.runs.iter();
        let wrong: Vec<String> = runs
            .map(|r| wrong(r.system.to_string(), r.data_equal, &r.differs))
            .chain([wrong(
                "vascriu in the second microVM".into(),
                second.data_equal,
                &second.differs,
            )])
            .chain(self.docker.iter().map(|r| {
                let name = format!("{} in Docker", r.system);
                wrong(name, r.data_equal, &r.differs)
            }))
            .flatten()
            .chain(self.clones.wrong())
            .collect();
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    }

    /// The table of what happens in one microVM, for people.
    #[must_use]
    pub fn render(&self) -> String {
        let header = [
            "system",
            "dump ms",
            "restore ms",
            "frozen ms",
            "memory dump ms",
            "memory restore ms",
            "images",
            "dump",
            "restore",
            "same data",
        ];
        let baseline = self.runs.iter().find(|r| r.system == System::CriuTmpfs);
        let row = |run: &Run| {
            let own = &run.times;
            let faster = |of| own.faster_than(baseline.map(|b| &b.times), of);
            vec![
                run.system.to_string(),
                table::ms(own.dump_ms),
                table::ms(own.restore_ms),
                table::ms(own.frozen_ms),
                table::ms(own.memory_dump_ms),
                table::ms(own.memory_restore_ms),
                table::bytes(run.image_bytes),
                faster(|t| t.dump_ms),
                faster(|t| t.restore_ms),
                yes_or_no(run.data_equal),
            ]
        };
        table::render(&header, &self.runs.iter().map(row).collect::<Vec<_>>())
    }

    /// The table of what happens from one microVM to another.
    #[must_use]
    pub fn render_second_vm(&self) -> String {
        let header = [
            "two microVMs",
            "dump ms",
            "to the store ms",
            "restore ms",
            "memory restore ms",
            "same data",
        ];
        let second = &self.second_vm;
        let row = vec![
            "vascriu".into(),
            table::ms(second.dump_ms),
            table::ms(second.store_ms),
            table::ms(second.restore_ms),
            table::ms(second.memory_restore_ms),
            yes_or_no(second.data_equal),
        ];
        table::render(&header, &[row])
    }
}

pub(crate) fn yes_or_no(equal: bool) -> String {
    if equal { "yes" } else { "NO" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(system: System, ms: f64, differs: Option<&str>) -> Run {
        Run {
            system,
            times: Times {
                dump_ms: ms,
                restore_ms: ms,
                ..Times::default()
            },
            image_bytes: 1 << 30,
            data_equal: differs.is_none(),
            differs: differs.map(Into::into),
        }
    }

    fn report(differs: Option<&str>) -> Report {
        Report {
            size_mib: 1024,
            runs: vec![
                run(System::CriuDisk, 4000.0, None),
                run(System::CriuTmpfs, 2000.0, None),
                run(System::Vascriu, 100.0, differs),
            ],
            second_vm: second(None),
            docker: vec![DockerRun {
                system: System::Vascriu,
                checkpoint_ms: 900.0,
                start_ms: 700.0,
                data_equal: true,
                differs: None,
            }],
            clones: Clones {
                n: 20,
                ms_each: 300.0,
                memory_each_bytes: 1 << 20,
                randomness_distinct: true,
                bad_pages: 0,
            },
        }
    }

    fn second(differs: Option<&str>) -> SecondVm {
        SecondVm {
            dump_ms: 120.0,
            store_ms: 20.0,
            frozen_ms: 60.0,
            restore_ms: 80.0,
            memory_restore_ms: 7.0,
            data_equal: differs.is_none(),
            differs: differs.map(Into::into),
        }
    }

    #[test]
    fn different_data_is_an_error_that_says_what_differs() {
        assert!(report(None).verify().is_ok());
        let error = report(Some("3 keys before, 2 keys after"))
            .verify()
            .unwrap_err();
        assert_eq!(error.to_string(), "vascriu: 3 keys before, 2 keys after");
    }

    #[test]
    fn different_data_in_the_second_microvm_is_an_error_too() {
        let report = Report {
            second_vm: second(Some("7 keys before, none after")),
            ..report(None)
        };
        let error = report.verify().unwrap_err().to_string();
        assert_eq!(
            error,
            "vascriu in the second microVM: 7 keys before, none after"
        );
        assert!(report.render_second_vm().contains("NO"));
    }

    #[test]
    fn copies_that_share_their_randomness_are_an_error() {
        let mut report = report(None);
        report.clones.randomness_distinct = false;
        report.docker[0].data_equal = false;
        let error = report.verify().unwrap_err().to_string();
        assert_eq!(
            error,
            "vascriu in Docker: other data\nclones: two of them drew the same random number"
        );
    }

    #[test]
    fn the_table_compares_with_stock_criu_on_tmpfs() {
        let table = report(None).render();
        let lines: Vec<&str> = table.lines().collect();
        assert!(
            lines[2].contains("criu-disk") && lines[2].contains("0.5x"),
            "{table}"
        );
        assert!(
            lines[4].contains("vascriu") && lines[4].contains("20.0x"),
            "{table}"
        );
        assert!(report(Some("x")).render().contains("NO"));
    }

    #[test]
    fn the_report_has_the_promised_names() {
        let json = serde_json::to_value(report(None)).unwrap();
        let run = &json["runs"][2];
        assert_eq!(run["system"], "vascriu");
        assert_eq!(run["image_bytes"], 1 << 30);
        assert_eq!(run["data_equal"], true);
        for name in [
            "dump_ms",
            "restore_ms",
            "frozen_ms",
            "memory_dump_ms",
            "memory_restore_ms",
        ] {
            assert!(run[name].is_f64(), "{name}");
        }
        assert_eq!(json["second_vm"]["data_equal"], true);
        assert_eq!(json["docker"][0]["system"], "vascriu");
        assert_eq!(json["docker"][0]["checkpoint_ms"], 900.0);
        assert_eq!(json["docker"][0]["start_ms"], 700.0);
        assert_eq!(json["docker"][0]["data_equal"], true);
        assert_eq!(json["clones"]["n"], 20);
        assert_eq!(json["clones"]["ms_each"], 300.0);
        assert_eq!(json["clones"]["memory_each_bytes"], 1 << 20);
        assert_eq!(json["clones"]["randomness_distinct"], true);
    }
}
