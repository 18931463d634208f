// SPDX-License-Identifier: GPL-2.0-only
//! Builds and caches the guest kernel, its self-tests, the guest image and the emulator; makes
//! images of the user's own ([`own`]).
//!
//! Every product is a directory in the cache whose name is a hash of all of its
//! inputs ([`key`]), made elsewhere and renamed when whole ([`cache`]). So a
//! second run finds it, a changed input makes another one, and an interrupted
//! build leaves nothing that looks finished. `docs/BUILD.md` tells the layout.

pub mod cache;
pub mod cargo;
mod debian;
pub mod emulator;
pub mod image;
pub mod kconfig;
pub mod kernel;
pub mod key;
pub mod oci;
pub mod own;
pub mod rootfs;
pub mod status;
pub mod step;
pub mod tools;
mod window;
pub mod workspace;
