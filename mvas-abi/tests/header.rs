// SPDX-License-Identifier: GPL-2.0-only
//! Compiles the C headers and compares every size, offset and number with the Rust mirror.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use mvas_abi::vas::*;
use mvas_abi::virtio_vas::*;

/// What both sides say of one name: "sizeof x", "offsetof x.y", or a number.
type Facts = BTreeMap<String, u64>;

/// Collects the facts of Rust, and the C expressions for the same facts.
#[derive(Default)]
struct Mirror {
    facts: Facts,
    c: String,
}

impl Mirror {
    fn fact(&mut self, name: &str, c_expression: &str, value: u64) {
        assert!(
            self.facts.insert(name.to_owned(), value).is_none(),
            "{name} compared twice"
        );
        writeln!(
            self.c,
            "\tprintf(\"%llu %s\\n\", (unsigned long long)({c_expression}), \"{name}\");"
        )
        .expect("writing to a string");
    }
}

fn as_u64(n: usize) -> u64 {
    u64::try_from(n).expect("fits")
}

/// Size of a struct, and offset and size of each of its fields.
macro_rules! check_struct {
    ($mirror:expr, $rust:ident = $c:literal { $($field:ident),+ $(,)? }) => {{
        $mirror.fact(
            concat!("sizeof ", $c),
            concat!("sizeof(struct ", $c, ")"),
            as_u64(size_of::<$rust>()),
        );
        // All fields, or this does not compile.
        #[allow(dead_code)]
        fn all_fields_are_named(s: $rust) { let $rust { $($field: _),+ } = s; }
        $({
            fn size_of_field<T>(_: impl Fn(&$rust) -> &T) -> usize { size_of::<T>() }
            $mirror.fact(
                concat!("offsetof ", $c, ".", stringify!($field)),
                concat!("offsetof(struct ", $c, ", ", stringify!($field), ")"),
                as_u64(std::mem::offset_of!($rust, $field)),
            );
            $mirror.fact(
                concat!("sizeof ", $c, ".", stringify!($field)),
                concat!("sizeof(((struct ", $c, " *)0)->", stringify!($field), ")"),
                as_u64(size_of_field(|s| &s.$field)),
            );
        })+
    }};
}

macro_rules! check_numbers {
    ($mirror:expr, $($name:ident),+ $(,)?) => {
        $($mirror.fact(
            stringify!($name),
            stringify!($name),
            u64::try_from($name).expect("not negative"),
        );)+
    };
}

fn vas() -> Mirror {
    let mut m = Mirror::default();
    check_struct!(m, VasInfo = "vas_info" { abi_version, reserved, features });
    check_struct!(m, VasCreate = "vas_create" { name, mode, flags, id });
    check_struct!(m, VasOpen = "vas_open" { id, name, access, flags });
    check_struct!(m, VasCapture = "vas_capture" {
        pidfd, flags, vmas, pages, huge_pages, swap_pages, copied_pages, start, len,
    });
    check_struct!(m, VasAttach = "vas_attach" {
        pidfd, flags, src, len, dst, vmas, pages, snapshot,
    });
    check_struct!(m, VasStat = "vas_stat" {
        id, name, mode, uid, gid, state, created_ns, vmas, bytes, pages, huge_pages,
        swap_pages, attaches, users, store, drain_error, drained_pages, stored_ns,
        reserved,
    });
    check_struct!(m, VasRange = "vas_range" { start, end, pages, prot, flags });
    check_struct!(m, VasRanges = "vas_ranges" { start, ranges, count, reserved });
    check_struct!(m, VasDelete = "vas_delete" { flags, reserved });
    check_struct!(m, VasDrain = "vas_drain" { name, ids, count, flags, reserved });
    check_struct!(m, VasUsage = "vas_usage" { own_pages, shared_pages });
    check_struct!(m, VasLabel = "vas_label" { label });
    check_struct!(m, VasStoreLabel = "vas_store_label" { name, label, expected });
    check_struct!(m, VasGuard = "vas_guard" { tid, flags, addr, len, reserved });
    check_struct!(m, VasEvict = "vas_evict" { flags, reserved, pages });
    check_struct!(m, VasStoreSnapshot = "vas_store_snapshot" {
        name, created_ns, meta_bytes, blocks, packed_pages, bytes, reserved, label,
    });
    check_struct!(m, VasStoreList = "vas_store_list" {
        skip, snapshots, count, reserved, total,
    });
    check_struct!(m, VasStoreLoad = "vas_store_load" { name, ids, count, flags, reserved });
    check_struct!(m, VasStoreDelete = "vas_store_delete" { name, created_ns, flags, reserved });
    check_numbers!(
        m,
        VAS_ABI_VERSION,
        VAS_NAME_MAX,
        VAS_LABEL_MAX,
        VAS_ATTACH_CLONE,
        VAS_ATTACH_STOPPED,
        VAS_FEATURE_PAGEMAP_HIDE,
        VAS_FEATURE_STORE,
        VAS_ACCESS_READ,
        VAS_ACCESS_WRITE,
        VAS_CAPTURE_HIDE,
        VAS_CAPTURE_STOPPED,
        VAS_STATE_EMPTY,
        VAS_STATE_TRANSIENT,
        VAS_STATE_COMMITTED,
        VAS_STORE_HOT,
        VAS_STORE_DRAINING,
        VAS_STORE_STORED,
        VAS_STORE_COLD,
        VAS_DRAIN_SYNC,
        VAS_DRAIN_MAX,
        VAS_RANGE_HUGE,
        VAS_DELETE_FORCE,
        VAS_IOC_INFO,
        VAS_IOC_CREATE,
        VAS_IOC_OPEN,
        VAS_IOC_COMMIT,
        VAS_IOC_DRAIN,
        VAS_IOC_STORE_LIST,
        VAS_IOC_STORE_LOAD,
        VAS_IOC_STORE_DELETE,
        VAS_IOC_STORE_LABEL,
        VAS_IOC_GET_LABEL,
        VAS_IOC_SET_LABEL,
        VAS_IOC_USAGE,
        VAS_GUARD_MAX,
        VAS_IOC_GUARD,
        VAS_IOC_CAPTURE,
        VAS_IOC_ATTACH,
        VAS_IOC_STAT,
        VAS_IOC_RANGES,
        VAS_IOC_DELETE,
        VAS_IOC_EVICT,
    );
    m
}

fn virtio_vas() -> Mirror {
    let mut m = Mirror::default();
    check_struct!(m, VirtioVasConfig = "virtio_vas_config" {
        version, max_entries, max_meta, reserved,
    });
    check_struct!(m, VirtioVasRequest = "virtio_vas_request" {
        op, count, handle, arg, reserved,
    });
    check_struct!(m, VirtioVasResponse = "virtio_vas_response" { status, done, value });
    check_struct!(m, VirtioVasName = "virtio_vas_name" { name });
    check_struct!(m, VirtioVasMap = "virtio_vas_map" { gpa, index, kind });
    check_struct!(m, VirtioVasRange = "virtio_vas_range" { gpa, bytes });
    check_struct!(m, VirtioVasSnapshot = "virtio_vas_snapshot" {
        name, created_ns, meta_bytes, blocks, packed_pages, bytes, reserved, label,
    });
    check_struct!(m, VirtioVasLabel = "virtio_vas_label" { name, label, expected });
    check_struct!(m, VirtioVasMeta = "virtio_vas_meta" { magic, version, vases, reserved });
    check_struct!(m, VirtioVasMetaVas = "virtio_vas_meta_vas" {
        name, mode, vmas, runs, reserved,
    });
    check_struct!(m, VirtioVasMetaVma = "virtio_vas_meta_vma" {
        start, end, pgoff, prot, flags,
    });
    check_struct!(m, VirtioVasMetaRun = "virtio_vas_meta_run" { start, pages, kind, index });
    check_numbers!(
        m,
        VIRTIO_VAS_DEVICE_ID,
        VIRTIO_VAS_VERSION,
        VIRTIO_VAS_REQUESTQ,
        VIRTIO_VAS_RELEASEQ,
        VIRTIO_VAS_QUEUES,
        VIRTIO_VAS_BLOCK_SIZE,
        VIRTIO_VAS_PAGE_SIZE,
        VIRTIO_VAS_BLOCK_PAGES,
        VIRTIO_VAS_MAX_ENTRIES,
        VIRTIO_VAS_MAX_BYTES,
        VIRTIO_VAS_MAX_HANDLES,
        VIRTIO_VAS_MAX_META,
        VIRTIO_VAS_NAME_MAX,
        VIRTIO_VAS_LABEL_MAX,
        VIRTIO_VAS_OP_CREATE,
        VIRTIO_VAS_OP_PUBLISH,
        VIRTIO_VAS_OP_COPY,
        VIRTIO_VAS_OP_META,
        VIRTIO_VAS_OP_COMMIT,
        VIRTIO_VAS_OP_OPEN,
        VIRTIO_VAS_OP_FETCH,
        VIRTIO_VAS_OP_MAP,
        VIRTIO_VAS_OP_RELEASE,
        VIRTIO_VAS_OP_CLOSE,
        VIRTIO_VAS_OP_LIST,
        VIRTIO_VAS_OP_DELETE,
        VIRTIO_VAS_OP_LABEL,
        VIRTIO_VAS_S_OK,
        VIRTIO_VAS_S_BAD_REQUEST,
        VIRTIO_VAS_S_BAD_RANGE,
        VIRTIO_VAS_S_BAD_HANDLE,
        VIRTIO_VAS_S_NOT_FOUND,
        VIRTIO_VAS_S_EXISTS,
        VIRTIO_VAS_S_STATE,
        VIRTIO_VAS_S_NO_SPACE,
        VIRTIO_VAS_S_BAD_META,
        VIRTIO_VAS_S_LIMIT,
        VIRTIO_VAS_S_HOST,
        VIRTIO_VAS_S_CHANGED,
        VIRTIO_VAS_KIND_BLOCKS,
        VIRTIO_VAS_KIND_PACKED,
        VIRTIO_VAS_META_MAGIC,
        VIRTIO_VAS_META_VERSION,
        VIRTIO_VAS_VMA_ACCOUNT,
        VIRTIO_VAS_VMA_NORESERVE,
        VIRTIO_VAS_VMA_DROPPABLE,
        VIRTIO_VAS_VMA_WIPEONFORK,
        VIRTIO_VAS_VMA_FILE,
    );
    m
}

/// A header, and the facts that the mirror has of it.
struct Header {
    folder: PathBuf,
    name: &'static str,
    mirror: Mirror,
}

fn headers() -> [Header; 2] {
    let uapi = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-kernel/linux/include/uapi");
    [
        Header {
            folder: uapi.clone(),
            name: "linux/vas.h",
            mirror: vas(),
        },
        Header {
            folder: uapi,
            name: "linux/virtio_vas.h",
            mirror: virtio_vas(),
        },
    ]
}

#[test]
fn the_mirror_agrees_with_the_headers() {
    for header in headers() {
        assert_eq!(header.mirror.facts, facts_of(&header), "{}", header.name);
    }
}

/// What the C compiler says of a header.
fn facts_of(header: &Header) -> Facts {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (source, program) = (dir.path().join("facts.c"), dir.path().join("facts"));
    std::fs::write(
        &source,
        format!(
            "#include <stddef.h>\n#include <stdio.h>\n#include <{}>\n\
             int main(void)\n{{\n{}\treturn 0;\n}}\n",
            header.name, header.mirror.c
        ),
    )
    .expect("writing the C program");
    let status = Command::new("cc")
        .args(["-Wall", "-Werror", "-I"])
        .arg(&header.folder)
        .arg("-o")
        .args([&program, &source])
        .status()
        .expect("cc runs (package gcc)");
    assert!(status.success(), "{} does not compile", header.name);

    let output = Command::new(&program).output().expect("the program runs");
    String::from_utf8(output.stdout)
        .expect("text")
        .lines()
        .map(|line| {
            let (value, name) = line.split_once(' ').expect("value and name");
            (name.to_owned(), value.parse().expect("a number"))
        })
        .collect()
}

/// A number that is added to a header must be added to the mirror.
#[test]
fn every_number_and_struct_of_the_headers_is_compared() {
    let internal = ["VAS_IOC_MAGIC"];
    for header in headers() {
        let path = header.folder.join(header.name);
        let text = std::fs::read_to_string(path).expect("the header");
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (name, what) = match (words.next(), words.next(), words.next()) {
                (Some("#define"), Some(name), Some(_)) => (name.to_owned(), name.to_owned()),
                (Some("struct"), Some(name), Some("{")) => {
                    (name.to_owned(), format!("sizeof {name}"))
                }
                _ => continue,
            };
            assert!(
                internal.contains(&name.as_str()) || header.mirror.facts.contains_key(&what),
                "{name} of {} is not in the mirror",
                header.name
            );
        }
    }
}
