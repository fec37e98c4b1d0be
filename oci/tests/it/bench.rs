//! The bench of these tests: writes archives and layouts, unpacks layers, reads trees back.

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

/// A directory with a layout and a cache in it.
pub(crate) struct Bench {
    pub(crate) root: PathBuf,
    /// What names the blobs that are written from now on, and the `DiffID`s of `image`.
    pub(crate) algorithm: Algorithm,
    guard: Option<TempDir>,
}

/// What a descriptor needs.
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

    /// Makes a layout in a directory that the caller removes.
    pub(crate) fn make_at(root: &Path) -> Self {
        fs::create_dir_all(root.join("layout/blobs")).unwrap();
        fs::write(root.join("layout/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self::at(root)
    }

    /// Takes the directory of another process, which removes it.
    pub(crate) fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), algorithm: Algorithm::Sha256, guard: None }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn blob_path(&self, digest: Digest) -> PathBuf {
        self.path("layout/blobs").join(digest.algorithm().name()).join(digest.hex())
    }

    pub(crate) fn blob(&self, media_type: &str, bytes: &[u8]) -> Blob {
        let digest = self.algorithm.digest(bytes);
        let path = self.blob_path(digest);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        Blob { media_type: media_type.to_owned(), digest, size: bytes.len() as u64 }
    }

    /// Writes manifest and configuration of an image with gzip layers, given bottom first.
    pub(crate) fn image(&self, platform: &str, layers: &[Tar]) -> Blob {
        let blobs: Vec<Blob> =
            layers.iter().map(|layer| self.blob(GZIP, &gzip(&layer.bytes()))).collect();
        let diff_ids: Vec<Digest> =
            layers.iter().map(|layer| self.algorithm.digest(&layer.bytes())).collect();
        self.image_of(platform, &blobs, &diff_ids)
    }

    pub(crate) fn image_of(&self, platform: &str, layers: &[Blob], diff_ids: &[Digest]) -> Blob {
        self.manifest(&self.config(platform, diff_ids), layers)
    }

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

    /// Writes `index.json`.
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

    /// Unpacks a layer alone, if an image of it alone can be composed.
    pub(crate) fn unpack(&self, layer: &Layer) -> Result<CachedLayer, CacheError> {
        let (cache, layout) = (self.cache(), self.layout());
        let unpack = || cache.get_or_unpack(&layout, layer, &mut |_| ControlFlow::Continue(()));
        let hit = unpack()?.hit;
        cache.compose(&layout, &[*layer], &mut |_, _| ControlFlow::Continue(()))?;
        let mut layer = unpack()?;
        layer.hit = hit;
        Ok(layer)
    }

    /// Puts all of an image into the cache.
    pub(crate) fn compose(&self, image: &Image) -> Result<Stack, CacheError> {
        let progress = &mut |_, _| ControlFlow::Continue(());
        self.cache().compose(&self.layout(), &image.layers, progress)
    }

    /// Unpacks an image of one layer.
    pub(crate) fn unpack_tar(&self, tar: Tar) -> Result<CachedLayer, CacheError> {
        self.unpack(&self.resolved(&[tar]).layers[0])
    }

    /// Asserts that nothing can be seen of a layer that was not unpacked.
    pub(crate) fn assert_cache_is_empty(&self) {
        for directory in ["ready", "staging"] {
            let names = fs::read_dir(self.path("cache/layers-v2").join(directory)).unwrap();
            assert_eq!(names.count(), 0, "{directory}");
        }
    }
}

impl Drop for Bench {
    /// Unmounts what a test may have mounted, or its directory could not be removed.
    fn drop(&mut self) {
        for directory in ["root", "cache"] {
            // Most tests mount nothing.
            let _ = nix::mount::umount2(&self.path(directory), nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

impl Blob {
    /// Writes a descriptor; `extra` is a platform such as `linux/arm64`, a `name` in quotes, or
    /// nothing.
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

/// Joins an error and its causes.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut texts = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        texts.push(error.to_string());
        cause = error.source();
    }
    texts.join(": ")
}

/// Describes each entry below `root`: `path` to kind, mode, owner, links or content, and time.
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

/// Lists the names below `root`.
pub(crate) fn names(root: &Path) -> Vec<String> {
    tree(root).into_keys().filter(|name| !name.is_empty()).collect()
}
