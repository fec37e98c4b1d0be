//! How much memory an input takes.

use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Does `work`, and checks that it never takes more than this beside what was taken before.
///
/// # Panics
///
/// When it does.
pub fn within<T>(limit_bytes: usize, work: impl FnOnce() -> T) -> T {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let done = work();
    let taken = MEMORY.peak_usage().saturating_sub(before);
    assert!(taken <= limit_bytes, "{taken} bytes of memory, expected at most {limit_bytes}");
    done
}
