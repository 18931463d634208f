// SPDX-License-Identifier: GPL-2.0-only
//! CRIU's import table: what it calls in the C library can go through us.
//!
//! Used for what plugins have no hook for, see [`crate::guard`] and [`crate::lent`].

use std::ffi::{CStr, c_char, c_int, c_void};

/// CRIU's calls cannot be diverted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not import the function.
    #[error(
        "this CRIU does not call `{0}` through its import table: the plugin cannot keep it from restoring tasks without memory"
    )]
    NoSlot(String),
    /// Its import table stays read-only.
    #[error("cannot make CRIU's import table writable")]
    Protect(#[source] std::io::Error),
}

const R_X86_64_GLOB_DAT: u32 = 6;
const R_X86_64_JUMP_SLOT: u32 = 7;
const DT_PLTRELSZ: u64 = 2;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_RELA: u64 = 7;
const DT_RELASZ: u64 = 8;
const DT_JMPREL: u64 = 23;

/// Where the main program keeps the address of its import `name`.
#[derive(Debug)]
struct Find<'a> {
    name: &'a CStr,
    slots: Vec<*mut *const c_void>,
}

unsafe extern "C" fn first_object(
    info: *mut libc::dl_phdr_info,
    _: usize,
    data: *mut c_void,
) -> c_int {
    // SAFETY: dl_iterate_phdr passes a valid info, and the `Find` it was given.
    let (info, find) = unsafe { (&*info, &mut *data.cast::<Find<'_>>()) };
    // SAFETY: the program headers of a loaded object stay mapped.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let base = info.dlpi_addr;
    if let Some(dynamic) = headers.iter().find(|h| h.p_type == libc::PT_DYNAMIC) {
        // SAFETY: a loaded object's dynamic section is at base + p_vaddr.
        unsafe { find.scan(base, (base + dynamic.p_vaddr) as *const [u64; 2]) };
    }
    1 // the main program comes first; stop
}

impl Find<'_> {
    /// # Safety
    /// `dynamic` must be the dynamic section of the object loaded at `base`.
    unsafe fn scan(&mut self, base: u64, dynamic: *const [u64; 2]) {
        let value = |tag| {
            // SAFETY: the section ends with a tag of 0.
            let entries = (0..).map(|i| unsafe { *dynamic.add(i) });
            entries
                .take_while(|e| e[0] != 0)
                .find(|e| e[0] == tag)
                .map(|e| e[1])
        };
        // The loader relocates these in place, unless the section is read-only.
        let address = |tag| value(tag).map(|v| if v < base { v + base } else { v });
        let (Some(strings), Some(symbols)) = (address(DT_STRTAB), address(DT_SYMTAB)) else {
            return;
        };
        for (table, size) in [(DT_JMPREL, DT_PLTRELSZ), (DT_RELA, DT_RELASZ)] {
            let (Some(table), Some(size)) = (address(table), value(size)) else {
                continue;
            };
            for at in (table..table + size).step_by(24) {
                // SAFETY: an Elf64_Rela of the table: offset, info, addend.
                let [offset, info, _] = unsafe { *(at as *const [u64; 3]) };
                #[allow(clippy::cast_possible_truncation)] // ELF64_R_TYPE
                let kind = info as u32;
                if kind != R_X86_64_JUMP_SLOT && kind != R_X86_64_GLOB_DAT {
                    continue;
                }
                // SAFETY: Elf64_Sym is 24 bytes and begins with its name's offset.
                let name = unsafe { *((symbols + (info >> 32) * 24) as *const u32) };
                // SAFETY: the string table holds NUL-terminated names.
                let name = unsafe { CStr::from_ptr((strings + u64::from(name)) as *const c_char) };
                if name == self.name {
                    self.slots.push((base + offset) as *mut *const c_void);
                }
            }
        }
    }
}

fn import_slots(name: &CStr) -> Vec<*mut *const c_void> {
    let mut find = Find {
        name,
        slots: Vec::new(),
    };
    // SAFETY: the callback gets exactly this `Find` and ends after one object.
    unsafe { libc::dl_iterate_phdr(Some(first_object), (&raw mut find).cast()) };
    find.slots
}

/// From now on this program calls `target` where it called the import `name`.
///
/// # Safety
/// `target` must be a function that can stand in for `name`.
///
/// # Errors
/// See [`Error`]; nothing was changed.
pub unsafe fn divert(name: &CStr, target: *const c_void) -> Result<(), Error> {
    let slots = import_slots(name);
    if slots.is_empty() {
        return Err(Error::NoSlot(name.to_string_lossy().into_owned()));
    }
    for slot in slots {
        let page = slot.map_addr(|a| a & !0xfff);
        // SAFETY: the slot's page belongs to the program's import table, which
        // the loader may have left read-only; it holds data, no code.
        let ret =
            unsafe { libc::mprotect(page.cast(), 0x1000, libc::PROT_READ | libc::PROT_WRITE) };
        if ret != 0 {
            return Err(Error::Protect(std::io::Error::last_os_error()));
        }
        // SAFETY: an aligned, writable slot that holds the address of a function;
        // by contract `target` can stand in for it. CRIU has one thread.
        unsafe { slot.write(target) };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_without_the_import_has_no_slot() {
        assert!(import_slots(c"no_such_function_anywhere").is_empty());
    }

    #[test]
    fn an_import_of_this_program_is_found_and_points_to_it() {
        let slots = import_slots(c"dl_iterate_phdr");
        // SAFETY: RTLD_DEFAULT and a NUL-terminated name.
        let real = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"dl_iterate_phdr".as_ptr()) };
        assert_eq!(slots.len(), 1);
        // SAFETY: a slot is a readable pointer.
        assert_eq!(unsafe { *slots[0] }, real.cast_const());
    }
}
