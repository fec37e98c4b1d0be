//! The libkrun functions that this crate calls, as typed function pointers.
//!
//! The compiler compares each type with the declaration of the backend that was chosen. A
//! difference between the crate, the installed header and the fake therefore fails the build.

use std::ffi::{c_char, c_int};

#[cfg(feature = "fake")]
use crate::fake as sys;
#[cfg(all(feature = "vendored", not(feature = "fake"), not(feature = "system")))]
use krun as sys;
#[cfg(all(feature = "system", not(feature = "fake")))]
use krun_sys as sys;

// The parameters of each function are described in `libkrun.h` of libkrun 1.19.7. Each returns 0 or
// more on success and a negated errno on failure.

pub(crate) const CREATE_CTX: unsafe extern "C" fn() -> i32 = sys::krun_create_ctx;
pub(crate) const GET_MAX_VCPUS: unsafe extern "C" fn() -> i32 = sys::krun_get_max_vcpus;
pub(crate) const SET_VM_CONFIG: unsafe extern "C" fn(u32, u8, u32) -> i32 = sys::krun_set_vm_config;
pub(crate) const DISABLE_IMPLICIT_INIT: unsafe extern "C" fn(u32) -> i32 =
    sys::krun_disable_implicit_init;
pub(crate) const ADD_VIRTIOFS4: unsafe extern "C" fn(
    u32,
    *const c_char,
    *const c_char,
    u64,
    bool,
    u32,
) -> i32 = sys::krun_add_virtiofs4;
pub(crate) const FS_ADD_OVERLAY_FILE: unsafe extern "C" fn(
    u32,
    *const c_char,
    *const c_char,
    *const u8,
    usize,
    u32,
    bool,
) -> i32 = sys::krun_fs_add_overlay_file;
pub(crate) const FS_ADD_OVERLAY_DIR: unsafe extern "C" fn(
    u32,
    *const c_char,
    *const c_char,
    u32,
) -> i32 = sys::krun_fs_add_overlay_dir;
pub(crate) const DISABLE_IMPLICIT_VSOCK: unsafe extern "C" fn(u32) -> i32 =
    sys::krun_disable_implicit_vsock;
pub(crate) const ADD_VSOCK: unsafe extern "C" fn(u32, u32) -> i32 = sys::krun_add_vsock;
pub(crate) const ADD_VSOCK_PORT2: unsafe extern "C" fn(u32, u32, *const c_char, bool) -> i32 =
    sys::krun_add_vsock_port2;
pub(crate) const DISABLE_IMPLICIT_CONSOLE: unsafe extern "C" fn(u32) -> i32 =
    sys::krun_disable_implicit_console;
pub(crate) const ADD_VIRTIO_CONSOLE_DEFAULT: unsafe extern "C" fn(u32, c_int, c_int, c_int) -> i32 =
    sys::krun_add_virtio_console_default;
pub(crate) const START_ENTER: unsafe extern "C" fn(u32) -> i32 = sys::krun_start_enter;

/// Type of `krun_add_disk3`.
pub(crate) type AddDisk3 =
    unsafe extern "C" fn(u32, *const c_char, *const c_char, u32, bool, bool, u32) -> i32;

/// Returns `krun_add_disk3`, or nothing if the installed library does not have it.
#[cfg(any(feature = "fake", not(feature = "system")))]
pub(crate) fn add_disk3() -> Option<AddDisk3> {
    Some(sys::krun_add_disk3)
}

/// Returns `krun_add_disk3`, or nothing if the installed library does not have it.
///
/// The header of libkrun always declares this function, but a library without virtio-blk (feature
/// `blk` of the crate, `BLK=1` of its Makefile) does not define it. A reference would then fail the
/// link of every program, also of those without disks, so the symbol is looked up at run time.
#[cfg(all(feature = "system", not(feature = "fake")))]
pub(crate) fn add_disk3() -> Option<AddDisk3> {
    // The function is never called and thus not compiled into the program. It makes the compiler
    // compare the type with the one of the header.
    fn _declared() -> AddDisk3 {
        sys::krun_add_disk3
    }
    let program = libloading::os::unix::Library::this();
    // SAFETY: the symbol must have the type `AddDisk3`. `_declared` has compared it with the header
    // of the library that this program is linked with.
    let symbol = unsafe { program.get::<AddDisk3>(b"krun_add_disk3\0") };
    symbol.ok().map(|symbol| *symbol)
}

/// Calls `krun_add_net_unixstream` with a connected socket and returns its result.
///
/// This is a function and not a constant because the declarations of the address differ: `uint8_t
/// *` in the installed header, `*const u8` in the crate. A `*mut u8` converts to both types.
///
/// # Safety
///
/// `socket` must be an open fd that no other code of this process closes later, because libkrun
/// keeps the number and takes ownership of the fd when the VM is entered.
pub(crate) unsafe fn add_net(ctx: u32, socket: c_int, mut mac: [u8; 6], features: u32) -> i32 {
    let mac = (&raw mut mac).cast::<u8>();
    // SAFETY: libkrun accepts a null path if there is a socket. `mac` points to the six bytes that
    // libkrun copies, in a local variable that outlives the call. The caller guarantees the fd. The
    // flags are 0 because the guest gets its addresses from the guest program and needs no DHCP
    // client.
    unsafe { sys::krun_add_net_unixstream(ctx, std::ptr::null(), socket, mac, features, 0) }
}
