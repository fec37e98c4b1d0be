//! Images made in code, and the tree that a box must see of them.
//!
//! The expected tree comes from a model of its own: names in a map, hidden and replaced as the image
//! specification says, far from how the shim does it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use a3s_box_oci::Digest;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use crate::chance::Chance;
use crate::tree::{Kind, Node, Tree};

/// Modification time of the first entry.
const TIME_S: u64 = 1_700_000_000;

/// Bytes from which all files' content is cut.
const POOL_BYTES: usize = 3 << 20;

/// An entry of a layer.
pub(crate) struct Entry {
    path: String,
    what: What,
    mode: u32,
    owner: u32,
    time_s: u64,
}

enum What {
    Directory,
    File(Vec<u8>),
    Symlink(String),
    HardLink(String),
    Fifo,
    /// Hides a name of the layers below.
    Gone,
    /// Hides all that the layers below have in this directory.
    Opaque,
}

/// An image, bottom layer first.
pub(crate) struct Image {
    layers: Vec<Vec<Entry>>,
    pool: Vec<u8>,
    chance: Chance,
}

impl Image {
    fn new() -> Self {
        let mut chance = Chance::fixed(7);
        // Each word four times: compresses as programs do.
        let pool =
            (0..POOL_BYTES / 32).flat_map(|_| chance.next().to_le_bytes().repeat(4)).collect();
        Self { layers: Vec::new(), pool, chance }
    }

    /// Five layers with some 3,000 files and 30 MB, and everything that layers are made of.
    pub(crate) fn realistic() -> Self {
        let mut image = Self::new();
        image.layer();
        image.link("bin", "usr/bin");
        image.files("usr/bin", 250, 20_000);
        image.files("usr/lib", 450, 20_000);
        image.files("etc", 150, 2_000);
        image.files("var/cache/apt", 100, 8_000);
        image.files("usr/share/doc", 350, 6_000);
        image.add("usr/bin/su", What::File(b"#!setuid".to_vec()), 0o4755, 0);
        image.add("usr/bin/mail", What::File(b"#!setgid".to_vec()), 0o2755, 8);
        image.directory("tmp", 0o1777);
        for i in 0..40 {
            let target = format!("usr/lib/f{i}");
            image.add(&format!("usr/lib/hard{i}"), What::HardLink(target), 0o644, 0);
        }
        image.layer();
        image.files("usr/lib", 120, 30_000);
        image.files("usr/lib/python", 600, 20_000);
        image.link("usr/lib/python/latest", "../f3");
        image.layer();
        image.directories("usr/share/doc");
        image.hide("usr/share", ".wh.doc", What::Gone);
        image.hide("var/cache", ".wh..wh..opq", What::Opaque);
        image.files("var/cache", 20, 2_000);
        for i in 0..30 {
            image.hide("usr/bin", &format!(".wh.f{i}"), What::Gone);
        }
        image.layer();
        image.files("srv/app", 900, 12_000);
        image.large("srv/app/model", 2_500_000);
        image.large("srv/app/data", 1_500_000);
        image.add("srv/app/queue", What::Fifo, 0o600, 33);
        image.layer();
        image.files("etc", 30, 3_000);
        // A file where a directory was, and a directory where a file was.
        image.hide("usr/lib", ".wh.python", What::Gone);
        image.add("usr/lib/python", What::File(b"moved".to_vec()), 0o644, 0);
        image.files("usr/bin/f100", 20, 5_000);
        image.link("srv/loop", "loop");
        image
    }

    /// One layer of so many bytes, in files of 100 kB.
    pub(crate) fn of_one_layer(bytes: usize) -> Self {
        let mut image = Self::new();
        image.layer();
        image.directories("data");
        for i in 0..bytes / 100_000 {
            image.large(&format!("data/f{i}"), 100_000);
        }
        image
    }

    pub(crate) fn layer_count(&self) -> usize {
        self.layers.len()
    }

    fn layer(&mut self) {
        self.layers.push(Vec::new());
        self.directory("", 0o755);
    }

    fn add(&mut self, path: &str, what: What, mode: u32, owner: u32) {
        let time_s = TIME_S + self.chance.next() % 10_000_000;
        let layer = self.layers.last_mut().unwrap();
        layer.push(Entry { path: path.to_owned(), what, mode, owner, time_s });
    }

    fn directory(&mut self, path: &str, mode: u32) {
        let is = |entry: &Entry| entry.path == path && matches!(entry.what, What::Directory);
        if !self.layers.last().unwrap().iter().any(is) {
            self.add(path, What::Directory, mode, 0);
        }
    }

    /// Describes a directory and those above it.
    fn directories(&mut self, path: &str) {
        for (i, _) in path.match_indices('/') {
            self.directory(&path[..i], 0o755);
        }
        self.directory(path, 0o755);
    }

    /// Adds `count` files of up to `most` bytes.
    fn files(&mut self, directory: &str, count: usize, most: usize) {
        self.directories(directory);
        for i in 0..count {
            let length = self.chance.below(most);
            self.large(&format!("{directory}/f{i}"), length);
        }
    }

    fn large(&mut self, path: &str, length: usize) {
        let start = self.chance.below(POOL_BYTES - length);
        let content = self.pool[start..start + length].to_vec();
        let owner = u32::try_from(self.chance.below(3)).unwrap() * 1000;
        self.add(path, What::File(content), 0o644, owner);
    }

    fn link(&mut self, path: &str, target: &str) {
        if let Some((directory, _)) = path.rsplit_once('/') {
            self.directories(directory);
        }
        self.add(path, What::Symlink(target.to_owned()), 0o777, 0);
    }

    fn hide(&mut self, directory: &str, name: &str, what: What) {
        self.directories(directory);
        self.add(&format!("{directory}/{name}"), what, 0o644, 0);
    }

    /// Writes the image as a layout into the new directory `layout`.
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

    /// The tree that a box must see.
    pub(crate) fn tree(&self) -> Tree {
        let mut tree = Tree::new();
        for layer in &self.layers {
            for entry in layer {
                hide(&mut tree, entry);
            }
            let mut own = Tree::new();
            for entry in layer {
                add(&mut own, entry);
            }
            for (path, node) in own {
                if node.kind != Kind::Directory {
                    tree.retain(|other, _| other == &path || !is_in(other, &path));
                }
                tree.insert(path, node);
            }
        }
        tree
    }
}

/// Whether `path` is `directory` or below it.
fn is_in(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Takes away what an entry hides of the layers below.
fn hide(tree: &mut Tree, entry: &Entry) {
    match &entry.what {
        What::Gone => {
            let hidden = entry.path.replace(".wh.", "");
            tree.retain(|path, _| !is_in(path, &hidden));
        }
        What::Opaque => {
            let (directory, _) = entry.path.rsplit_once('/').unwrap();
            tree.retain(|path, _| path == directory || !is_in(path, directory));
        }
        _ => {}
    }
}

/// Adds what an entry makes.
fn add(tree: &mut Tree, entry: &Entry) {
    let kind = match &entry.what {
        What::Directory => Kind::Directory,
        What::File(content) => Kind::File(content.clone()),
        What::Symlink(target) => Kind::Symlink(PathBuf::from(target)),
        What::Fifo => Kind::Fifo,
        What::HardLink(target) => {
            let target = tree.get_mut(target).unwrap();
            target.links += 1;
            let node = target.clone();
            assert_eq!(node.links, 2, "the model counts pairs only");
            tree.insert(entry.path.clone(), node);
            return;
        }
        What::Gone | What::Opaque => return,
    };
    let node = Node {
        kind,
        mode: entry.mode,
        owner: (entry.owner, entry.owner),
        mtime_s: i64::try_from(entry.time_s).unwrap(),
        links: 1,
        xattrs: Vec::new(),
    };
    tree.insert(entry.path.clone(), node);
}

fn archive(layer: &[Entry]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    for entry in layer {
        let (kind, content, target): (_, &[u8], _) = match &entry.what {
            What::Directory => (EntryType::Directory, b"", None),
            What::File(content) => (EntryType::Regular, content, None),
            What::Symlink(target) => (EntryType::Symlink, b"", Some(target)),
            What::HardLink(target) => (EntryType::Link, b"", Some(target)),
            What::Fifo => (EntryType::Fifo, b"", None),
            What::Gone | What::Opaque => (EntryType::Regular, b"", None),
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
        header.set_mtime(entry.time_s);
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
