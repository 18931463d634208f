// SPDX-License-Identifier: GPL-2.0-only
//! What the server's tests share.

use mvas_abi::virtio_vas::VirtioVasRequest;
use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::memory::{GuestBlock, RamRange};
use super::plan::Remap;
use super::table::Shown;
use crate::store::{Extent, RunId};

/// RAM with a hole.
pub fn ram() -> Vec<RamRange> {
    let range = |first, blocks, home| RamRange {
        first: GuestBlock(first),
        blocks,
        home,
    };
    vec![range(0, 40, 0), range(600, 700, 40)]
}

pub fn extent(run: u64, block: u64) -> Extent {
    Extent {
        run: RunId::new(run + 1).unwrap(),
        block,
    }
}

pub fn any_shown() -> impl Strategy<Value = Shown> {
    prop_oneof![
        (0u64..20).prop_map(Shown::Own),
        (0u64..3, 0u64..20).prop_map(|(run, block)| Shown::Extent(extent(run, block))),
    ]
}

/// Remappings that stay in [`ram`].
pub fn any_remaps() -> impl Strategy<Value = Vec<Remap>> {
    let at = prop_oneof![0u64..40, 600u64..660, 1100u64..1300];
    let remap = (at, 1u64..30, any_shown()).prop_map(|(at, blocks, to)| {
        let end = if at < 40 { 40 } else { 1300 };
        Remap {
            at: GuestBlock(at),
            blocks: blocks.min(end - at),
            to,
        }
    });
    proptest::collection::vec(remap, 0..40)
}

/// A request's bytes.
pub fn request(op: u32, count: u32, handle: u64, arg: u64, payload: &[u8]) -> Vec<u8> {
    let head = VirtioVasRequest {
        op: op.into(),
        count: count.into(),
        handle: handle.into(),
        arg: arg.into(),
        reserved: 0.into(),
    };
    [head.as_bytes(), payload].concat()
}

/// The payload of a request that names a snapshot.
pub fn name_field(name: &str) -> Vec<u8> {
    let mut field = name.as_bytes().to_vec();
    field.resize(128, 0);
    field
}

/// The payload of LABEL, where no label is expected.
pub fn label_field(name: &str, label: &str) -> Vec<u8> {
    let mut field = name_field(name);
    field.extend(label.as_bytes());
    field.resize(128 + 2 * 1024, 0);
    field
}
