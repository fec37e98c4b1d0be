//! Reads files in which the host kernel reports its settings and state.

use std::fs::File;
use std::io::Read;

/// Bound on the bytes that are read of a file. Only `/proc/cpuinfo` can be longer, and it repeats
/// the same lines for each CPU.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Returns the beginning of the file at `path`, or none if it cannot be read.
pub(super) fn read(path: &str) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_FILE_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_is_bounded_and_returns_none_for_a_missing_file() {
        assert_eq!(read("/nowhere/at/all"), None);
        assert_eq!(read("/"), None);
        let length = read("/dev/zero").map(|text| text.len() as u64);
        assert_eq!(length, Some(MAX_FILE_BYTES));
    }
}
