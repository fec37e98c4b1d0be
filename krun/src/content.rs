//! The content of a virtual file of the guest, which libkrun serves from memory of this process.

use std::fs::File;
use std::io::{self, Read};

use memmap2::Mmap;

/// Most bytes of a file that is not regular. The guest program has about 2 MiB.
const MAX_READ_BYTES: u64 = 64 << 20;

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
    /// Maps a regular file. Reads any other one to its end, such as a pipe or `/dev/null`.
    ///
    /// As with the executables and libraries of a running process, the mapped file must not be
    /// written to until the process ends. A new version must replace it under its name
    /// (`rename(2)`), as package managers and `install(1)` do. A file that is truncated ends the
    /// process with SIGBUS (`mmap(2)`).
    ///
    /// # Errors
    ///
    /// Fails if a file that is not regular has more than 64 MiB, or with the error of the kernel,
    /// for example EISDIR for a directory.
    pub fn of(file: File) -> io::Result<Self> {
        if file.metadata()?.is_file() {
            // SAFETY: nothing may write to the file while it is mapped, which the documentation of
            // this function demands. The mapping is private and readable only, so this process
            // cannot write to it either.
            return unsafe { Mmap::map(&file) }.map(Self::Mapped);
        }
        let mut bytes = Vec::new();
        // A device can have no end.
        match file.take(MAX_READ_BYTES + 1).read_to_end(&mut bytes)? as u64 {
            0..=MAX_READ_BYTES => Ok(Self::Bytes(bytes)),
            _ => Err(io::ErrorKind::FileTooLarge.into()),
        }
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
            let mapped = Content::of(File::open(&path).unwrap()).unwrap();
            assert!(matches!(mapped, Content::Mapped(_)));
            let new = directory.path().join("new");
            fs::write(&new, b"second").unwrap();
            fs::rename(new, &path).unwrap();
            assert_eq!(mapped.leak(), content);
        }
    }

    #[test]
    fn pipe_is_read_to_its_end_and_a_directory_or_endless_device_is_refused() {
        let (reader, mut writer) = io::pipe().unwrap();
        io::Write::write_all(&mut writer, b"program").unwrap();
        drop(writer);
        let reader = File::from(std::os::fd::OwnedFd::from(reader));
        assert_eq!(Content::of(reader).unwrap().bytes(), b"program");
        let refused =
            ["/", "/dev/zero"].map(|path| Content::of(File::open(path).unwrap()).unwrap_err());
        let kinds = [io::ErrorKind::IsADirectory, io::ErrorKind::FileTooLarge];
        assert_eq!(refused.map(|error| error.kind()), kinds);
    }
}
