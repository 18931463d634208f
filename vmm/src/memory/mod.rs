//! Guest memory: the RAM file, its place in guest-physical address space, KVM's memory
//! slots, and remapping. One module owns all four, because the host store remaps 2 MiB
//! blocks under running vCPUs.

/// Guest memory as devices see it.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
