//! Measures the time from spawn to the first byte of the workload's output, for the shim and for
//! the bare libkrun calls in turn. Prints the medians and the ratio of each pair.
//!
//! ```text
//! boot PAIRS SHIM CONFIG FIFO BARE ROOT PROGRAM
//! ```
//!
//! With CONFIG the shim runs PROGRAM with its console on FIFO. The first pair is not counted: it
//! fills the layer cache and the page cache. A pair with a failed run is reported and repeated, at
//! most PAIRS times, because an emulated host occasionally loses a VM.

use std::fs::{File, OpenOptions};
use std::io::{Error, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// `O_NONBLOCK` on Linux: `open(2)` of a FIFO for reading returns before there is a writer.
const NONBLOCK: i32 = 0o4000;

/// Memory of the bare VM, which is the default of the shim.
const MEMORY_MIB: &str = "512";

/// A run that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(40);

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [pairs, shim, config, fifo, bare, root, program] = &words[..] else {
        return Err("usage: boot PAIRS SHIM CONFIG FIFO BARE ROOT PROGRAM".into());
    };
    let mut shim_s = Vec::new();
    let mut bare_s = Vec::new();
    let pairs: usize = pairs.parse()?;
    let mut failures = 0;
    let mut pair = 0;
    while pair <= pairs {
        let times =
            time_shim(shim, config, fifo).map_err(|error| format!("shim: {error}")).and_then(|a| {
                Ok((a, time_bare(bare, root, program).map_err(|error| format!("bare: {error}"))?))
            });
        let (a, b) = match times {
            Ok(times) => times,
            Err(error) if failures < pairs => {
                println!("pair {pair}: again, because a run failed: {error}");
                failures += 1;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let counted = if pair == 0 { " (not counted)" } else { "" };
        println!("pair {pair}: shim {a:.3} s, bare {b:.3} s, ratio {:.3}{counted}", a / b);
        if pair > 0 {
            shim_s.push(a);
            bare_s.push(b);
        }
        pair += 1;
    }
    println!("runs that failed: {failures}");
    let ratios: Vec<f64> = shim_s.iter().zip(&bare_s).map(|(a, b)| a / b).collect();
    for (name, values) in [("shim, s", shim_s), ("bare, s", bare_s), ("ratio", ratios)] {
        let (min, median, max) = spread(values);
        println!("{name:8} min {min:.3}  median {median:.3}  max {max:.3}");
    }
    Ok(())
}

/// Runs the shim once. Returns the time to the first byte in seconds.
///
/// # Errors
///
/// Fails if the run fails. The error contains the events of the shim.
fn time_shim(shim: &str, config: &str, fifo: &str) -> Result<f64> {
    // The reader comes first: a shim does not wait for one, and output without a reader is lost.
    let console = OpenOptions::new().read(true).custom_flags(NONBLOCK).open(fifo)?;
    let events = format!("{config}.events");
    let stdout = File::create(&events)?;
    let start = Instant::now();
    let mut child = Command::new(shim)
        .args(["--config", config])
        .stdin(Stdio::null())
        .stdout(stdout)
        .spawn()?;
    let took = first_byte(console, start);
    finish(&mut child, took).or_else(|error| {
        let events = std::fs::read_to_string(events)?;
        Err(format!("{error}\n{events}").into())
    })
}

/// Runs the bare libkrun calls once. Returns the time to the first byte in seconds.
fn time_bare(bare: &str, root: &str, program: &str) -> Result<f64> {
    let start = Instant::now();
    let mut child = Command::new(bare)
        .args([MEMORY_MIB, root, program])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let output = child.stdout.take().ok_or("no pipe")?;
    let took = first_byte(output, start);
    finish(&mut child, took)
}

/// Returns the time from `start` to the first byte of the output, in seconds.
///
/// It polls each millisecond, because a FIFO that has no writer yet reads as ended.
fn first_byte(mut output: impl Read, start: Instant) -> Result<f64> {
    let mut byte = [0];
    while start.elapsed() < TIMEOUT {
        match output.read(&mut byte) {
            Ok(1) => {
                let took = start.elapsed().as_secs_f64();
                // A workload whose output is not read could block and not end.
                drain(output);
                return Ok(took);
            }
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    Err(Error::from(std::io::ErrorKind::TimedOut).into())
}

/// Reads and discards the output for 200 ms.
fn drain(mut output: impl Read) {
    let end = Instant::now() + Duration::from_millis(200);
    while Instant::now() < end {
        if !matches!(output.read(&mut [0; 4096]), Ok(1..)) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Waits for the process. Kills it first if the run has failed.
fn finish(child: &mut Child, took: Result<f64>) -> Result<f64> {
    if took.is_err() {
        child.kill()?;
    }
    let status = child.wait()?;
    match took {
        Ok(_) if !status.success() => Err(format!("a run ended with {status}").into()),
        took => took,
    }
}

/// Returns the smallest value, the median and the largest value.
fn spread(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let median = if values.len().is_multiple_of(2) {
        f64::midpoint(values[middle - 1], values[middle])
    } else {
        values[middle]
    };
    (values[0], median, values[values.len() - 1])
}
