// SPDX-License-Identifier: GPL-2.0-only
//! Finds out what a kernel file is and loads it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::BootError;
use crate::memory::GuestMemory;

/// Kernels live above the first MiB, which holds the boot structures.
const HIGH_MEMORY: GuestAddress = GuestAddress(1 << 20);
/// The 64-bit entry point of a bzImage, from its load address.
const BZIMAGE_ENTRY64: u64 = 0x200;
/// `xloadflags`: the kernel has that entry point.
const XLF_KERNEL_64: u16 = 1;
/// Highest initramfs address of a kernel that does not say (boot.rst, `initrd_addr_max`).
const INITRD_ADDR_MAX: u64 = 0x37ff_ffff;

/// Where things are in the file, enough to tell kernels from all else. Offsets: `elf(5)`,
/// and boot.rst, "The Real-Mode Kernel Header".
const HEADER_LEN: usize = 0x264;
const ELF_MAGIC: &[u8] = b"\x7fELF";
const ELF_CLASS_64: u8 = 2;
const ELF_MACHINE_X86_64: u16 = 62;
const BZIMAGE_MAGIC: &[u8] = b"HdrS";

/// A kernel in guest memory.
#[derive(Debug)]
pub struct LoadedKernel {
    /// Its 64-bit entry point.
    pub entry: GuestAddress,
    /// First byte that it leaves free while it starts.
    pub end: u64,
    /// The setup header of a bzImage.
    pub header: Option<setup_header>,
}

/// An initramfs in guest memory.
#[derive(Debug, Clone, Copy)]
pub struct LoadedInitramfs {
    /// Where it begins.
    pub base: u32,
    /// Its size, bytes.
    pub len: u32,
}

/// Bytes of RAM from address 0 on without a gap.
fn low_memory(memory: &GuestMemory) -> u64 {
    memory.find_region(GuestAddress(0)).map_or(0, |r| r.len())
}

/// Loads the kernel `path`.
pub fn load(memory: &GuestMemory, path: &Path) -> Result<LoadedKernel, BootError> {
    let read_error = |source| BootError::Read {
        what: "kernel",
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(read_error)?;
    let len = file.metadata().map_err(read_error)?.len();
    let mut header = [0; HEADER_LEN];
    let head = read_head(&file, &mut header).map_err(read_error)?;
    let have = low_memory(memory);
    let load_error = |source| BootError::Load {
        path: path.to_owned(),
        source,
    };
    let does_not_fit = |needed| BootError::DoesNotFit {
        what: "kernel",
        path: path.to_owned(),
        needed,
        have,
    };
    match identify(head, len) {
        Kind::Elf => {
            // Without its own bounds checks the loader would only say that a read failed.
            let needed = elf_file_end(&file, head).map_err(read_error)?;
            check_whole(path, len, needed.file)?;
            if needed.memory > have {
                return Err(does_not_fit(needed.memory));
            }
            let loaded =
                Elf::load(memory, None, &mut file, Some(HIGH_MEMORY)).map_err(load_error)?;
            Ok(LoadedKernel {
                entry: loaded.kernel_load,
                end: loaded.kernel_end,
                header: None,
            })
        }
        Kind::BzImage { needed } => {
            check_whole(path, len, needed)?;
            if HIGH_MEMORY.0 + len > have {
                return Err(does_not_fit(HIGH_MEMORY.0 + len));
            }
            let loaded =
                BzImage::load(memory, None, &mut file, Some(HIGH_MEMORY)).map_err(load_error)?;
            let header = loaded.setup_header.unwrap_or_default();
            if header.xloadflags & XLF_KERNEL_64 == 0 {
                return Err(BootError::NotAKernel {
                    path: path.to_owned(),
                    found: "a bzImage without a 64-bit entry point".into(),
                });
            }
            // It unpacks itself to its preferred address, or above where it was loaded.
            let unpacked = header.pref_address.max(loaded.kernel_load.0);
            let end = unpacked.saturating_add(header.init_size.into());
            if end > have {
                return Err(does_not_fit(end));
            }
            Ok(LoadedKernel {
                entry: GuestAddress(loaded.kernel_load.0 + BZIMAGE_ENTRY64),
                end: end.max(loaded.kernel_end),
                header: Some(header),
            })
        }
        Kind::Other(found) => Err(BootError::NotAKernel {
            path: path.to_owned(),
            found,
        }),
    }
}

/// Loads an initramfs as high as the kernel allows, so that it is out of its way.
pub fn load_initramfs(
    memory: &GuestMemory,
    path: &Path,
    kernel: &LoadedKernel,
) -> Result<LoadedInitramfs, BootError> {
    let read_error = |source| BootError::Read {
        what: "initramfs",
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(read_error)?;
    let len = file.metadata().map_err(read_error)?.len();
    let have = low_memory(memory);
    let max = match &kernel.header {
        Some(header) => u64::from(header.initrd_addr_max),
        None => INITRD_ADDR_MAX,
    };
    let base = have.min(max + 1).checked_sub(len).map(|base| base & !0xfff);
    match (base, u32::try_from(len)) {
        (Some(base), Ok(len32)) if base >= kernel.end => {
            let size = usize::try_from(len).expect("below 4 GiB");
            memory.read_exact_volatile_from(GuestAddress(base), &mut file, size)?;
            Ok(LoadedInitramfs {
                base: u32::try_from(base).expect("at most a u32's `max`"),
                len: len32,
            })
        }
        _ => Err(BootError::DoesNotFit {
            what: "initramfs",
            path: path.to_owned(),
            needed: kernel.end.saturating_add(len),
            have,
        }),
    }
}

fn read_head<'a>(file: &File, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
    let mut len = 0;
    while len < buffer.len() {
        match file.read_at(&mut buffer[len..], len as u64)? {
            0 => break,
            n => len += n,
        }
    }
    Ok(&buffer[..len])
}

fn check_whole(path: &Path, len: u64, needed: u64) -> Result<(), BootError> {
    if len >= needed {
        return Ok(());
    }
    Err(BootError::Truncated {
        path: path.to_owned(),
        len,
        needed,
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Elf,
    BzImage {
        /// Size that its header tells, bytes.
        needed: u64,
    },
    /// What it seems to be.
    Other(String),
}

fn le<const N: usize>(head: &[u8], at: usize) -> Option<[u8; N]> {
    head.get(at..at + N)?.try_into().ok()
}

/// Tells what a file of `len` bytes that begins with `head` is.
fn identify(head: &[u8], len: u64) -> Kind {
    let other = |what: &str| Kind::Other(what.to_owned());
    if head.starts_with(ELF_MAGIC) {
        let machine = le(head, 18).map(u16::from_le_bytes);
        return match (head.get(4), machine) {
            (_, None) => other("an ELF file that ends in its header (truncated?)"),
            (Some(&ELF_CLASS_64), Some(ELF_MACHINE_X86_64)) => Kind::Elf,
            _ => other("an ELF file for another kind of CPU"),
        };
    }
    if head.get(0x202..0x206) == Some(BZIMAGE_MAGIC) {
        let setup = match head[0x1f1] {
            0 => 4,
            n => u64::from(n),
        };
        let Some(paragraphs) = le(head, 0x1f4).map(u32::from_le_bytes) else {
            return other("a bzImage that ends in its header (truncated?)");
        };
        return Kind::BzImage {
            needed: (setup + 1) * 512 + u64::from(paragraphs) * 16,
        };
    }
    match head {
        [] => other("the file is empty"),
        [0x1f, 0x8b, ..] => other("a gzip file (unpack it first)"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => other("a zstd file (unpack it first)"),
        [b'M', b'Z', ..] => other("an EFI program of another kind of CPU"),
        [b'#', b'!', ..] => other("a script"),
        _ => Kind::Other(format!("{len} bytes of something else")),
    }
}

/// What loading an ELF file takes.
#[derive(Debug, PartialEq, Eq)]
struct ElfNeeds {
    /// Size that the file must have at least, bytes.
    file: u64,
    /// End of its highest segment in guest memory.
    memory: u64,
}

fn elf_file_end(file: &File, head: &[u8]) -> io::Result<ElfNeeds> {
    const PHDR_LEN: usize = 56;
    const PT_LOAD: u32 = 1;
    let u64_at = |bytes: &[u8], at| le(bytes, at).map_or(0, u64::from_le_bytes);
    let u16_at = |bytes: &[u8], at| le(bytes, at).map_or(0, u16::from_le_bytes);
    let phdrs = u64_at(head, 32);
    let count = u64::from(u16_at(head, 56));
    let phdrs_end = phdrs.saturating_add(count * PHDR_LEN as u64);
    let sections_end =
        u64_at(head, 40).saturating_add(u64::from(u16_at(head, 58)) * u64::from(u16_at(head, 60)));
    let mut needs = ElfNeeds {
        file: phdrs_end.max(sections_end).max(64),
        memory: 0,
    };
    for index in 0..count {
        let mut phdr = [0; PHDR_LEN];
        let at = phdrs.saturating_add(index * PHDR_LEN as u64);
        // Past the end: `needs.file` already says so. Offsets beyond i64 read as an error.
        match i64::try_from(at).map(|_| file.read_exact_at(&mut phdr, at)) {
            Ok(Ok(())) => {}
            Ok(Err(e)) if e.kind() != io::ErrorKind::UnexpectedEof => return Err(e),
            _ => break,
        }
        if le(&phdr, 0).map(u32::from_le_bytes) == Some(PT_LOAD) {
            let file_end = u64_at(&phdr, 8).saturating_add(u64_at(&phdr, 32));
            let memory_end = u64_at(&phdr, 24).saturating_add(u64_at(&phdr, 40));
            needs.file = needs.file.max(file_end);
            needs.memory = needs.memory.max(memory_end);
        }
    }
    Ok(needs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    fn memory(mib: usize) -> GuestMemory {
        GuestMemory::from_ranges(&[(GuestAddress(0), mib << 20)]).unwrap()
    }

    /// The least ELF kernel: one segment with `code` at 1 MiB.
    fn elf(code: &[u8]) -> Vec<u8> {
        crate::boot::test_kernel::elf(code)
    }

    /// The least bzImage: a header and `code`.
    fn bzimage(code: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 1024];
        file[0x1f1] = 1;
        file[0x1f4..0x1f8].copy_from_slice(&u32::try_from(code.len() / 16).unwrap().to_le_bytes());
        file[0x202..0x206].copy_from_slice(BZIMAGE_MAGIC);
        file[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        file[0x211] = 1;
        file[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
        file[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
        file[0x236..0x238].copy_from_slice(&XLF_KERNEL_64.to_le_bytes());
        file[0x258..0x260].copy_from_slice(&(2u64 << 20).to_le_bytes());
        file[0x260..0x264].copy_from_slice(&(1u32 << 20).to_le_bytes());
        file.extend_from_slice(code);
        file
    }

    fn load_bytes(mib: usize, bytes: &[u8]) -> Result<LoadedKernel, BootError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        fs::write(&path, bytes).unwrap();
        load(&memory(mib), &path)
    }

    #[test]
    fn an_elf_kernel_is_entered_where_it_says() {
        let loaded = load_bytes(32, &elf(b"code")).unwrap();
        assert_eq!(loaded.entry, GuestAddress(1 << 20));
        assert!(loaded.header.is_none());
    }

    #[test]
    fn a_bzimage_is_entered_at_its_64_bit_entry() {
        let loaded = load_bytes(32, &bzimage(&[7; 4096])).unwrap();
        assert_eq!(loaded.entry, GuestAddress((1 << 20) + 0x200));
        assert_eq!(loaded.end, 3 << 20);
    }

    #[test]
    fn what_is_no_kernel_is_named() {
        let arm = {
            let mut elf = elf(b"code");
            elf[18] = 183;
            elf
        };
        let no_entry64 = {
            let mut image = bzimage(&[0; 16]);
            image[0x236] = 0;
            image
        };
        for (bytes, word) in [
            (&b""[..], "empty"),
            (&b"#!/bin/sh\n"[..], "script"),
            (&b"\x1f\x8b\x08"[..], "gzip"),
            (&b"\x7fELF\x02"[..], "truncated"),
            (&[7; 4000][..], "something else"),
            (&arm, "another kind of CPU"),
            (&no_entry64, "64-bit entry"),
        ] {
            let error = load_bytes(32, bytes).unwrap_err();
            assert!(matches!(error, BootError::NotAKernel { .. }), "{error}");
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn a_missing_file_and_a_folder_say_what_failed() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().join("none"), dir.path().to_owned()] {
            let error = load(&memory(32), &path).unwrap_err();
            assert!(matches!(error, BootError::Read { .. }), "{error}");
            assert!(
                error.to_string().contains(&path.display().to_string()),
                "{error}"
            );
        }
    }

    #[test]
    fn a_kernel_cut_short_is_truncated() {
        for whole in [elf(&[1; 4096]), bzimage(&[1; 4096])] {
            for len in [whole.len() - 1, whole.len() / 2, 0x264] {
                let error = load_bytes(32, &whole[..len]).unwrap_err();
                assert!(
                    matches!(error, BootError::Truncated { .. }),
                    "{len}: {error}"
                );
            }
        }
    }

    #[test]
    fn a_kernel_larger_than_memory_says_how_much_it_needs() {
        for whole in [elf(&vec![1; 2 << 20]), bzimage(&vec![1; 2 << 20])] {
            let error = load_bytes(2, &whole).unwrap_err();
            assert!(matches!(error, BootError::DoesNotFit { .. }), "{error}");
            assert!(error.to_string().contains("--mem"), "{error}");
        }
    }

    #[test]
    fn an_initramfs_goes_to_the_top_and_must_not_touch_the_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("initramfs");
        fs::write(&path, vec![9; 5000]).unwrap();
        let kernel = load_bytes(32, &bzimage(&[0; 16])).unwrap();
        let memory = memory(32);
        let loaded = load_initramfs(&memory, &path, &kernel).unwrap();
        assert_eq!((loaded.base, loaded.len), ((32 << 20) - 8192, 5000));
        let last: u8 = memory
            .read_obj(GuestAddress(u64::from(loaded.base) + 4999))
            .unwrap();
        assert_eq!(last, 9);
        fs::write(&path, vec![9; 30 << 20]).unwrap();
        let error = load_initramfs(&memory, &path, &kernel).unwrap_err();
        assert!(error.to_string().contains("initramfs"), "{error}");
        let missing = load_initramfs(&memory, &dir.path().join("none"), &kernel).unwrap_err();
        assert!(matches!(
            missing,
            BootError::Read {
                what: "initramfs",
                ..
            }
        ));
    }

    proptest! {
        #[test]
        fn damaged_kernels_never_panic(at in 0..0x264usize, value: u8, elf_file: bool, cut in 0..5000usize) {
            let mut file = if elf_file { elf(&[1; 4096]) } else { bzimage(&[1; 4096]) };
            let len = file.len();
            file[at % len] = value;
            file.truncate(len.saturating_sub(cut));
            let _ = load_bytes(4, &file);
        }
    }
}
