// SPDX-License-Identifier: GPL-2.0-only
//! CRIU's images as one piece of memory, so that they are part of the snapshot: a VAS of
//! their own holds them.
//!
//! Little-endian: [`MAGIC`]; `u64`, the length of all; then for each file `u16`,
//! the length of its name, `u64`, that of its content, the name, the content. What
//! is read may come from another microVM: nothing in it is taken for granted.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::path::Path;

use fs_err::{self as fs, File};
use memmap2::MmapMut;

const MAGIC: &[u8; 8] = b"VASIMGS\x01";
/// Of `MAGIC` and the length.
const HEAD: usize = 16;
const PAGE: usize = 4096;
/// Longest name of a file, as `NAME_MAX` of Linux.
const NAME_MAX: usize = 255;

/// What can go wrong with packed images.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written: which, it says itself.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// There is no memory.
    #[error("no memory to pack the images into")]
    NoMemory(#[source] io::Error),
    /// What was read are no images.
    #[error("the snapshot's images are damaged: {0}")]
    Damaged(&'static str),
}

/// A file among the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Image<'a> {
    /// Its name, which names a file of the directory and nothing else.
    pub name: &'a str,
    /// Its content.
    pub bytes: &'a [u8],
}

/// Whether a file of that name may lie in an image directory.
fn is_name(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.len())
        && !name.starts_with('.')
        && !name.bytes().any(|b| b == b'/' || b.is_ascii_control())
}

/// The files of the directory that `wanted` wants, and `more`, packed into whole pages.
///
/// # Errors
/// The file system's; a file that changes meanwhile.
pub fn pack(
    dir: &Path,
    wanted: impl Fn(&str) -> bool,
    more: &[Image<'_>],
) -> Result<MmapMut, Error> {
    let mut files = Vec::new();
    let mut len = HEAD
        + more
            .iter()
            .map(|i| 10 + i.name.len() + i.bytes.len())
            .sum::<usize>();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if !meta.is_file() || !is_name(&name) || !wanted(&name) {
            continue;
        }
        let size = usize::try_from(meta.len()).map_err(|_| Error::Damaged("too long a file"))?;
        len += 10 + name.len() + size;
        files.push((name, size));
    }
    let memory = MmapMut::map_anon(len.next_multiple_of(PAGE));
    let mut memory = memory.map_err(Error::NoMemory)?;
    let mut out = Cursor(&mut memory);
    out.put(MAGIC);
    out.put(&(len as u64).to_le_bytes());
    for image in more {
        out.put_head(image.name, image.bytes.len())?;
        out.put(image.bytes);
    }
    for (name, size) in files {
        out.put_head(&name, size)?;
        File::open(dir.join(&name))?.read_exact(out.take(size))?;
    }
    Ok(memory)
}

/// Memory that is filled from its beginning; it was measured before.
struct Cursor<'a>(&'a mut [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> &'a mut [u8] {
        let (taken, rest) = std::mem::take(&mut self.0).split_at_mut(len);
        self.0 = rest;
        taken
    }

    fn put(&mut self, bytes: &[u8]) {
        self.take(bytes.len()).copy_from_slice(bytes);
    }

    fn put_head(&mut self, name: &str, size: usize) -> Result<(), Error> {
        let name_len = u16::try_from(name.len()).map_err(|_| Error::Damaged("too long a name"))?;
        self.put(&name_len.to_le_bytes());
        self.put(&(size as u64).to_le_bytes());
        self.put(name.as_bytes());
        Ok(())
    }
}

/// Memory that is read from its beginning, as far as there is some.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: u64) -> Result<&'a [u8], Error> {
        let split = usize::try_from(len)
            .ok()
            .and_then(|l| self.0.split_at_checked(l));
        let (taken, rest) = split.ok_or(Error::Damaged("they are cut short"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn number<const N: usize>(&mut self) -> Result<u64, Error> {
        let mut bytes = [0; 8];
        bytes[..N].copy_from_slice(self.take(N as u64)?);
        Ok(u64::from_le_bytes(bytes))
    }
}

/// The images in `memory`.
///
/// # Errors
/// [`Error::Damaged`]: it holds anything else.
pub fn parse(memory: &[u8]) -> Result<Vec<Image<'_>>, Error> {
    let mut head = Reader(memory);
    if head.take(MAGIC.len() as u64)? != MAGIC {
        return Err(Error::Damaged("they do not begin as images do"));
    }
    let rest = head.number::<8>()?.checked_sub(HEAD as u64);
    let mut body = Reader(head.take(rest.ok_or(Error::Damaged("their length is wrong"))?)?);
    let mut names = HashSet::new();
    let mut images = Vec::new();
    while !body.0.is_empty() {
        let (name_len, len) = (body.number::<2>()?, body.number::<8>()?);
        let name = std::str::from_utf8(body.take(name_len)?).ok();
        let name = name
            .filter(|n| is_name(n))
            .ok_or(Error::Damaged("a file has no right name"))?;
        if !names.insert(name) {
            return Err(Error::Damaged("a file is there twice"));
        }
        let bytes = body.take(len)?;
        images.push(Image { name, bytes });
    }
    Ok(images)
}

/// Writes images into a directory that has none of them.
///
/// # Errors
/// The file system's.
pub fn unpack(images: &[Image<'_>], dir: &Path) -> Result<(), Error> {
    for image in images {
        File::create_new(dir.join(image.name))?.write_all(image.bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn all(_: &str) -> bool {
        true
    }

    fn packed(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
        let dir = tempfile::tempdir().expect("temp dir");
        for (name, bytes) in files {
            fs::write(dir.path().join(name), bytes).expect("write");
        }
        pack(dir.path(), all, &[]).expect("packed").to_vec()
    }

    fn raw(entries: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (name, bytes) in entries {
            body.extend(u16::try_from(name.len()).expect("short").to_le_bytes());
            body.extend((bytes.len() as u64).to_le_bytes());
            body.extend(*name);
            body.extend(*bytes);
        }
        let len = (HEAD + body.len()) as u64;
        [MAGIC.as_slice(), &len.to_le_bytes(), &body].concat()
    }

    fn files() -> impl Strategy<Value = BTreeMap<String, Vec<u8>>> {
        let bytes = prop::collection::vec(any::<u8>(), 0..6000);
        prop::collection::btree_map("[a-z][a-z0-9.-]{0,20}", bytes, 0..6)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn images_come_back_as_they_were(files in files()) {
            let memory = packed(&files);
            prop_assert_eq!(memory.len() % PAGE, 0);
            let images = parse(&memory).expect("whole");
            let dir = tempfile::tempdir().expect("temp dir");
            unpack(&images, dir.path()).expect("unpacked");
            let entries = dir.path().read_dir().expect("dir").flatten();
            let back: BTreeMap<_, _> = entries
                .map(|e| (e.file_name().into_string().expect("UTF-8"), fs::read(e.path()).expect("read")))
                .collect();
            prop_assert_eq!(back, files);
        }

        #[test]
        fn whatever_is_parsed_names_files_of_its_directory_only(
            files in files(), at in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>()
        ) {
            let mut memory = packed(&files);
            let at = at.index(memory.len());
            memory[at] = byte;
            memory.truncate(cut.index(memory.len()) + 1);
            if let Ok(images) = parse(&memory) {
                let mut names = HashSet::new();
                for image in images {
                    prop_assert_eq!(Path::new(image.name).components().count(), 1);
                    prop_assert!(!image.name.starts_with('.') && names.insert(image.name));
                }
            }
        }

        #[test]
        fn noise_is_refused(memory in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(parse(&memory).is_err());
        }
    }

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        let long = [b'x'; NAME_MAX + 1];
        let bad: &[&[u8]] = &[
            b"", b".", b"..", b"../x", b"a/b", b"/x", b".locks", b"a\0b", b"\xff", &long,
        ];
        for name in bad {
            let memory = raw(&[(b"ok.img", b"x"), (name, b"x")]);
            assert!(matches!(parse(&memory), Err(Error::Damaged(_))), "{name:?}");
        }
    }

    #[test]
    fn a_file_twice_is_refused() {
        let memory = raw(&[(b"a.img", b"x"), (b"a.img", b"y")]);
        assert!(matches!(parse(&memory), Err(Error::Damaged(_))));
    }

    #[test]
    fn lengths_beyond_the_memory_are_refused() {
        let good = raw(&[(b"a.img", b"x")]);
        assert_eq!(parse(&good).expect("good").len(), 1);
        for (at, len) in [(8, 8), (18, 8), (16, 2)] {
            for value in [u64::MAX, i64::MAX as u64, 1 << 40, 0xffff] {
                let mut bad = good.clone();
                bad[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
                assert!(parse(&bad).is_err(), "{value:#x} at {at}");
            }
        }
        for len in 0..good.len() {
            assert!(parse(&good[..len]).is_err(), "cut to {len}");
        }
    }

    #[test]
    fn nothing_is_written_over_what_is_there() {
        let dir = tempfile::tempdir().expect("temp dir");
        std::os::unix::fs::symlink("/dev/null", dir.path().join("a.img")).expect("link");
        let image = Image {
            name: "a.img",
            bytes: b"x",
        };
        assert!(unpack(&[image], dir.path()).is_err());
    }

    #[test]
    fn links_directories_and_what_nobody_wants_are_not_packed() {
        let dir = tempfile::tempdir().expect("temp dir");
        fs::create_dir(dir.path().join("d.img")).expect("mkdir");
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("l.img")).expect("link");
        for name in ["a.img", "other"] {
            fs::write(dir.path().join(name), name).expect("write");
        }
        let more = Image {
            name: "more",
            bytes: b"m",
        };
        let memory = pack(dir.path(), |n| n != "other", &[more]).expect("packed");
        let names: Vec<_> = parse(&memory)
            .expect("whole")
            .iter()
            .map(|i| i.name)
            .collect();
        assert_eq!(names, ["more", "a.img"]);
    }
}
