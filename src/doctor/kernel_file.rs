//! Reads files in which the kernel reports its settings and state.

use std::fs::File;
use std::io::Read;

/// Most that is read of a file of the kernel: /proc/cpuinfo, the longest, repeats itself for each CPU.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// The beginning of a file in which the kernel says something; none if there is no such file.
pub(super) fn read(path: &str) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_FILE_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_bounded_and_may_be_missing() {
        assert_eq!(read("/nowhere/at/all"), None);
        assert_eq!(read("/"), None);
        let length = read("/dev/zero").map(|text| text.len() as u64);
        assert_eq!(length, Some(MAX_FILE_BYTES));
    }
}
