//! Guest RAM files and the snapshot store in host DRAM.
