// SPDX-License-Identifier: GPL-2.0-only

use std::io::Write;

use anyhow::bail;

use super::*;
use crate::rootfs::Rules;
use crate::tools;

/// A cache with tools that are one empty file.
fn cache() -> (tempfile::TempDir, Cache) {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::at(dir.path());
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    tar.append_data(&mut header, "usr/lib/mvas/agent", &b""[..])
        .unwrap();
    let current = cache.dir("current").unwrap();
    fs::write(current.join(tools::FILE), tar.into_inner().unwrap()).unwrap();
    (dir, cache)
}

fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

fn layer(bytes: &[u8]) -> Layer {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Layer {
        name: "a layer".to_owned(),
        file,
        rules: Rules::Plain,
    }
}

fn make(images: &Images<'_>, text: &str) -> Result<Image> {
    images.make(&name(text), "a test", |_, _| {
        Ok((vec![layer(&[0; 1024])], Settings::default()))
    })
}

/// What is in the folder of images.
fn there(cache: &Cache) -> Vec<String> {
    let listing = fs::read_dir(cache.root().join(KIND)).unwrap();
    let mut names: Vec<String> = listing
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn an_image_is_made_listed_and_removed() {
    let (_dir, cache) = cache();
    let images = Images::new(&cache);
    assert_eq!(images.list().unwrap(), []);
    let made = make(&images, "a:1").unwrap();
    assert!(made.path.is_file());
    assert_eq!(settings(&made.path).unwrap(), Some(Settings::default()));
    assert_eq!(images.list().unwrap(), std::slice::from_ref(&made));
    assert_eq!(there(&cache), ["a:1"]);
    assert!(
        make(&images, "a:1")
            .unwrap_err()
            .to_string()
            .contains("image rm")
    );
    assert_eq!(images.remove(&[name("a:1")], |_| Ok(())).unwrap(), [made]);
    assert!(there(&cache).is_empty());
}

#[test]
fn a_failure_leaves_nothing_and_says_the_name() {
    let (_dir, cache) = cache();
    let images = Images::new(&cache);
    let failed = images.make(&name("a"), "a test", |work, _| {
        fs::write(work.join("half"), "")?;
        bail!("no such thing")
    });
    let message = format!("{:#}", failed.unwrap_err());
    assert!(
        message.contains("image a") && message.contains("no such thing"),
        "{message}"
    );
    let failed = images.make(&name("a"), "a test", |_, _| {
        Ok((
            vec![layer(b"no tar file at all".repeat(100).as_slice())],
            Settings::default(),
        ))
    });
    assert!(failed.is_err());
    assert!(there(&cache).is_empty());
}

#[test]
fn without_tools_nothing_is_begun() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::at(dir.path());
    let message = make(&Images::new(&cache), "a").unwrap_err().to_string();
    assert!(message.contains("make image"), "{message}");
    assert!(!dir.path().join(KIND).exists());
}

#[test]
fn what_a_killed_process_left_is_not_seen_and_goes() {
    let (_dir, cache) = cache();
    let images = Images::new(&cache);
    for left in [".building-b/work", ".removing-c", ".building-d"] {
        fs::create_dir_all(cache.root().join(KIND).join(left)).unwrap();
    }
    assert_eq!(images.list().unwrap(), []);
    let _another = cache.lock(&lock_name(&name("d")), || ()).unwrap();
    make(&images, "a").unwrap();
    assert_eq!(there(&cache), [".building-d", "a"]);
}

#[test]
fn of_two_that_make_one_image_one_is_refused() {
    let (_dir, cache) = cache();
    let results = std::thread::scope(|scope| {
        let all = [0; 2].map(|_| scope.spawn(|| make(&Images::new(&cache), "a").is_ok()));
        all.map(|thread| thread.join().unwrap())
    });
    assert_eq!(results.iter().filter(|made| **made).count(), 1);
    assert_eq!(there(&cache), ["a"]);
}

#[test]
fn of_several_all_are_removed_or_none() {
    let (_dir, cache) = cache();
    let images = Images::new(&cache);
    for text in ["a", "b"] {
        make(&images, text).unwrap();
    }
    assert!(images.remove(&[name("a"), name("no")], |_| Ok(())).is_err());
    let used = |image: &Image| match image.name.as_str() {
        "b" => bail!("in use"),
        _ => Ok(()),
    };
    assert!(images.remove(&[name("a"), name("b")], used).is_err());
    assert_eq!(there(&cache), ["a", "b"]);
    images
        .remove(&[name("b"), name("a"), name("b")], |_| Ok(()))
        .unwrap();
    assert!(there(&cache).is_empty());
}
