//! mvasvm: the rust-vmm microVM monitor of VAS-CRIU.
