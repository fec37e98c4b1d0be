//! Counts how often the devices of the guest finish requests, by their interrupts.
//!
//! The count does not depend on the speed of the machine. A device can finish several requests with
//! one interrupt, so that it is a lower bound of their number.

use std::fs;
use std::io::Write;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Device types in the virtio specification (1.2, section 5).
const BLOCK: u32 = 2;
const FILE_SYSTEM: u32 = 26;

/// Sums of the interrupts of all disks and of all file systems.
#[derive(Clone, Copy, Default)]
struct Interrupts {
    block: u64,
    file_system: u64,
}

/// Runs a script by the shell of the image, and prints the interrupts in the meantime.
///
/// `value` is `NAME:SCRIPT`. The line is `requests NAME BLOCK FILE_SYSTEM`.
#[expect(clippy::disallowed_methods, reason = "no event is written here")]
pub(crate) fn count(value: &str) -> Result<()> {
    let (name, script) = value.split_once(':').context("NAME:SCRIPT")?;
    let before = interrupts()?;
    let status = Command::new("/bin/sh").args(["-euc", script]).status().context("/bin/sh")?;
    let after = interrupts()?;
    ensure!(status.success(), "the script has ended with {status}");
    let block = after.block - before.block;
    let file_system = after.file_system - before.file_system;
    Ok(writeln!(std::io::stdout(), "requests {name} {block} {file_system}")?)
}

/// Removes the contents of files, and the files and directories themselves, from the caches of the
/// guest kernel. The next use is then like the first one.
pub(crate) fn drop_caches() -> Result<()> {
    // The kernel keeps what is not on its device yet.
    rustix::fs::sync();
    Ok(fs::write("/proc/sys/vm/drop_caches", "3")?)
}

/// Reads the numbers of interrupts since the boot of the guest.
fn interrupts() -> Result<Interrupts> {
    let table = fs::read_to_string("/proc/interrupts")?;
    let mut sum = Interrupts::default();
    for line in table.lines() {
        // The name of the device is the last word: `virtio0`, or `virtio0-requests`.
        let name = line.split_whitespace().last().and_then(|word| word.split('-').next());
        let Some(name) = name.filter(|name| name.starts_with("virtio")) else { continue };
        // After the number of the interrupt there is one column for each CPU.
        let columns = line.split_whitespace().skip(1).map_while(|word| word.parse::<u64>().ok());
        let count: u64 = columns.sum();
        match device_type(name)? {
            BLOCK => sum.block += count,
            FILE_SYSTEM => sum.file_system += count,
            _ => {}
        }
    }
    Ok(sum)
}

/// Reads the type of a virtio device from sysfs, such as `0x001a`.
fn device_type(name: &str) -> Result<u32> {
    let path = format!("/sys/bus/virtio/devices/{name}/device");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let digits = text.trim().trim_start_matches("0x");
    u32::from_str_radix(digits, 16).with_context(|| format!("{path}: `{text}`"))
}
