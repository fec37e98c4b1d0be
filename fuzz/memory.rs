//! Measures how much memory an input takes.

use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Runs `work`, and checks that it never allocates more than `limit_bytes` at a time.
///
/// Memory that was allocated before does not count.
///
/// # Panics
///
/// Panics if `work` allocates more.
pub fn within<T>(limit_bytes: usize, work: impl FnOnce() -> T) -> T {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let result = work();
    let taken = MEMORY.peak_usage().saturating_sub(before);
    assert!(taken <= limit_bytes, "{taken} bytes of memory, expected at most {limit_bytes}");
    result
}
