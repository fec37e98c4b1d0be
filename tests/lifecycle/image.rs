//! Generated images, and a model of the tree that a box must see.
//!
//! The model keeps the paths in a map and applies the layer rules of the OCI image specification to
//! it. It shares no code with the shim, which stacks layers with overlayfs.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use a3s_box_oci::Digest;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use crate::random::Random;
use crate::tree::{Kind, Node, Tree};

/// Earliest modification time of an entry.
const TIME_S: u64 = 1_700_000_000;

/// Size of the random bytes of which every file contains a part.
const POOL_BYTES: usize = 3 << 20;

/// An entry of a layer.
pub(crate) struct Entry {
    path: String,
    content: Content,
    mode: u32,
    /// User and group.
    owner: u32,
    mtime_s: u64,
}

enum Content {
    Directory,
    File(Vec<u8>),
    Symlink(String),
    HardLink(String),
    Fifo,
    /// Hides a name of the layers below.
    Whiteout,
    /// Hides everything that the layers below have in this directory.
    OpaqueWhiteout,
}

/// An image: its layers, the bottom layer first.
pub(crate) struct Image {
    layers: Vec<Vec<Entry>>,
    pool: Vec<u8>,
    random: Random,
}

impl Image {
    fn new() -> Self {
        let mut random = Random::fixed(7);
        // Each word appears four times, so that the files are compressible like those of images.
        let pool =
            (0..POOL_BYTES / 32).flat_map(|_| random.next().to_le_bytes().repeat(4)).collect();
        Self { layers: Vec::new(), pool, random }
    }

    /// Returns an image of five layers with about 3,000 files and 30 MB, and every kind of entry.
    pub(crate) fn realistic() -> Self {
        let mut image = Self::new();
        image.layer();
        image.link("bin", "usr/bin");
        image.files("usr/bin", 250, 20_000);
        image.files("usr/lib", 450, 20_000);
        image.files("etc", 150, 2_000);
        image.files("var/cache/apt", 100, 8_000);
        image.files("usr/share/doc", 350, 6_000);
        image.add("usr/bin/su", Content::File(b"#!setuid".to_vec()), 0o4755, 0);
        image.add("usr/bin/mail", Content::File(b"#!setgid".to_vec()), 0o2755, 8);
        image.directory("tmp", 0o1777);
        for i in 0..40 {
            let target = format!("usr/lib/f{i}");
            image.add(&format!("usr/lib/hard{i}"), Content::HardLink(target), 0o644, 0);
        }
        image.layer();
        image.files("usr/lib", 120, 30_000);
        image.files("usr/lib/python", 600, 20_000);
        image.link("usr/lib/python/latest", "../f3");
        image.layer();
        image.directories("usr/share/doc");
        image.hide("usr/share", ".wh.doc", Content::Whiteout);
        image.hide("var/cache", ".wh..wh..opq", Content::OpaqueWhiteout);
        image.files("var/cache", 20, 2_000);
        for i in 0..30 {
            image.hide("usr/bin", &format!(".wh.f{i}"), Content::Whiteout);
        }
        image.layer();
        image.files("srv/app", 900, 12_000);
        image.file("srv/app/model", 2_500_000);
        image.file("srv/app/data", 1_500_000);
        image.add("srv/app/queue", Content::Fifo, 0o600, 33);
        image.layer();
        image.files("etc", 30, 3_000);
        // A file replaces a directory, and a directory replaces a file.
        image.hide("usr/lib", ".wh.python", Content::Whiteout);
        image.add("usr/lib/python", Content::File(b"moved".to_vec()), 0o644, 0);
        image.files("usr/bin/f100", 20, 5_000);
        image.link("srv/loop", "loop");
        image
    }

    /// Returns an image of one layer with `bytes` bytes in files of 100 kB.
    pub(crate) fn of_one_layer(bytes: usize) -> Self {
        let mut image = Self::new();
        image.layer();
        image.directories("data");
        for i in 0..bytes / 100_000 {
            image.file(&format!("data/f{i}"), 100_000);
        }
        image
    }

    /// Returns an image of one layer with `count` empty files, whose names are long.
    pub(crate) fn of_empty_files(count: usize) -> Self {
        let mut image = Self::new();
        image.layer();
        image.directories("data");
        for i in 0..count {
            image.file(&format!("data/{i:080}"), 0);
        }
        image
    }

    pub(crate) fn layer_count(&self) -> usize {
        self.layers.len()
    }

    /// Begins a new layer on top.
    fn layer(&mut self) {
        self.layers.push(Vec::new());
        self.directory("", 0o755);
    }

    fn add(&mut self, path: &str, content: Content, mode: u32, owner: u32) {
        let mtime_s = TIME_S + self.random.next() % 10_000_000;
        let layer = self.layers.last_mut().unwrap();
        layer.push(Entry { path: path.to_owned(), content, mode, owner, mtime_s });
    }

    /// Adds a directory, unless the top layer has it already.
    fn directory(&mut self, path: &str, mode: u32) {
        let is_same =
            |entry: &Entry| entry.path == path && matches!(entry.content, Content::Directory);
        if !self.layers.last().unwrap().iter().any(is_same) {
            self.add(path, Content::Directory, mode, 0);
        }
    }

    /// Adds a directory and its parents.
    fn directories(&mut self, path: &str) {
        for (i, _) in path.match_indices('/') {
            self.directory(&path[..i], 0o755);
        }
        self.directory(path, 0o755);
    }

    /// Adds `count` files of fewer than `bound` bytes each.
    fn files(&mut self, directory: &str, count: usize, bound: usize) {
        self.directories(directory);
        for i in 0..count {
            let length = self.random.below(bound);
            self.file(&format!("{directory}/f{i}"), length);
        }
    }

    /// Adds a file of `length` bytes of one of three owners.
    fn file(&mut self, path: &str, length: usize) {
        let start = self.random.below(POOL_BYTES - length);
        let content = self.pool[start..start + length].to_vec();
        let owner = u32::try_from(self.random.below(3)).unwrap() * 1000;
        self.add(path, Content::File(content), 0o644, owner);
    }

    fn link(&mut self, path: &str, target: &str) {
        if let Some((directory, _)) = path.rsplit_once('/') {
            self.directories(directory);
        }
        self.add(path, Content::Symlink(target.to_owned()), 0o777, 0);
    }

    /// Adds a whiteout, whose `name` begins with `.wh.`.
    fn hide(&mut self, directory: &str, name: &str, content: Content) {
        self.directories(directory);
        self.add(&format!("{directory}/{name}"), content, 0o644, 0);
    }

    /// Writes the image as an OCI image layout into the new directory `layout`.
    pub(crate) fn write(&self, layout: &Path) {
        let blobs = layout.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let blob = |kind: &str, bytes: &[u8]| -> Value {
            let digest = Digest::of(bytes);
            fs::write(blobs.join(digest.hex()), bytes).unwrap();
            let kind = format!("application/vnd.oci.image.{kind}");
            json!({"mediaType": kind, "digest": digest.to_string(), "size": bytes.len()})
        };
        let archives: Vec<Vec<u8>> = self.layers.iter().map(|layer| archive(layer)).collect();
        let diff_ids: Vec<String> =
            archives.iter().map(|archive| Digest::of(archive).to_string()).collect();
        let layers: Vec<Value> =
            archives.iter().map(|archive| blob("layer.v1.tar+gzip", &gzip(archive))).collect();
        let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
        let config = json!({
            "os": "linux", "architecture": architecture, "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = blob("config.v1+json", config.to_string().as_bytes());
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        let manifest = blob("manifest.v1+json", manifest.to_string().as_bytes());
        let index = json!({"schemaVersion": 2, "manifests": [manifest]});
        fs::write(layout.join("index.json"), index.to_string()).unwrap();
    }

    /// Returns the tree that a box must see.
    pub(crate) fn tree(&self) -> Tree {
        let mut tree = Tree::new();
        for layer in &self.layers {
            // A whiteout hides only files of lower layers, wherever it stands in its own layer.
            // All whiteouts are therefore applied before the other entries of the layer.
            for entry in layer {
                hide(&mut tree, entry);
            }
            let mut own = Tree::new();
            for entry in layer {
                add(&mut own, entry);
            }
            for (path, node) in own {
                // A file replaces a directory of a lower layer with everything in it.
                if node.kind != Kind::Directory {
                    tree.retain(|other, _| other == &path || !is_in(other, &path));
                }
                tree.insert(path, node);
            }
        }
        tree
    }
}

/// Tells whether `path` is `directory` or below it.
fn is_in(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Removes the paths that a whiteout hides from the tree of the lower layers.
fn hide(tree: &mut Tree, entry: &Entry) {
    match &entry.content {
        Content::Whiteout => {
            let hidden = entry.path.replace(".wh.", "");
            tree.retain(|path, _| !is_in(path, &hidden));
        }
        Content::OpaqueWhiteout => {
            let (directory, _) = entry.path.rsplit_once('/').unwrap();
            tree.retain(|path, _| path == directory || !is_in(path, directory));
        }
        _ => {}
    }
}

/// Adds the file of an entry to a tree. A whiteout adds none.
fn add(tree: &mut Tree, entry: &Entry) {
    let kind = match &entry.content {
        Content::Directory => Kind::Directory,
        Content::File(content) => Kind::File(content.clone()),
        Content::Symlink(target) => Kind::Symlink(PathBuf::from(target)),
        Content::Fifo => Kind::Fifo,
        Content::HardLink(target) => {
            let target = tree.get_mut(target).unwrap();
            target.links += 1;
            let node = target.clone();
            // The earlier names of a third link would need an update as well.
            assert_eq!(node.links, 2, "the model supports two names of a file at most");
            tree.insert(entry.path.clone(), node);
            return;
        }
        Content::Whiteout | Content::OpaqueWhiteout => return,
    };
    // An entry for the root changes nothing (decision 0005). The root has mode 0755 and time 0.
    let mtime_s = if entry.path.is_empty() { 0 } else { i64::try_from(entry.mtime_s).unwrap() };
    let node = Node {
        kind,
        mode: entry.mode,
        owner: (entry.owner, entry.owner),
        mtime_s,
        links: 1,
        xattrs: Vec::new(),
    };
    tree.insert(entry.path.clone(), node);
}

fn archive(layer: &[Entry]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    for entry in layer {
        let (kind, content, target): (_, &[u8], _) = match &entry.content {
            Content::Directory => (EntryType::Directory, b"", None),
            Content::File(content) => (EntryType::Regular, content, None),
            Content::Symlink(target) => (EntryType::Symlink, b"", Some(target)),
            Content::HardLink(target) => (EntryType::Link, b"", Some(target)),
            Content::Fifo => (EntryType::Fifo, b"", None),
            Content::Whiteout | Content::OpaqueWhiteout => (EntryType::Regular, b"", None),
        };
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_path(if entry.path.is_empty() { "." } else { &entry.path }).unwrap();
        if let Some(target) = target {
            header.set_link_name(target).unwrap();
        }
        header.set_mode(entry.mode);
        header.set_uid(entry.owner.into());
        header.set_gid(entry.owner.into());
        header.set_mtime(entry.mtime_s);
        header.set_size(content.len() as u64);
        header.set_cksum();
        archive.append(&header, content).unwrap();
    }
    archive.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
