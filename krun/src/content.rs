//! The content of a virtual file of the guest, which libkrun serves from memory of this process.

use std::fs::File;
use std::io;

use memmap2::Mmap;

/// Bytes that stay where they are until the process ends, once a VM has them.
#[derive(Debug)]
pub enum Content {
    /// Memory of this process alone.
    Bytes(Vec<u8>),
    /// A file that is mapped. All boxes of a host share its pages, and a page that no guest reads
    /// takes no memory.
    Mapped(Mmap),
}

impl Content {
    /// Maps a regular file.
    ///
    /// As with the executables and libraries of a running process, the mapped file must not be
    /// written to until the process ends. A new version must replace it under its name
    /// (`rename(2)`), as package managers and `install(1)` do. A file that is truncated ends the
    /// process with SIGBUS (`mmap(2)`).
    ///
    /// # Errors
    ///
    /// Fails if the file is not regular, or with the error of the kernel.
    pub fn map(file: &File) -> io::Result<Self> {
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        // SAFETY: nothing may write to the file while it is mapped, which the documentation of this
        // function demands. The mapping is private and readable only, so this process cannot write
        // to it either.
        unsafe { Mmap::map(file) }.map(Self::Mapped)
    }

    /// Returns the bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Mapped(map) => map,
        }
    }

    /// Returns the bytes for as long as the process exists.
    pub(crate) fn leak(self) -> &'static [u8] {
        Box::leak(Box::new(self)).bytes()
    }
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn regular_file_is_mapped_and_keeps_its_content_when_its_name_gets_another_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        for content in [&b""[..], b"first"] {
            fs::write(&path, content).unwrap();
            let mapped = Content::map(&File::open(&path).unwrap()).unwrap();
            assert!(matches!(mapped, Content::Mapped(_)));
            let new = directory.path().join("new");
            fs::write(&new, b"second").unwrap();
            fs::rename(new, &path).unwrap();
            assert_eq!(mapped.leak(), content);
        }
    }

    #[test]
    fn pipe_and_directory_are_refused() {
        let (reader, _writer) = io::pipe().unwrap();
        for file in [File::from(std::os::fd::OwnedFd::from(reader)), File::open("/").unwrap()] {
            assert_eq!(Content::map(&file).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }
}
