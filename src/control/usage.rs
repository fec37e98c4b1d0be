//! What this process takes of the host, as its kernel says (proc(5)).

use std::fs;

use a3s_box_core::event::ProcessMetrics;
use nix::unistd::{SysconfVar, sysconf};

use crate::host::process::stat_field;

/// Writable memory of at least this much in one piece is the guest's: libkrun maps 16 MiB below its
/// kernel, and the rest, 112 MiB at least, above it (`kernel_guest_addr`, libkrunfw 5). What else a
/// shim maps is smaller: stacks of 2 MiB, and the parts of the allocator's arenas that are in use.
const GUEST_MEMORY_KIB: u64 = 16 * 1024;

/// In the name of the library that is the guest's kernel; it is mapped into the guest.
const GUEST_KERNEL: &str = "libkrunfw";

/// Reads it all. What cannot be read is zero. Takes a millisecond, and more for a large guest: the
/// kernel looks at each page.
pub(super) fn read() -> ProcessMetrics {
    let memory = fs::read_to_string("/proc/self/smaps");
    let mut metrics = memory.map(|smaps| memory_of(&smaps)).unwrap_or_default();
    let ticks_per_s = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    let ms_per_tick = 1000 / u64::try_from(ticks_per_s).unwrap_or(100).max(1);
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let (user, system, threads) = times_of(&stat).unwrap_or_default();
    metrics.cpu_user_ms = user.saturating_mul(ms_per_tick);
    metrics.cpu_system_ms = system.saturating_mul(ms_per_tick);
    metrics.threads = threads;
    let open = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    // Not the directory that is being read.
    metrics.open_files = u32::try_from(open.saturating_sub(1)).unwrap_or(u32::MAX);
    metrics
}

/// Sums of the mappings in `smaps`.
fn memory_of(smaps: &str) -> ProcessMetrics {
    let mut metrics = ProcessMetrics::default();
    let mut is_guests = false;
    for line in smaps.lines() {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        let kib = || value.trim().strip_suffix(" kB").and_then(|number| number.parse().ok());
        match key {
            "Rss:" => metrics.rss_kib += kib().unwrap_or(0),
            "Pss:" => {
                let pss_kib: u64 = kib().unwrap_or(0);
                metrics.pss_kib += pss_kib;
                metrics.shim_pss_kib += if is_guests { 0 } else { pss_kib };
            }
            _ if !key.ends_with(':') => is_guests = is_of_guest(key, value),
            _ => {}
        }
    }
    metrics
}

/// Whether a mapping is the guest's: `range` is its addresses, `rest` what follows on its line.
fn is_of_guest(range: &str, rest: &str) -> bool {
    let name = rest.splitn(5, ' ').last().unwrap_or_default().trim_start();
    if name.contains(GUEST_KERNEL) {
        return true;
    }
    let is_writable = rest.starts_with("rw");
    let address = |text| u64::from_str_radix(text, 16).ok();
    let bounds = range.split_once('-').and_then(|(from, to)| address(from).zip(address(to)));
    let kib = bounds.map_or(0, |(from, to)| to.saturating_sub(from) / 1024);
    is_writable && !name.contains("[heap]") && kib >= GUEST_MEMORY_KIB
}

/// Ticks in user mode and in the kernel, and the number of threads: fields 14, 15 and 20.
fn times_of(stat: &str) -> Option<(u64, u64, u32)> {
    let threads = u32::try_from(stat_field(stat, 20)?).ok()?;
    Some((stat_field(stat, 14)?, stat_field(stat, 15)?, threads))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_the_guest_and_its_kernel_is_not_the_shims() {
        let smaps = "\
55d0c0000000-55d0c0200000 r-xp 00000000 fe:00 12 /usr/bin/a3s-box-shim
Size:               2048 kB
Rss:                1000 kB
Pss:                 900 kB
7f0000000000-7f0020000000 rw-p 00000000 00:00 0
Rss:               60000 kB
Pss:               60000 kB
VmFlags: rd wr mr mw me ac
7f0030000000-7f0031000000 rw-p 00000000 fe:00 13 /usr/lib/libkrunfw.so.5.6.1
Rss:               20000 kB
Pss:               20000 kB
7f0039600000-7f003a600000 rw-p 00000000 00:00 0
Rss:               12000 kB
Pss:               12000 kB
7f0040000000-7f0044000000 ---p 00000000 00:00 0
Rss:                   0 kB
Pss:                   0 kB
7f0050000000-7f0050200000 rw-p 00000000 00:00 0
Rss:                  30 kB
Pss:                  30 kB
";
        let metrics = memory_of(smaps);
        assert_eq!((metrics.rss_kib, metrics.pss_kib, metrics.shim_pss_kib), (93030, 92930, 930));
    }

    #[test]
    fn a_name_with_parentheses_does_not_move_the_fields() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 9 0 12345 1 1";
        assert_eq!(times_of(stat), Some((150, 50, 9)));
        assert_eq!(times_of("7 (a"), None);
    }

    #[test]
    fn figures_of_this_process_are_plausible() {
        let metrics = read();
        assert!(metrics.rss_kib > 100 && metrics.pss_kib <= metrics.rss_kib, "{metrics:?}");
        assert!(metrics.shim_pss_kib > 0 && metrics.shim_pss_kib <= metrics.pss_kib, "{metrics:?}");
        assert!(metrics.threads >= 1 && metrics.open_files >= 3, "{metrics:?}");
    }
}
