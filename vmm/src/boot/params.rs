// SPDX-License-Identifier: GPL-2.0-only
//! The zero page: `struct boot_params` with the memory map.

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};

use super::kernel::{LoadedInitramfs, LoadedKernel};
use super::{BootError, CMDLINE_MAX};
use crate::memory::GuestMemory;

const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
const CMDLINE: GuestAddress = GuestAddress(0x2_0000);

/// Conventional memory ends here; the ACPI tables follow (see [`super::acpi`]).
const LOW_END: u64 = 0x9_fc00;
const HIGH_START: u64 = 1 << 20;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Fields of an ELF kernel's header, which has none of its own (boot.rst).
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
const KERNEL_ALIGNMENT: u32 = 16 << 20;
/// "Undefined" boot loader.
const LOADER_TYPE: u8 = 0xff;

/// Writes command line and zero page; returns where the zero page is.
pub fn write(
    memory: &GuestMemory,
    kernel: &LoadedKernel,
    initramfs: Option<LoadedInitramfs>,
    cmdline: &str,
    rsdp: GuestAddress,
) -> Result<GuestAddress, BootError> {
    if cmdline.len() > CMDLINE_MAX {
        let text = format!("{} bytes, the kernel takes {CMDLINE_MAX}", cmdline.len());
        return Err(BootError::Cmdline(text));
    }
    if cmdline.contains('\0') {
        return Err(BootError::Cmdline("it contains a 0 byte".into()));
    }
    memory.write_slice(cmdline.as_bytes(), CMDLINE)?;
    memory.write_obj(0u8, GuestAddress(CMDLINE.0 + cmdline.len() as u64))?;

    let mut params = boot_params::default();
    match kernel.header {
        Some(header) => params.hdr = header,
        None => {
            params.hdr.boot_flag = BOOT_FLAG;
            params.hdr.header = HEADER_MAGIC;
            params.hdr.kernel_alignment = KERNEL_ALIGNMENT;
        }
    }
    params.hdr.type_of_loader = LOADER_TYPE;
    params.hdr.cmd_line_ptr = u32::try_from(CMDLINE.0).expect("in the first MiB");
    params.hdr.cmdline_size = u32::try_from(cmdline.len()).expect("of bounded length");
    if let Some(LoadedInitramfs { base, len }) = initramfs {
        params.hdr.ramdisk_image = base;
        params.hdr.ramdisk_size = len;
    }
    params.acpi_rsdp_addr = rsdp.0;
    let map = memory_map(memory);
    params.e820_entries = u8::try_from(map.len()).expect("a few ranges");
    params.e820_table[..map.len()].copy_from_slice(&map);

    let params = BootParams::new(&params, ZERO_PAGE);
    LinuxBootConfigurator::write_bootparams(&params, memory)
        .map_err(|_| GuestMemoryError::InvalidGuestAddress(ZERO_PAGE))?;
    Ok(ZERO_PAGE)
}

/// The guest's memory as firmware would tell it.
fn memory_map(memory: &GuestMemory) -> Vec<boot_e820_entry> {
    let entry = |addr, end: u64, r#type| boot_e820_entry {
        addr,
        size: end - addr,
        r#type,
    };
    let mut map = vec![
        entry(0, LOW_END, E820_RAM),
        entry(LOW_END, HIGH_START, E820_RESERVED),
    ];
    map.extend(memory.iter().map(|region| {
        let start = region.start_addr().0;
        entry(start.max(HIGH_START), start + region.len(), E820_RAM)
    }));
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(ranges: &[(u64, usize)]) -> GuestMemory {
        let ranges: Vec<_> = ranges
            .iter()
            .map(|(at, len)| (GuestAddress(*at), *len))
            .collect();
        GuestMemory::from_ranges(&ranges).unwrap()
    }

    fn elf_kernel() -> LoadedKernel {
        LoadedKernel {
            entry: GuestAddress(1 << 20),
            end: 2 << 20,
            header: None,
        }
    }

    fn write_and_read(cmdline: &str) -> Result<(GuestMemory, boot_params), BootError> {
        let memory = memory(&[(0, 4 << 20)]);
        let initramfs = Some(LoadedInitramfs {
            base: 0x30_0000,
            len: 77,
        });
        let at = write(
            &memory,
            &elf_kernel(),
            initramfs,
            cmdline,
            GuestAddress(0xe_0000),
        )?;
        let params = memory.read_obj(at)?;
        Ok((memory, params))
    }

    #[test]
    fn the_map_has_all_ram_but_the_firmware_area_and_the_hole() {
        let memory = memory(&[(0, 3 << 20), (4 << 20, 8 << 20)]);
        let map: Vec<_> = memory_map(&memory)
            .iter()
            .map(|e| ({ e.addr }, e.addr + e.size, { e.r#type }))
            .collect();
        let ram_end = (12 << 20) as u64;
        assert_eq!(
            map,
            [
                (0, 0x9_fc00, E820_RAM),
                (0x9_fc00, 1 << 20, E820_RESERVED),
                (1 << 20, 3 << 20, E820_RAM),
                (4 << 20, ram_end, E820_RAM),
            ]
        );
    }

    #[test]
    fn the_zero_page_points_to_command_line_initramfs_and_acpi() {
        let (memory, params) = write_and_read("console=ttyS0 quiet").unwrap();
        assert_eq!({ params.hdr.header }, HEADER_MAGIC);
        assert_eq!({ params.acpi_rsdp_addr }, 0xe_0000);
        assert_eq!(
            ({ params.hdr.ramdisk_image }, { params.hdr.ramdisk_size }),
            (0x30_0000, 77)
        );
        let mut text = [0; 20];
        let at = GuestAddress(u64::from(params.hdr.cmd_line_ptr));
        memory.read_slice(&mut text, at).unwrap();
        assert_eq!(&text, b"console=ttyS0 quiet\0");
    }

    #[test]
    fn a_command_line_too_long_or_with_a_zero_byte_is_refused() {
        write_and_read(&"x".repeat(CMDLINE_MAX)).unwrap();
        let error = write_and_read(&"x".repeat(CMDLINE_MAX + 1)).unwrap_err();
        assert!(error.to_string().contains("2047"), "{error}");
        assert!(matches!(write_and_read("a\0b"), Err(BootError::Cmdline(_))));
    }
}
