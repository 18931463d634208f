//! The scripted experiments: demo, bench and their workloads.
