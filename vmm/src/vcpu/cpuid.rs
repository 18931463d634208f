// SPDX-License-Identifier: GPL-2.0-only
//! What the guest sees of the CPU: all that KVM supports, with this VM's own topology, without
//! nested virtualization and performance counters.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use super::VcpuError;
use crate::config::CpuCount;
use crate::memory::PhysBits;

/// Leaves that we make ourselves, or that tell of what a guest does not get: the newer
/// topology leaves 0x1f and 0x8000_0026 (Linux then reads 0xb), SVM (0x8000_000a), SEV
/// (0x8000_001f) and performance counters (0xa, 0x8000_0022).
const DROPPED: [u32; 7] = [
    0xa,
    0xb,
    0x1f,
    0x8000_000a,
    0x8000_001f,
    0x8000_0022,
    0x8000_0026,
];

const LEAF1_ECX_VMX: u32 = 1 << 5;
const LEAF1_ECX_PDCM: u32 = 1 << 15;
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF1_EDX_HTT: u32 = 1 << 28;
const EXT1_ECX_CMP_LEGACY: u32 = 1 << 1;
const EXT1_ECX_SVM: u32 = 1 << 2;
/// Performance counters of AMD's: more of a core's, those of a northbridge and of the last cache.
const EXT1_ECX_PERFCTR: u32 = 1 << 23 | 1 << 24 | 1 << 28;

/// Width of guest-physical addresses (leaf 0x8000_0008).
pub fn phys_bits(supported: &CpuId) -> PhysBits {
    let leaf = supported
        .as_slice()
        .iter()
        .find(|entry| entry.function == 0x8000_0008);
    // Bits 16-23, where not 0, are narrower than the CPU's own addresses: what nested
    // page tables of four levels can map (AMD manual, volume 3, E.4.7).
    match leaf.map(|entry| entry.eax.to_le_bytes()) {
        Some([physical, _, 0, _]) => PhysBits(physical),
        Some([physical, _, guest, _]) => PhysBits(physical.min(guest)),
        // A CPU without the leaf has 36 bits (Intel's manual, volume 3A, 4.1.4).
        None => PhysBits(36),
    }
}

/// The CPUID of vCPU `index` of `count`: one socket, a core for each vCPU. Its APIC id is
/// its index.
///
/// # Errors
/// The host's CPU has more entries than KVM takes. What it supports cannot be given to the guest
/// as it is instead: that has the host's topology, and nested virtualization.
pub fn for_vcpu(
    supported: &CpuId,
    index: u32,
    count: CpuCount,
    tsc_deadline: bool,
) -> Result<CpuId, VcpuError> {
    let topology = Topology::new(index, count);
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        .filter(|entry| !DROPPED.contains(&entry.function))
        .copied()
        .collect();
    let vendor = entries.iter().find(|entry| entry.function == 0);
    let is_amd = vendor.is_some_and(|entry| matches!(&entry.ebx.to_le_bytes(), b"Auth" | b"Hygo"));
    let max_leaf = vendor.map_or(0, |entry| entry.eax);
    for entry in &mut entries {
        topology.apply(entry);
        match entry.function {
            1 => {
                entry.ecx &= !(LEAF1_ECX_VMX | LEAF1_ECX_PDCM | LEAF1_ECX_TSC_DEADLINE);
                entry.ecx |= LEAF1_ECX_HYPERVISOR;
                if tsc_deadline {
                    entry.ecx |= LEAF1_ECX_TSC_DEADLINE;
                }
            }
            0x8000_0001 => {
                entry.ecx &= !(EXT1_ECX_SVM | EXT1_ECX_CMP_LEGACY | EXT1_ECX_PERFCTR);
                if is_amd && count.get() > 1 {
                    entry.ecx |= EXT1_ECX_CMP_LEGACY;
                }
            }
            _ => {}
        }
    }
    if max_leaf >= 0xb {
        entries.extend(topology.leaf_b());
    }
    CpuId::from_entries(&entries).map_err(|_| VcpuError::Cpuid {
        cpu: index,
        entries: entries.len(),
    })
}

/// A vCPU's place among all.
struct Topology {
    apic_id: u32,
    cpus: u32,
    /// Bits of the APIC id that number the cores.
    core_bits: u32,
}

impl Topology {
    fn new(index: u32, count: CpuCount) -> Self {
        let cpus = count.get();
        Self {
            apic_id: index,
            cpus,
            core_bits: cpus.next_power_of_two().trailing_zeros(),
        }
    }

    /// Corrects the leaves in which KVM tells the host's topology.
    fn apply(&self, entry: &mut kvm_cpuid_entry2) {
        let id_space = 1 << self.core_bits;
        match entry.function {
            1 => {
                let logical = id_space.min(255);
                entry.ebx = entry.ebx & 0xffff | logical << 16 | self.apic_id << 24;
                entry.edx &= !LEAF1_EDX_HTT;
                if self.cpus > 1 {
                    entry.edx |= LEAF1_EDX_HTT;
                }
            }
            // Intel's caches: all cores share the third level, none another.
            4 if entry.eax & 0x1f != 0 => {
                let level = entry.eax >> 5 & 7;
                let sharing = if level >= 3 { id_space - 1 } else { 0 };
                let cores = (id_space - 1).min(63);
                entry.eax = entry.eax & 0x3fff | (sharing & 0xfff) << 14 | cores << 26;
            }
            0x8000_0008 => {
                entry.ecx = entry.ecx & !0xf0ff | (self.cpus - 1) & 0xff | self.core_bits << 12;
            }
            // AMD's caches, likewise.
            0x8000_001d if entry.eax & 0x1f != 0 => {
                let level = entry.eax >> 5 & 7;
                let sharing = if level >= 3 { id_space - 1 } else { 0 };
                entry.eax = entry.eax & !(0xfff << 14) | (sharing & 0xfff) << 14;
            }
            // AMD: extended APIC id; core id, one thread in it; one node.
            0x8000_001e => {
                entry.eax = self.apic_id;
                entry.ebx = self.apic_id & 0xff;
                entry.ecx = 0;
            }
            _ => {}
        }
    }

    /// Extended topology: a thread level of one, a core level of all.
    fn leaf_b(&self) -> [kvm_cpuid_entry2; 3] {
        const THREAD: u32 = 1;
        const CORE: u32 = 2;
        const END: u32 = 0;
        let levels = [
            (THREAD, 0, 1),
            (CORE, self.core_bits, self.cpus),
            (END, 0, 0),
        ];
        let mut subleaf = 0;
        levels.map(|(kind, shift, processors)| {
            let entry = kvm_cpuid_entry2 {
                function: 0xb,
                index: subleaf,
                flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                eax: shift,
                ebx: processors,
                ecx: kind << 8 | subleaf,
                edx: self.apic_id,
                ..Default::default()
            };
            subleaf += 1;
            entry
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
    use proptest::prelude::*;

    fn entry(function: u32, index: u32, regs: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = regs;
        kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    fn amd_host() -> CpuId {
        let all = u32::MAX;
        CpuId::from_entries(&[
            entry(
                0,
                0,
                [
                    0x1f,
                    u32::from_le_bytes(*b"Auth"),
                    u32::from_le_bytes(*b"cAMD"),
                    u32::from_le_bytes(*b"enti"),
                ],
            ),
            entry(1, 0, [0x00a2_0f10, 0x0710_0800, all, all]),
            entry(4, 0, [0xfc00_4121, 0, 0, 0]),
            entry(4, 3, [0xfc03_c163, 0, 0, 0]),
            entry(4, 4, [0, 0, 0, 0]),
            entry(0xa, 0, [0x0730_0805, 0, 0, 0x8603]),
            entry(0xb, 0, [1, 2, 0x100, 7]),
            entry(0x1f, 0, [1, 2, 0x100, 7]),
            entry(0x4000_0001, 0, [0x0100_7efb, 0, 0, 0]),
            entry(0x8000_0001, 0, [0, 0, all, all]),
            entry(0x8000_0008, 0, [0x0000_3030, 0, 0x400f, 0]),
            entry(0x8000_000a, 0, [1, 8, 0, all]),
            entry(0x8000_001d, 3, [0x0003_c163, 0, 0, 0]),
            entry(0x8000_001e, 0, [9, 0x0104, 0x0100, 0]),
            entry(0x8000_0022, 0, [1, 6, 0, 0]),
        ])
        .unwrap()
    }

    fn count(n: u32) -> CpuCount {
        n.to_string().parse().unwrap()
    }

    fn leaf(cpuid: &CpuId, function: u32, index: u32) -> Option<kvm_cpuid_entry2> {
        let found = cpuid
            .as_slice()
            .iter()
            .find(|e| (e.function, e.index) == (function, index));
        found.copied()
    }

    proptest! {
        #[test]
        fn every_vcpu_finds_its_own_id_and_the_number_of_all(cpus in 1..=255u32, index in 0..255u32) {
            prop_assume!(index < cpus);
            let cpuid = for_vcpu(&amd_host(), index, count(cpus), true).unwrap();
            let one = leaf(&cpuid, 1, 0).unwrap();
            prop_assert_eq!(one.ebx >> 24, index);
            prop_assert!((one.ebx >> 16 & 0xff) >= cpus.min(255));
            prop_assert_eq!(one.ebx & 0xffff, 0x0800);
            prop_assert_eq!(one.edx & LEAF1_EDX_HTT != 0, cpus > 1);
            let core = leaf(&cpuid, 0xb, 1).unwrap();
            prop_assert_eq!((core.ebx, core.edx, core.ecx), (cpus, index, 0x201));
            prop_assert_eq!(index >> core.eax, 0, "all cores are in one package");
            let (size, amd) = (leaf(&cpuid, 0x8000_0008, 0).unwrap(), leaf(&cpuid, 0x8000_001e, 0).unwrap());
            prop_assert_eq!(size.ecx & 0xff, cpus - 1);
            prop_assert_eq!(index >> (size.ecx >> 12 & 0xf), 0);
            prop_assert_eq!((amd.eax, amd.ebx >> 8, amd.ecx), (index, 0, 0));
        }
    }

    #[test]
    fn nested_virtualization_and_the_hosts_topology_do_not_leak() {
        let cpuid = for_vcpu(&amd_host(), 1, count(2), true).unwrap();
        assert_eq!(leaf(&cpuid, 1, 0).unwrap().ecx & LEAF1_ECX_VMX, 0);
        assert_eq!(leaf(&cpuid, 0x8000_0001, 0).unwrap().ecx & EXT1_ECX_SVM, 0);
        for gone in [0x1f, 0x8000_000a] {
            assert!(leaf(&cpuid, gone, 0).is_none(), "{gone:#x}");
        }
        let leaf_b = cpuid.as_slice().iter().filter(|e| e.function == 0xb);
        assert_eq!(leaf_b.count(), 3);
    }

    #[test]
    fn performance_counters_do_not_show_what_others_do() {
        let cpuid = for_vcpu(&amd_host(), 0, count(1), true).unwrap();
        let (one, extended) = (leaf(&cpuid, 1, 0), leaf(&cpuid, 0x8000_0001, 0));
        assert_eq!(one.unwrap().ecx & LEAF1_ECX_PDCM, 0);
        assert_eq!(extended.unwrap().ecx & EXT1_ECX_PERFCTR, 0);
        for gone in [0xa, 0x8000_0022] {
            assert!(leaf(&cpuid, gone, 0).is_none(), "{gone:#x}");
        }
    }

    #[test]
    fn only_the_last_level_cache_is_shared() {
        let cpuid = for_vcpu(&amd_host(), 0, count(4), true).unwrap();
        let sharing = |function, index| leaf(&cpuid, function, index).unwrap().eax >> 14 & 0xfff;
        assert_eq!(
            (sharing(4, 0), sharing(4, 3), sharing(0x8000_001d, 3)),
            (0, 3, 3)
        );
        assert_eq!(
            leaf(&cpuid, 4, 4).unwrap().eax,
            0,
            "the end of the list stays the end"
        );
    }

    #[test]
    fn the_deadline_timer_is_there_exactly_when_kvm_has_it() {
        for has in [false, true] {
            let cpuid = for_vcpu(&amd_host(), 0, count(1), has).unwrap();
            let one = leaf(&cpuid, 1, 0).unwrap();
            assert_eq!(one.ecx & LEAF1_ECX_TSC_DEADLINE != 0, has);
            assert_ne!(one.ecx & LEAF1_ECX_HYPERVISOR, 0);
        }
    }

    #[test]
    fn a_host_with_more_entries_than_fit_is_an_error_and_does_not_show_through() {
        let mut entries = amd_host().as_slice().to_vec();
        let more = (0x4000_1000..).map(|function| entry(function, 0, [0; 4]));
        entries.extend(more.take(KVM_MAX_CPUID_ENTRIES - entries.len()));
        let host = CpuId::from_entries(&entries).unwrap();
        // Five are dropped, and three are added.
        assert!(for_vcpu(&host, 0, count(1), true).is_ok());
        entries.retain(|entry| !DROPPED.contains(&entry.function));
        for function in 0x4000_2000..0x4000_2003 {
            entries.push(entry(function, 0, [0; 4]));
        }
        let host = CpuId::from_entries(&entries).unwrap();
        let error = for_vcpu(&host, 0, count(1), true).unwrap_err();
        assert!(error.to_string().contains("257 CPUID entries"), "{error}");
    }

    #[test]
    fn paravirtual_features_pass_through() {
        let cpuid = for_vcpu(&amd_host(), 0, count(1), true).unwrap();
        assert_eq!(leaf(&cpuid, 0x4000_0001, 0).unwrap().eax, 0x0100_7efb);
    }

    #[test]
    fn addresses_are_as_wide_as_the_narrower_of_cpu_and_nested_tables() {
        let with = |eax| CpuId::from_entries(&[entry(0x8000_0008, 0, [eax, 0, 0, 0])]).unwrap();
        assert_eq!(phys_bits(&with(0x3028)), PhysBits(40));
        assert_eq!(phys_bits(&with(0x30_3034)), PhysBits(48));
        assert_eq!(phys_bits(&CpuId::from_entries(&[]).unwrap()), PhysBits(36));
    }
}
