//! Times both, in turn, from spawn to the first byte of the workload's output, and prints medians and
//! the ratio pair by pair.
//!
//! ```text
//! boot PAIRS SHIM CONFIG FIFO BARE ROOT PROGRAM
//! ```
//!
//! CONFIG makes the shim run PROGRAM with its console on FIFO. One run of each is not counted: it
//! fills the layer cache and the page cache. A pair with a run that fails is told of and run again,
//! at most as often as there are pairs: an emulated host loses a VM now and then.

use std::fs::{File, OpenOptions};
use std::io::{Error, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Opens a FIFO for reading without a writer (O_NONBLOCK on Linux).
const NONBLOCK: i32 = 0o4000;

/// A run that takes longer counts as failed.
const PATIENCE: Duration = Duration::from_secs(40);

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

fn time_shim(shim: &str, config: &str, fifo: &str) -> Result<f64> {
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

fn time_bare(bare: &str, root: &str, program: &str) -> Result<f64> {
    let start = Instant::now();
    let mut child = Command::new(bare)
        .args([root, program])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let output = child.stdout.take().ok_or("no pipe")?;
    let took = first_byte(output, start);
    finish(&mut child, took)
}

/// Time until the first byte. A FIFO without a writer yet reads as ended.
fn first_byte(mut output: impl Read, start: Instant) -> Result<f64> {
    let mut byte = [0];
    while start.elapsed() < PATIENCE {
        match output.read(&mut byte) {
            Ok(1) => {
                let took = start.elapsed().as_secs_f64();
                // The rest is read so that the workload can end.
                drain(output);
                return Ok(took);
            }
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    Err(Error::from(std::io::ErrorKind::TimedOut).into())
}

fn drain(mut output: impl Read) {
    let end = Instant::now() + Duration::from_millis(200);
    while Instant::now() < end {
        if !matches!(output.read(&mut [0; 4096]), Ok(1..)) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Kills a run that failed, waits for one that did not.
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

fn spread(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let median = if values.len() % 2 == 0 {
        f64::midpoint(values[middle - 1], values[middle])
    } else {
        values[middle]
    };
    (values[0], median, values[values.len() - 1])
}
