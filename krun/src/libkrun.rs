//! The calls of libkrun that are used, as typed function pointers.
//!
//! The compiler compares each type with the chosen backend's declaration, so the crate, the
//! installed header and the fake cannot drift apart unseen.

use std::ffi::{c_char, c_int};

#[cfg(feature = "fake")]
use crate::fake as sys;
#[cfg(all(feature = "vendored", not(feature = "fake"), not(feature = "system")))]
use krun as sys;
#[cfg(all(feature = "system", not(feature = "fake")))]
use krun_sys as sys;

pub(crate) const CREATE_CTX: unsafe extern "C" fn() -> i32 = sys::krun_create_ctx;
pub(crate) const GET_MAX_VCPUS: unsafe extern "C" fn() -> i32 = sys::krun_get_max_vcpus;
pub(crate) const SET_VM_CONFIG: unsafe extern "C" fn(u32, u8, u32) -> i32 = sys::krun_set_vm_config;
pub(crate) const DISABLE_IMPLICIT_INIT: unsafe extern "C" fn(u32) -> i32 =
    sys::krun_disable_implicit_init;
pub(crate) const ADD_VIRTIOFS3: unsafe extern "C" fn(
    u32,
    *const c_char,
    *const c_char,
    u64,
    bool,
) -> i32 = sys::krun_add_virtiofs3;
pub(crate) const FS_ADD_OVERLAY_FILE: unsafe extern "C" fn(
    u32,
    *const c_char,
    *const c_char,
    *const u8,
    usize,
    u32,
    bool,
) -> i32 = sys::krun_fs_add_overlay_file;
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

/// `krun_add_net_unixstream` with a socket. A function, because the type of the address differs: the
/// installed header says `uint8_t *`, the crate `*const u8`, and a pointer to what may change fits both.
///
/// # Safety
///
/// `socket` is open, and nobody else closes it from here on.
pub(crate) unsafe fn add_net(ctx: u32, socket: c_int, mut mac: [u8; 6], features: u32) -> i32 {
    let mac = (&raw mut mac).cast::<u8>();
    // SAFETY: the path is null, as there is a socket; the address has the six bytes that libkrun reads, and
    // outlives the call. Flags 0: the guest's addresses are not libkrun's matter.
    unsafe { sys::krun_add_net_unixstream(ctx, std::ptr::null(), socket, mac, features, 0) }
}
