//! Addresses of Unix sockets in memory that this process cannot change, for a filter of system calls.
//!
//! A filter sees the pointer that connect(2) gets, and not the address behind it. [`pin`] writes
//! addresses into a page that nothing can write to again, at a place that a filter can compare:
//!
//! ```text
//!  0 ─── never mapped ─── PAGE: addresses, read-only ─── PAGE_END ─── all other memory ───►
//! ```
//!
//! With a filter that allows connect(2) for pointers into the page only, the process connects to
//! these sockets and no others. The filter must also keep the page in its place: it must allow no
//! munmap(2), mremap(2) or mmap(2) with `MAP_FIXED` below [`PAGE_END`]. The page lies below all other
//! memory, so that a comparison of the first address of a range is enough.
//!
//! Libraries have their own copies of the addresses. A function `connect` that the executable
//! defines takes precedence over the one of libc, so this module passes the pinned address in place
//! of a copy.

use std::ffi::c_int;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::OnceLock;

use libc::{sockaddr, socklen_t};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// Address of the page. It is above the addresses that the kernel reserves (`vm.mmap_min_addr`, 64
/// KiB by default), and below those of executables, libraries, heaps and stacks.
pub const PAGE: usize = 0x10_0000;

/// End of the page.
pub const PAGE_END: usize = PAGE + PAGE_BYTES;

const PAGE_BYTES: usize = 4096;

/// Bytes of the page for one address, of which `struct sockaddr_un` needs 110.
const SLOT_BYTES: usize = 128;

/// Size of the family in front of the path (`sa_family_t`).
const FAMILY_BYTES: usize = size_of::<libc::sa_family_t>();

/// Longest path in bytes, without the NUL behind it (unix(7)).
const MAX_PATH_BYTES: usize = 107;

static ADDRESSES: OnceLock<Vec<PinnedAddress>> = OnceLock::new();

/// An address that cannot change.
#[derive(Debug)]
pub struct PinnedAddress {
    /// Place of the `struct sockaddr_un`, for the second argument of connect(2).
    pub pointer: usize,
    /// Its length, for the third argument.
    pub length: u32,
    path: Vec<u8>,
}

/// Pins the addresses of the sockets at `paths` for the rest of this process. From then on, a
/// connection to one of them uses the pinned address.
///
/// # Errors
///
/// `InvalidInput` if a path is too long for an address or there are too many. Otherwise those of the
/// calls: `EEXIST` if the place of the page is taken, also by an earlier call of this function.
pub fn pin(paths: &[&Path]) -> io::Result<&'static [PinnedAddress]> {
    let mut content = vec![0; PAGE_BYTES];
    let mut addresses = Vec::new();
    let mut slots = content.chunks_exact_mut(SLOT_BYTES);
    for path in paths {
        let path = path.as_os_str().as_bytes();
        let (Some(slot), ..=MAX_PATH_BYTES) = (slots.next(), path.len()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let family = libc::sa_family_t::try_from(libc::AF_UNIX).map_err(io::Error::other)?;
        for (to, from) in slot.iter_mut().zip(family.to_ne_bytes().iter().chain(path)) {
            *to = *from;
        }
        let length = FAMILY_BYTES + path.len() + 1;
        addresses.push(PinnedAddress {
            pointer: PAGE + addresses.len() * SLOT_BYTES,
            length: u32::try_from(length).map_err(io::Error::other)?,
            path: path.to_owned(),
        });
    }
    map(&content)?;
    // A linker takes an object out of an archive only if a symbol of it is referenced.
    let ours: unsafe extern "C" fn(c_int, *const sockaddr, socklen_t) -> c_int = connect;
    std::hint::black_box(ours);
    // The page of an earlier call would have made `map` fail.
    Ok(ADDRESSES.get_or_init(|| addresses))
}

/// Maps the content of the page for reading.
fn map(content: &[u8]) -> io::Result<()> {
    let file = memfd_create("pinned-addresses", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(file);
    file.write_all(content)?;
    // Before Linux 6.7, a file that is sealed against writes can be mapped only if it is open for
    // reading alone. Such a mapping can never be made writable.
    let reader = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(&file, seals)?;
    let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: a mapping must not replace memory in use, which `MAP_FIXED_NOREPLACE` excludes. Nothing
    // in this process gets a reference to the page, so it may be read-only and stay for ever.
    let mapped = unsafe {
        libc::mmap(
            ptr::without_provenance_mut(PAGE),
            PAGE_BYTES,
            libc::PROT_READ,
            flags,
            reader.as_raw_fd(),
            0,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // A kernel before Linux 4.17 ignores the flag, and may choose another place.
    if mapped.addr() == PAGE { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
}

/// Replaces `connect(2)` of libc in this executable: passes the pinned address in place of one with
/// the same path, and all other addresses as they are.
///
/// # Safety
///
/// As `connect(2)`: `address` is null or points to `length` bytes.
// SAFETY: an exported symbol must have the signature and the contract of the symbol that it
// replaces. Both `connect` take an fd, a pointer and a length, and return 0, or -1 with `errno`. This
// one only reads a `OnceLock` and the address before the system call.
#[unsafe(no_mangle)]
unsafe extern "C" fn connect(socket: c_int, address: *const sockaddr, length: socklen_t) -> c_int {
    // SAFETY: the caller passes a pointer to `length` bytes, or null.
    let pinned = unsafe { find(address, length) };
    let (address, length) = match pinned {
        Some(pinned) => (ptr::without_provenance(pinned.pointer), pinned.length),
        None => (address, length),
    };
    // SAFETY: the host kernel reads `length` bytes at the pointer, or fails with EFAULT.
    let result = unsafe { libc::syscall(libc::SYS_connect, socket, address, length) };
    // The results are 0 and -1.
    c_int::try_from(result).unwrap_or(-1)
}

/// Returns the pinned address with the same path as `address`.
///
/// # Safety
///
/// `address` is null or points to `length` bytes.
unsafe fn find(address: *const sockaddr, length: socklen_t) -> Option<&'static PinnedAddress> {
    let addresses = ADDRESSES.get()?;
    if address.is_null() {
        return None;
    }
    // SAFETY: the pointer is not null, so it points to `length` bytes, which are the caller's for the
    // time of the call.
    let bytes = unsafe { std::slice::from_raw_parts(address.cast::<u8>(), length as usize) };
    let (family, path) = bytes.split_at_checked(FAMILY_BYTES)?;
    let is_unix =
        c_int::from(libc::sa_family_t::from_ne_bytes(family.try_into().ok()?)) == libc::AF_UNIX;
    // The path of an abstract address begins with NUL, and is empty here.
    let path = path.split(|byte| *byte == 0).next()?;
    addresses.iter().find(|pinned| is_unix && pinned.path == path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    /// The page belongs to the process, so one test does everything.
    #[test]
    fn addresses_are_used_and_cannot_change() {
        let directory = std::env::temp_dir().join(format!("pinned-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let [first, second, other] = ["first", "second", "other"].map(|name| directory.join(name));
        let _listeners = [&first, &second, &other].map(|path| UnixListener::bind(path).unwrap());
        let long = "x".repeat(MAX_PATH_BYTES + 1);
        assert_eq!(pin(&[Path::new(&long)]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let pinned = pin(&[&first, &second]).unwrap();
        assert_eq!(pinned.len(), 2);
        assert!(pinned.iter().all(|it| (PAGE..PAGE_END).contains(&it.pointer)));
        for path in [&first, &second, &other] {
            UnixStream::connect(path).unwrap();
        }
        let length = FAMILY_BYTES + second.as_os_str().len() + 1;
        assert_eq!(pinned[1].length as usize, length);
        // SAFETY: the slot is mapped for reading and has at least `length` bytes.
        let bytes = unsafe {
            std::slice::from_raw_parts(ptr::without_provenance::<u8>(pinned[1].pointer), length)
        };
        assert_eq!(&bytes[FAMILY_BYTES..length - 1], second.as_os_str().as_bytes());
        let writable = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: nothing refers to the page as memory that does not change but `bytes`, and the call
        // must fail.
        let result =
            unsafe { libc::mprotect(ptr::without_provenance_mut(PAGE), PAGE_BYTES, writable) };
        assert_eq!((result, io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EACCES)));
        assert_eq!(pin(&[&first]).unwrap_err().raw_os_error(), Some(libc::EEXIST));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
