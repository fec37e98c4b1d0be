//! Measures the merge of layer files into a metadata image, and the reading of the image.
//!
//! ```text
//! merge LAYERS ENTRIES DIRECTORY
//! ```
//!
//! The layer files are made first, one after the other, in a layer cache. Each blob and the data of
//! each layer file are then removed, because the merge does not read them and they would take 25 GB.

mod layer;

use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use a3s_box_erofs::Image;
use a3s_box_oci::{BlockRoot, Compression, Digest, Layer, LayerCache, Layout};
use rustix::fs::{FallocateFlags, fallocate};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The directories of a run.
struct Bench {
    layout: PathBuf,
    cache: PathBuf,
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
    let (root, merge) = measured(|| bench.compose(&made))?;
    let metadata = &root.parts[0];
    let image = metadata.file.try_clone()?;
    let (inodes, read) = measured(|| Ok(Image::open(image)?.tree()?.len()))?;
    assert_eq!(root.hits, layers, "a layer was read again");
    assert_eq!(inodes, layer::inodes(layers, entries / layers), "the image has other inodes");
    println!("{layers} layers, {entries} entries, {inodes} inodes");
    println!("metadata image: {:.0} MB", metadata.bytes as f64 / 1e6);
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
        let layout = directory.join("layout");
        fs::create_dir_all(layout.join("blobs/sha256"))?;
        fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(Self { layout, cache: directory.join("cache") })
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
        let data_bytes = match &self.compose(&stack)?.parts[..] {
            [_, .., data] => data.bytes,
            _ => 0,
        };
        fs::remove_file(blob)?;
        for entry in fs::read_dir(self.ready())? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(b"root-") {
                fs::remove_dir_all(entry.path())?;
            }
        }
        if data_bytes > 0 {
            let path = self.ready().join(format!("file-sha256-{}/layer", digest.hex()));
            let file = File::options().write(true).open(path)?;
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(file, hole, 0, data_bytes)?;
        }
        Ok(layer)
    }

    /// Returns the directory of all content in the cache.
    fn ready(&self) -> PathBuf {
        self.cache.join("layers-v5/ready")
    }

    fn compose(&self, layers: &[Layer]) -> Result<BlockRoot> {
        let (layout, cache) = (Layout::open(&self.layout)?, LayerCache::open(&self.cache)?);
        Ok(cache.compose_block(&layout, layers, &mut |_, _| ControlFlow::Continue(()))?)
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
