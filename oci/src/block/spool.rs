//! Records that wait for the end of the layer, because the index follows the data.

use std::fs::File;
use std::io::{self, Seek, Write};

use super::checksum::Checksum;

/// Bytes that are kept in memory. The index of a layer of 100,000 files has about 10 MB, and most
/// layers have fewer files.
const MEMORY_BYTES: usize = 8 << 20;

/// Makes an empty file without a name.
pub(super) type MakeFile<'a> = dyn FnMut() -> io::Result<File> + 'a;

/// A growing sequence of bytes. It moves to a file when it becomes large, so that the memory does
/// not depend on the number of entries.
pub(super) struct Spool<'a> {
    memory: Vec<u8>,
    file: Option<File>,
    file_bytes: u64,
    checksum: Checksum,
    limit_bytes: usize,
    make_file: &'a mut MakeFile<'a>,
}

impl<'a> Spool<'a> {
    /// Creates an empty sequence. `make_file` is called if it becomes large.
    pub(super) fn new(make_file: &'a mut MakeFile<'a>) -> Self {
        Self {
            memory: Vec::new(),
            file: None,
            file_bytes: 0,
            checksum: Checksum::new(),
            limit_bytes: MEMORY_BYTES,
            make_file,
        }
    }

    /// Appends bytes by the function `encode`.
    pub(super) fn push(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        encode(&mut self.memory);
        if self.memory.len() < self.limit_bytes {
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert((self.make_file)()?),
        };
        file.write_all(&self.memory)?;
        self.checksum.update(&self.memory);
        self.file_bytes += self.memory.len() as u64;
        self.memory.clear();
        Ok(())
    }

    /// Writes all bytes to `output`, and returns their number and their CRC-32C.
    pub(super) fn finish(mut self, output: &mut impl Write) -> io::Result<(u64, u32)> {
        if let Some(mut file) = self.file {
            file.rewind()?;
            io::copy(&mut file, output)?;
        }
        output.write_all(&self.memory)?;
        self.checksum.update(&self.memory);
        Ok((self.file_bytes + self.memory.len() as u64, self.checksum.value()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_the_same_in_memory_and_in_a_file() {
        let expected: Vec<u8> = (0..100_u8).flat_map(|number| [number; 7]).collect();
        for (limit_bytes, files) in [(1000, 0), (100, 1), (1, 1)] {
            let mut made = 0;
            let mut make_file = || {
                made += 1;
                tempfile::tempfile()
            };
            let mut spool = Spool { limit_bytes, ..Spool::new(&mut make_file) };
            for number in 0..100_u8 {
                spool.push(|out| out.extend([number; 7])).unwrap();
            }
            let mut found = Vec::new();
            let facts = spool.finish(&mut found).unwrap();
            assert_eq!(found, expected);
            assert_eq!(facts, (700, Checksum::of(&expected)));
            assert_eq!(made, files);
        }
    }
}
