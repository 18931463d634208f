// SPDX-License-Identifier: GPL-2.0-only
//! Counters of what the monitor does, cheap enough to be always on. `docs/VMM.md` lists them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Serialize, Serializer};
use serde_json::Value;

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

    /// Adds one; true: it is the first, the only one that should be logged. (A guest can
    /// make more than any log should hold.)
    pub fn is_first(&self) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed) == 0
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

impl Serialize for Counter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.get())
    }
}

/// Why vCPUs came out of the guest.
#[derive(Debug, Default, Serialize)]
pub struct VcpuMetrics {
    /// Port accesses.
    pub pio: Counter,
    /// Accesses to device memory.
    pub mmio: Counter,
    /// Signals.
    pub interrupted: Counter,
}

/// Counters of a part of a VM, as a JSON object of numbers.
pub trait Counters: Send + Sync {
    /// What has been counted so far.
    fn to_json(&self) -> Value;
}

impl<T: Serialize + Send + Sync> Counters for T {
    fn to_json(&self) -> Value {
        serde_json::to_value(self).expect("counters are numbers with names")
    }
}

/// All counters of a VM, by the part of it that counts. Any thread may read them at any time.
#[derive(Default)]
pub struct Metrics(Mutex<BTreeMap<String, Arc<dyn Counters>>>);

impl Metrics {
    /// Adds a part's counters.
    pub fn add(&self, part: impl Into<String>, counters: Arc<dyn Counters>) {
        self.parts().insert(part.into(), counters);
    }

    /// What has been counted so far: an object of objects of numbers.
    pub fn to_json(&self) -> Value {
        let parts = self.parts();
        let parts = parts.iter();
        Value::Object(
            parts
                .map(|(part, counters)| (part.clone(), counters.to_json()))
                .collect(),
        )
    }

    fn parts(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<dyn Counters>>> {
        // Whole at any time: a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_json().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_while_they_grow() {
        let metrics = Metrics::default();
        let vcpus = Arc::<VcpuMetrics>::default();
        metrics.add("vcpus", vcpus.clone());
        vcpus.mmio.add(2);
        assert!(vcpus.pio.is_first() && !vcpus.pio.is_first());
        let json = metrics.to_json();
        assert_eq!(
            json,
            serde_json::json!({ "vcpus": { "pio": 2, "mmio": 2, "interrupted": 0 } })
        );
    }
}
