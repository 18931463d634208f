// SPDX-License-Identifier: GPL-2.0-only
//! Layers over each other, and hostile ones.

use std::collections::BTreeMap;
use std::io::Write;

use proptest::prelude::*;
use tar::{Archive, Builder, EntryType, Header};

use super::*;
use crate::rootfs::{Layer, add_layer, write};

/// An entry: its kind, its name as it is, and what it has or leads to.
type Item<'a> = (EntryType, &'a str, &'a str);

const FILE: EntryType = EntryType::Regular;
const DIR: EntryType = EntryType::Directory;
const SYM: EntryType = EntryType::Symlink;
const HARD: EntryType = EntryType::Link;

fn archive(items: &[Item<'_>]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (kind, name, content) in items {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(if *kind == DIR { 0o755 } else { 0o644 });
        header.set_uid(7);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        // Not by the library, which refuses hostile names.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        let mut data = &b""[..];
        if matches!(*kind, EntryType::Symlink | EntryType::Link) {
            let link = &mut header.as_old_mut().linkname;
            link[..content.len()].copy_from_slice(content.as_bytes());
        } else {
            data = content.as_bytes();
            header.set_size(data.len() as u64);
        }
        header.set_cksum();
        tar.append(&header, data).unwrap();
    }
    tar.into_inner().unwrap()
}

fn layer(rules: Rules, bytes: &[u8]) -> Layer {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Layer {
        name: "a layer".to_owned(),
        file,
        rules,
    }
}

/// What is in the tar file that is made of layers: folders end with a slash.
fn merged_bytes(rules: Rules, layers: &[Vec<u8>]) -> anyhow::Result<BTreeMap<String, String>> {
    let layers: Vec<Layer> = layers.iter().map(|bytes| layer(rules, bytes)).collect();
    let mut tree = Tree::default();
    for (index, layer) in layers.iter().enumerate() {
        add_layer(&mut tree, index, layer)?;
    }
    let mut out = Vec::new();
    let all: Vec<&Layer> = layers.iter().collect();
    write(&tree, &all, &mut out)?;
    let mut found = BTreeMap::new();
    for entry in Archive::new(&out[..]).entries()? {
        let mut entry = entry?;
        let name = String::from_utf8(entry.path_bytes().into_owned())?;
        let content = match entry.link_name_bytes() {
            Some(link) if entry.header().entry_type() == SYM => {
                format!("-> {}", shown(&link))
            }
            Some(link) => format!("= {}", shown(&link)),
            None => {
                let mut text = String::new();
                std::io::Read::read_to_string(&mut entry, &mut text)?;
                text
            }
        };
        let before = found.insert(name.trim_start_matches("./").to_owned(), content);
        assert_eq!(before, None, "{name} comes twice");
    }
    found.remove("");
    Ok(found)
}

fn merged(layers: &[&[Item<'_>]]) -> anyhow::Result<BTreeMap<String, String>> {
    let layers: Vec<Vec<u8>> = layers.iter().map(|items| archive(items)).collect();
    merged_bytes(Rules::Oci, &layers)
}

fn check(layers: &[&[Item<'_>]], expected: &[(&str, &str)]) {
    let expected = expected
        .iter()
        .map(|(name, content)| ((*name).to_owned(), (*content).to_owned()));
    assert_eq!(merged(layers).unwrap(), expected.collect());
}

#[test]
fn a_later_layer_lies_over_an_earlier_one() {
    check(
        &[
            &[(DIR, "etc", ""), (FILE, "etc/a", "1"), (FILE, "etc/b", "1")],
            &[(FILE, "etc/a", "2"), (SYM, "etc/c", "a")],
        ],
        &[
            ("etc/", ""),
            ("etc/a", "2"),
            ("etc/b", "1"),
            ("etc/c", "-> a"),
        ],
    );
}

#[test]
fn a_whiteout_removes_what_earlier_layers_have() {
    check(
        &[
            &[(FILE, "d/a", "1"), (FILE, "d/b", "1"), (FILE, "e/x/y", "1")],
            &[
                (FILE, "d/.wh.a", ""),
                (FILE, ".wh.e", ""),
                (FILE, ".wh.none", ""),
                (FILE, "no/such/.wh.x", ""),
            ],
        ],
        &[("d/", ""), ("d/b", "1")],
    );
}

#[test]
fn a_whiteout_leaves_what_its_own_layer_has_in_any_order() {
    for first in [true, false] {
        let mut second = vec![(FILE, "d/a", "2")];
        second.insert(usize::from(!first), (FILE, "d/.wh.a", ""));
        check(
            &[&[(FILE, "d/a", "1")], &second],
            &[("d/", ""), ("d/a", "2")],
        );
    }
}

#[test]
fn an_opaque_folder_has_nothing_of_earlier_layers_at_any_depth() {
    for at in [0, 3] {
        let mut second = vec![(DIR, "d", ""), (DIR, "d/sub", ""), (FILE, "d/sub/new", "2")];
        second.insert(at, (FILE, "d/.wh..wh..opq", ""));
        check(
            &[&[(FILE, "d/old", "1"), (FILE, "d/sub/old", "1")], &second],
            &[("d/", ""), ("d/sub/", ""), ("d/sub/new", "2")],
        );
    }
}

#[test]
fn files_and_folders_replace_each_other() {
    check(
        &[
            &[(FILE, "a/x", "1"), (FILE, "b", "1"), (SYM, "c", "a")],
            &[(FILE, "a", "2"), (DIR, "b", ""), (DIR, "c", "")],
        ],
        &[("a", "2"), ("b/", ""), ("c/", "")],
    );
}

#[test]
fn hard_links_are_one_file_also_over_layers() {
    check(
        &[
            &[(FILE, "b", "1"), (HARD, "a", "b")],
            &[(HARD, "c", "/b"), (FILE, ".wh.b", "")],
        ],
        &[("a", "1"), ("c", "= ./a")],
    );
}

#[test]
fn symbolic_links_on_the_way_stay_in_the_root() {
    check(
        &[
            &[
                (DIR, "usr/lib", ""),
                (SYM, "lib", "usr/lib"),
                (SYM, "out", "../../.."),
            ],
            &[
                (FILE, "lib/a", "1"),
                (FILE, "out/etc/passwd", "hostile"),
                (FILE, "/abs", "1"),
            ],
        ],
        &[
            ("abs", "1"),
            ("etc/", ""),
            ("etc/passwd", "hostile"),
            ("lib", "-> usr/lib"),
            ("out", "-> ../../.."),
            ("usr/", ""),
            ("usr/lib/", ""),
            ("usr/lib/a", "1"),
        ],
    );
}

#[test]
fn a_plain_layer_keeps_links_to_folders_and_knows_no_whiteouts() {
    let first = archive(&[(DIR, "usr/lib", ""), (SYM, "lib", "usr/lib")]);
    let second = archive(&[(DIR, "lib", ""), (FILE, "lib/.wh.a", "1")]);
    let found = merged_bytes(Rules::Plain, &[first, second]).unwrap();
    let names: Vec<&str> = found.keys().map(String::as_str).collect();
    assert_eq!(names, ["lib", "usr/", "usr/lib/", "usr/lib/.wh.a"]);
}

#[test]
fn devices_are_left_out() {
    check(
        &[
            &[(FILE, "a", "1")],
            &[(EntryType::Block, "a", ""), (EntryType::Char, "b", "")],
        ],
        &[],
    );
}

#[test]
fn long_names_and_attributes_survive() {
    let long = "x".repeat(120) + "/" + &"y".repeat(120);
    let mut tar = Builder::new(Vec::new());
    let xattr = ("SCHILY.xattr.user.a", &b"1"[..]);
    tar.append_pax_extensions([("path", long.as_bytes()), xattr])
        .unwrap();
    let mut header = Header::new_gnu();
    header.set_mode(0o4755);
    header.set_uid(1 << 20);
    header.set_gid(0);
    header.set_size(2);
    header.set_cksum();
    tar.append(&header, &b"hi"[..]).unwrap();
    let only = layer(Rules::Oci, &tar.into_inner().unwrap());
    let mut tree = Tree::default();
    add_layer(&mut tree, 0, &only).unwrap();
    let mut out = Vec::new();
    write(&tree, &[&only], &mut out).unwrap();
    let mut archive = Archive::new(&out[..]);
    let mut entry = archive.entries().unwrap().last().unwrap().unwrap();
    assert_eq!(&*entry.path_bytes(), format!("./{long}").as_bytes());
    let pax = entry.pax_extensions().unwrap().unwrap();
    let xattr = pax
        .map(|e| e.unwrap())
        .find(|e| e.key() == Ok("SCHILY.xattr.user.a"));
    assert_eq!(xattr.unwrap().value(), Ok("1"));
    assert_eq!(entry.header().mode().unwrap(), 0o4755);
    assert_eq!(entry.header().uid().unwrap(), 1 << 20);
}

#[test]
fn what_leads_out_or_nowhere_is_refused() {
    let hostile: &[&[Item<'_>]] = &[
        &[(FILE, "../x", "")],
        &[(FILE, "a/../../x", "")],
        &[(HARD, "a", "../../etc/shadow")],
        &[(HARD, "a", "/etc/shadow")],
        &[(DIR, "d", ""), (HARD, "a", "d")],
        &[(SYM, "a", "")],
        &[(FILE, "a", "1"), (FILE, "a/b", "2")],
        &[(SYM, "a", "b"), (SYM, "b", "a"), (FILE, "a/x", "")],
        &[(FILE, ".wh...", "")],
        &[(FILE, ".wh.", "")],
        &[(FILE, "", "")],
        &[(EntryType::GNUSparse, "a", "")],
        &[(EntryType::new(b'Z'), "a", "")],
    ];
    for items in hostile {
        let found = merged(&[items]);
        assert!(found.is_err(), "{items:?} became {found:?}");
    }
}

#[test]
fn what_is_no_archive_or_cut_short_is_refused() {
    let whole = archive(&[(FILE, "a", &"1".repeat(4000))]);
    for bytes in [&whole[..512], &whole[..2000], &[7; 2000][..]] {
        assert!(merged_bytes(Rules::Oci, &[bytes.to_vec()]).is_err());
    }
}

#[test]
fn too_long_headers_are_refused() {
    let mut tar = Builder::new(Vec::new());
    let value = vec![b'x'; 17 << 20];
    tar.append_pax_extensions([("comment", &value[..])])
        .unwrap();
    let mut bytes = tar.into_inner().unwrap();
    bytes.extend(archive(&[(FILE, "a", "")]));
    assert!(merged_bytes(Rules::Oci, &[bytes]).is_err());
}

#[test]
fn a_hundred_thousand_files_are_taken_and_no_end_of_them_is_not() {
    let names: Vec<String> = (0..100_000).map(|n| format!("{}/{n}", n % 100)).collect();
    let items: Vec<Item<'_>> = names.iter().map(|name| (FILE, &**name, "")).collect();
    let bytes = archive(&items);
    assert_eq!(merged_bytes(Rules::Oci, &[bytes]).unwrap().len(), 100_100);
    let names: Vec<String> = (0..MAX_NODES).map(|n| n.to_string()).collect();
    let items: Vec<Item<'_>> = names.iter().map(|name| (FILE, &**name, "")).collect();
    assert!(merged_bytes(Rules::Oci, &[archive(&items)]).is_err());
}

proptest! {
    /// Whatever the layers are: no name leads out, none goes through what is no folder, and a
    /// hard link leads to a file that came before.
    #[test]
    fn no_layers_lead_out_of_the_tree(
        layers in prop::collection::vec(
            prop::collection::vec(
                (
                    prop::sample::select(vec![FILE, DIR, SYM, HARD]),
                    "(/|\\.\\./|\\.wh\\.|[ab]/){0,4}[ab]",
                    "(/|\\.\\./|[ab]/){0,4}[ab]",
                ),
                0..8,
            ),
            1..4,
        )
    ) {
        let layers: Vec<Vec<u8>> = layers
            .iter()
            .map(|items| {
                let items: Vec<Item<'_>> =
                    items.iter().map(|(kind, name, to)| (*kind, &**name, &**to)).collect();
                archive(&items)
            })
            .collect();
        let Ok(found) = merged_bytes(Rules::Oci, &layers) else { return Ok(()) };
        for (name, content) in &found {
            prop_assert!(!name.split('/').any(|part| part == ".."), "{}", name);
            let name = name.trim_end_matches('/');
            if let Some((folder, _)) = name.rsplit_once('/') {
                prop_assert!(found.contains_key(&format!("{folder}/")), "{}", name);
            }
            if let Some(to) = content.strip_prefix("= ./") {
                prop_assert!(found.contains_key(to), "{}", content);
            }
        }
    }
}
