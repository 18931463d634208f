// SPDX-License-Identifier: GPL-2.0-only
//! The snapshot store on a real tmpfs.
#![allow(clippy::unwrap_used)] // in helpers, too, a failure is the test's failure

mod basics;
mod crash;
mod directory;
mod full;
mod labels;
mod manifests;
mod model;
mod processes;
mod support;
