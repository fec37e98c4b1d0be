//! Measures typical file operations in a guest: the time of each, and the virtio interrupts that it
//! causes.
//!
//! ```text
//! program             all rows of the benchmark
//! program wait-and-read   reads a large file after a pause, for a measurement of memory on the host
//! ```
//!
//! The program is static and runs unchanged in every kind of VM. It prints one line for each row at
//! its end: the name, the microseconds, and the interrupts. It prints nothing earlier, because
//! output is work of virtio devices, too.

mod interrupts;
mod rows;

use std::error::Error;
use std::fs;
use std::io::Read;
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Pause around the reading of the large file, in which the host measures.
const PAUSE: Duration = Duration::from_secs(6);

/// The result of one row.
struct Measured {
    name: &'static str,
    time: Duration,
    interrupts: u64,
}

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        None => measure_all(),
        Some("wait-and-read") => wait_and_read(),
        Some(other) => Err(format!("unknown mode {other}: expected none or wait-and-read").into()),
    }
}

/// Measures all rows in their order, and prints them.
fn measure_all() -> Result<()> {
    let mut measured = Vec::new();
    for (name, row) in rows::ROWS {
        rows::settle()?;
        let before = interrupts::of_virtio()?;
        let start = Instant::now();
        row().map_err(|error| format!("row `{name}`: {error}"))?;
        let time = start.elapsed();
        let interrupts = interrupts::of_virtio()? - before;
        measured.push(Measured { name, time, interrupts });
    }
    for Measured { name, time, interrupts } in measured {
        println!("row\t{name}\t{}\t{interrupts}", time.as_micros());
    }
    // Whoever reads this output can tell by this line that it is complete.
    println!("end");
    Ok(())
}

/// Reads a large file after a pause, and waits again. Its lines tell the host when to measure.
fn wait_and_read() -> Result<()> {
    println!("before");
    std::thread::sleep(PAUSE);
    let mut buffer = vec![0; 1 << 20];
    let mut file = fs::File::open(rows::SEQUENTIAL)?;
    while file.read(&mut buffer)? > 0 {}
    println!("after");
    std::thread::sleep(PAUSE);
    println!("end");
    Ok(())
}
