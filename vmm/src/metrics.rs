//! Counters of what the monitor does, cheap enough to be always on.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// A counter at zero.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why vCPUs came out of the guest.
#[derive(Debug, Default)]
pub struct VcpuMetrics {
    /// Port accesses.
    pub pio: Counter,
    /// Accesses to device memory.
    pub mmio: Counter,
    /// Signals.
    pub interrupted: Counter,
}
