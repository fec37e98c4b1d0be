//! Checks of KVM and of the CPU below it.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;

use a3s_box_core::doctor::{DoctorCheck, DoctorStatus};
use a3s_box_core::one_line;
use a3s_box_krun::{KrunError, check_kvm};

use super::kernel_file::read;

/// Path of the KVM device.
const KVM: &str = "/dev/kvm";

/// Checks whether the KVM device exists, can be opened and has the expected API.
pub(super) fn kvm() -> DoctorCheck {
    // `check_kvm` does nothing in a build with the fake VM, so the device is opened here as well.
    let opened = OpenOptions::new().read(true).write(true).open(KVM);
    let refusal = opened.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => KrunError::KvmMissing,
        _ => KrunError::KvmDenied(error),
    });
    match refusal.and_then(|_device| check_kvm()) {
        Ok(()) => DoctorCheck::ok("kvm", format!("`{KVM}` can be used")),
        Err(error) => {
            let remedy = error.hint().unwrap_or("look into the host kernel's log (dmesg)");
            DoctorCheck::failed("kvm", one_line(&error), remedy)
        }
    }
}

/// Checks which kind of virtualization runs the virtual CPUs. With the module `kvm_pvm`, only the
/// boot shows whether the guest kernel is one of the few that run on it.
pub(super) fn virtualization(boot: &DoctorCheck) -> DoctorCheck {
    let cpu = Cpu::parse(&read("/proc/cpuinfo").unwrap_or_default());
    let pvm = Path::new("/sys/module/kvm_pvm").exists();
    judge(&cpu, if pvm { Pvm::Loaded } else { Pvm::None }, boot.status)
}

/// Whether the module `kvm_pvm` is loaded, which runs VMs without virtualization extensions of the
/// CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pvm {
    Loaded,
    None,
}

/// The first CPU in `/proc/cpuinfo`. Only x86 lists flags there.
#[derive(Debug, Default, PartialEq, Eq)]
struct Cpu {
    /// Virtualization extension: `vmx` (Intel) or `svm` (AMD).
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
        // `vmx` is also a part of other words, such as `vmxnet`.
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
    let location = if cpu.is_virtual { "nested in a VM" } else { "on the hardware" };
    match (cpu.extension, pvm) {
        (Some(extension), _) => DoctorCheck::ok(NAME, format!("`{extension}`, {location}")),
        (None, Pvm::Loaded) if boot == DoctorStatus::Failed => DoctorCheck::failed(
            NAME,
            format!(
                "`kvm_pvm`, {location}, and neither `vmx` nor `svm`: it runs VMs, but no stock \
                 guest kernel"
            ),
            "use a host whose CPU has VT-x or AMD-V; in a VM, one with nested virtualization",
        ),
        (None, Pvm::Loaded) => DoctorCheck::ok(
            NAME,
            format!("`kvm_pvm`, {location}, with a guest kernel that boots on it"),
        ),
        (None, Pvm::None) if cpu.has_flags && boot == DoctorStatus::Failed => DoctorCheck::failed(
            NAME,
            format!("neither `vmx` nor `svm`, {location}"),
            "turn virtualization on in the firmware; in a VM, nested virtualization",
        ),
        // Outside of x86, and where a box boots all the same, the missing flag is no problem.
        (None, Pvm::None) => DoctorCheck::ok(NAME, "the CPU lists no extension for it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extension_is_recognised_as_a_whole_word_of_the_flags() {
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
    fn missing_extension_fails_only_if_the_boot_failed() {
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
