//! The guest kernel, which is a data section of the library `libkrunfw.so.5`.
//!
//! libkrun loads the library with `dlopen("libkrunfw.so.5")` (libkrun `src/lib.rs`, `KRUNFW`) and
//! reports a missing one only when the VM is entered. This module loads it first, by path. The
//! caller thus gets the error early and can choose the file: `dlopen(3)` then returns to libkrun
//! the loaded library that has this soname.

use std::ffi::OsStr;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use crate::KrunError;

/// Soname that libkrun 1.19 passes to `dlopen`.
const SONAME: &str = "libkrunfw.so.5";

/// ABI version of the library with this soname, as `krunfw_get_version` returns it.
const ABI_VERSION: u32 = 5;

/// A guest kernel that is loaded into this process. It stays loaded until the process ends.
///
/// A value of this type is the proof that [`Vm::configure`](crate::Vm::configure) requires.
#[derive(Debug)]
pub struct GuestKernel {
    path: PathBuf,
}

impl GuestKernel {
    /// Loads the guest kernel. The file is `configured` if that is given. Otherwise it is
    /// `../lib/libkrunfw.so.5` relative to the directory of `executable`, or, if that does not
    /// exist, the library that the dynamic loader finds (ld.so(8)).
    ///
    /// # Errors
    ///
    /// - [`KernelMissing`](KrunError::KernelMissing): no file was found. The error lists the
    ///   places.
    /// - [`KernelUnloadable`](KrunError::KernelUnloadable): the file is not a library of this
    ///   platform, or has no function `krunfw_get_version`.
    /// - [`KernelVersion`](KrunError::KernelVersion): libkrun 1.19 cannot use the version of the
    ///   library.
    /// - [`FakeGuest`](KrunError::FakeGuest): the process that plays the guest was not started
    ///   (feature `fake`).
    pub fn load(configured: Option<&Path>, executable: &Path) -> Result<Self, KrunError> {
        if cfg!(feature = "fake") {
            return start_guest().map(|()| Self { path: PathBuf::new() });
        }
        if let Some(path) = configured {
            return match path.exists() {
                true => load(path).and_then(checked(path)),
                false => {
                    Err(KrunError::KernelMissing { searched: format!("`{}`", path.display()) })
                }
            };
        }
        let beside = executable.parent().and_then(Path::parent).map(|p| p.join("lib").join(SONAME));
        if let Some(path) = beside.as_deref().filter(|path| path.exists()) {
            return load(path).and_then(checked(path));
        }
        let system = Path::new(SONAME);
        // The dynamic loader does not report whether a library is missing or unusable, so both
        // count as missing when no path was given.
        load(system).and_then(checked(system)).map_err(|error| match error {
            KrunError::KernelUnloadable { .. } => {
                let beside = beside.map(|path| format!("`{}`, ", path.display()));
                let searched = format!("{}the system's libraries", beside.unwrap_or_default());
                KrunError::KernelMissing { searched }
            }
            other => other,
        })
    }

    /// Path of the loaded library. It is the bare soname if the dynamic loader found the library,
    /// and empty with the feature `fake`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(feature = "fake")]
use crate::fake::start_guest;

#[cfg(not(feature = "fake"))]
fn start_guest() -> Result<(), KrunError> {
    Ok(())
}

/// Loads a library, and never unloads it.
fn load(path: &Path) -> Result<ManuallyDrop<libloading::os::unix::Library>, KrunError> {
    let flags = libloading::os::unix::RTLD_NOW | libloading::os::unix::RTLD_GLOBAL;
    // SAFETY: loading a library runs its constructors, which must be sound. libkrunfw has none: it
    // consists of a kernel image in a data section and of functions that return its address and
    // size. The path comes from the operator or from the installation, whose libraries this process
    // trusts in any case. Unloading would leave libkrun with dangling pointers; `ManuallyDrop`
    // prevents it.
    let library =
        unsafe { libloading::os::unix::Library::open(Some::<&OsStr>(path.as_ref()), flags) };
    library
        .map(ManuallyDrop::new)
        .map_err(|source| KrunError::KernelUnloadable { path: path.to_owned(), source })
}

/// Returns the check of a loaded library: its version must be the one that libkrun expects.
fn checked(
    path: &Path,
) -> impl FnOnce(ManuallyDrop<libloading::os::unix::Library>) -> Result<GuestKernel, KrunError> {
    let path = path.to_owned();
    move |library| {
        type GetVersion = unsafe extern "C" fn() -> u32;
        // SAFETY: the symbol must have the type `GetVersion`. libkrunfw defines `int
        // krunfw_get_version()`, whose result is a positive constant. `int` and `u32` have the same
        // ABI.
        let symbol = unsafe { library.get::<GetVersion>(b"krunfw_get_version\0") };
        let get_version = match symbol {
            Ok(symbol) => *symbol,
            Err(source) => return Err(KrunError::KernelUnloadable { path, source }),
        };
        // SAFETY: the function takes no argument and returns a constant. Its library must be
        // loaded, and stays so: `load` has wrapped it in `ManuallyDrop`.
        let found = unsafe { get_version() };
        if found == ABI_VERSION {
            Ok(GuestKernel { path })
        } else {
            Err(KrunError::KernelVersion { path, found, expected: ABI_VERSION })
        }
    }
}

#[cfg(all(test, not(feature = "fake")))]
mod tests {
    use super::*;

    #[test]
    fn configured_guest_kernel_that_does_not_exist_is_named_in_the_error() {
        let error =
            GuestKernel::load(Some(Path::new("/nowhere/k.so")), Path::new("/bin/x")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "guest kernel `libkrunfw.so.5` not found, looked at: `/nowhere/k.so`"
        );
        assert!(error.hint().is_some_and(|hint| hint.contains("paths.libkrunfw")));
    }

    #[test]
    fn library_without_a_guest_kernel_is_refused() {
        let libc = Path::new("/lib/x86_64-linux-gnu/libc.so.6");
        let error = GuestKernel::load(Some(libc), Path::new("/bin/x")).unwrap_err();
        assert!(matches!(error, KrunError::KernelUnloadable { .. }), "{error:?}");
    }
}
