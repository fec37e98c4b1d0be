//! Measures starts whose layers are all in the cache. Prints one row of a table for each image.
//!
//! ```text
//! warm RUNS KIND SHIM FAKE_GUEST DIRECTORY
//! ```
//!
//! KIND is the `root.kind` of all starts. The first start of each image fills the cache. Its time is
//! not counted.

mod image;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const LAYERS: [usize; 3] = [1, 10, 128];
const BYTES: [usize; 2] = [10_000_000, 1_000_000_000];

/// Time to wait until the fake guest runs. A shim that ends while it forks leaves its locks to the
/// child for a moment, and the next start would find the box locked.
const SETTLE_TIME: Duration = Duration::from_millis(300);

/// The parameters of all starts of one image.
struct Bench<'a> {
    kind: &'a str,
    shim: &'a str,
    fake_guest: &'a str,
    directory: PathBuf,
}

/// A shim whose root is mounted, with the times of its start.
struct Mounted {
    child: Child,
    /// The events after `rootfs.ready`.
    rest: BufReader<ChildStdout>,
    /// From the spawn to `rootfs.ready`.
    since_spawn: Duration,
    /// From `shim.started`, when the config has been read, to `rootfs.ready`.
    since_config: Duration,
    /// The shim's own measurement, from the image's layout to the mounted root.
    duration_ms: u64,
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [runs, kind, shim, fake_guest, directory] = &words[..] else {
        return Err("usage: warm RUNS KIND SHIM FAKE_GUEST DIRECTORY".into());
    };
    println!(
        "| layers | files | config to mounted | spawn to mounted | spawn to exit | by the shim | memory warm | memory cold | disk |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for bytes in BYTES {
        for layers in LAYERS {
            let directory = Path::new(directory).join(format!("{layers}-{bytes}"));
            let files = image::write(&directory.join("layout"), layers, bytes)?;
            let bench = Bench { kind, shim, fake_guest, directory: directory.clone() };
            let row = bench.row(runs.parse()?).unwrap_or_else(|error| error.to_string());
            println!("| {layers} | {files}, {} MB | {row} |", bytes / 1_000_000);
            fs::remove_dir_all(directory)?;
        }
    }
    Ok(())
}

impl Bench<'_> {
    /// Measures one image. Returns the rest of its row.
    fn row(&self, runs: usize) -> Result<String> {
        let cold = self.start("box", true)?;
        std::thread::sleep(SETTLE_TIME);
        let cold_kib = peak_kib(&cold.child)?;
        stop(cold)?;
        let (mut since_config, mut since_spawn) = (Vec::new(), Vec::new());
        let (mut by_shim_ms, mut whole) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            let start = Instant::now();
            let run = self.start("box", false)?;
            since_config.push(run.since_config.as_micros());
            since_spawn.push(run.since_spawn.as_micros());
            by_shim_ms.push(u128::from(run.duration_ms));
            finish(run)?;
            whole.push(start.elapsed().as_micros());
        }
        // Memory and disk space are measured at the second of two boxes of the same image.
        let (first, second) = (self.start("box", true)?, self.start("another", true)?);
        std::thread::sleep(SETTLE_TIME);
        let warm_kib = peak_kib(&second.child)?;
        let disk_kib = disk_bytes(&self.directory.join("s/another"))? / 1024;
        stop(first)?;
        stop(second)?;
        Ok(format!(
            "{} | {} | {} | {} ms | {warm_kib} KiB | {cold_kib} KiB | {disk_kib} KiB",
            spread(since_config),
            spread(since_spawn),
            spread(whole),
            median(&mut by_shim_ms),
        ))
    }

    /// Starts a shim, and waits until its root is mounted.
    ///
    /// With `runs_box` its guest then hangs, so that the process can be examined. Otherwise the
    /// shim only prepares the root and ends.
    ///
    /// # Errors
    ///
    /// Fails if the shim ends before `rootfs.ready`. The error is its `error` event.
    fn start(&self, id: &str, runs_box: bool) -> Result<Mounted> {
        let config = json!({
            "id": id,
            "image": {"layout": self.directory.join("layout")},
            "root": {"kind": self.kind},
            "process": {"entrypoint": ["hang"]},
            "paths": {
                "state_dir": self.directory.join("s"), "cache_dir": self.directory.join("c"),
                // The fake VM does not run this file, but the config must name one that exists.
                "guest": "/bin/true",
            },
        });
        let file = self.directory.join("box.json");
        fs::write(&file, config.to_string())?;
        let mut command = Command::new(self.shim);
        command.env("A3S_BOX_FAKE_GUEST", self.fake_guest).env("A3S_BOX_LOG", "warn");
        command.args((!runs_box).then_some("--prepare")).arg("--config").arg(file);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let start = Instant::now();
        let mut child = command.spawn()?;
        let mut events = BufReader::new(child.stdout.take().ok_or("no pipe")?);
        let mut earlier = String::new();
        let mut configured = None;
        loop {
            let mut line = String::new();
            if events.read_line(&mut line)? == 0 {
                child.wait()?;
                return Err(failure(&earlier).into());
            }
            if line.contains(r#""type":"shim.started""#) {
                configured = Some(Instant::now());
            }
            if line.contains(r#""type":"rootfs.ready""#) {
                let since_spawn = start.elapsed();
                let since_config = configured.ok_or("the shim has not started")?.elapsed();
                let event: Value = serde_json::from_str(&line)?;
                let duration_ms = event["duration_ms"].as_u64().ok_or("no duration")?;
                return Ok(Mounted { child, rest: events, since_spawn, since_config, duration_ms });
            }
            earlier += &line;
        }
    }
}

/// Returns the line of the `error` event.
fn failure(events: &str) -> String {
    let error = events.lines().find(|line| line.contains(r#""type":"error""#));
    error.unwrap_or("the shim ended without an error").to_owned()
}

/// Stops a box with SIGTERM.
fn stop(mut mounted: Mounted) -> Result<()> {
    Command::new("kill").arg(mounted.child.id().to_string()).status()?;
    mounted.child.wait()?;
    Ok(())
}

/// Waits for the end of a shim, and reads its other events.
fn finish(mut mounted: Mounted) -> Result<()> {
    std::io::copy(&mut mounted.rest, &mut std::io::sink())?;
    let status = mounted.child.wait()?;
    if status.success() { Ok(()) } else { Err(format!("a run ended with {status}").into()) }
}

/// Returns the peak of the resident memory so far (`VmHWM` in `proc(5)`).
fn peak_kib(child: &Child) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Returns the disk space of a directory with all its entries.
fn disk_bytes(path: &Path) -> Result<u64> {
    let found = fs::symlink_metadata(path)?;
    // `st_blocks` counts units of 512 bytes, whatever the block size of the file system (stat(2)).
    let mut bytes = found.blocks() * 512;
    if found.is_dir() {
        for entry in fs::read_dir(path)? {
            bytes += disk_bytes(&entry?.path())?;
        }
    }
    Ok(bytes)
}

/// Formats the median, the smallest and the largest of times in microseconds.
fn spread(mut values: Vec<u128>) -> String {
    let median = median(&mut values);
    format!("{median} µs ({}, {})", values[0], values[values.len() - 1])
}

fn median(values: &mut [u128]) -> u128 {
    values.sort_unstable();
    values[values.len() / 2]
}
