//! The guest kernel, which is a data section of the library `libkrunfw.so.5`.
//!
//! libkrun loads the library with `dlopen("libkrunfw.so.5")` (libkrun `src/lib.rs`, `KRUNFW`) and
//! reports a missing one only when the VM is entered. This module loads it first, by path. The
//! caller thus gets the error early and can choose the file: `dlopen(3)` then returns to libkrun
//! the loaded library that has this soname.
//!
//! The kernel in memory also shows what it was built with ([`GuestKernel::lacks_for_block_root`]).

mod block_root;

use std::ffi::{OsStr, c_char};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use crate::{KrunError, libkrun};

/// Soname that libkrun 1.19 passes to `dlopen`.
const SONAME: &str = "libkrunfw.so.5";

/// ABI version of the library with this soname, as `krunfw_get_version` returns it.
const ABI_VERSION: u32 = 5;

/// What helps if [`GuestKernel::lacks_for_block_root`] is not empty.
pub const BLOCK_ROOT_REMEDY: &str =
    "install libkrunfw 5.4 or later, and a libkrun that was built with virtio-blk (`make BLK=1`)";

/// A guest kernel that is loaded into this process. It stays loaded until the process ends.
///
/// A value of this type is the proof that [`Vm::configure`](crate::Vm::configure) requires.
#[derive(Debug)]
pub struct GuestKernel {
    path: PathBuf,
    /// None with the feature `fake`, which has no kernel.
    get_kernel: Option<GetKernel>,
}

/// Type of `krunfw_get_kernel`. The arguments are results: the address in the guest, the address of
/// the first instruction, and the size of the kernel in bytes.
type GetKernel = unsafe extern "C" fn(*mut u64, *mut u64, *mut usize) -> *mut c_char;

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
    ///   platform, or has not the functions of libkrunfw.
    /// - [`KernelVersion`](KrunError::KernelVersion): libkrun 1.19 cannot use the version of the
    ///   library.
    /// - [`FakeGuest`](KrunError::FakeGuest): the process that plays the guest was not started
    ///   (feature `fake`).
    pub fn load(configured: Option<&Path>, executable: &Path) -> Result<Self, KrunError> {
        if cfg!(feature = "fake") {
            return start_guest().map(|()| Self { path: PathBuf::new(), get_kernel: None });
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

    /// Returns what a block root needs and this guest kernel or libkrun was built without, in words
    /// for users: for example `EROFS with extended attributes`. If the list is empty, a VM can mount
    /// a block root.
    ///
    /// The answer comes from the kernel in memory, without a boot, in about 0.2 ms. With the
    /// feature `fake`, the environment variable `A3S_BOX_FAKE_KERNEL_LACKS` has the names, separated
    /// by commas.
    #[must_use]
    pub fn lacks_for_block_root(&self) -> Vec<&'static str> {
        let mut lacks = self.lacks_in_image();
        // The other half of the guest's disks is a part of libkrun that its build can leave out.
        if libkrun::add_disk3().is_none() {
            lacks.push("virtio-blk in libkrun");
        }
        lacks
    }

    fn lacks_in_image(&self) -> Vec<&'static str> {
        let Some(get_kernel) = self.get_kernel else { return block_root::lacks_of_fake() };
        let (mut guest_address, mut entry, mut bytes) = (0, 0, 0);
        // SAFETY: the function writes its three results to the pointers, which must be valid: they
        // point to local variables. Its library is never unloaded.
        let address = unsafe { get_kernel(&raw mut guest_address, &raw mut entry, &raw mut bytes) };
        if address.is_null() {
            return block_root::lacks(&[]);
        }
        // SAFETY: the kernel is a data section of the library with this address and size, from
        // which libkrun makes memory of the guest (libkrun `src/lib.rs`, `load_krunfw_payload`).
        // Nothing may write to it while the slice exists. Only a running VM does, and this process
        // runs none: once it is a VM, it calls no function of this crate.
        let image = unsafe { std::slice::from_raw_parts(address.cast::<u8>(), bytes) };
        block_root::lacks(image)
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
    // With `RTLD_GLOBAL`, `krunfw_get_kernel` of a second library would return the kernel of the
    // first one with its own size: both name the data of their kernel alike.
    let flags = libloading::os::unix::RTLD_NOW | libloading::os::unix::RTLD_LOCAL;
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
        if found != ABI_VERSION {
            return Err(KrunError::KernelVersion { path, found, expected: ABI_VERSION });
        }
        // SAFETY: the symbol must have the type `GetKernel`. libkrunfw 5 defines `char
        // *krunfw_get_kernel(uint64_t *, uint64_t *, size_t *)`.
        match unsafe { library.get::<GetKernel>(b"krunfw_get_kernel\0") } {
            Ok(symbol) => Ok(GuestKernel { get_kernel: Some(*symbol), path }),
            Err(source) => Err(KrunError::KernelUnloadable { path, source }),
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

    /// The library that the lab installs. The test does not install it, because that needs a
    /// network.
    fn libkrunfw() -> Result<PathBuf, Box<dyn std::error::Error>> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/lab/install");
        let output = std::process::Command::new(&script).arg("--print-libkrunfw").output()?;
        let path = PathBuf::from(String::from_utf8(output.stdout)?.trim_end());
        match path.exists() {
            true => Ok(path),
            false => {
                Err(format!("no {}: run `tests/lab/install libkrunfw`", path.display()).into())
            }
        }
    }

    /// The environment variable `A3S_BOX_TEST_LIBKRUNFW` adds the paths of other libraries,
    /// separated by colons.
    #[test]
    fn released_guest_kernels_can_mount_a_block_root() {
        let more = std::env::var_os("A3S_BOX_TEST_LIBKRUNFW").unwrap_or_default();
        let more = std::env::split_paths(&more).filter(|path| path != Path::new(""));
        for path in more.chain([libkrunfw().unwrap()]) {
            let kernel = GuestKernel::load(Some(&path), Path::new("/bin/x")).unwrap();
            let started = std::time::Instant::now();
            assert_eq!(kernel.lacks_for_block_root(), [""; 0], "{}", path.display());
            println!("{}: {:?}", path.display(), started.elapsed());
        }
    }

    #[test]
    fn guest_kernel_without_a_text_lacks_what_the_text_stands_for() {
        let original = std::fs::read(libkrunfw().unwrap()).unwrap();
        // The files stay until the end: the dynamic loader takes a file with the inode number of a
        // loaded library for that library.
        let files = [(); 2].map(|()| tempfile::NamedTempFile::new().unwrap());
        let cases = [
            (vec!["ext4_inode_cache"], "ext4"),
            (vec!["xattr_isize %d of", "bogus xattr ibody"], "EROFS with extended attributes"),
        ];
        for ((texts, lacking), file) in cases.into_iter().zip(&files) {
            let mut changed = original.clone();
            for text in texts {
                let at: Vec<_> = memchr::memmem::find_iter(&original, text).collect();
                assert!(!at.is_empty(), "{text}");
                at.iter().for_each(|at| changed[*at] = b'X');
            }
            std::fs::write(file.path(), changed).unwrap();
            let kernel = GuestKernel::load(Some(file.path()), Path::new("/bin/x")).unwrap();
            assert_eq!(kernel.lacks_for_block_root(), [lacking]);
        }
    }
}
