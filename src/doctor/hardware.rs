//! KVM, and what is below it.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;

use a3s_box_core::doctor::{DoctorCheck, DoctorStatus};
use a3s_box_core::one_line;
use a3s_box_krun::{KrunError, check_kvm};

use super::kernel_file::read;

/// The device of KVM.
const KVM: &str = "/dev/kvm";

/// Whether the device is there, may be opened and answers.
pub(super) fn kvm() -> DoctorCheck {
    let opened = OpenOptions::new().read(true).write(true).open(KVM);
    let refusal = opened.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => KrunError::KvmMissing,
        _ => KrunError::KvmDenied(error),
    });
    match refusal.and_then(|_device| check_kvm()) {
        Ok(()) => DoctorCheck::ok("kvm", format!("`{KVM}` can be used")),
        Err(error) => {
            let remedy = error.hint().unwrap_or("look into the kernel's log (dmesg)");
            DoctorCheck::failed("kvm", one_line(&error), remedy)
        }
    }
}

/// What the virtual CPUs run on. A host of the kind `kvm_pvm` makes VMs, and only the boot tells
/// whether the guest kernel is one of the few that run there.
pub(super) fn virtualization(boot: &DoctorCheck) -> DoctorCheck {
    let cpu = Cpu::parse(&read("/proc/cpuinfo").unwrap_or_default());
    let pvm = Path::new("/sys/module/kvm_pvm").exists();
    judge(&cpu, if pvm { Pvm::Loaded } else { Pvm::None }, boot.status)
}

/// Whether the module that makes VMs without the CPU's help is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pvm {
    Loaded,
    None,
}

/// What /proc/cpuinfo says of the first CPU; no flags on other architectures than x86.
#[derive(Debug, Default, PartialEq, Eq)]
struct Cpu {
    /// `vmx` (Intel) or `svm` (AMD).
    extension: Option<&'static str>,
    has_flags: bool,
    is_virtual: bool,
}

impl Cpu {
    fn parse(cpuinfo: &str) -> Self {
        let flags = cpuinfo.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == "flags").then_some(value)
        });
        let Some(flags) = flags else { return Self::default() };
        let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
        Self {
            extension: ["vmx", "svm"].into_iter().find(|flag| has(flag)),
            has_flags: true,
            is_virtual: has("hypervisor"),
        }
    }
}

fn judge(cpu: &Cpu, pvm: Pvm, boot: DoctorStatus) -> DoctorCheck {
    const NAME: &str = "virtualization";
    let place = if cpu.is_virtual { "nested in a VM" } else { "on the hardware" };
    match (cpu.extension, pvm) {
        (Some(extension), _) => DoctorCheck::ok(NAME, format!("`{extension}`, {place}")),
        (None, Pvm::Loaded) if boot == DoctorStatus::Failed => DoctorCheck::failed(
            NAME,
            format!(
                "`kvm_pvm`, {place}, and neither `vmx` nor `svm`: it makes VMs and runs no stock \
                 guest kernel"
            ),
            "use a host whose CPU has VT-x or AMD-V; in a VM, one with nested virtualization",
        ),
        (None, Pvm::Loaded) => {
            DoctorCheck::ok(NAME, format!("`kvm_pvm`, {place}, with a guest that boots on it"))
        }
        (None, Pvm::None) if cpu.has_flags && boot == DoctorStatus::Failed => DoctorCheck::failed(
            NAME,
            format!("neither `vmx` nor `svm`, {place}"),
            "turn virtualization on in the firmware; in a VM, nested virtualization",
        ),
        (None, Pvm::None) => DoctorCheck::ok(NAME, "the CPU names no extension for it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_is_known_by_whole_words_of_its_flags() {
        let cpu = |extension, is_virtual| Cpu { extension, has_flags: true, is_virtual };
        let cases = [
            ("processor\t: 0\nflags\t\t: fpu vmx hypervisor\nflags: svm\n", cpu(Some("vmx"), true)),
            ("flags : fpu svm", cpu(Some("svm"), false)),
            ("flags : vmxnet svm_lock", cpu(None, false)),
            ("vmx flags\t: ept\nflags:", cpu(None, false)),
            ("Features\t: fp asimd", Cpu::default()),
            ("", Cpu::default()),
            (":::\n\u{fffd}", Cpu::default()),
        ];
        for (text, expected) in cases {
            assert_eq!(Cpu::parse(text), expected, "{text:?}");
        }
    }

    #[test]
    fn pvm_is_named_where_nothing_boots_on_it() {
        let none = Cpu { extension: None, has_flags: true, is_virtual: true };
        let vmx = Cpu { extension: Some("vmx"), has_flags: true, is_virtual: true };
        let (ok, failed) = (DoctorStatus::Ok, DoctorStatus::Failed);
        let cases = [
            (&none, Pvm::Loaded, failed, failed, "`kvm_pvm`"),
            (&none, Pvm::Loaded, ok, ok, "`kvm_pvm`"),
            (&none, Pvm::None, failed, failed, "neither"),
            (&none, Pvm::None, ok, ok, "no extension"),
            (&vmx, Pvm::Loaded, failed, ok, "`vmx`"),
            (&Cpu::default(), Pvm::None, failed, ok, "no extension"),
        ];
        for (cpu, pvm, boot, expected, word) in cases {
            let check = judge(cpu, pvm, boot);
            assert_eq!(check.status, expected, "{check:?}");
            assert!(check.found.contains(word), "{check:?}");
            assert_eq!(check.remedy.is_some(), expected == failed);
        }
    }
}
