//! The hostile corpus: one small file for each attack, and its expected result.
//!
//! `layers/` holds blobs of layers. `layouts/` holds image layouts, each packed into one archive.
//! The modules of the same names create the files, and a run with `A3S_BOX_CORPUS=write` writes
//! them to the disk. That is needed for a new case, and when a new version of a compressor gives
//! other bytes. `layers.txt` and `layouts.txt` hold the expected results and are written by hand. A
//! result is the error, or mode, name and extended attributes of each file in the unpacked tree.
//!
//! Each test reads the files from the disk and unpacks them as an image. Three conditions hold for
//! each file:
//!
//! - The canary does not change. It is a tree outside of the cache, and the links and names in the
//!   files lead to it.
//! - A refused layer leaves nothing in the cache.
//! - An error is short and has no control characters, because it is shown to a person.
//!
//! The layers are also made into block roots. These accept and refuse the same layers, and the kernel
//! mounts the same tree.

#![expect(
    clippy::unwrap_used,
    reason = "a failure of the set-up or of an inspection is a failure of the test"
)]

#[expect(dead_code, reason = "shared with the test binary `it`, which uses all of it")]
#[path = "../it/archive.rs"]
mod archive;
#[expect(dead_code, reason = "shared with the test binary `it`, which uses all of it")]
#[path = "../it/bench.rs"]
mod bench;
#[path = "../property/disk.rs"]
mod disk;
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

/// Media type of all layers of the corpus. The compression is found from the blob's first bytes.
const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";

/// The magic number of a zstd frame (RFC 8878, 3.1.1).
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The tree outside of the cache that the links of the corpus lead to.
const CANARY: &str = "/mnt/canary";

/// Largest length of an error in bytes. Longer ones are not fit for a person.
const ERROR_BYTES: usize = 1500;

/// Returns limits that a small file can exceed, so that the corpus stays small.
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
fn hostile_layers_are_refused_or_confined() {
    let arrange = |bench: &Bench, blob: &[u8]| {
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
        // The DiffID of a malformed blob does not matter, because the archive is refused before.
        let tar = if is_whole { &tar } else { blob };
        let blob = bench.blob(PLAIN, blob);
        let manifest = bench.image_of("linux/amd64", &[blob], &[Digest::of(tar)]);
        bench.publish(&[manifest.descriptor("")]);
    };
    check_all("layers", include_str!("layers.txt"), layers::cases(), |case, bytes, expected| {
        check(expected, |bench| arrange(bench, bytes))?;
        check_blocks(case, expected, |bench| arrange(bench, bytes))
    });
}

#[test]
fn hostile_layouts_are_refused_or_confined() {
    let arrange = |bench: &Bench, bytes: &[u8]| {
        // The file replaces the empty layout of the bench.
        fs::remove_dir_all(bench.path("layout")).unwrap();
        let is_packed = bytes.starts_with(&ZSTD_MAGIC);
        let plain = if is_packed { zstd::decode_all(bytes).unwrap() } else { bytes.to_vec() };
        packed::unpack(&plain, &bench.path("layout"));
    };
    check_all("layouts", include_str!("layouts.txt"), layouts::cases(), |_, bytes, expected| {
        check(expected, |bench| arrange(bench, bytes))
    });
}

/// Checks all files of a directory of the corpus, and panics with a list of the failures.
///
/// `check` receives the name of a file, its bytes, and the expected result.
fn check_all(
    directory: &str,
    table: &str,
    cases: Vec<Case>,
    check: impl Fn(&str, &[u8], &str) -> Result<(), String>,
) {
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
    // A file without a case, or a case without a file, would otherwise be ignored.
    let named: BTreeSet<String> = cases.iter().map(|case| case.file.to_owned()).collect();
    assert_eq!(named.len(), cases.len(), "two cases have the same file name");
    assert_eq!(
        files, named,
        "files are missing or left over: run the test with A3S_BOX_CORPUS=write"
    );
    assert_eq!(expected.len(), named.len(), "the table has other files than the corpus");
    let mut failures = String::new();
    for case in cases {
        let bytes = fs::read(directory.join(case.file)).unwrap();
        let check_case = || {
            if bytes != case.bytes {
                return Err(
                    "the file differs from its case: run the test with A3S_BOX_CORPUS=write".into(),
                );
            }
            let expected = expected.get(case.file).ok_or("the table lacks this file")?;
            check(case.file, &bytes, expected)
        };
        // A panic counts as a failure of this file only, so that the list is complete.
        let outcome =
            catch_unwind(AssertUnwindSafe(check_case)).unwrap_or(Err("the test panicked".into()));
        let changes = canary.changes();
        for failure in outcome.err().into_iter().chain(changes) {
            failures += &format!("{}: {failure}\n", case.file);
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
}

/// Parses a table of expected results: a file name, and lines with an indent of four spaces.
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

/// Unpacks an image, and returns an error if the result differs from the expected one.
fn check(expected: &str, arrange: impl FnOnce(&Bench)) -> Result<(), String> {
    let bench = Bench::new();
    arrange(&bench);
    let (found, is_refused) = match unpack(&bench) {
        Ok(layers) => (format!("accepted:\n{}", listing(&layers[0].path)), false),
        Err(text) if text.chars().any(char::is_control) || text.len() > ERROR_BYTES => {
            return Err(format!("the error is too long or has control characters: {text:?}"));
        }
        Err(text) => (format!("refused: {text}\n"), true),
    };
    check_left(&bench, is_refused)?;
    match found == expected {
        true => Ok(()),
        false => Err(format!("expected\n{expected}found\n{found}")),
    }
}

/// Returns an error if the cache has what it must not have after an image was accepted or refused.
fn check_left(bench: &Bench, is_refused: bool) -> Result<(), String> {
    for directory in ["ready", "staging"] {
        let left = fs::read_dir(cache_directory(bench, directory)).map_or(0, Iterator::count);
        // An accepted layer is in `ready`. `staging` is empty in both cases.
        if left > 0 && (is_refused || directory == "staging") {
            return Err(format!("`{directory}` has {left} layers, expected none"));
        }
    }
    Ok(())
}

/// Makes a block root of an image of one layer, and returns an error if the result differs from the
/// expected one of the unpacked layer.
fn check_blocks(case: &str, expected: &str, arrange: impl FnOnce(&Bench)) -> Result<(), String> {
    let bench = Bench::new();
    arrange(&bench);
    let (layout, target) = (bench.layout(), bench.path("root"));
    let image = layout.resolve(None, &amd64()).unwrap();
    let cache = bench.cache().with_limits(limits());
    let progress = &mut |_, _| ControlFlow::Continue(());
    let found = match &cache.compose_block(&layout, &image.layers, progress) {
        Ok(root) => {
            fs::create_dir(&target).unwrap();
            disk::mount_disk(&bench.root, root, &target);
            format!("accepted:\n{}", listing(&target))
        }
        Err(CacheError::Layer { source, .. }) => format!("refused: {}\n", chain(source)),
        Err(error) => return Err(format!("a block root fails by another error: {}", chain(error))),
    };
    check_left(&bench, found.starts_with("refused"))?;
    // The text of these errors comes from the kernel when a layer is unpacked.
    let is_refused_by_the_kernel =
        matches!(case, "xattr-name-too-long.tar" | "xattr-value-too-long.tar.zst");
    match found == merged(expected)
        || is_refused_by_the_kernel && found.contains("malformed extended attribute")
    {
        true => Ok(()),
        false => Err(format!("block root: expected\n{}found\n{found}", merged(expected))),
    }
}

/// Returns the listing of an unpacked layer without the marks of overlayfs. A layer without lower
/// layers has nothing to hide.
fn merged(expected: &str) -> String {
    let lines = expected.lines().filter(|line| !line.ends_with(" device 0"));
    lines.map(|line| line.replace(" trusted.overlay.opaque", "") + "\n").collect()
}

/// Unpacks the only image of a layout, and returns its layers, or the text of the error.
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

/// Returns the path of a directory of the cache.
fn cache_directory(bench: &Bench, name: &str) -> PathBuf {
    bench.path("cache/layers-v5").join(name)
}

/// Replaces the path of the layout in an error, because it differs from run to run.
fn without_path(bench: &Bench, text: &str) -> String {
    text.replace(bench.path("layout").to_str().unwrap(), "<layout>")
}

/// Lists a tree: mode, name, type or link target, and extended attributes of each file.
fn listing(root: &Path) -> String {
    let mut lines = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let found = fs::symlink_metadata(&path).unwrap();
        let kind = found.file_type();
        let suffix = if kind.is_dir() {
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
        // llistxattr(2) separates the names by NUL bytes.
        let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
        let names: String = names.map(|name| format!(" {}", name.escape_ascii())).collect();
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().escape_debug().to_string();
        let line = format!("    {:o} {name}{suffix}{names}\n", found.mode() & 0o7777);
        lines.insert(path.clone(), line);
    }
    // The root is not listed, because each tree has one.
    lines.remove(root);
    lines.into_values().collect::<String>()
}

/// A tree outside of the cache, at [`CANARY`], in a private mount namespace of the test.
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

    /// Returns the current tree as a text if it has changed since it was built.
    fn changes(&self) -> Option<String> {
        let found = tree(Path::new("/mnt"));
        (found != self.0).then(|| format!("the canary was changed: {found:?}"))
    }
}
