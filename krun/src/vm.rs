//! A configured VM, and its start.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::IntoRawFd;
use std::path::Path;
use std::ptr;

use crate::access::Access;
use crate::disk::{DISK_FORMAT_RAW, DISK_FORMAT_VMDK, Disk, DiskFormat, SyncMode};
use crate::guest_kernel::GuestKernel;
use crate::machine::{
    BlockRoot, Connect, Machine, NetDevice, OverlayFile, Root, ShareCache, VsockPort,
};
use crate::{KrunError, libkrun};

/// Tag of the root device. libkrun passes `rootfstype=virtiofs` and no `root=` to the guest kernel
/// (krun-vmm, `src/vmm_config/kernel_cmdline.rs`), which then mounts its default name, and that is
/// `/dev/root`.
const ROOT_TAG: &str = "/dev/root";

/// `KRUN_TSI_HIJACK_INET` of `libkrun.h`: libkrun opens the guest's IPv4 and IPv6 sockets in this
/// process.
const TSI_HIJACK_INET: u32 = 1;

/// Features of the network device: `NET_COMPAT_FEATURES` of libkrun (`src/lib.rs`), which are CSUM,
/// `GUEST_CSUM`, `GUEST_TSO4`, `GUEST_UFO`, `HOST_TSO4` and `HOST_UFO` of `linux/virtio_net.h`.
///
/// They let both sides send packets without checksums, and TCP and UDP packets above the MTU. passt
/// accepts such packets and sends such packets. Without the `GUEST_*` features the guest's driver
/// gives the device buffers of 1518 bytes, which are too small for the packets of passt.
const NET_FEATURES: u32 = 1 | 1 << 1 | 1 << 7 | 1 << 10 | 1 << 11 | 1 << 14;

/// `S_IFREG` (inode(7)), because libkrun expects the mode of an overlay file with its file type.
const REGULAR_FILE: u32 = 0o100_000;

/// `S_IFDIR` (inode(7)) and the permissions 0755, the mode of the mount points in a block root.
const MOUNT_POINT: u32 = 0o040_755;

/// `LinuxComplete` and `LinuxSimplified` of `enum PermissionSemantics` (krun-devices,
/// `src/virtio/fs/linux/passthrough.rs`).
const LINUX_COMPLETE: u32 = 0;
const LINUX_SIMPLIFIED: u32 = 1;

/// `KRUN_SYNC_NONE` and `KRUN_SYNC_FULL` of `libkrun.h`.
const SYNC_NONE: u32 = 0;
const SYNC_FULL: u32 = 2;

/// A fully configured libkrun context. Its only operation is [`enter`](Self::enter). The example of
/// the [crate] configures and enters one.
///
/// Dropping it does not free the context (`krun_free_ctx`). The context is small, and a process that
/// does not enter its VM ends soon.
#[derive(Debug)]
pub struct Vm {
    context: u32,
}

impl Vm {
    /// Checks the machine and the host, and configures a libkrun context. The argument `_kernel`
    /// proves that the guest kernel is loaded, which libkrun reports only when the VM is entered.
    ///
    /// No call of the family `krun_set_exec`, `krun_set_env` and `krun_set_workdir` is made,
    /// because libkrun writes their arguments onto the guest kernel's command line without escaping
    /// them. The guest program reads its config from a file instead. libkrun's own init, its
    /// console and the shared memory window of virtio-fs (DAX) are off. TSI is off unless
    /// [`Machine::tsi`] is set.
    ///
    /// # Errors
    ///
    /// - [`Vcpus`](KrunError::Vcpus), [`Memory`](KrunError::Memory),
    ///   [`TooManyShares`](KrunError::TooManyShares),
    ///   [`TooManyDevices`](KrunError::TooManyDevices), [`Tag`](KrunError::Tag),
    ///   [`SocketPath`](KrunError::SocketPath), [`DiskId`](KrunError::DiskId),
    ///   [`DuplicateDiskId`](KrunError::DuplicateDiskId), [`Vmdk`](KrunError::Vmdk): a value
    ///   outside of its limits.
    /// - [`DiskFile`](KrunError::DiskFile), [`DiskSize`](KrunError::DiskSize): a disk's file that
    ///   libkrun could not open when the VM is entered, or that it would cut off.
    /// - [`DisksUnsupported`](KrunError::DisksUnsupported): there are disks, and the installed
    ///   libkrun has no virtio-blk.
    /// - [`KvmMissing`](KrunError::KvmMissing), [`KvmDenied`](KrunError::KvmDenied),
    ///   [`KvmUnusable`](KrunError::KvmUnusable): the host offers no usable KVM.
    /// - [`Text`](KrunError::Text): a path or name that libkrun's interface cannot express.
    /// - [`Call`](KrunError::Call): libkrun returned an errno.
    ///
    /// The process can continue after an error, and can configure another VM.
    pub fn configure(machine: Machine, _kernel: &GuestKernel) -> Result<Self, KrunError> {
        machine.check()?;
        machine.disks().iter().try_for_each(Disk::probe)?;
        check_kvm()?;
        // SAFETY: the function takes no argument. It loads `libkrunfw.so.5` by its soname, which
        // runs that library's constructors. `GuestKernel::load` has loaded the same library, so
        // none is left to run.
        let context = unsafe { libkrun::CREATE_CTX() };
        check("krun_create_ctx", context)?;
        // The id is at least 0 after the check, so its absolute value is the id itself.
        let vm = Self { context: context.unsigned_abs() };
        vm.set_size(machine.vcpus, machine.memory_mib)?;
        vm.disable_implicit_devices(machine.tsi)?;
        // The root device comes first: an overlay file names the device that it belongs to, and
        // libkrun answers ENOENT if that does not exist yet.
        vm.add_root(&machine.root)?;
        for file in machine.overlay_files {
            vm.add_overlay_file(file)?;
        }
        for share in &machine.shares {
            vm.add_virtiofs(&share.tag, Some(&share.path), share.access, share.cache)?;
        }
        for port in &machine.vsock_ports {
            vm.add_vsock_port(port)?;
        }
        if let Some(device) = machine.net {
            vm.add_net(device)?;
        }
        // `into_raw_fd` gives up the ownership of both fds. They stay open until the process ends,
        // because libkrun duplicates them only when the VM is entered.
        vm.add_console(machine.stdout.into_raw_fd(), machine.stderr.into_raw_fd())?;
        Ok(vm)
    }

    /// Turns the process into the VM. Returns only if that fails. Otherwise libkrun runs its event
    /// loop on this thread, and ends the process with `_exit` when the guest has ended (see
    /// [`exit`](crate::exit)).
    ///
    /// The value is a [`KrunError::Call`] with the errno of libkrun, which is EINVAL for most
    /// failures. The cause is in libkrun's log. libkrun panics on some failures, which this
    /// function does not catch.
    #[must_use]
    pub fn enter(self) -> KrunError {
        // SAFETY: the function takes the id of a context. `configure` created this one, and `self`
        // is consumed, so the context is entered once. All memory that it refers to (the overlay
        // files) is never freed, and all its fds stay open, because `configure` gave up their
        // ownership.
        let ret = unsafe { libkrun::START_ENTER(self.context) };
        check("krun_start_enter", ret).err().unwrap_or(KrunError::Call {
            call: "krun_start_enter",
            source: io::Error::other("it returned without an error"),
        })
    }

    fn set_size(&self, vcpus: u8, memory_mib: u32) -> Result<(), KrunError> {
        // SAFETY: the function takes only numbers. It returns ENOENT if the context does not exist.
        check("krun_set_vm_config", unsafe {
            libkrun::SET_VM_CONFIG(self.context, vcpus, memory_mib)
        })
    }

    /// Turns off the devices that libkrun adds by default, and adds a vsock device with explicit
    /// TSI flags.
    ///
    /// `krun_disable_implicit_init` must precede the root device, because libkrun adds its init to
    /// the root while it adds the device. The vsock device must precede any vsock port, because
    /// libkrun answers ENODEV while there is none.
    fn disable_implicit_devices(&self, tsi: bool) -> Result<(), KrunError> {
        // SAFETY: the function takes only numbers. It returns ENOENT if the context does not exist.
        check("krun_disable_implicit_init", unsafe {
            libkrun::DISABLE_IMPLICIT_INIT(self.context)
        })?;
        // SAFETY: the function takes only numbers. It returns ENOENT if the context does not exist.
        check("krun_disable_implicit_vsock", unsafe {
            libkrun::DISABLE_IMPLICIT_VSOCK(self.context)
        })?;
        let flags = if tsi { TSI_HIJACK_INET } else { 0 };
        // SAFETY: the function takes only numbers. It returns ENOENT if the context does not exist,
        // and EINVAL for unknown flags.
        check("krun_add_vsock", unsafe { libkrun::ADD_VSOCK(self.context, flags) })?;
        // SAFETY: the function takes only numbers. It returns ENOENT if the context does not exist.
        check("krun_disable_implicit_console", unsafe {
            libkrun::DISABLE_IMPLICIT_CONSOLE(self.context)
        })
    }

    fn add_root(&self, root: &Root) -> Result<(), KrunError> {
        match root {
            // Nothing changes a root but its guest.
            Root::Directory(path) => {
                self.add_virtiofs(ROOT_TAG, Some(path), Access::ReadWrite, ShareCache::Auto)
            }
            Root::Block(BlockRoot { mount_points, disks }) => {
                // libkrun ignores the access of a file system without a directory of the host
                // (krun-devices, `src/virtio/fs/worker.rs`).
                self.add_virtiofs(ROOT_TAG, None, Access::ReadWrite, ShareCache::Auto)?;
                mount_points.iter().try_for_each(|name| self.add_mount_point(name))?;
                // The order of these calls is the order of the devices. It is independent of the
                // calls for other kinds of devices.
                disks.iter().try_for_each(|disk| self.add_disk(disk))
            }
        }
    }

    /// Adds a virtio-fs device. Without a path its file system has only virtual files.
    fn add_virtiofs(
        &self,
        tag: &str,
        path: Option<&Path>,
        access: Access,
        cache: ShareCache,
    ) -> Result<(), KrunError> {
        const CALL: &str = "krun_add_virtiofs4";
        let tag = c_string(CALL, "tag", tag.as_bytes())?;
        let path = path.map(|path| c_path(CALL, path)).transpose()?;
        let path = path.as_ref().map_or(ptr::null(), |path| path.as_ptr());
        // 0 means no shared memory window (DAX). libkrun's check of the window's bounds can
        // overflow, so a hostile guest could reach memory of the VMM.
        let shm_bytes = 0;
        let read_only = access == Access::ReadOnly;
        let semantics = match cache {
            ShareCache::Auto => LINUX_COMPLETE,
            ShareCache::None => LINUX_SIMPLIFIED,
        };
        // SAFETY: the function reads two strings that must end in NUL, of which the path may be
        // null. Both pointers come from `CString`s that outlive the call, and libkrun copies the
        // strings. The other arguments are numbers.
        check(CALL, unsafe {
            libkrun::ADD_VIRTIOFS4(
                self.context,
                tag.as_ptr(),
                path,
                shm_bytes,
                read_only,
                semantics,
            )
        })
    }

    fn add_mount_point(&self, name: &str) -> Result<(), KrunError> {
        const CALL: &str = "krun_fs_add_overlay_dir";
        let tag = c_string(CALL, "tag", ROOT_TAG.as_bytes())?;
        let name = c_string(CALL, "path", name.as_bytes())?;
        // SAFETY: the function reads two strings that must end in NUL. Both pointers come from
        // `CString`s that outlive the call, and libkrun copies the strings.
        check(CALL, unsafe {
            libkrun::FS_ADD_OVERLAY_DIR(self.context, tag.as_ptr(), name.as_ptr(), MOUNT_POINT)
        })
    }

    fn add_disk(&self, disk: &Disk) -> Result<(), KrunError> {
        const CALL: &str = "krun_add_disk3";
        let add_disk3 = libkrun::add_disk3().ok_or(KrunError::DisksUnsupported)?;
        let id = c_string(CALL, "block_id", disk.id.as_bytes())?;
        let file = c_path(CALL, &disk.file)?;
        let format = match disk.format {
            DiskFormat::Raw => DISK_FORMAT_RAW,
            DiskFormat::Vmdk => DISK_FORMAT_VMDK,
        };
        let sync = match disk.sync {
            SyncMode::None => SYNC_NONE,
            SyncMode::Full => SYNC_FULL,
        };
        let read_only = disk.access == Access::ReadOnly;
        // SAFETY: the function reads two strings that must end in NUL. Both pointers come from
        // `CString`s that outlive the call, and libkrun copies the strings. The other arguments are
        // numbers.
        check(CALL, unsafe {
            add_disk3(
                self.context,
                id.as_ptr(),
                file.as_ptr(),
                format,
                read_only,
                disk.direct_io,
                sync,
            )
        })
    }

    fn add_overlay_file(&self, file: OverlayFile) -> Result<(), KrunError> {
        const CALL: &str = "krun_fs_add_overlay_file";
        let tag = c_string(CALL, "tag", ROOT_TAG.as_bytes())?;
        let name = c_string(CALL, "path", file.name.as_bytes())?;
        let content: &'static [u8] = file.content.leak();
        let mode = REGULAR_FILE | file.permissions;
        // SAFETY: the function reads two strings that must end in NUL. Both pointers come from
        // `CString`s that outlive the call, and libkrun copies the strings. The content must be
        // valid and unchanged while the VM runs, because libkrun serves the guest from this memory:
        // `leak` returns a `&'static` slice, whose pointer and length are passed.
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
        // SAFETY: the function reads one string that must end in NUL. The pointer comes from a
        // `CString` that outlives the call, and libkrun copies the string.
        check(CALL, unsafe {
            libkrun::ADD_VSOCK_PORT2(self.context, port.port, socket.as_ptr(), listen)
        })
    }

    fn add_net(&self, device: NetDevice) -> Result<(), KrunError> {
        let socket = device.socket.into_raw_fd();
        // SAFETY: `add_net` requires an open fd that no other code closes. The fd comes from an
        // `OwnedFd`, and `into_raw_fd` has given up its ownership.
        check("krun_add_net_unixstream", unsafe {
            libkrun::add_net(self.context, socket, device.mac, NET_FEATURES)
        })
    }

    fn add_console(&self, stdout: i32, stderr: i32) -> Result<(), KrunError> {
        // SAFETY: the function records the fds, and libkrun duplicates them when the VM is entered,
        // so they must stay open until then. `configure` has given up their ownership, so no code
        // closes them. An input of -1 creates no input port.
        check("krun_add_virtio_console_default", unsafe {
            libkrun::ADD_VIRTIO_CONSOLE_DEFAULT(self.context, -1, stdout, stderr)
        })
    }
}

/// Checks that this process can use KVM. libkrun panics in `krun_start_enter` if it cannot open
/// `/dev/kvm`.
///
/// # Errors
///
/// - [`KvmMissing`](KrunError::KvmMissing): `/dev/kvm` does not exist.
/// - [`KvmDenied`](KrunError::KvmDenied): it cannot be opened for reading and writing.
/// - [`KvmUnusable`](KrunError::KvmUnusable): it does not report virtual CPUs, as another file of
///   this name.
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
    // SAFETY: the function takes no argument. It opens `/dev/kvm` and calls the ioctl
    // `KVM_CHECK_EXTENSION`.
    match unsafe { libkrun::GET_MAX_VCPUS() } {
        count if count > 0 => Ok(()),
        error => Err(KrunError::KvmUnusable(error)),
    }
}

/// Converts a return value of libkrun: 0 or more is success, a negative value is a negated errno.
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

#[cfg(not(feature = "fake"))]
#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a context that is never entered, so that it needs neither KVM nor a guest kernel.
    fn vm() -> Vm {
        // SAFETY: the function takes no argument. If it finds a guest kernel, it loads it, which
        // has no constructors (see `guest_kernel.rs`).
        let context = unsafe { libkrun::CREATE_CTX() };
        check("krun_create_ctx", context).unwrap();
        let vm = Vm { context: context.unsigned_abs() };
        vm.disable_implicit_devices(false).unwrap();
        vm
    }

    fn file(name: &str) -> OverlayFile {
        OverlayFile {
            name: name.into(),
            content: vec![1].into(),
            permissions: 0o600,
            one_shot: true,
        }
    }

    fn disk(id: &str, format: DiskFormat, access: Access, sync: SyncMode) -> Disk {
        Disk { id: id.into(), file: "/disk".into(), format, access, sync, direct_io: false }
    }

    #[test]
    fn libkrun_accepts_a_block_root_with_files_mount_points_and_disks() {
        let vm = vm();
        let root = Root::Block(BlockRoot {
            mount_points: vec!["root".into()],
            disks: vec![
                disk("lower", DiskFormat::Vmdk, Access::ReadOnly, SyncMode::None),
                disk("upper", DiskFormat::Raw, Access::ReadWrite, SyncMode::Full),
            ],
        });
        vm.add_root(&root).unwrap();
        vm.add_overlay_file(file("init.krun")).unwrap();
        // libkrun looks a slash up among the virtual directories, so this one exists.
        vm.add_overlay_file(file("root/inside")).unwrap();
        vm.add_overlay_file(file("elsewhere/inside")).unwrap_err();
    }

    #[test]
    fn overlay_files_need_the_root_first() {
        let error = vm().add_overlay_file(file("init.krun")).unwrap_err();
        let KrunError::Call { call, source } = error else { panic!("{error:?}") };
        assert_eq!(call, "krun_fs_add_overlay_file");
        assert_eq!(source.raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn names_with_a_nul_byte_are_refused_before_the_call() {
        let root =
            Root::Block(BlockRoot { mount_points: vec!["a\0b".into()], ..BlockRoot::default() });
        let error = vm().add_root(&root).unwrap_err();
        assert_eq!(
            error.to_string(),
            "path of krun_fs_add_overlay_dir is not UTF-8, or contains a NUL byte"
        );
    }
}
