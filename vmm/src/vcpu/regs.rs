// SPDX-License-Identifier: GPL-2.0-only
//! A vCPU's first registers: 64-bit mode as Linux's boot protocol wants it
//! (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::VcpuError;
use crate::boot::Entry;
use crate::memory::GuestMemory;

/// Global descriptor table.
const GDT: GuestAddress = GuestAddress(0x500);
/// Page tables: one page of each level map the first GiB to itself with 2 MiB pages.
const PML4: GuestAddress = GuestAddress(0x9000);
const PDPT: GuestAddress = GuestAddress(0xa000);
const PD: GuestAddress = GuestAddress(0xb000);

const PTE_PRESENT_WRITABLE: u64 = 0b11;
const PTE_HUGE: u64 = 1 << 7;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_FIXED: u64 = 1 << 1;

/// Selectors that the boot protocol names `__BOOT_CS` and `__BOOT_DS`.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const CODE64: u64 = 0x00af_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;
const DESCRIPTORS: [u64; 4] = [0, 0, CODE64, DATA];
const GDT_LIMIT: u16 = 4 * 8 - 1;

const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLE: u64 = 1 << 11;
const MTRR_WRITE_BACK: u64 = 6;

const APIC_LVT0: usize = 0x350;
const APIC_LVT1: usize = 0x360;
const APIC_MODE_NMI: u8 = 0b100;
const APIC_MODE_EXTINT: u8 = 0b111;

/// Writes the descriptor table and the page tables that the first vCPU starts with.
pub fn write_boot_tables(memory: &GuestMemory) -> Result<(), VcpuError> {
    let write = |table: &[u64], at: GuestAddress| {
        let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        memory
            .write_slice(&bytes, at)
            .map_err(VcpuError::BootMemory)
    };
    let huge_pages: Vec<u64> = (0..512u64)
        .map(|block| block << 21 | PTE_PRESENT_WRITABLE | PTE_HUGE)
        .collect();
    write(&DESCRIPTORS, GDT)?;
    write(&[PDPT.0 | PTE_PRESENT_WRITABLE], PML4)?;
    write(&[PD.0 | PTE_PRESENT_WRITABLE], PDPT)?;
    write(&huge_pages, PD)
}

/// The segment register contents that loading `selector` would give.
fn segment(selector: u16) -> kvm_segment {
    let descriptor = DESCRIPTORS[usize::from(selector / 8)];
    let byte = |at: u32| (descriptor >> at).to_le_bytes()[0];
    let bits = |at: u32, count: u32| byte(at) & ((1 << count) - 1);
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_: bits(40, 4),
        s: bits(44, 1),
        dpl: bits(45, 2),
        present: bits(47, 1),
        l: bits(53, 1),
        db: bits(54, 1),
        g: bits(55, 1),
        ..Default::default()
    }
}

/// Sets the first vCPU to 64-bit mode at the kernel's entry, interrupts off.
pub fn enter_long_mode(vcpu: &VcpuFd, entry: Entry) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs = segment(BOOT_CS);
    let data = segment(BOOT_DS);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt.base = GDT.0;
    sregs.gdt.limit = GDT_LIMIT;
    sregs.idt.limit = 0;
    sregs.cr3 = PML4.0;
    sregs.cr4 |= CR4_PAE;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.efer |= EFER_LME | EFER_LMA;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: entry.rip.0,
        rsi: entry.boot_params.0,
        rflags: RFLAGS_FIXED,
        ..Default::default()
    })
}

/// Sets what firmware would: fast string instructions, memory cached write-back.
pub fn set_msrs(vcpu: &VcpuFd, cpu: u32) -> Result<(), VcpuError> {
    let wanted = [
        (MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        (MSR_MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK),
    ];
    for (index, data) in wanted {
        let entry = kvm_msr_entry {
            index,
            data,
            ..Default::default()
        };
        let refused = || VcpuError::Msr { cpu, msr: index };
        let one = Msrs::from_entries(&[entry]).map_err(|_| refused())?;
        if vcpu.set_msrs(&one).map_err(|source| VcpuError::Kvm {
            cpu,
            what: "set its MSRs",
            source,
        })? != 1
        {
            return Err(refused());
        }
    }
    Ok(())
}

/// Wires the local APIC's pins as firmware does: LINT0 to the PIC, LINT1 to NMI.
pub fn set_lapic(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut lapic = vcpu.get_lapic()?;
    for (register, mode) in [(APIC_LVT0, APIC_MODE_EXTINT), (APIC_LVT1, APIC_MODE_NMI)] {
        // The delivery mode is bits 8 to 10.
        let byte = &mut lapic.regs[register + 1];
        *byte = (byte.cast_unsigned() & !0b111 | mode).cast_signed();
    }
    vcpu.set_lapic(&lapic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_those_of_the_boot_protocol() {
        let code = segment(BOOT_CS);
        // Execute/read code, 64-bit, present; CS.L and CS.D exclude each other.
        assert_eq!((code.type_, code.s, code.present), (0xb, 1, 1));
        assert_eq!((code.l, code.db, code.g), (1, 0, 1));
        let data = segment(BOOT_DS);
        assert_eq!((data.type_, data.s, data.l, data.db), (0x3, 1, 0, 1));
    }

    #[test]
    fn the_page_tables_map_the_first_gib_to_itself() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write_boot_tables(&memory).unwrap();
        let entry = |table: u64, index: u64| -> u64 {
            memory.read_obj(GuestAddress(table + index * 8)).unwrap()
        };
        let pdpt = entry(PML4.0, 0) & !0xfff;
        let pd = entry(pdpt, 0) & !0xfff;
        for block in [0, 1, 8, 511] {
            assert_eq!(entry(pd, block), (block * (2 << 20)) | 0x83);
        }
        assert_eq!((entry(PML4.0, 1), entry(pdpt, 1)), (0, 0));
    }

    #[test]
    fn too_little_memory_for_the_tables_is_an_error() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x9000)]).unwrap();
        assert!(matches!(
            write_boot_tables(&memory),
            Err(VcpuError::BootMemory(_))
        ));
    }
}
