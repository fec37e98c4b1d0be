//! Writer of VMDK descriptors: texts that make one read-only disk out of ranges of files.
//!
//! A descriptor is the file of a [`Disk`](crate::Disk) with
//! [`DiskFormat::Vmdk`](crate::DiskFormat::Vmdk). It has only what libkrun's parser requires (crate
//! imago 0.2, `src/vmdk/mod.rs`):
//!
//! ```text
//!   # Disk DescriptorFile                          comment
//!   version=1                                      1 to 3; a missing version is refused
//!   RDONLY 24 FLAT "/cache/image.erofs" 0          ─┐
//!   RDONLY 8 ZERO                                   ├ one line an extent, in the order of the disk
//!   RDONLY 4096 FLAT "/proc/self/fd/9" 16          ─┘
//!     │     │    │          │           └ where the range begins in the file, in sectors
//!     │     │    │          └ path of the file
//!     │     │    └ FLAT: a range of a file; ZERO: zeros without a file
//!     │     └ length in sectors of 512 bytes
//!     └ the file is opened for reading only
//!
//!   disk   ├──── 24 ────┤─ 8 ─┤─────────────── 4096 ───────────────┤
//!              file      zeros               fd 9 from byte 8192
//! ```
//!
//! The keys that other readers of VMDK expect (`CID`, `createType`, the disk geometry) are left
//! out, so other programs may refuse such a text. The parser behaves as follows:
//!
//! - Lines end with `\n`, and the text is UTF-8 of at most 2 MiB.
//! - A path stands between the first two `"` of its line. There are no escapes, and white space at
//!   both ends is cut off. So a path with `"`, with a newline, or with white space at its end
//!   cannot be written.
//! - A relative path is relative to the directory of the descriptor's own path. That is
//!   `/proc/self/fd` for a descriptor without a name, so this module refuses relative paths.
//! - A range may end after the end of its file. What the file does not have reads as zeros
//!   (imago, `src/file.rs`, `pure_readv`), so a file need not end with a whole sector.
//! - Each FLAT extent has an fd of its own, for as long as the VM runs, even if two extents are in
//!   one file. So the number of extents counts against `RLIMIT_NOFILE` (getrlimit(2)).

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::disk::SECTOR_BYTES;

/// Largest descriptor in bytes (imago, `src/vmdk/mod.rs`, `parse_descriptor_file`).
pub const MAX_DESCRIPTOR_BYTES: usize = 2 * 1024 * 1024;

/// Largest disk, and largest end of a range in its file, in bytes. The kernel's file offsets are
/// signed (`loff_t`), and imago converts to them before `preadv(2)`.
pub const MAX_DISK_BYTES: u64 = i64::MAX.unsigned_abs();

/// First lines of each descriptor.
const HEADER: &str = "# Disk DescriptorFile\nversion=1\n";

/// Reason why an extent cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum VmdkError {
    /// An offset or a length that is not a multiple of [`SECTOR_BYTES`].
    #[error("extent at byte {offset_bytes} with {length_bytes} bytes is not made of whole sectors")]
    Unaligned {
        /// Where the range begins in the file, in bytes; 0 for zeros.
        offset_bytes: u64,
        /// Length of the extent in bytes.
        length_bytes: u64,
    },
    /// A path that is relative or not UTF-8, or that has a quote, a newline, a NUL byte, or white
    /// space at its end.
    #[error("a VMDK cannot name the file `{}`", path.display())]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// A disk, or the end of a range in its file, of more than [`MAX_DISK_BYTES`].
    #[error("a disk or an offset of more than {MAX_DISK_BYTES} bytes")]
    TooLarge,
    /// A text of more than [`MAX_DESCRIPTOR_BYTES`].
    #[error("the VMDK has more than {MAX_DESCRIPTOR_BYTES} bytes")]
    TooManyExtents,
}

/// A descriptor to which extents are appended, in the order of the disk. A call that fails appends
/// nothing.
///
/// ```
/// use std::path::Path;
///
/// use a3s_box_krun::vmdk::Descriptor;
///
/// # fn main() -> Result<(), a3s_box_krun::vmdk::VmdkError> {
/// let mut descriptor = Descriptor::new();
/// descriptor.append_file(Path::new("/cache/image.erofs"), 0, 12_288)?;
/// descriptor.append_zeros(4096)?;
/// assert_eq!(descriptor.size_bytes(), 16_384);
/// assert!(descriptor.as_str().ends_with(
///     "RDONLY 24 FLAT \"/cache/image.erofs\" 0\n\
///      RDONLY 8 ZERO\n"
/// ));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Descriptor {
    text: String,
    size_bytes: u64,
}

impl Descriptor {
    /// Returns a descriptor without extents. libkrun accepts it, as a disk of 0 bytes.
    #[must_use]
    pub fn new() -> Self {
        Self { text: HEADER.to_owned(), size_bytes: 0 }
    }

    /// Appends `length_bytes` of `file`, from `offset_bytes` on. A length of 0 appends nothing.
    ///
    /// The file is not opened. libkrun opens it when the VM is entered, with the conditions of
    /// [`Disk::file`](crate::Disk::file).
    ///
    /// # Errors
    ///
    /// - [`Unaligned`](VmdkError::Unaligned): offset or length is not a multiple of 512.
    /// - [`Path`](VmdkError::Path): the format cannot express the path.
    /// - [`TooLarge`](VmdkError::TooLarge), [`TooManyExtents`](VmdkError::TooManyExtents): a limit.
    pub fn append_file(
        &mut self,
        file: &Path,
        offset_bytes: u64,
        length_bytes: u64,
    ) -> Result<(), VmdkError> {
        let unaligned = VmdkError::Unaligned { offset_bytes, length_bytes };
        let (Some(offset), Some(length)) = (sectors(offset_bytes), sectors(length_bytes)) else {
            return Err(unaligned);
        };
        let end = offset_bytes.checked_add(length_bytes).ok_or(VmdkError::TooLarge)?;
        if end > MAX_DISK_BYTES {
            return Err(VmdkError::TooLarge);
        }
        let path = path_text(file).ok_or_else(|| VmdkError::Path { path: file.to_owned() })?;
        self.append(length_bytes, format_args!("RDONLY {length} FLAT \"{path}\" {offset}\n"))
    }

    /// Appends `length_bytes` of zeros. A length of 0 appends nothing.
    ///
    /// # Errors
    ///
    /// - [`Unaligned`](VmdkError::Unaligned): the length is not a multiple of 512.
    /// - [`TooLarge`](VmdkError::TooLarge), [`TooManyExtents`](VmdkError::TooManyExtents): a limit.
    pub fn append_zeros(&mut self, length_bytes: u64) -> Result<(), VmdkError> {
        let unaligned = VmdkError::Unaligned { offset_bytes: 0, length_bytes };
        let length = sectors(length_bytes).ok_or(unaligned)?;
        self.append(length_bytes, format_args!("RDONLY {length} ZERO\n"))
    }

    /// Size of the disk in bytes, a multiple of [`SECTOR_BYTES`].
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The text, which is the content of the disk's file.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn append(
        &mut self,
        length_bytes: u64,
        line: std::fmt::Arguments<'_>,
    ) -> Result<(), VmdkError> {
        // An extent without sectors changes nothing, but would cost an fd.
        if length_bytes == 0 {
            return Ok(());
        }
        let size_bytes = self.size_bytes.checked_add(length_bytes).ok_or(VmdkError::TooLarge)?;
        if size_bytes > MAX_DISK_BYTES {
            return Err(VmdkError::TooLarge);
        }
        let before = self.text.len();
        // Writing to a `String` fails only if formatting an argument does, and numbers and text
        // always succeed.
        let is_written = self.text.write_fmt(line).is_ok();
        if !is_written || self.text.len() > MAX_DESCRIPTOR_BYTES {
            self.text.truncate(before);
            return Err(VmdkError::TooManyExtents);
        }
        self.size_bytes = size_bytes;
        Ok(())
    }
}

impl Default for Descriptor {
    fn default() -> Self {
        Self::new()
    }
}

/// Converts bytes to sectors, or returns nothing if they are not whole sectors.
fn sectors(bytes: u64) -> Option<u64> {
    bytes.is_multiple_of(SECTOR_BYTES).then_some(bytes / SECTOR_BYTES)
}

/// Returns the path as the parser will read it back, or nothing if it would read another one.
fn path_text(path: &Path) -> Option<&str> {
    let text = path.to_str()?;
    let is_exact = path.is_absolute() && text.trim() == text && !text.contains(['"', '\n', '\0']);
    is_exact.then_some(text)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsRawFd;

    use imago::file::File as ImagoFile;
    use imago::vmdk::Vmdk;
    use imago::{
        DynStorage, FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate, Storage,
        StorageOpenOptions, SyncFormatAccess,
    };

    use super::*;

    /// Opens the descriptor as libkrun does (krun-devices, `src/virtio/block/device.rs`), and
    /// returns all bytes of the disk.
    fn read(descriptor: &str) -> std::io::Result<Vec<u8>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), descriptor).unwrap();
        let options = StorageOpenOptions::new().write(false).filename(file.path());
        let storage: Box<dyn DynStorage> = Box::new(ImagoFile::open_sync(options)?);
        let vmdk = Vmdk::<_, std::sync::Arc<FormatAccess<_>>>::builder(storage)
            .open_sync(PermissiveImplicitOpenGate::default())?;
        let disk = SyncFormatAccess::new(vmdk)?;
        let mut bytes = vec![0xaa; usize::try_from(disk.size()).unwrap()];
        disk.read(bytes.as_mut_slice(), 0)?;
        Ok(bytes)
    }

    /// Returns the sectors with these numbers, each filled with its number.
    fn numbered(numbers: std::ops::Range<u8>) -> Vec<u8> {
        numbers.flat_map(|number| [number; 512]).collect()
    }

    #[test]
    fn parser_of_libkrun_reads_ranges_of_files_and_zeros_in_order() {
        let directory = tempfile::tempdir().unwrap();
        // A path with spaces, with a word of the grammar and with letters beyond ASCII.
        let one = directory.path().join("one RDONLY 1 ZERO ö");
        let two = directory.path().join("two");
        fs::write(&one, numbered(1..9)).unwrap();
        fs::write(&two, numbered(11..19)).unwrap();
        let mut descriptor = Descriptor::new();
        descriptor.append_file(&one, 512, 1024).unwrap();
        descriptor.append_zeros(512).unwrap();
        descriptor.append_file(&two, 3584, 512).unwrap();
        descriptor.append_file(&one, 0, 512).unwrap();
        let expected = [numbered(2..4), numbered(0..1), numbered(18..19), numbered(1..2)].concat();
        assert_eq!(read(descriptor.as_str()).unwrap(), expected);
        assert_eq!(descriptor.size_bytes(), 2560);
    }

    #[test]
    fn parser_of_libkrun_reads_zeros_after_the_end_of_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), [7; 700]).unwrap();
        let mut descriptor = Descriptor::new();
        descriptor.append_file(file.path(), 0, 2048).unwrap();
        let expected = [vec![7; 700], vec![0; 1348]].concat();
        assert_eq!(read(descriptor.as_str()).unwrap(), expected);
    }

    #[test]
    fn parser_of_libkrun_opens_a_file_by_its_fd() {
        let file = tempfile::tempfile().unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        fs::write(&path, numbered(5..6)).unwrap();
        let mut descriptor = Descriptor::new();
        descriptor.append_file(Path::new(&path), 0, 512).unwrap();
        assert_eq!(read(descriptor.as_str()).unwrap(), numbered(5..6));
    }

    #[test]
    fn parser_of_libkrun_accepts_500_extents() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), numbered(0..250)).unwrap();
        let mut descriptor = Descriptor::new();
        for number in (0..250).rev() {
            descriptor.append_file(file.path(), number * 512, 512).unwrap();
            descriptor.append_zeros(512).unwrap();
        }
        let pair = |number: u8| [numbered(number..number + 1), numbered(0..1)].concat();
        let expected: Vec<u8> = (0..250).rev().flat_map(pair).collect();
        assert_eq!(read(descriptor.as_str()).unwrap(), expected);
    }

    #[test]
    fn parser_of_libkrun_requires_the_version() {
        let error = read("RDONLY 8 ZERO\n").unwrap_err();
        assert!(error.to_string().contains("unsupported version 0"), "{error}");
    }

    #[test]
    fn extents_without_sectors_are_left_out() {
        let mut descriptor = Descriptor::new();
        descriptor.append_file(Path::new("/a"), 512, 0).unwrap();
        descriptor.append_zeros(0).unwrap();
        assert_eq!(descriptor.as_str(), HEADER);
        assert_eq!(descriptor.size_bytes(), 0);
        assert_eq!(read(descriptor.as_str()).unwrap(), []);
    }

    #[test]
    fn parts_of_sectors_are_refused() {
        let mut descriptor = Descriptor::new();
        for (offset, length) in [(0, 511), (1, 512), (512, 513)] {
            let error = descriptor.append_file(Path::new("/a"), offset, length).unwrap_err();
            assert!(matches!(error, VmdkError::Unaligned { .. }), "{error:?}");
        }
        let error = descriptor.append_zeros(100).unwrap_err();
        assert_eq!(
            error.to_string(),
            "extent at byte 0 with 100 bytes is not made of whole sectors"
        );
        assert_eq!(descriptor.as_str(), HEADER);
    }

    #[test]
    fn paths_that_the_format_cannot_express_are_refused() {
        use std::os::unix::ffi::OsStrExt;
        let invalid = std::ffi::OsStr::from_bytes(b"/\xff");
        let refused = ["relative", "", "/a\"b", "/a\nb", "/a\0b", "/a ", "/a\t", "/a\u{a0}"];
        for path in refused.iter().map(Path::new).chain([Path::new(invalid)]) {
            let error = Descriptor::new().append_file(path, 0, 512).unwrap_err();
            assert!(matches!(&error, VmdkError::Path { path: found } if found == path), "{error}");
        }
    }

    #[test]
    fn sizes_beyond_the_offsets_of_files_are_refused() {
        let largest = MAX_DISK_BYTES / 512 * 512;
        let mut descriptor = Descriptor::new();
        descriptor.append_zeros(largest).unwrap();
        for length in [512, largest, u64::MAX / 512 * 512] {
            let error = descriptor.append_zeros(length).unwrap_err();
            assert!(matches!(error, VmdkError::TooLarge), "{error:?}");
            let error = Descriptor::new().append_file(Path::new("/a"), largest, length);
            assert!(matches!(error, Err(VmdkError::TooLarge)), "{error:?}");
        }
        assert_eq!(descriptor.size_bytes(), largest);
    }

    #[test]
    fn text_has_at_most_2_mib_and_a_refused_extent_leaves_it_unchanged() {
        let path = PathBuf::from(format!("/{}", "p".repeat(4000)));
        let mut descriptor = Descriptor::new();
        let error = loop {
            let before = (descriptor.as_str().len(), descriptor.size_bytes());
            if let Err(error) = descriptor.append_file(&path, 0, 512) {
                assert_eq!((descriptor.as_str().len(), descriptor.size_bytes()), before);
                break error;
            }
        };
        assert!(matches!(error, VmdkError::TooManyExtents), "{error:?}");
        assert!(descriptor.as_str().len() <= 2 * 1024 * 1024);
        assert!(descriptor.as_str().len() > 2 * 1024 * 1024 - 4100);
    }
}
