// SPDX-License-Identifier: GPL-2.0-only
//! Which KVM this host has, if any.

use std::fmt;
use std::fs;
use std::path::Path;

use mvasvm::vm::{Host, VmError};
use serde::Serialize;

/// What is behind `/dev/kvm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum KvmKind {
    /// Intel's hardware virtualization.
    Vmx,
    /// AMD's hardware virtualization.
    Svm,
    /// A KVM that emulates in software, which cannot boot Linux.
    Software,
    /// There is no KVM.
    None,
}

impl fmt::Display for KvmKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vmx => "VMX (Intel)",
            Self::Svm => "SVM (AMD)",
            Self::Software => "software",
            Self::None => "none",
        })
    }
}

/// The KVM of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct KvmHost {
    pub kind: KvmKind,
    /// EPT or NPT: without it, remapping is slow. Unknown where there is no hardware.
    pub nested_paging: Option<bool>,
    /// Most vCPUs of one VM.
    pub max_cpus: Option<u32>,
    /// Why it cannot be used.
    pub error: Option<String>,
}

/// What a host says about itself, apart from asking KVM.
#[derive(Debug, Clone, Default)]
struct Signs {
    vmx: bool,
    svm: bool,
    device: bool,
    intel_module: bool,
    amd_module: bool,
    ept: Option<bool>,
    npt: Option<bool>,
}

impl KvmHost {
    /// Looks at this host.
    pub fn look() -> Self {
        let signs = Signs::read(Path::new("/"));
        let kind = signs.kind();
        let (max_cpus, error) = match Host::open(Path::new(Host::DEVICE)) {
            Ok(host) => (Some(host.max_cpus()), None),
            Err(VmError::NoKvm(_)) if kind == KvmKind::None => (None, Some(signs.advice())),
            Err(error) => (None, Some(mvas_agent::chain(&error))),
        };
        Self {
            kind,
            nested_paging: match kind {
                KvmKind::Vmx => signs.ept,
                KvmKind::Svm => signs.npt,
                _ => None,
            },
            max_cpus,
            error,
        }
    }

    /// Why microVMs cannot run on it, in a few words.
    pub fn why_unusable(&self) -> Option<String> {
        match (self.kind, &self.error) {
            (KvmKind::None, _) => Some("no KVM here".to_owned()),
            (KvmKind::Software, _) => {
                Some("no hardware virtualization here (the KVM is a software one)".to_owned())
            }
            (_, Some(error)) => Some(error.clone()),
            (_, None) => None,
        }
    }
}

impl Signs {
    /// Reads them from the host whose root is `root`.
    fn read(root: &Path) -> Self {
        let text = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
        let cpuinfo = text("proc/cpuinfo");
        let flags = cpuinfo.lines().find_map(|l| l.strip_prefix("flags"));
        let has = |flag: &str| flags.is_some_and(|f| f.split_whitespace().any(|w| w == flag));
        let parameter = |path: &str| match text(path).trim() {
            "Y" | "1" => Some(true),
            "N" | "0" => Some(false),
            _ => None,
        };
        Self {
            vmx: has("vmx"),
            svm: has("svm"),
            device: root.join("dev/kvm").exists(),
            intel_module: root.join("sys/module/kvm_intel").exists(),
            amd_module: root.join("sys/module/kvm_amd").exists(),
            ept: parameter("sys/module/kvm_intel/parameters/ept"),
            npt: parameter("sys/module/kvm_amd/parameters/npt"),
        }
    }

    fn kind(&self) -> KvmKind {
        if !self.device {
            KvmKind::None
        } else if self.vmx && self.intel_module {
            KvmKind::Vmx
        } else if self.svm && self.amd_module {
            KvmKind::Svm
        } else {
            KvmKind::Software
        }
    }

    /// What to do where there is no `/dev/kvm`.
    fn advice(&self) -> String {
        match (self.vmx, self.svm) {
            (true, _) => "/dev/kvm does not exist: modprobe kvm_intel",
            (_, true) => "/dev/kvm does not exist: modprobe kvm_amd",
            _ => {
                "this CPU offers no hardware virtualization: enable it in the firmware, or nested virtualization where this is a VM itself"
            }
        }
        .to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> Signs {
        let root = tempfile::tempdir().expect("tmp");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("mkdir");
            fs::write(path, text).expect("write");
        }
        Signs::read(root.path())
    }

    const KVM: (&str, &str) = ("dev/kvm", "");
    const INTEL: (&str, &str) = ("proc/cpuinfo", "processor: 0\nflags\t\t: fpu vmx sse\n");
    const AMD: (&str, &str) = ("proc/cpuinfo", "processor: 0\nflags\t\t: fpu svm sse\n");

    #[test]
    fn hardware_is_known_by_flag_and_module() {
        let ept = ("sys/module/kvm_intel/parameters/ept", "Y\n");
        let intel = host(&[KVM, INTEL, ept]);
        assert_eq!((intel.kind(), intel.ept), (KvmKind::Vmx, Some(true)));
        let npt = ("sys/module/kvm_amd/parameters/npt", "0\n");
        let amd = host(&[KVM, AMD, npt]);
        assert_eq!((amd.kind(), amd.npt), (KvmKind::Svm, Some(false)));
    }

    #[test]
    fn a_device_without_hardware_is_software() {
        let plain = ("proc/cpuinfo", "flags: fpu sse\n");
        assert_eq!(host(&[KVM, plain]).kind(), KvmKind::Software);
        // A foreign module drives it, although the CPU could.
        let foreign = ("sys/module/kvm_pvm/refcnt", "1");
        assert_eq!(host(&[KVM, AMD, foreign]).kind(), KvmKind::Software);
        // A flag is not part of another.
        let other = ("proc/cpuinfo", "flags: fpu svm_lock\n");
        let module = ("sys/module/kvm_amd/refcnt", "0");
        assert_eq!(host(&[KVM, other, module]).kind(), KvmKind::Software);
    }

    #[test]
    fn without_a_device_the_advice_fits_the_cpu() {
        assert_eq!(host(&[AMD]).kind(), KvmKind::None);
        assert!(host(&[AMD]).advice().contains("kvm_amd"));
        assert!(host(&[INTEL]).advice().contains("kvm_intel"));
        assert!(host(&[]).advice().contains("firmware"));
    }
}
