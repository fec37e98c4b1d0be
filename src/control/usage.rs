//! Memory, CPU time, threads and open files of this process, from proc(5).

use std::fs;

use a3s_box_core::event::ProcessMetrics;
use nix::unistd::{SysconfVar, sysconf};

use crate::host::process::stat_field;

/// Size from which a writable mapping is taken for guest memory. libkrun maps 16 MiB below the
/// guest kernel and at least 112 MiB above it (`kernel_guest_addr`, libkrunfw 5). The other
/// mappings of a shim are smaller: stacks of 2 MiB, and the used parts of the allocator's arenas.
const GUEST_MEMORY_KIB: u64 = 16 * 1024;

/// Part of the file name of the library that contains the guest kernel. libkrun maps it into the
/// guest.
const GUEST_KERNEL: &str = "libkrunfw";

/// Reads all figures. A figure that cannot be read is zero. This takes a millisecond, or more for a
/// large guest, because the host kernel walks each page for `smaps`.
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
    // The listing itself holds one fd open, which is not counted.
    metrics.open_files = u32::try_from(open.saturating_sub(1)).unwrap_or(u32::MAX);
    metrics
}

/// Sums up the mappings in `smaps`. Each mapping is a line with its addresses, followed by lines of
/// the form `Key: value`.
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

/// Whether a mapping belongs to the guest. `range` holds the addresses of the mapping, and `rest`
/// is the remainder of its line: permissions, offset, device, inode and name.
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

/// Returns the clock ticks in user mode and in kernel mode, and the number of threads. These are
/// fields 14, 15 and 20 of `proc_pid_stat(5)`.
fn times_of(stat: &str) -> Option<(u64, u64, u32)> {
    let threads = u32::try_from(stat_field(stat, 20)?).ok()?;
    Some((stat_field(stat, 14)?, stat_field(stat, 15)?, threads))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shim_memory_excludes_the_guest_and_the_guest_kernel() {
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
    fn parentheses_in_the_process_name_do_not_shift_the_fields() {
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
