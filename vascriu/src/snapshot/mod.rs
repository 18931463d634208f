// SPDX-License-Identifier: GPL-2.0-only
//! The snapshot: one object, made of VASes of this guest's kernel (docs/SNAPSHOT.md).

pub mod entry;
pub mod id;
pub mod images;
pub mod label;
pub mod manifest;
pub mod name;
pub mod pack;
pub mod reference;
pub mod registry;
pub mod shared;
