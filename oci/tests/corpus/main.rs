//! The hostile corpus: one small file for each attack, and what becomes of it.
//!
//! `layers/` has blobs of layers, `layouts/` whole image layouts, each packed into one archive. The
//! modules of the same names make the files, and `A3S_BOX_CORPUS=write` writes them anew, which a
//! new version of a compressor may ask for. `layers.txt` and `layouts.txt` say what is expected: the
//! error, or mode, name and extended attributes of all that is made. They are written by hand.
//!
//! Each file is read from the disk and treated like an image's. Afterwards a tree outside, to
//! which the links in the files lead, must be what it was; a layer that was refused must have left
//! nothing in the cache, and the error must be fit to be shown.

#![expect(
    clippy::unwrap_used,
    reason = "what cannot be set up or looked at is a failure of the test"
)]

#[expect(dead_code, reason = "shared with the test binary `it`, which uses all of it")]
#[path = "../it/archive.rs"]
mod archive;
#[expect(dead_code, reason = "shared with the test binary `it`, which uses all of it")]
#[path = "../it/bench.rs"]
mod bench;
mod layers;
mod layouts;
#[path = "../property/memory.rs"]
mod memory;
mod packed;
mod race;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::bench::{Bench, amd64, chain, tree};
use crate::layers::Case;
use crate::memory::{mount_memory, private_mounts};
use a3s_box_oci::{CacheError, CachedLayer, Digest, Limits};

const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";

/// How a zstd frame begins (RFC 8878, 3.1.1).
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Where the links of the corpus lead to.
const CANARY: &str = "/mnt/canary";

/// Longest error that a person reads.
const ERROR_BYTES: usize = 1500;

/// Bounds that small files can exceed.
fn limits() -> Limits {
    Limits {
        entries: 1000,
        unpacked_bytes: 32 << 20,
        remembered_bytes: 64 << 10,
        ratio_floor_bytes: 1 << 20,
        ..Limits::default()
    }
}

#[test]
fn layers_that_mean_harm_are_refused_or_confined() {
    check_all("layers", include_str!("layers.txt"), layers::cases(), |bench, blob| {
        let mut tar = Vec::new();
        let is_whole = match blob {
            [0x1f, 0x8b, ..] => {
                flate2::read::MultiGzDecoder::new(blob).read_to_end(&mut tar).is_ok()
            }
            _ if blob.starts_with(&ZSTD_MAGIC) => {
                zstd::Decoder::with_buffer(blob).unwrap().read_to_end(&mut tar).is_ok()
            }
            _ => false,
        };
        let tar = if is_whole { &tar } else { blob };
        let blob = bench.blob(PLAIN, blob);
        let manifest = bench.image_of("linux/amd64", &[blob], &[Digest::of(tar)]);
        bench.publish(&[manifest.descriptor("")]);
    });
}

#[test]
fn layouts_that_mean_harm_are_refused_or_confined() {
    check_all("layouts", include_str!("layouts.txt"), layouts::cases(), |bench, bytes| {
        fs::remove_dir_all(bench.path("layout")).unwrap();
        let is_packed = bytes.starts_with(&ZSTD_MAGIC);
        let plain = if is_packed { zstd::decode_all(bytes).unwrap() } else { bytes.to_vec() };
        packed::unpack(&plain, &bench.path("layout"));
    });
}

/// Checks all files of a directory of the corpus, and lists those that fail.
fn check_all(directory: &str, table: &str, cases: Vec<Case>, arrange: impl Fn(&Bench, &[u8])) {
    let expected = parse(table);
    let canary = Canary::build();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(directory);
    if std::env::var("A3S_BOX_CORPUS").is_ok_and(|what| what == "write") {
        fs::remove_dir_all(&directory).unwrap_or_default();
        fs::create_dir(&directory).unwrap();
        for case in &cases {
            fs::write(directory.join(case.file), &case.bytes).unwrap();
        }
    }
    let files: BTreeSet<String> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let named: BTreeSet<String> = cases.iter().map(|case| case.file.to_owned()).collect();
    assert_eq!(named.len(), cases.len(), "a name is used twice");
    assert_eq!(
        files, named,
        "some files are missing or left over: write them by A3S_BOX_CORPUS=write"
    );
    assert_eq!(expected.len(), named.len(), "the table names files that are not there");
    let mut failures = String::new();
    for case in cases {
        let bytes = fs::read(directory.join(case.file)).unwrap();
        let check = || {
            if bytes != case.bytes {
                return Err(
                    "the file is not what it is made to be: write it by A3S_BOX_CORPUS=write"
                        .into(),
                );
            }
            let expected = expected.get(case.file).ok_or("the table lacks this file")?;
            check(expected, |bench| arrange(bench, &bytes))
        };
        let outcome = catch_unwind(AssertUnwindSafe(check)).unwrap_or(Err("it panicked".into()));
        let touched = canary.changes();
        for failure in outcome.err().into_iter().chain(touched) {
            failures += &format!("{}: {failure}\n", case.file);
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
}

/// Reads what is expected of each file: its name, and indented lines.
fn parse(table: &str) -> BTreeMap<&str, String> {
    let mut expected: BTreeMap<&str, String> = BTreeMap::new();
    let mut file = "";
    for line in table.lines() {
        match line.strip_prefix("    ") {
            Some(text) => *expected.entry(file).or_default() += &format!("{text}\n"),
            None => file = line,
        }
    }
    expected
}

/// Treats a file like an image, and says what differs from what is expected.
fn check(expected: &str, arrange: impl FnOnce(&Bench)) -> Result<(), String> {
    let bench = Bench::new();
    arrange(&bench);
    let (found, is_refused) = match unpack(&bench) {
        Ok(layers) => (format!("accepted:\n{}", listing(&layers[0].path)), false),
        Err(text) if text.chars().any(char::is_control) || text.len() > ERROR_BYTES => {
            return Err(format!("the error is not fit to be shown: {text:?}"));
        }
        Err(text) => (format!("refused: {text}\n"), true),
    };
    for directory in ["ready", "staging"] {
        let left = fs::read_dir(cache_directory(&bench, directory)).map_or(0, Iterator::count);
        if left > 0 && (is_refused || directory == "staging") {
            return Err(format!("`{directory}` has {left} layers, expected none"));
        }
    }
    match found == expected {
        true => Ok(()),
        false => Err(format!("expected\n{expected}found\n{found}")),
    }
}

/// Unpacks all layers of the only image of a layout.
fn unpack(bench: &Bench) -> Result<Vec<CachedLayer>, String> {
    let layout = a3s_box_oci::Layout::open(&bench.path("layout"))
        .map_err(|error| without_path(bench, &chain(&error)))?;
    let image =
        layout.resolve(None, &amd64()).map_err(|error| without_path(bench, &chain(&error)))?;
    let cache = bench.cache().with_limits(limits());
    let failed = |error| match &error {
        CacheError::Layer { source, .. } => chain(source),
        error => chain(error),
    };
    cache.compose(&layout, &image.layers, &mut |_, _| ControlFlow::Continue(())).map_err(failed)?;
    let unpack = |layer| cache.get_or_unpack(&layout, layer, &mut |_| ControlFlow::Continue(()));
    image.layers.iter().map(unpack).collect::<Result<_, _>>().map_err(failed)
}

/// Returns a directory of the cache.
fn cache_directory(bench: &Bench, name: &str) -> PathBuf {
    bench.path("cache/layers-v2").join(name)
}

/// Takes what differs from run to run out of an error.
fn without_path(bench: &Bench, text: &str) -> String {
    text.replace(bench.path("layout").to_str().unwrap(), "<layout>")
}

/// Lists a tree: mode, name, what the name is, and its extended attributes.
fn listing(root: &Path) -> String {
    let mut lines = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let found = fs::symlink_metadata(&path).unwrap();
        let kind = found.file_type();
        let what = if kind.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            "/".to_owned()
        } else if kind.is_symlink() {
            format!(" -> {}", fs::read_link(&path).unwrap().display())
        } else if kind.is_fifo() {
            "|".to_owned()
        } else if kind.is_file() {
            String::new()
        } else {
            format!(" device {}", found.rdev())
        };
        let mut names = [0_u8; 1024];
        let length = rustix::fs::llistxattr(&path, &mut names).unwrap();
        let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
        let names: String = names.map(|name| format!(" {}", name.escape_ascii())).collect();
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().escape_debug().to_string();
        let line = format!("    {:o} {name}{what}{names}\n", found.mode() & 0o7777);
        lines.insert(path.clone(), line);
    }
    lines.remove(root);
    lines.into_values().collect::<String>()
}

/// A tree outside of all that is unpacked, in a mount namespace of the test's own.
struct Canary(BTreeMap<String, String>);

impl Canary {
    fn build() -> Self {
        private_mounts();
        mount_memory(&std::env::temp_dir());
        mount_memory(Path::new("/mnt"));
        fs::create_dir_all(Path::new(CANARY).join("dir")).unwrap();
        fs::write(Path::new(CANARY).join("secret"), "secret").unwrap();
        fs::write(Path::new(CANARY).join("dir/file"), "file").unwrap();
        Self(tree(Path::new("/mnt")))
    }

    /// Says what has changed since, if anything.
    fn changes(&self) -> Option<String> {
        let found = tree(Path::new("/mnt"));
        (found != self.0).then(|| format!("the canary was touched: {found:?}"))
    }
}
