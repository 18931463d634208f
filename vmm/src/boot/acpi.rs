// SPDX-License-Identifier: GPL-2.0-only
//! ACPI tables: hardware-reduced, with what Linux must know and no more: CPUs and
//! interrupt controllers (MADT), power-off and reset (FADT), devices (DSDT).

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, MmioDevice};
use crate::config::CpuCount;
use crate::devices::{power, serial};
use crate::memory::GuestMemory;
use crate::memory::layout::{IOAPIC_BASE, LAPIC_BASE, VIRTIO_MMIO_SIZE};

/// Start of the BIOS area, which the memory map reserves; Linux is told where it is.
const RSDP: GuestAddress = GuestAddress(0xe_0000);
const ALIGN: u64 = 16;

const OEM: [u8; 6] = *b"MVAS  ";
const OEM_TABLE: [u8; 8] = *b"MVASVM  ";
const OEM_REVISION: u32 = 1;
const DSDT_REVISION: u8 = 6;

/// FADT, IA-PC boot architecture flags: there is no VGA, no MSI, no PCIe power management
/// and no CMOS clock to probe for (and, by absence of their bits, no legacy devices and
/// no keyboard controller).
const BOOT_ARCH: u16 = 0b11_1100;

/// Writes all tables; returns where their root pointer is.
pub fn write(
    memory: &GuestMemory,
    cpus: CpuCount,
    devices: &[MmioDevice],
) -> Result<GuestAddress, BootError> {
    let mut next = GuestAddress(RSDP.0 + Rsdp::len() as u64);
    let mut put = |table: &dyn Aml| -> Result<u64, BootError> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let at = GuestAddress(next.0.next_multiple_of(ALIGN));
        memory.write_slice(&bytes, at)?;
        next = GuestAddress(at.0 + bytes.len() as u64);
        Ok(at.0)
    };
    let dsdt = put(&dsdt(devices))?;
    let fadt = put(&fadt(dsdt).finalize())?;
    let madt = put(&madt(cpus))?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = put(&xsdt)?;
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    memory.write_slice(&rsdp, RSDP)?;
    Ok(RSDP)
}

fn madt(cpus: CpuCount) -> MADT {
    let lapic = LocalInterruptController::Address(LAPIC_BASE);
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, lapic);
    // `Host::max_cpus` keeps ids below 255.
    for id in (0..=u8::MAX).take(cpus.get() as usize) {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IOAPIC_BASE, 0));
    madt
}

fn fadt(dsdt: u64) -> FADTBuilder {
    let port = |number: u16| {
        GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            number.into(),
        )
    };
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg = port(power::RESET);
    fadt.reset_value = power::RESET_VALUE;
    fadt.sleep_control_reg = port(power::SLEEP_CONTROL);
    fadt.sleep_status_reg = port(power::SLEEP_STATUS);
    fadt
}

fn dsdt(devices: &[MmioDevice]) -> Sdt {
    let mut aml_bytes = Vec::new();
    let sleep_type = power::SLEEP_TYPE_S5;
    let s5 = aml::Package::new(vec![&sleep_type, &sleep_type]);
    aml::Name::new("_S5_".into(), &s5).to_aml_bytes(&mut aml_bytes);
    serial_port(&mut aml_bytes);
    for (index, device) in devices.iter().enumerate() {
        virtio(index, device, &mut aml_bytes);
    }
    let mut table = Sdt::new(*b"DSDT", 36, DSDT_REVISION, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&aml_bytes);
    table
}

/// `\_SB_.COM1`: a PNP0501 UART.
fn serial_port(out: &mut Vec<u8>) {
    let hid = aml::EISAName::new("PNP0501");
    let ports = aml::IO::new(serial::BASE, serial::BASE, 1, 8);
    let interrupt = aml::Interrupt::new(true, true, false, false, serial::IRQ);
    let resources = aml::ResourceTemplate::new(vec![&interrupt, &ports]);
    aml::Device::new(
        "_SB_.COM1".into(),
        vec![
            &aml::Name::new("_HID".into(), &hid),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new("_CRS".into(), &resources),
        ],
    )
    .to_aml_bytes(out);
}

/// `\_SB_.V000` and on: LNRO0005 is Linux's id of a virtio-mmio device.
fn virtio(index: usize, device: &MmioDevice, out: &mut Vec<u8>) {
    let size = u32::try_from(VIRTIO_MMIO_SIZE).expect("a page or so");
    let registers = aml::Memory32Fixed::new(true, device.base, size);
    let interrupt = aml::Interrupt::new(true, true, false, false, device.irq);
    let resources = aml::ResourceTemplate::new(vec![&registers, &interrupt]);
    aml::Device::new(
        format!("_SB_.V{index:03}").as_str().into(),
        vec![
            &aml::Name::new("_HID".into(), &"LNRO0005"),
            &aml::Name::new("_UID".into(), &index),
            &aml::Name::new("_CCA".into(), &aml::ONE),
            &aml::Name::new("_CRS".into(), &resources),
        ],
    )
    .to_aml_bytes(out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tables(cpus: u32, devices: usize) -> (GuestMemory, Vec<(String, Vec<u8>)>) {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        let devices: Vec<_> = (0u32..)
            .take(devices)
            .map(|i| MmioDevice {
                base: 0xd000_0000 + i * 0x1000,
                irq: 5 + i,
            })
            .collect();
        let rsdp = write(&memory, cpus.to_string().parse().unwrap(), &devices).unwrap();
        let root = bytes(&memory, rsdp.0, 36);
        assert_eq!(&root[..8], b"RSD PTR ");
        assert_eq!(sum(&root[..20]), 0);
        assert_eq!(sum(&root), 0);
        let xsdt = table(&memory, le64(&root, 24));
        let mut all: Vec<_> = xsdt.1[36..]
            .chunks(8)
            .map(|entry| table(&memory, le64(entry, 0)))
            .collect();
        let fadt = all.iter().find(|(name, _)| name == "FACP").unwrap();
        all.push(table(&memory, le64(&fadt.1, 140)));
        all.push(xsdt);
        (memory, all)
    }

    fn bytes(memory: &GuestMemory, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn table(memory: &GuestMemory, at: u64) -> (String, Vec<u8>) {
        let header = bytes(memory, at, 36);
        let len = u32::from_le_bytes(header[4..8].try_into().unwrap()) as usize;
        assert!(
            at >= RSDP.0 && at + len as u64 <= 1 << 20,
            "in the reserved area"
        );
        (
            String::from_utf8(header[..4].to_vec()).unwrap(),
            bytes(memory, at, len),
        )
    }

    fn le64(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn has(table: &[u8], part: &[u8]) -> bool {
        table.windows(part.len()).any(|window| window == part)
    }

    proptest! {
        #[test]
        fn all_tables_are_found_from_the_root_and_sum_to_zero(cpus in 1..=255u32, devices in 0..19usize) {
            let (_, tables) = tables(cpus, devices);
            let mut names: Vec<_> = tables.iter().map(|(name, _)| name.as_str()).collect();
            names.sort_unstable();
            prop_assert_eq!(names, ["APIC", "DSDT", "FACP", "XSDT"]);
            for (name, table) in &tables {
                prop_assert_eq!(sum(table), 0, "{}", name);
            }
        }
    }

    #[test]
    fn the_madt_lists_every_cpu_once_and_the_io_apic() {
        let (_, tables) = tables(3, 0);
        let madt = &tables.iter().find(|(name, _)| name == "APIC").unwrap().1;
        for cpu in 0..3 {
            assert!(has(madt, &[0, 8, cpu, cpu, 1, 0, 0, 0]));
        }
        assert!(has(madt, &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]));
        assert_eq!(madt.len(), 44 + 3 * 8 + 12);
    }

    #[test]
    fn the_dsdt_names_every_device_with_its_window_and_interrupt() {
        let (_, tables) = tables(1, 2);
        let dsdt = &tables.iter().find(|(name, _)| name == "DSDT").unwrap().1;
        for (name, base, irq) in [(b"V000", 0xd000_0000u32, 5u8), (b"V001", 0xd000_1000, 6)] {
            assert!(has(dsdt, name) && has(dsdt, &base.to_le_bytes()));
            // Extended interrupt descriptor: consumer, edge, active high, exclusive.
            assert!(has(dsdt, &[0x89, 6, 0, 0b0011, 1, irq, 0, 0, 0]));
        }
        assert!(has(dsdt, b"LNRO0005") && has(dsdt, b"_S5_"));
    }

    #[test]
    fn the_fadt_tells_how_to_reset_and_power_off() {
        let (_, tables) = tables(1, 0);
        let fadt = &tables.iter().find(|(name, _)| name == "FACP").unwrap().1;
        let register = |port: u8| [1, 8, 0, 1, port, 6, 0, 0, 0, 0, 0, 0];
        assert_eq!(fadt[116..128], register(2), "reset register");
        assert_eq!(fadt[128], power::RESET_VALUE);
        assert_eq!(fadt[244..256], register(0), "sleep control register");
        assert_eq!(fadt[256..268], register(1), "sleep status register");
        let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
        assert_eq!(flags & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10);
    }
}
