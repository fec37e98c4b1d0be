//! The ground that targets share: for those that read images, a directory in memory with a layout in it,
//! and a tree outside that must stay as it is. For the others, [`memory`], [`pieces`] and [`peer`].
//!
//! The tree is where the links of the hostile corpus lead, `/mnt/canary`, in a mount namespace of
//! the fuzzer's own. Needs root, as unpacking does.

#![allow(clippy::unwrap_used, reason = "what cannot be set up ends the fuzzer")]

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

/// Longest error that is fit to be shown.
const ERROR_BYTES: usize = 4096;

/// Where everything happens.
#[derive(Debug)]
pub struct Ground {
    root: PathBuf,
    canary: Vec<(u32, i64, i64, u64)>,
    open_files: usize,
}

impl Ground {
    /// Builds the ground; once in a process.
    ///
    /// # Panics
    ///
    /// When the system refuses.
    #[must_use]
    pub fn build() -> Self {
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
        let mut ground = Self { root, canary: Vec::new(), open_files: 0 };
        ground.canary = ground.look();
        ground.open_files = open_files();
        ground
    }

    /// Returns the path of something on the ground.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Puts a blob into the layout; the text behind `"digest":` and `"size":` of its descriptor is
    /// returned with its digest.
    ///
    /// # Panics
    ///
    /// When it cannot be written.
    #[must_use]
    pub fn blob(&self, bytes: &[u8]) -> (Digest, String) {
        let digest = Digest::of(bytes);
        fs::write(self.path("layout/blobs/sha256").join(digest.hex()), bytes).unwrap();
        (digest, format!(r#""digest":"{digest}","size":{}"#, bytes.len()))
    }

    /// Resolves the image of these documents, in which `$M` and `$C` stand for digest and size of
    /// the manifest and of the configuration.
    ///
    /// # Panics
    ///
    /// When an error is not fit to be shown.
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

    /// Removes what an input has left, and checks that it has left nothing else.
    ///
    /// # Panics
    ///
    /// When the tree outside was touched, or a file is still open.
    pub fn clear(&self) {
        assert_eq!(self.look(), self.canary, "the canary was touched");
        assert_eq!(open_files(), self.open_files, "a file is still open");
        let blobs = self.path("layout/blobs/sha256");
        fs::remove_dir_all(&blobs).unwrap();
        fs::create_dir(&blobs).unwrap();
        let mut names: Vec<_> =
            fs::read_dir(&self.root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.retain(|name| name != "cache");
        names.sort();
        assert_eq!(names, ["canary", "layout"], "something was planted");
    }

    /// Looks at the tree outside.
    fn look(&self) -> Vec<(u32, i64, i64, u64)> {
        let look = |name: &&str| {
            let found = fs::symlink_metadata(self.path(name)).unwrap();
            (found.mode(), found.mtime(), found.mtime_nsec(), found.len())
        };
        ["canary", "canary/secret", "canary/dir", "canary/dir/file"].iter().map(look).collect()
    }
}

/// Checks what callers rely on.
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

/// Checks that an error, with its causes, is fit to be shown.
///
/// # Panics
///
/// When it is not.
pub fn check_error(error: &dyn Error) {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &error.to_string();
        cause = error.source();
    }
    let has_control = text.chars().any(char::is_control);
    assert!(!has_control && text.len() <= ERROR_BYTES, "not fit to be shown: {text:?}");
}

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
