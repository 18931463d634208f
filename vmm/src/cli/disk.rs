// SPDX-License-Identifier: GPL-2.0-only
//! `--disk FILE[,ro]`.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use mvasvm::config::DiskConfig;

/// A disk as asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DiskArg {
    pub path: PathBuf,
    pub read_only: bool,
}

impl DiskArg {
    /// A comma in a file name is written twice, as QEMU has it; everything behind a single
    /// one is an option.
    pub fn parse(text: &str) -> Result<Self, String> {
        let doubled = text.replace(",,", "\0");
        let mut parts = doubled.split(',');
        let path = parts.next().unwrap_or_default().replace('\0', ",");
        if path.is_empty() {
            return Err("no file given".to_owned());
        }
        let mut read_only = false;
        for option in parts {
            match option {
                "ro" => read_only = true,
                "rw" => read_only = false,
                other => return Err(format!("unknown option {other:?}: ro or rw")),
            }
        }
        let path = PathBuf::from(path);
        Ok(Self { path, read_only })
    }

    /// As an argument again, for `path`.
    pub fn render(&self) -> OsString {
        let path = self.path.display().to_string().replace(',', ",,");
        format!("{path}{}", if self.read_only { ",ro" } else { "" }).into()
    }

    pub fn config(&self) -> DiskConfig {
        DiskConfig {
            path: self.path.clone(),
            read_only: self.read_only,
        }
    }
}

impl fmt::Display for DiskArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.render().display().fmt(f)
    }
}

/// How Linux calls the disk with this index.
pub(super) fn disk_name(index: usize) -> String {
    let mut letters = Vec::new();
    let mut left = index + 1;
    while left > 0 {
        left -= 1;
        letters.push(char::from(b"abcdefghijklmnopqrstuvwxyz"[left % 26]));
        left /= 26;
    }
    letters
        .iter()
        .rev()
        .fold("vd".to_owned(), |mut name, letter| {
            name.push(*letter);
            name
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn options_follow_the_file() {
        let disk = DiskArg::parse("a.img,ro").expect("right");
        assert!(disk.read_only && disk.path.as_os_str() == "a.img");
        assert!(!DiskArg::parse("a.img").expect("right").read_only);
        assert_eq!(
            DiskArg::parse("a,,b.img").expect("right").path,
            PathBuf::from("a,b.img")
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", ",ro", "a,fast", "a,ro,"] {
            assert!(DiskArg::parse(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn disks_have_the_names_that_linux_gives_them() {
        let names = [0, 1, 25, 26, 27, 701, 702].map(disk_name);
        let expected = ["vda", "vdb", "vdz", "vdaa", "vdab", "vdzz", "vdaaa"];
        assert_eq!(names, expected);
    }

    proptest! {
        #[test]
        fn any_file_name_survives_rendering(path in "[^\0]+", read_only: bool) {
            let disk = DiskArg { path: path.into(), read_only };
            let text = disk.render().into_string().expect("UTF-8");
            prop_assert_eq!(DiskArg::parse(&text), Ok(disk));
        }
    }
}
