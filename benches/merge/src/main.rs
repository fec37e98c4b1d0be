//! Measures the merge of layer files into a metadata image, and the reading of the image.
//!
//! ```text
//! merge LAYERS ENTRIES DIRECTORY
//! ```
//!
//! The layer files are made first, one after the other. Each blob and the data of each layer file
//! are then removed, because the merge does not read them and they would take 25 GB.

mod layer;

use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use a3s_box_erofs::Image;
use a3s_box_oci::{BlockImage, BlockLimits, Compression, Digest, Layer, Layout};
use rustix::fs::{FallocateFlags, fallocate};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The directories of a run.
struct Bench {
    layout: PathBuf,
    blocks: PathBuf,
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [layers, entries, directory] = &words[..] else {
        return Err("usage: merge LAYERS ENTRIES DIRECTORY".into());
    };
    let (layers, entries) = (layers.parse::<usize>()?, entries.parse::<usize>()?);
    let bench = Bench::new(Path::new(directory))?;
    let mut made = Vec::new();
    for number in 0..layers {
        made.push(bench.make_layer(made.first(), number, entries / layers)?);
    }
    let (merged, merge) = measured(|| bench.compose(&made))?;
    let path = bench.blocks.join(&merged.metadata.name);
    let (inodes, read) = measured(|| Ok(Image::open(File::open(&path)?)?.tree()?.len()))?;
    assert_eq!(inodes as u64, merged.inodes, "the image has other inodes than the tree");
    println!("{layers} layers, {entries} entries, {inodes} inodes");
    println!("metadata image: {:.0} MB", merged.metadata.bytes as f64 / 1e6);
    println!("| work | time | memory | an entry |\n|---|---|---|---|");
    for (work, cost) in [("merge and write", merge), ("read", read)] {
        let bytes = cost.peak_bytes as f64;
        println!(
            "| {work} | {:.1} s, {:.2} µs an entry | {:.0} MB | {:.0} bytes |",
            cost.time.as_secs_f64(),
            cost.time.as_secs_f64() * 1e6 / entries as f64,
            bytes / 1e6,
            bytes / entries as f64,
        );
    }
    Ok(())
}

impl Bench {
    fn new(directory: &Path) -> Result<Self> {
        let (layout, blocks) = (directory.join("layout"), directory.join("blocks"));
        fs::create_dir_all(layout.join("blobs/sha256"))?;
        fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        fs::create_dir(&blocks)?;
        Ok(Self { layout, blocks })
    }

    /// Makes the file of a layer, without the space of its data. The layer links to a file of
    /// the `first` one.
    fn make_layer(&self, first: Option<&Layer>, number: usize, entries: usize) -> Result<Layer> {
        let archive = layer::archive(number, entries)?;
        let digest = Digest::of(&archive);
        let blob = self.layout.join("blobs/sha256").join(digest.hex());
        fs::write(&blob, &archive)?;
        let layer = Layer {
            digest,
            diff_id: digest,
            size_bytes: archive.len() as u64,
            compression: Compression::None,
        };
        let stack: Vec<Layer> = first.cloned().into_iter().chain([layer.clone()]).collect();
        let made = self.compose(&stack)?;
        fs::remove_file(blob)?;
        if let Some(part) = made.data.last() {
            let file = File::options().write(true).open(self.blocks.join(&part.name))?;
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(file, hole, 0, part.bytes)?;
        }
        Ok(layer)
    }

    fn compose(&self, layers: &[Layer]) -> Result<BlockImage> {
        let layout = Layout::open(&self.layout)?;
        let directory = File::open(&self.blocks)?;
        let progress = &mut |_, _| ControlFlow::Continue(());
        let limits = BlockLimits::default();
        Ok(BlockImage::compose(&layout, layers, directory.as_fd(), &limits, progress)?)
    }
}

/// The cost of some work.
struct Cost {
    time: Duration,
    /// Largest growth of the resident memory.
    peak_bytes: u64,
}

/// Runs `work`, and measures it.
fn measured<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Cost)> {
    // This resets the peak of the resident memory (`proc_pid_clear_refs(5)`).
    fs::write("/proc/self/clear_refs", "5")?;
    let before = status("VmRSS:")?;
    let start = Instant::now();
    let result = work()?;
    let time = start.elapsed();
    let peak_bytes = status("VmHWM:")?.saturating_sub(before);
    Ok((result, Cost { time, peak_bytes }))
}

/// Returns a value of `/proc/self/status` in bytes.
fn status(name: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let number = number.ok_or_else(|| io::Error::other(format!("no `{name}`")))?;
    Ok(number.parse::<u64>()? * 1024)
}
