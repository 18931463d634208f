//! In-memory container snapshots: stock CRIU with a VAS plugin.
