//! The CRIU plugin that captures memory into a VAS and attaches it back.
