//! The interrupts of virtio devices in this guest, by `/proc/interrupts` (see `proc(5)`).

use std::fs;

use crate::Result;

/// Returns the number of interrupts of all virtio devices since the boot.
///
/// # Errors
///
/// Fails if there is no virtio device, because the sum would then mean nothing.
pub fn of_virtio() -> Result<u64> {
    let table = fs::read_to_string("/proc/interrupts")?;
    let lines: Vec<&str> = table.lines().filter(|line| line.contains("virtio")).collect();
    if lines.is_empty() {
        return Err(format!("no virtio device in /proc/interrupts:\n{table}").into());
    }
    // A line has the number of the interrupt, one count for each CPU, and then words.
    let counts = lines.iter().flat_map(|line| {
        line.split_whitespace().skip(1).map_while(|word| word.parse::<u64>().ok())
    });
    Ok(counts.sum())
}
