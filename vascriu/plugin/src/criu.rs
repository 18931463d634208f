// SPDX-License-Identifier: GPL-2.0-only
//! The functions of CRIU that the plugin calls, found in the program that has
//! loaded it (CRIU exports all its symbols), and CRIU's plugin descriptor.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::os::fd::BorrowedFd;

/// CRIU 4.1's `CR_PLUGIN_HOOK__MAX`; it refuses plugins that say more. 4.2 has one more.
pub const HOOKS: usize = 12;
/// `CR_PLUGIN_HOOK__RESUME_DEVICES_LATE`.
pub const RESUME_DEVICES_LATE: usize = 9;
/// `CR_PLUGIN_HOOK__CHECKPOINT_DEVICES`.
pub const CHECKPOINT_DEVICES: usize = 11;
/// `CRIU_PLUGIN_VERSION`, 0.2.0.
const VERSION: c_uint = 2 << 8;
/// `CR_PLUGIN_STAGE__DUMP`.
pub const STAGE_DUMP: c_int = 0;
/// `CR_PLUGIN_STAGE__PRE_DUMP`.
pub const STAGE_PRE_DUMP: c_int = 1;
/// `CR_PLUGIN_STAGE__RESTORE`.
pub const STAGE_RESTORE: c_int = 2;
/// `COMPEL_TASK_ALIVE`.
const TASK_ALIVE: c_int = 1;
/// `LOG_ERROR`.
const LOG_ERROR: c_uint = 1;
/// `LOG_INFO`.
const LOG_INFO: c_uint = 3;

/// Our name in CRIU's inventory of the plugins that an image needs.
pub const NAME: &CStr = c"vas_plugin";

/// A hook with one PID.
pub type Hook = extern "C" fn(c_int) -> c_int;

/// `cr_plugin_desc_t`.
#[repr(C)]
#[derive(Debug)]
pub struct Descriptor {
    name: *const c_char,
    init: extern "C" fn(c_int) -> c_int,
    exit: extern "C" fn(c_int, c_int),
    version: c_uint,
    max_hooks: c_uint,
    hooks: [Option<Hook>; HOOKS],
}

// SAFETY: nothing in it ever changes, and what it points to is static.
unsafe impl Sync for Descriptor {}

impl Descriptor {
    /// Describes a plugin with these hooks.
    pub const fn new(
        init: extern "C" fn(c_int) -> c_int,
        exit: extern "C" fn(c_int, c_int),
        hooks: [Option<Hook>; HOOKS],
    ) -> Self {
        #[allow(clippy::cast_possible_truncation)] // 12
        let max_hooks = HOOKS as c_uint;
        Self {
            name: NAME.as_ptr(),
            init,
            exit,
            version: VERSION,
            max_hooks,
            hooks,
        }
    }
}

/// CRIU lacks a function: another CRIU, or none.
#[derive(Debug, thiserror::Error)]
#[error("the program that loaded this plugin is no CRIU 4.1 or 4.2: it has no `{0}`")]
pub struct Missing(&'static str);

fn symbol(name: &'static CStr) -> Result<*mut c_void, Missing> {
    // SAFETY: `name` is NUL-terminated; RTLD_DEFAULT is always valid.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    if found.is_null() {
        Err(Missing(name.to_str().unwrap_or("?")))
    } else {
        Ok(found)
    }
}

/// CRIU's functions, by the names that they have there.
#[derive(Debug, Clone, Copy)]
pub struct Criu {
    criu_get_image_dir: extern "C" fn() -> c_int,
    add_inventory_plugin: extern "C" fn(*const c_char) -> c_int,
    check_and_remove_inventory_plugin: extern "C" fn(*const c_char, usize) -> bool,
    unsuspend_lsm: extern "C" fn() -> c_int,
    network_unlock: extern "C" fn(),
    delete_link_remaps: extern "C" fn(),
    clean_cr_time_mounts: extern "C" fn(),
    pstree_switch_state: extern "C" fn(*mut c_void, c_int),
    root_item: *mut *mut c_void,
}

// SAFETY: the functions are CRIU's, and CRIU has one thread; the pointer is to
// one of its globals.
unsafe impl Send for Criu {}

impl Criu {
    /// Finds all of them, so that nothing is missing later.
    ///
    /// # Errors
    /// The first that is missing.
    pub fn find() -> Result<Self, Missing> {
        macro_rules! function {
            ($name:literal) => {{
                let found = symbol($name)?;
                #[allow(clippy::missing_transmute_annotations, reason = "the field's type")]
                // SAFETY: the symbol is the function of CRIU 4.1 and 4.2 of that name; the
                // field that it initializes has the type of its prototype.
                unsafe {
                    std::mem::transmute(found)
                }
            }};
        }
        Ok(Self {
            criu_get_image_dir: function!(c"criu_get_image_dir"),
            add_inventory_plugin: function!(c"add_inventory_plugin"),
            check_and_remove_inventory_plugin: function!(c"check_and_remove_inventory_plugin"),
            unsuspend_lsm: function!(c"unsuspend_lsm"),
            network_unlock: function!(c"network_unlock"),
            delete_link_remaps: function!(c"delete_link_remaps"),
            clean_cr_time_mounts: function!(c"clean_cr_time_mounts"),
            pstree_switch_state: function!(c"pstree_switch_state"),
            root_item: symbol(c"root_item")?.cast(),
        })
    }

    /// CRIU's image directory.
    #[must_use]
    pub fn image_dir(&self) -> BorrowedFd<'static> {
        let fd = (self.criu_get_image_dir)();
        // SAFETY: CRIU opened its image directory before it loads plugins and
        // closes it after it has let them go.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }

    /// Records that the images cannot be restored without us.
    #[must_use]
    pub fn require_me(&self) -> bool {
        (self.add_inventory_plugin)(NAME.as_ptr()) == 0
    }

    /// Whether the images say that they need us, and tells CRIU we are here.
    #[must_use]
    pub fn am_required(&self) -> bool {
        (self.check_and_remove_inventory_plugin)(NAME.as_ptr(), NAME.to_bytes().len())
    }

    /// Ends a dump as CRIU itself ends one that has failed: everything is
    /// unlocked, the tasks go on, and CRIU exits with 1.
    pub fn resume_tasks_and_exit(&self) -> ! {
        (self.unsuspend_lsm)();
        (self.network_unlock)();
        (self.delete_link_remaps)();
        (self.clean_cr_time_mounts)();
        // SAFETY: `root_item` is CRIU's global of that name, set since before
        // the tasks were stopped.
        let root = unsafe { *self.root_item };
        (self.pstree_switch_state)(root, TASK_ALIVE);
        // SAFETY: ends the process without any further code of CRIU's.
        unsafe { libc::_exit(1) }
    }
}

fn print(level: c_uint, text: &str) {
    type Print = unsafe extern "C" fn(c_uint, *const c_char, ...);
    let line = CString::new(text.replace('\0', "?")).unwrap_or_default();
    match symbol(c"print_on_level") {
        Ok(found) => {
            // SAFETY: print_on_level has this prototype in CRIU 4.1.
            let print: Print = unsafe { std::mem::transmute(found) };
            // SAFETY: the format takes one string, and gets one.
            unsafe { print(level, c"%s\n".as_ptr(), line.as_ptr()) };
        }
        Err(_) => eprintln!("{text}"),
    }
}

/// Writes an error to CRIU's log, in the form of its own errors.
pub fn error(text: &str) {
    print(LOG_ERROR, &format!("Error (vas): {text}"));
}

/// Writes what happens to CRIU's log.
pub fn info(text: &str) {
    print(LOG_INFO, &format!("vas: {text}"));
}
