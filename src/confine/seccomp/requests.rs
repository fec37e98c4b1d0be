//! The requests of ioctl(2) that the VMM makes.
//!
//! libkrun opens `/dev/kvm` and makes the VM after the filter is installed, so the requests of a
//! start cannot be left out. They are those of `krun-vmm`, `krun-arch` and `krun-devices` 1.19.7,
//! which make most of them through `kvm-ioctls` 0.22. The numbers are those of `linux/kvm.h`.

/// The name of a request in the headers of the kernel, and its number.
pub(super) type Request = (&'static str, u64);

/// Requests of KVM that both architectures make. `KVM_RUN` is the first rule of the filter, because
/// a virtual CPU makes it each time the guest needs a device.
pub(super) const KVM: [Request; 9] = [
    ("KVM_RUN", 0xae80),
    // Of `/dev/kvm`. The filter cannot count, so it allows several VMs in place of one.
    ("KVM_GET_API_VERSION", 0xae00),
    ("KVM_CREATE_VM", 0xae01),
    ("KVM_CHECK_EXTENSION", 0xae03),
    ("KVM_GET_VCPU_MMAP_SIZE", 0xae04),
    // Of the VM.
    ("KVM_CREATE_VCPU", 0xae41),
    ("KVM_SET_USER_MEMORY_REGION", 0x4020_ae46),
    ("KVM_IRQFD", 0x4020_ae76),
    ("KVM_IOEVENTFD", 0x4040_ae79),
];

/// Requests of KVM on x86-64.
#[cfg(target_arch = "x86_64")]
pub(super) const KVM_OF_ARCHITECTURE: [Request; 14] = [
    // Of `/dev/kvm`.
    ("KVM_GET_MSR_INDEX_LIST", 0xc004_ae02),
    ("KVM_GET_SUPPORTED_CPUID", 0xc008_ae05),
    // Of the VM.
    ("KVM_SET_TSS_ADDR", 0xae47),
    ("KVM_CREATE_IRQCHIP", 0xae60),
    ("KVM_REINJECT_CONTROL", 0xae71),
    ("KVM_CREATE_PIT2", 0x4040_ae77),
    // Of a virtual CPU.
    ("KVM_SET_REGS", 0x4090_ae82),
    ("KVM_GET_SREGS", 0x8138_ae83),
    ("KVM_SET_SREGS", 0x4138_ae84),
    ("KVM_SET_MSRS", 0x4008_ae89),
    ("KVM_SET_FPU", 0x41a0_ae8d),
    ("KVM_GET_LAPIC", 0x8400_ae8e),
    ("KVM_SET_LAPIC", 0x4400_ae8f),
    ("KVM_SET_CPUID2", 0x4008_ae90),
];

/// Requests of KVM on aarch64.
#[cfg(target_arch = "aarch64")]
pub(super) const KVM_OF_ARCHITECTURE: [Request; 7] = [
    // Of the VM and of its interrupt controller.
    ("KVM_ARM_PREFERRED_TARGET", 0x8020_aeaf),
    ("KVM_CREATE_DEVICE", 0xc00c_aee0),
    ("KVM_SET_DEVICE_ATTR", 0x4018_aee1),
    // Of a virtual CPU.
    ("KVM_GET_ONE_REG", 0x4010_aeab),
    ("KVM_SET_ONE_REG", 0x4010_aeac),
    ("KVM_ARM_VCPU_INIT", 0x4020_aeae),
    ("KVM_ARM_VCPU_FINALIZE", 0x4004_aec2),
];

/// Requests of other files.
pub(super) const OTHER: [Request; 3] = [
    // Whether an fd is a terminal. glibc makes the second request from version 2.42 on.
    ("TCGETS", libc::TCGETS),
    ("TCGETS2", libc::TCGETS2),
    // Makes a socket non-blocking.
    ("FIONBIO", libc::FIONBIO),
];
