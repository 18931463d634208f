//! The KVM virtual machine: in-kernel interrupt controllers, clock, memory slots.
