//! A test directory with an image layout and a layer cache, and functions that describe trees.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use a3s_box_oci::{
    Algorithm, CacheError, CachedLayer, Digest, Image, Layer, LayerCache, Layout, Platform, Stack,
};
use flate2::Compression as Level;
use flate2::write::GzEncoder;
use tempfile::TempDir;

use crate::archive::Tar;

pub(crate) const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// A directory that holds an image layout in `layout` and a layer cache in `cache`.
pub(crate) struct Bench {
    pub(crate) root: PathBuf,
    /// The algorithm for the names of new blobs, and for the `DiffID`s of [`Bench::image`].
    pub(crate) algorithm: Algorithm,
    /// Removes the directory. It is `None` if the caller removes it.
    guard: Option<TempDir>,
}

/// A blob in the layout: the fields of its descriptor.
#[derive(Clone)]
pub(crate) struct Blob {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut bench = Self::make_at(dir.path());
        bench.guard = Some(dir);
        bench
    }

    /// Creates an empty layout in a directory that the caller removes.
    pub(crate) fn make_at(root: &Path) -> Self {
        fs::create_dir_all(root.join("layout/blobs")).unwrap();
        fs::write(root.join("layout/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self::at(root)
    }

    /// Opens the directory that another process has created and will remove.
    pub(crate) fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), algorithm: Algorithm::Sha256, guard: None }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn blob_path(&self, digest: Digest) -> PathBuf {
        self.path("layout/blobs").join(digest.algorithm().name()).join(digest.hex())
    }

    /// Writes a blob into the layout.
    pub(crate) fn blob(&self, media_type: &str, bytes: &[u8]) -> Blob {
        let digest = self.algorithm.digest(bytes);
        let path = self.blob_path(digest);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        Blob { media_type: media_type.to_owned(), digest, size: bytes.len() as u64 }
    }

    /// Writes the blobs of an image with gzip layers, and returns its manifest. `layers` has the
    /// bottom layer first.
    pub(crate) fn image(&self, platform: &str, layers: &[Tar]) -> Blob {
        let blobs: Vec<Blob> =
            layers.iter().map(|layer| self.blob(GZIP, &gzip(&layer.bytes()))).collect();
        let diff_ids: Vec<Digest> =
            layers.iter().map(|layer| self.algorithm.digest(&layer.bytes())).collect();
        self.image_of(platform, &blobs, &diff_ids)
    }

    /// Writes configuration and manifest of an image whose layers are in the layout already.
    pub(crate) fn image_of(&self, platform: &str, layers: &[Blob], diff_ids: &[Digest]) -> Blob {
        self.manifest(&self.config(platform, diff_ids), layers)
    }

    /// Writes an image configuration. Its `platform` has the form `os/architecture`.
    pub(crate) fn config(&self, platform: &str, diff_ids: &[Digest]) -> Blob {
        let (os, architecture) = platform.split_once('/').unwrap();
        let diff_ids: Vec<String> = diff_ids.iter().map(|digest| format!("\"{digest}\"")).collect();
        let config = format!(
            r#"{{"os":"{os}","architecture":"{architecture}","rootfs":{{"type":"layers","diff_ids":[{}]}},
               "config":{{"Env":["A=1","B=x=y"],"Entrypoint":["/init"],"Cmd":null,"User":"7:8","WorkingDir":"/srv"}}}}"#,
            diff_ids.join(",")
        );
        self.blob(CONFIG, config.as_bytes())
    }

    pub(crate) fn manifest(&self, config: &Blob, layers: &[Blob]) -> Blob {
        let layers: Vec<String> = layers.iter().map(|layer| layer.descriptor("")).collect();
        let config = config.descriptor("");
        let manifest =
            format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{}]}}"#, layers.join(","));
        self.blob(MANIFEST, manifest.as_bytes())
    }

    pub(crate) fn index(&self, descriptors: &[String]) -> Blob {
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, descriptors.join(","));
        self.blob(INDEX, index.as_bytes())
    }

    /// Writes `index.json` with these descriptors.
    pub(crate) fn publish(&self, descriptors: &[String]) {
        let index = self.index(descriptors);
        fs::copy(self.blob_path(index.digest), self.path("layout/index.json")).unwrap();
    }

    pub(crate) fn layout(&self) -> Layout {
        Layout::open(&self.path("layout")).unwrap()
    }

    pub(crate) fn cache(&self) -> LayerCache {
        LayerCache::open(&self.path("cache")).unwrap()
    }

    /// Publishes an image of `layers` and resolves it.
    pub(crate) fn resolved(&self, layers: &[Tar]) -> Image {
        self.publish(&[self.image("linux/amd64", layers).descriptor("")]);
        self.layout().resolve(None, &amd64()).unwrap()
    }

    /// Composes an image of one layer, and returns the layer as it is unpacked alone.
    ///
    /// The field `hit` is the result of the first call, before the image is composed.
    pub(crate) fn unpack(&self, layer: &Layer) -> Result<CachedLayer, CacheError> {
        let (cache, layout) = (self.cache(), self.layout());
        let unpack = || cache.get_or_unpack(&layout, layer, &mut |_| ControlFlow::Continue(()));
        let hit = unpack()?.hit;
        cache.compose(&layout, &[*layer], &mut |_, _| ControlFlow::Continue(()))?;
        let mut layer = unpack()?;
        layer.hit = hit;
        Ok(layer)
    }

    /// Unpacks all layers of an image into the cache.
    pub(crate) fn compose(&self, image: &Image) -> Result<Stack, CacheError> {
        let progress = &mut |_, _| ControlFlow::Continue(());
        self.cache().compose(&self.layout(), &image.layers, progress)
    }

    /// Publishes an image of one layer, and unpacks the layer.
    pub(crate) fn unpack_tar(&self, tar: Tar) -> Result<CachedLayer, CacheError> {
        self.unpack(&self.resolved(&[tar]).layers[0])
    }

    /// Asserts that the cache has neither layers nor unfinished trees.
    pub(crate) fn assert_cache_is_empty(&self) {
        for directory in ["ready", "staging"] {
            let names = fs::read_dir(self.path("cache/layers-v5").join(directory)).unwrap();
            assert_eq!(names.count(), 0, "{directory}");
        }
    }
}

impl Drop for Bench {
    /// Detaches the mounts that a test can make, because a mount point cannot be removed.
    fn drop(&mut self) {
        for directory in ["root", "cache"] {
            // The result is ignored: in most tests these are no mount points (`EINVAL`).
            let _ = nix::mount::umount2(&self.path(directory), nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

impl Blob {
    /// Returns the descriptor as JSON. `extra` is a platform such as `linux/arm64`, a reference
    /// name such as `app:1`, or empty.
    pub(crate) fn descriptor(&self, extra: &str) -> String {
        let extra = match extra.split_once('/') {
            _ if extra.is_empty() => String::new(),
            Some((os, architecture)) if !extra.contains(':') => {
                format!(r#","platform":{{"os":"{os}","architecture":"{architecture}"}}"#)
            }
            _ => format!(r#","annotations":{{"org.opencontainers.image.ref.name":"{extra}"}}"#),
        };
        format!(
            r#"{{"mediaType":"{}","digest":"{}","size":{}{extra}}}"#,
            self.media_type, self.digest, self.size
        )
    }
}

pub(crate) fn amd64() -> Platform {
    "linux/amd64".parse().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Level::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Joins the messages of an error and its causes with `: `.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut texts = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        texts.push(error.to_string());
        cause = error.source();
    }
    texts.join(": ")
}

/// The root of each layer and image in the form of [`tree`]. An entry for it changes nothing.
pub(crate) const ROOT: &str = "755 0:0 0.000000000 dir";

/// Maps the path of `root` and of each entry below it to mode, owner, time, type and content.
pub(crate) fn tree(root: &Path) -> BTreeMap<String, String> {
    let mut entries = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let found = fs::symlink_metadata(&path).unwrap();
        let kind = found.file_type();
        let content = if kind.is_file() {
            format!("file {}", fs::read(&path).unwrap().escape_ascii())
        } else if kind.is_symlink() {
            format!("link {}", fs::read_link(&path).unwrap().as_os_str().as_bytes().escape_ascii())
        } else if kind.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            "dir".to_owned()
        } else if kind.is_fifo() {
            "fifo".to_owned()
        } else {
            format!("device {}", found.rdev())
        };
        let name =
            path.strip_prefix(root).unwrap().as_os_str().as_bytes().escape_ascii().to_string();
        let time = format!("{}.{:09}", found.mtime(), found.mtime_nsec());
        entries.insert(
            name,
            format!("{:o} {}:{} {time} {content}", found.mode() & 0o7777, found.uid(), found.gid()),
        );
    }
    entries
}

/// Returns the sorted paths of all entries below `root`.
pub(crate) fn names(root: &Path) -> Vec<String> {
    tree(root).into_keys().filter(|name| !name.is_empty()).collect()
}
