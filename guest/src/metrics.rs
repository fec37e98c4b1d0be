//! Reads the memory usage and the load of the guest from `/proc` (`proc(5)`).
//!
//! The files are opened before the workload starts, and read at each request. A workload that runs
//! as root can mount anything over their paths, for example a FIFO, at whose open PID 1 would
//! block.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use a3s_box_proto::agent::MetricsResponse;

/// Number of bytes that are read of a file. The fields of `meminfo` are in its first three lines,
/// and `loadavg` has one line.
const FILE_BYTES: usize = 4096;

/// The reason why there are no values.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MetricsError {
    /// The file cannot be opened or read.
    #[error("cannot read `{path}`", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Error of the kernel.
        source: io::Error,
    },
    /// The file does not contain the field, or its value cannot be parsed.
    #[error("`{file}` of the guest: found no usable {field}")]
    Missing {
        /// Name of the file in `/proc`.
        file: &'static str,
        /// The missing field.
        field: &'static str,
    },
}

/// The open files.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// For errors only: the files are not opened again.
    directory: PathBuf,
    meminfo: File,
    loadavg: File,
}

impl Metrics {
    /// Opens the files in `directory`, which is `/proc` except in tests.
    pub(crate) fn open(directory: &Path) -> Result<Self, MetricsError> {
        let open = |name: &str| {
            let path = directory.join(name);
            File::open(&path).map_err(|source| MetricsError::Read { path, source })
        };
        // A missing file is thereby reported before the workload starts, and not at a request.
        Ok(Self {
            directory: directory.to_path_buf(),
            meminfo: open(Memory::FILE)?,
            loadavg: open(Load::FILE)?,
        })
    }

    /// Returns the current values.
    pub(crate) fn read(&self) -> Result<MetricsResponse, MetricsError> {
        let memory = Memory::parse(&self.text(&self.meminfo, Memory::FILE)?)?;
        let load = Load::parse(&self.text(&self.loadavg, Load::FILE)?)?;
        let [load_1m, load_5m, load_15m] = load.averages;
        Ok(MetricsResponse {
            memory_total_kib: memory.total_kib,
            memory_available_kib: memory.available_kib,
            load_1m,
            load_5m,
            load_15m,
            processes: load.processes,
        })
    }

    /// Returns the current content of a file, at most [`FILE_BYTES`].
    fn text(&self, file: &File, name: &str) -> Result<String, MetricsError> {
        let mut bytes = [0; FILE_BYTES];
        // A read at offset 0 makes the kernel generate the text again.
        let length = file
            .read_at(&mut bytes, 0)
            .map_err(|source| MetricsError::Read { path: self.directory.join(name), source })?;
        // The end of the buffer can cut a character. That does not matter to the lines that are
        // needed, which come first.
        Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }
}

/// Values of `meminfo`.
#[derive(Debug, PartialEq, Eq)]
struct Memory {
    total_kib: u64,
    available_kib: u64,
}

impl Memory {
    const FILE: &'static str = "meminfo";

    fn parse(text: &str) -> Result<Self, MetricsError> {
        Ok(Self { total_kib: kib(text, "MemTotal")?, available_kib: kib(text, "MemAvailable")? })
    }
}

/// Returns the value of a line like `MemTotal:        1024 kB`. The kernel's unit `kB` is a KiB.
fn kib(text: &str, field: &'static str) -> Result<u64, MetricsError> {
    text.lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .and_then(|value| value.trim().strip_suffix(" kB")?.parse().ok())
        .ok_or(MetricsError::Missing { file: Memory::FILE, field })
}

/// Values of `loadavg`.
#[derive(Debug, PartialEq)]
struct Load {
    /// Averages of 1, 5 and 15 minutes.
    averages: [f64; 3],
    /// Number of existing processes and threads.
    processes: u32,
}

impl Load {
    const FILE: &'static str = "loadavg";

    /// Parses a line like `0.20 0.18 0.12 1/80 11206`: the averages, the number of runnable threads
    /// and of all threads, and the PID of the newest process.
    fn parse(text: &str) -> Result<Self, MetricsError> {
        let missing = |field| MetricsError::Missing { file: Self::FILE, field };
        let mut words = text.split_ascii_whitespace();
        let mut averages = [0.0; 3];
        for average in &mut averages {
            *average = words
                .next()
                .and_then(|word| word.parse().ok())
                // Rust also parses `inf` and `nan`, which are no load.
                .filter(|average: &f64| average.is_finite() && *average >= 0.0)
                .ok_or(missing("averages"))?;
        }
        let processes = words
            .next()
            .and_then(|word| word.split_once('/')?.1.parse().ok())
            .ok_or(missing("number of processes"))?;
        Ok(Self { averages, processes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_plausible_values_from_proc() {
        let metrics = Metrics::open(Path::new("/proc")).unwrap();
        for _ in 0..2 {
            let found = metrics.read().unwrap();
            assert!(found.memory_total_kib > 10_000, "{found:?}");
            assert!(
                (1..=found.memory_total_kib).contains(&found.memory_available_kib),
                "{found:?}"
            );
            assert!(found.processes > 0, "{found:?}");
        }
    }

    #[test]
    fn reads_current_values_from_the_files_that_were_opened_first() {
        let directory = tempfile::tempdir().unwrap();
        let write = |available: u32| {
            let text = format!("MemTotal: 9 kB\nMemAvailable: {available} kB\n");
            std::fs::write(directory.path().join("meminfo"), text).unwrap();
        };
        write(1);
        let loadavg = directory.path().join("loadavg");
        std::fs::write(&loadavg, "0.25 0.50 1.75 2/81 900\n").unwrap();
        let metrics = Metrics::open(directory.path()).unwrap();
        write(7);
        std::fs::remove_file(&loadavg).unwrap();
        std::fs::write(&loadavg, "another file").unwrap();
        let expected = MetricsResponse {
            memory_total_kib: 9,
            memory_available_kib: 7,
            load_1m: 0.25,
            load_5m: 0.5,
            load_15m: 1.75,
            processes: 81,
        };
        assert_eq!(metrics.read().unwrap(), expected);
    }

    #[test]
    fn names_a_missing_file() {
        let directory = tempfile::tempdir().unwrap();
        let message = Metrics::open(directory.path()).unwrap_err().to_string();
        assert!(message.contains("/meminfo`"), "{message}");
        std::fs::write(directory.path().join("meminfo"), "").unwrap();
        let message = Metrics::open(directory.path()).unwrap_err().to_string();
        assert!(message.contains("/loadavg`"), "{message}");
    }

    #[test]
    fn parses_the_two_lines_of_meminfo() {
        let text =
            "MemTotal:       24684092 kB\nMemFree: 3 kB\nMemAvailable:   23991084 kB\nX: 1\n";
        let expected = Memory { total_kib: 24_684_092, available_kib: 23_991_084 };
        assert_eq!(Memory::parse(text).unwrap(), expected);
        let text = "XMemTotal: 1 kB\nMemAvailable:0 kB\nMemTotal:\t18446744073709551615 kB";
        let expected = Memory { total_kib: u64::MAX, available_kib: 0 };
        assert_eq!(Memory::parse(text).unwrap(), expected);
    }

    #[test]
    fn names_a_missing_or_malformed_field_of_meminfo() {
        let cases = [
            ("", "MemTotal"),
            ("MemAvailable: 1 kB", "MemTotal"),
            ("MemTotal 1 kB\nMemAvailable: 1 kB", "MemTotal"),
            ("MemTotalX: 1 kB\nMemAvailable: 1 kB", "MemTotal"),
            ("MemTotal: 1 kB", "MemAvailable"),
            ("MemTotal: 1 kB\nMemAvailable:", "MemAvailable"),
            ("MemTotal: 1 kB\nMemAvailable: kB", "MemAvailable"),
            ("MemTotal: 1 kB\nMemAvailable: 12", "MemAvailable"),
            ("MemTotal: 1 kB\nMemAvailable: 12 MB", "MemAvailable"),
            ("MemTotal: 1 kB\nMemAvailable: -1 kB", "MemAvailable"),
            ("MemTotal: 1 kB\nMemAvailable: 18446744073709551616 kB", "MemAvailable"),
            ("MemTotal: 1 kB\nMemAvailable: 1.5 kB", "MemAvailable"),
            ("MemTotal: \u{fffd} kB\nMemAvailable: 1 kB", "MemTotal"),
        ];
        for (text, field) in cases {
            let message = Memory::parse(text).unwrap_err().to_string();
            let expected = format!("`meminfo` of the guest: found no usable {field}");
            assert_eq!(message, expected, "{text:?}");
        }
    }

    #[test]
    fn parses_three_averages_and_the_number_after_the_slash() {
        let expected = Load { averages: [0.2, 0.18, 10.12], processes: 80 };
        for text in
            ["0.20 0.18 10.12 1/80 11206\n", "0.2 0.18 10.12 1/80", " .2\t0.18 10.12\n9/80 "]
        {
            assert_eq!(Load::parse(text).unwrap(), expected, "{text:?}");
        }
    }

    #[test]
    fn names_a_missing_or_malformed_field_of_loadavg() {
        let cases = [
            ("", "averages"),
            ("0.1 0.1", "averages"),
            ("0.1 x 0.1 1/2 3", "averages"),
            ("nan 0.1 0.1 1/2 3", "averages"),
            ("0.1 inf 0.1 1/2 3", "averages"),
            ("0.1 0.1 -0.1 1/2 3", "averages"),
            ("0.1 0.1 1/2 3", "averages"),
            ("0.1 0.1 0.1", "number of processes"),
            ("0.1 0.1 0.1 2 3", "number of processes"),
            ("0.1 0.1 0.1 1/ 3", "number of processes"),
            ("0.1 0.1 0.1 1/-2 3", "number of processes"),
            ("0.1 0.1 0.1 1/4294967296 3", "number of processes"),
        ];
        for (text, field) in cases {
            let message = Load::parse(text).unwrap_err().to_string();
            let expected = format!("`loadavg` of the guest: found no usable {field}");
            assert_eq!(message, expected, "{text:?}");
        }
    }
}
