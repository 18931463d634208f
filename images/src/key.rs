// SPDX-License-Identifier: GPL-2.0-only
//! Keys of cache entries: a hash over everything that went into an entry.

use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use fs_err as fs;
use sha2::{Digest, Sha256};

/// The key of a cache entry: 20 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// Whether `name` could be a key, that is, the name of a whole cache entry.
    #[must_use]
    pub fn is_key(name: &str) -> bool {
        name.len() == Self::DIGITS && name.bytes().all(|b| b.is_ascii_hexdigit())
    }

    const DIGITS: usize = 20;
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Collects the inputs of a cache entry.
///
/// Every input has a label and is hashed with its length, so that no two
/// different lists of inputs make the same stream.
///
/// ```
/// use mvas_images::key::Inputs;
/// let one = Inputs::new("kernel").text("compiler", "gcc 12").key();
/// let two = Inputs::new("kernel").text("compiler", "gcc 13").key();
/// assert_ne!(one, two);
/// ```
#[derive(Debug, Clone)]
pub struct Inputs(Sha256);

impl Inputs {
    /// Begins the list of inputs of an entry of `kind`.
    #[must_use]
    pub fn new(kind: &str) -> Self {
        Self(Sha256::new()).text("kind", kind)
    }

    /// Adds a short text, such as a version.
    #[must_use]
    pub fn text(mut self, label: &str, text: &str) -> Self {
        self.field(label.as_bytes());
        self.field(text.as_bytes());
        self
    }

    /// Adds another key.
    #[must_use]
    pub fn with_key(self, label: &str, key: &Key) -> Self {
        self.text(label, &key.0)
    }

    /// Adds a file: its content and whether it is executable, not its name.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn file(mut self, label: &str, path: &Path) -> io::Result<Self> {
        let mut file = fs::File::open(path)?;
        let mode = file.metadata()?.permissions().mode();
        let mut content = Sha256::new();
        io::copy(&mut file, &mut content)?;
        self.field(label.as_bytes());
        self.field(&[u8::from(mode & 0o100 != 0)]);
        self.field(&content.finalize());
        Ok(self)
    }

    /// Adds every file below a folder, with its path relative to it. A folder
    /// that does not exist counts as empty.
    ///
    /// # Errors
    /// When a file or folder cannot be read.
    pub fn tree(mut self, label: &str, dir: &Path) -> io::Result<Self> {
        self = self.text("tree", label);
        for path in files_below(dir)? {
            let relative = path.strip_prefix(dir).unwrap_or(&path).to_string_lossy();
            self = self.file(&relative, &path)?;
        }
        Ok(self)
    }

    /// The key of the inputs so far.
    #[must_use]
    pub fn key(self) -> Key {
        let mut hex: String = self
            .0
            .finalize()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        hex.truncate(Key::DIGITS);
        Key(hex)
    }

    fn field(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }
}

/// All files below `dir`, sorted; none if it does not exist.
///
/// # Errors
/// When a folder cannot be read.
pub fn files_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_path_buf()];
    while let Some(dir) = pending.pop() {
        let entries = match fs::read_dir(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
            } else {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;
    use proptest::prelude::*;

    fn key_of(texts: &[(String, String)]) -> Key {
        texts
            .iter()
            .fold(Inputs::new("t"), |i, (l, t)| i.text(l, t))
            .key()
    }

    proptest! {
        #[test]
        fn different_lists_of_inputs_have_different_keys(
            a in proptest::collection::vec((".{0,3}", ".{0,3}"), 0..4),
            b in proptest::collection::vec((".{0,3}", ".{0,3}"), 0..4),
        ) {
            prop_assert_eq!(a == b, key_of(&a) == key_of(&b));
        }
    }

    #[test]
    fn a_key_looks_like_a_key_and_a_temporary_name_does_not() {
        assert!(Key::is_key(&Inputs::new("x").key().to_string()));
        assert!(!Key::is_key(".building-0123456789abcdef0123"));
        assert!(!Key::is_key("0123456789abcdef012"));
    }

    #[test]
    fn the_key_of_a_tree_follows_content_name_and_mode_of_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let key = || Inputs::new("t").tree("d", dir.path()).unwrap().key();
        let empty = key();
        let file = dir.path().join("a/b.c");
        fs::create_dir(dir.path().join("a")).unwrap();
        assert_eq!(key(), empty, "empty folders do not count");
        fs::write(&file, "1").unwrap();
        let first = key();
        fs::write(&file, "2").unwrap();
        let content = key();
        fs::set_permissions(&file, Permissions::from_mode(0o755)).unwrap();
        let mode = key();
        fs::rename(&file, dir.path().join("a/c.c")).unwrap();
        let name = key();
        let all = [&empty, &first, &content, &mode, &name];
        for (i, a) in all.iter().enumerate() {
            for b in &all[..i] {
                assert_ne!(a, b);
            }
        }
    }

    #[test]
    fn a_missing_file_is_an_error_that_names_it() {
        let error = Inputs::new("t")
            .file("f", Path::new("/no/such"))
            .unwrap_err();
        assert!(error.to_string().contains("/no/such"));
    }

    #[test]
    fn a_missing_tree_counts_as_empty() {
        assert_eq!(
            Inputs::new("t")
                .tree("d", Path::new("/no/such"))
                .unwrap()
                .key(),
            Inputs::new("t").text("tree", "d").key()
        );
    }
}
