//! The ids that are mapped in the user namespace of this process, for errors.

use std::fmt;
use std::fs;

/// Largest number of ranges that an error lists. A map can have 340 (`user_namespaces(7)`).
const SHOWN_RANGES: usize = 8;

/// User ids or group ids that are mapped, as ranges of first and last id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedIds(Vec<(u64, u64)>);

impl MappedIds {
    pub(super) fn users() -> Self {
        Self::read("/proc/self/uid_map")
    }

    pub(super) fn groups() -> Self {
        Self::read("/proc/self/gid_map")
    }

    /// Reads a map. If the file cannot be read, the map is empty, because only errors show it.
    fn read(path: &str) -> Self {
        Self::parse(&fs::read_to_string(path).unwrap_or_default())
    }

    /// Parses the lines `first-id-inside first-id-outside count` (`user_namespaces(7)`).
    fn parse(map: &str) -> Self {
        let range = |line: &str| {
            let mut numbers = line.split_whitespace().map(|number| number.parse::<u64>().ok());
            // The second number is the id outside of the namespace. An entry's owner is compared
            // with the ids inside, so only these are of use in an error.
            let (first, count) = (numbers.next()??, numbers.nth(1)??);
            Some((first, first.checked_add(count.checked_sub(1)?)?))
        };
        // A line that does not parse is skipped. The map is only shown in the error about an entry,
        // which a second error must not replace.
        let mut ranges: Vec<(u64, u64)> = map.lines().filter_map(range).collect();
        // The file lists the ranges in the order in which they were written, which can be any
        // order.
        ranges.sort_unstable();
        // Subordinate ids are often mapped in several adjacent ranges, which are shown as one.
        ranges.dedup_by(|next, range| {
            let is_next = range.1.checked_add(1) == Some(next.0);
            range.1 = if is_next { next.1 } else { range.1 };
            is_next
        });
        Self(ranges)
    }
}

impl fmt::Display for MappedIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (i, (first, last)) in self.0.iter().take(SHOWN_RANGES).enumerate() {
            f.write_str(if i == 0 { "" } else { ", " })?;
            match first == last {
                true => write!(f, "{first}")?,
                false => write!(f, "{first}-{last}")?,
            }
        }
        f.write_str(if self.0.len() > SHOWN_RANGES { ", …" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_shown_with_the_ids_inside_the_namespace() {
        let cases = [
            ("         0       1000          1\n", "0"),
            ("0 1000 1\n1 100000 65536\n", "0-65536"),
            ("0 1000 1\n1 100000 10\n11 300000 5\n100 7 2\n", "0-15, 100-101"),
            ("5 1 1\n0 1000 1\n", "0, 5"),
            ("0 0 4294967295\n", "0-4294967294"),
            ("", "none"),
            ("0 0 0\nx 1 1\n0 0\n18446744073709551615 0 2\n", "none"),
        ];
        for (map, expected) in cases {
            assert_eq!(MappedIds::parse(map).to_string(), expected, "{map}");
        }
        // A longer list is cut, because it becomes a part of an error message.
        let many: String = (0..20).map(|i| format!("{} 0 1\n", i * 2)).collect();
        assert_eq!(MappedIds::parse(&many).to_string(), "0, 2, 4, 6, 8, 10, 12, 14, …");
    }
}
