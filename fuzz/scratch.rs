//! What the fuzz targets share.
//!
//! Targets that read images use [`Scratch`]: a directory on tmpfs with an image layout in it.
//! Beside the layout is the canary, a tree that no image may change. The links of the hostile
//! corpus point to it, at `/mnt/canary`. Targets for block roots also use [`base_layer`],
//! [`block_root`] and [`erofs`]. The other targets use [`memory`], [`pieces`] and [`peer`].
//!
//! The tmpfs is mounted in a private mount namespace, which needs root. Unpacking needs root, too.

#![allow(clippy::unwrap_used, reason = "a failed setup must end the fuzzer")]

pub mod base_layer;
pub mod block_root;
pub mod erofs;
pub mod memory;
pub mod peer;
pub mod pieces;

use std::error::Error;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use a3s_box_oci::{Digest, Image, Layout, LayoutError};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Most bytes of an error with its causes. A log line must stay readable.
const ERROR_BYTES: usize = 4096;

/// The scratch directory of a target, with its state before the first input.
#[derive(Debug)]
pub struct Scratch {
    root: PathBuf,
    /// Mode, modification time and size of each file of the canary.
    canary: Vec<(u32, i64, i64, u64)>,
    /// Number of open fds.
    open_files: usize,
}

impl Scratch {
    /// Mounts and fills the scratch directory. A process may call it once.
    ///
    /// # Panics
    ///
    /// Panics if a system call fails.
    #[must_use]
    pub fn build() -> Self {
        // The namespace keeps the tmpfs off the host, and it ends with the process. Its mounts are
        // made private first, or the new mount would propagate to the host.
        unshare(CloneFlags::CLONE_NEWNS).expect("fuzzing needs root");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let root = PathBuf::from("/mnt");
        mount(Some("tmpfs"), &root, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        fs::create_dir_all(root.join("canary/dir")).unwrap();
        fs::write(root.join("canary/secret"), "secret").unwrap();
        fs::write(root.join("canary/dir/file"), "file").unwrap();
        fs::create_dir_all(root.join("layout/blobs/sha256")).unwrap();
        fs::write(root.join("layout/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let mut scratch = Self { root, canary: Vec::new(), open_files: 0 };
        scratch.canary = scratch.canary_state();
        scratch.open_files = open_files();
        scratch
    }

    /// Returns the path of a file in the scratch directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Writes a blob into the layout. Returns its digest, and the fields `"digest"` and `"size"` of
    /// its descriptor.
    ///
    /// # Panics
    ///
    /// Panics if the blob cannot be written.
    #[must_use]
    pub fn blob(&self, bytes: &[u8]) -> (Digest, String) {
        let digest = Digest::of(bytes);
        fs::write(self.path("layout/blobs/sha256").join(digest.hex()), bytes).unwrap();
        (digest, format!(r#""digest":"{digest}","size":{}"#, bytes.len()))
    }

    /// Resolves the image that these documents describe, and checks the outcome.
    ///
    /// `$M` in the index and `$C` in the manifest stand for digest and size of the manifest and of
    /// the configuration. A fuzzer could not find matching digests by itself.
    ///
    /// # Panics
    ///
    /// Panics if an error or the image breaks a promise of the API.
    pub fn resolve(&self, index: &[u8], manifest: &[u8], config: &[u8]) {
        let (_, config) = self.blob(config);
        let (_, manifest) = self.blob(&replace(manifest, b"$C", config.as_bytes()));
        fs::write(self.path("layout/index.json"), replace(index, b"$M", manifest.as_bytes()))
            .unwrap();
        let layout = Layout::open(&self.path("layout")).unwrap();
        for reference in [None, Some("name")] {
            let outcome = layout.resolve(reference, &"linux/amd64".parse().unwrap());
            check_image(&outcome);
        }
    }

    /// Removes the blobs of an input, and checks that the input has left nothing else behind.
    ///
    /// # Panics
    ///
    /// Panics if the canary has changed, an fd is still open, or the scratch directory has a new
    /// entry.
    pub fn clear(&self) {
        assert_eq!(self.canary_state(), self.canary, "the canary was changed");
        assert_eq!(open_files(), self.open_files, "a file is still open");
        let blobs = self.path("layout/blobs/sha256");
        fs::remove_dir_all(&blobs).unwrap();
        fs::create_dir(&blobs).unwrap();
        let mut names: Vec<_> =
            fs::read_dir(&self.root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.retain(|name| name != "cache");
        names.sort();
        assert_eq!(names, ["canary", "layout"], "an input created a file");
    }

    /// Reads mode, modification time and size of each file of the canary.
    fn canary_state(&self) -> Vec<(u32, i64, i64, u64)> {
        let state = |name: &&str| {
            let found = fs::symlink_metadata(self.path(name)).unwrap();
            (found.mode(), found.mtime(), found.mtime_nsec(), found.len())
        };
        ["canary", "canary/secret", "canary/dir", "canary/dir/file"].iter().map(state).collect()
    }
}

/// Checks the promises on which callers rely: an error is printable, and no text of an image has a
/// NUL byte, so that each can become an argument of `execve(2)`.
fn check_image(outcome: &Result<Image, LayoutError>) {
    match outcome {
        Err(error) => check_error(error),
        Ok(image) => {
            let config = &image.config;
            let words = config.entrypoint.iter().chain(&config.cmd);
            let variables = config.env.iter().flat_map(|(name, value)| [name, value]);
            let texts = words.chain(variables).chain([&config.user, &config.working_dir]);
            assert!(texts.chain(&config.stop_signal).all(|text| !text.contains('\0')));
        }
    }
}

/// Checks that an error with its causes is printable and short enough for a log line.
///
/// # Panics
///
/// Panics if it is not.
pub fn check_error(error: &dyn Error) {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &error.to_string();
        cause = error.source();
    }
    let has_control = text.chars().any(char::is_control);
    assert!(!has_control && text.len() <= ERROR_BYTES, "not printable or too long: {text:?}");
}

/// Replaces all occurrences of `from` in bytes that may not be UTF-8.
fn replace(text: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut replaced = Vec::new();
    let mut rest = text;
    while let Some(position) = rest.windows(from.len()).position(|window| window == from) {
        replaced.extend(&rest[..position]);
        replaced.extend(to);
        rest = &rest[position + from.len()..];
    }
    replaced.extend(rest);
    replaced
}

fn open_files() -> usize {
    fs::read_dir(Path::new("/proc/self/fd")).unwrap().count()
}
