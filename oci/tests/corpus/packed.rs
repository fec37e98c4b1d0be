//! Packs a directory into one archive, the form in which the corpus keeps image layouts.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tar::{Archive, EntryType};

use crate::archive::{Tar, header};

/// Packs a directory. The entries are in the order of their names, so that each run gives the same
/// bytes.
pub(crate) fn pack(directory: &Path) -> Vec<u8> {
    let mut tar = Tar::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(path) = pending.pop() {
        let name = path.strip_prefix(directory).unwrap().to_str().unwrap();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        tar = if kind.is_dir() {
            let mut inside: Vec<_> =
                fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
            inside.sort();
            pending.extend(inside.into_iter().rev());
            tar.dir(if name.is_empty() { "./" } else { name })
        } else if kind.is_symlink() {
            tar.symlink(name, fs::read_link(&path).unwrap().to_str().unwrap())
        } else if kind.is_fifo() {
            tar.entry(EntryType::Fifo, name, 0o644, b"")
        } else {
            let body = fs::read(&path).unwrap();
            let mut header = header(EntryType::Regular, name, 0o644);
            header.set_size(body.len() as u64);
            tar.header(header, &body)
        };
    }
    tar.bytes()
}

/// Unpacks an archive of [`pack`] into `directory`, which must not exist.
pub(crate) fn unpack(bytes: &[u8], directory: &Path) {
    for entry in Archive::new(bytes).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = directory.join(OsStr::from_bytes(&entry.path_bytes()));
        // mkdir(2) fails for `directory/./`, so the components are joined again without `.`.
        let path: PathBuf = path.components().collect();
        match entry.header().entry_type() {
            EntryType::Directory => fs::create_dir(path).unwrap(),
            EntryType::Symlink => symlink(entry.link_name().unwrap().unwrap(), path).unwrap(),
            EntryType::Fifo => mkfifo(&path, Mode::S_IRUSR).unwrap(),
            _ => {
                let mut body = Vec::new();
                entry.read_to_end(&mut body).unwrap();
                fs::write(path, body).unwrap();
            }
        }
    }
}
