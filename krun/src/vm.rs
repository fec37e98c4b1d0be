//! A configured VM, and the way in.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::IntoRawFd;
use std::path::Path;

use crate::guest_kernel::GuestKernel;
use crate::machine::{Access, Connect, Machine, NetDevice, OverlayFile, VsockPort};
use crate::{KrunError, libkrun};

/// libkrun mounts the device with this tag as the guest's root.
const ROOT_TAG: &str = "/dev/root";

/// Sockets of the guest for IPv4 and IPv6 become this process's (`KRUN_TSI_HIJACK_INET`).
const TSI_HIJACK_INET: u32 = 1;

/// Checksums and large TCP and UDP packets are left to the other side, which neither checks nor minds. Without
/// them the guest's driver has no room for frames over 1518 bytes (`NET_COMPAT_FEATURES`, libkrun.h).
const NET_FEATURES: u32 = 1 | 1 << 1 | 1 << 7 | 1 << 10 | 1 << 11 | 1 << 14;

/// `S_IFREG`: the mode of an overlay file includes the file type.
const REGULAR_FILE: u32 = 0o100_000;

/// Owns a libkrun context with everything configured.
///
/// There is no way to change it, and none to use it but [`enter`](Self::enter).
#[derive(Debug)]
pub struct Vm {
    context: u32,
}

impl Vm {
    /// Checks the machine and this host, then configures a libkrun context. Nothing of the
    /// workload is given to `krun_set_exec` and its kin: they write it, unescaped, onto the kernel
    /// command line. TSI is off unless asked for, DAX is off, libkrun's own init and console are off.
    ///
    /// # Errors
    ///
    /// One variant for each thing that libkrun itself would answer with a panic, a hang or an
    /// exit status of 0. After an error the process may go on, and a second try is possible.
    pub fn configure(machine: Machine, _kernel: &GuestKernel) -> Result<Self, KrunError> {
        machine.check()?;
        check_kvm()?;
        // SAFETY: takes nothing. It loads libkrunfw, whose presence the `Kernel` argument proves.
        let context = unsafe { libkrun::CREATE_CTX() };
        check("krun_create_ctx", context)?;
        let vm = Self { context: context.unsigned_abs() };
        vm.set_size(machine.vcpus, machine.memory_mib)?;
        vm.disable_implicit_devices(machine.tsi)?;
        vm.add_virtiofs(ROOT_TAG, &machine.root, Access::ReadWrite)?;
        for file in machine.overlay_files {
            vm.add_overlay_file(file)?;
        }
        for share in &machine.shares {
            vm.add_virtiofs(&share.tag, &share.path, share.access)?;
        }
        for port in &machine.vsock_ports {
            vm.add_vsock_port(port)?;
        }
        if let Some(device) = machine.net {
            vm.add_net(device)?;
        }
        vm.add_console(machine.stdout.into_raw_fd(), machine.stderr.into_raw_fd())?;
        Ok(vm)
    }

    /// Becomes the VM. Comes back only with an error; otherwise libkrun ends the process by
    /// `_exit` on this thread (see [`exit`](crate::exit)).
    #[must_use]
    pub fn enter(self) -> KrunError {
        // SAFETY: the context is ours and fully configured. libkrun takes it over.
        let ret = unsafe { libkrun::START_ENTER(self.context) };
        check("krun_start_enter", ret).err().unwrap_or(KrunError::Call {
            call: "krun_start_enter",
            source: io::Error::other("it returned without an error"),
        })
    }

    fn set_size(&self, vcpus: u8, memory_mib: u32) -> Result<(), KrunError> {
        // SAFETY: plain numbers; libkrun checks the context id.
        check("krun_set_vm_config", unsafe {
            libkrun::SET_VM_CONFIG(self.context, vcpus, memory_mib)
        })
    }

    /// Order matters: the first must precede the root device, the second any vsock port.
    fn disable_implicit_devices(&self, tsi: bool) -> Result<(), KrunError> {
        // SAFETY: plain numbers; libkrun checks the context id.
        check("krun_disable_implicit_init", unsafe {
            libkrun::DISABLE_IMPLICIT_INIT(self.context)
        })?;
        // SAFETY: as above.
        check("krun_disable_implicit_vsock", unsafe {
            libkrun::DISABLE_IMPLICIT_VSOCK(self.context)
        })?;
        let flags = if tsi { TSI_HIJACK_INET } else { 0 };
        // SAFETY: as above.
        check("krun_add_vsock", unsafe { libkrun::ADD_VSOCK(self.context, flags) })?;
        // SAFETY: as above.
        check("krun_disable_implicit_console", unsafe {
            libkrun::DISABLE_IMPLICIT_CONSOLE(self.context)
        })
    }

    fn add_virtiofs(&self, tag: &str, path: &Path, access: Access) -> Result<(), KrunError> {
        const CALL: &str = "krun_add_virtiofs3";
        let tag = c_string(CALL, "tag", tag.as_bytes())?;
        let path = c_path(CALL, path)?;
        // Without a shared memory window (DAX): its bounds check in libkrun can overflow.
        let shm_bytes = 0;
        let read_only = access == Access::ReadOnly;
        // SAFETY: both strings end in NUL and outlive the call; libkrun copies them.
        check(CALL, unsafe {
            libkrun::ADD_VIRTIOFS3(self.context, tag.as_ptr(), path.as_ptr(), shm_bytes, read_only)
        })
    }

    fn add_overlay_file(&self, file: OverlayFile) -> Result<(), KrunError> {
        const CALL: &str = "krun_fs_add_overlay_file";
        let tag = c_string(CALL, "tag", ROOT_TAG.as_bytes())?;
        let name = c_string(CALL, "path", file.name.as_bytes())?;
        let content: &'static [u8] = Vec::leak(file.content);
        let mode = REGULAR_FILE | file.permissions;
        // SAFETY: both strings end in NUL and outlive the call; the content is never freed, which
        // libkrun needs because it serves the guest from this memory.
        check(CALL, unsafe {
            libkrun::FS_ADD_OVERLAY_FILE(
                self.context,
                tag.as_ptr(),
                name.as_ptr(),
                content.as_ptr(),
                content.len(),
                mode,
                file.one_shot,
            )
        })
    }

    fn add_vsock_port(&self, port: &VsockPort) -> Result<(), KrunError> {
        const CALL: &str = "krun_add_vsock_port2";
        let socket = c_path(CALL, &port.socket)?;
        let listen = port.connect == Connect::FromHost;
        // SAFETY: the string ends in NUL and outlives the call; libkrun copies it.
        check(CALL, unsafe {
            libkrun::ADD_VSOCK_PORT2(self.context, port.port, socket.as_ptr(), listen)
        })
    }

    fn add_net(&self, device: NetDevice) -> Result<(), KrunError> {
        let socket = device.socket.into_raw_fd();
        // SAFETY: the socket is open, and no longer owned by anyone here.
        check("krun_add_net_unixstream", unsafe {
            libkrun::add_net(self.context, socket, device.mac, NET_FEATURES)
        })
    }

    fn add_console(&self, stdout: i32, stderr: i32) -> Result<(), KrunError> {
        // SAFETY: both fds are open and no longer owned by anyone here; libkrun duplicates them.
        // Input -1: none.
        check("krun_add_virtio_console_default", unsafe {
            libkrun::ADD_VIRTIO_CONSOLE_DEFAULT(self.context, -1, stdout, stderr)
        })
    }
}

/// Says whether this host's KVM can be used. libkrun panics in `krun_start_enter` when it cannot open
/// `/dev/kvm`.
///
/// # Errors
///
/// There is none, it may not be opened, or it does not answer as KVM does.
pub fn check_kvm() -> Result<(), KrunError> {
    if cfg!(feature = "fake") {
        return Ok(());
    }
    OpenOptions::new().read(true).write(true).open("/dev/kvm").map_err(|error| {
        match error.kind() {
            io::ErrorKind::NotFound => KrunError::KvmMissing,
            _ => KrunError::KvmDenied(error),
        }
    })?;
    // SAFETY: takes nothing; it opens /dev/kvm and asks for an extension.
    match unsafe { libkrun::GET_MAX_VCPUS() } {
        count if count > 0 => Ok(()),
        error => Err(KrunError::KvmUnusable(error)),
    }
}

/// The one place where libkrun's return value becomes a `Result`: 0 or more, or `-errno`.
fn check(call: &'static str, ret: i32) -> Result<(), KrunError> {
    if ret >= 0 {
        return Ok(());
    }
    Err(KrunError::Call { call, source: io::Error::from_raw_os_error(-ret) })
}

fn c_path(call: &'static str, path: &Path) -> Result<CString, KrunError> {
    let text = path.to_str().ok_or(KrunError::Text { call, argument: "path" })?;
    c_string(call, "path", text.as_bytes())
}

fn c_string(call: &'static str, argument: &'static str, text: &[u8]) -> Result<CString, KrunError> {
    CString::new(text).map_err(|_nul| KrunError::Text { call, argument })
}
