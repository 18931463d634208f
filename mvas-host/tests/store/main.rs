//! The snapshot store on a real tmpfs.
#![allow(clippy::unwrap_used)] // in helpers, too, a failure is the test's failure

mod basics;
mod directory;
mod manifests;
mod support;
