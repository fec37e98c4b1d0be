//! The guest kernel: `libkrunfw.so.5`.
//!
//! libkrun finds it by a plain `dlopen("libkrunfw.so.5")` and reports a missing one only when the
//! VM is entered. Loading it here first, by path, gives the error in time and the choice of the
//! file: the dynamic loader then satisfies libkrun's request from the library that has this
//! soname already.

use std::ffi::OsStr;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use crate::KrunError;

/// Soname that libkrun 1.19 asks for.
const SONAME: &str = "libkrunfw.so.5";

/// ABI version that goes with the soname.
const ABI_VERSION: u32 = 5;

/// A loaded guest kernel. It stays loaded until the process ends.
#[derive(Debug)]
pub struct GuestKernel {
    path: PathBuf,
}

impl GuestKernel {
    /// Loads the guest kernel: from `configured` if that is given, else from `../lib` beside the
    /// executable's directory, else from where the dynamic loader finds it.
    ///
    /// # Errors
    ///
    /// Names every place that was looked at.
    pub fn load(configured: Option<&Path>, executable: &Path) -> Result<Self, KrunError> {
        if cfg!(feature = "fake") {
            let failed = |source| KrunError::Call { call: "the fake guest", source };
            return start_guest().map(|()| Self { path: PathBuf::new() }).map_err(failed);
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
        load(system).and_then(checked(system)).map_err(|error| match error {
            KrunError::KernelUnloadable { .. } => {
                let beside = beside.map(|path| format!("`{}`, ", path.display()));
                let searched = format!("{}the system's libraries", beside.unwrap_or_default());
                KrunError::KernelMissing { searched }
            }
            other => other,
        })
    }

    /// The library that was loaded.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(feature = "fake")]
use crate::fake::start_guest;

#[cfg(not(feature = "fake"))]
fn start_guest() -> std::io::Result<()> {
    Ok(())
}

fn load(path: &Path) -> Result<ManuallyDrop<libloading::os::unix::Library>, KrunError> {
    let flags = libloading::os::unix::RTLD_NOW | libloading::os::unix::RTLD_GLOBAL;
    // SAFETY: the library's constructors run. libkrunfw has none: it is a kernel image in a data
    // section and a few functions that return its address. It is never unloaded (ManuallyDrop).
    let library =
        unsafe { libloading::os::unix::Library::open(Some::<&OsStr>(path.as_ref()), flags) };
    library
        .map(ManuallyDrop::new)
        .map_err(|source| KrunError::KernelUnloadable { path: path.to_owned(), source })
}

fn checked(
    path: &Path,
) -> impl FnOnce(ManuallyDrop<libloading::os::unix::Library>) -> Result<GuestKernel, KrunError> {
    let path = path.to_owned();
    move |library| {
        type GetVersion = unsafe extern "C" fn() -> u32;
        // SAFETY: libkrunfw.h declares `int krunfw_get_version(void)`; the value is never negative.
        let symbol = unsafe { library.get::<GetVersion>(b"krunfw_get_version\0") };
        let get_version = match symbol {
            Ok(symbol) => *symbol,
            Err(source) => return Err(KrunError::KernelUnloadable { path, source }),
        };
        // SAFETY: the function takes nothing and returns a constant, and its library stays loaded.
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
    fn a_configured_kernel_that_does_not_exist_is_named() {
        let error =
            GuestKernel::load(Some(Path::new("/nowhere/k.so")), Path::new("/bin/x")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "guest kernel `libkrunfw.so.5` not found, looked at: `/nowhere/k.so`"
        );
        assert!(error.hint().is_some_and(|hint| hint.contains("paths.libkrunfw")));
    }

    #[test]
    fn a_library_that_is_no_guest_kernel_is_refused() {
        let libc = Path::new("/lib/x86_64-linux-gnu/libc.so.6");
        let error = GuestKernel::load(Some(libc), Path::new("/bin/x")).unwrap_err();
        assert!(matches!(error, KrunError::KernelUnloadable { .. }), "{error:?}");
    }
}
