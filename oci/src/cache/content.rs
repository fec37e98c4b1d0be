//! The forms of content in the cache: trees of layers, layer files, and metadata images.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use a3s_box_erofs::ReadError;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::name::Form;
use super::record::Record;
use crate::block::image::MetadataImage;
use crate::block::index::IndexError;
use crate::block::layer_file::LayerFile;
use crate::unpack::facts::LayerFacts;

/// Size of an entry of a tree without its content: one block of most file systems.
const ENTRY_BYTES: u64 = 4096;

/// Size of the blocks that `st_blocks` counts (`stat(2)`).
const STAT_BLOCK_BYTES: u64 = 512;

/// The content of a directory of the cache, opened.
pub(crate) trait Content: Sized {
    /// The form of the content.
    const FORM: Form;

    /// Opens the content of `directory`. Returns `None` if it is damaged, as far as its size and its
    /// ends show: a start must not read all of it.
    fn open(directory: &OwnedFd) -> io::Result<Option<Self>>;

    /// Returns the facts about the layer, if the content is one.
    fn facts(&self) -> Option<LayerFacts>;

    /// Returns the disk space that the content takes.
    fn stored_bytes(&self) -> io::Result<u64>;
}

/// A tree is described by its record.
impl Content for Record {
    const FORM: Form = Form::Tree;

    fn open(directory: &OwnedFd) -> io::Result<Option<Self>> {
        Self::read(directory)
    }

    fn facts(&self) -> Option<LayerFacts> {
        Some(self.facts)
    }

    fn stored_bytes(&self) -> io::Result<u64> {
        // Holes take no disk space.
        let stored_bytes = self.facts.bytes.saturating_sub(self.facts.hole_bytes);
        Ok(stored_bytes.saturating_add(ENTRY_BYTES.saturating_mul(self.facts.entries)))
    }
}

impl Content for LayerFile {
    const FORM: Form = Form::LayerFile;

    fn open(directory: &OwnedFd) -> io::Result<Option<Self>> {
        match Self::open(open_file(directory, Form::LayerFile)?) {
            Err(IndexError::Read(error)) => unless_cut_off(error),
            opened => Ok(opened.ok()),
        }
    }

    fn facts(&self) -> Option<LayerFacts> {
        Some(self.facts())
    }

    fn stored_bytes(&self) -> io::Result<u64> {
        file_bytes(self.file())
    }
}

impl Content for MetadataImage {
    const FORM: Form = Form::MetadataImage;

    fn open(directory: &OwnedFd) -> io::Result<Option<Self>> {
        match Self::open(open_file(directory, Form::MetadataImage)?) {
            Err(ReadError::File(error)) => unless_cut_off(error),
            opened => Ok(opened.ok()),
        }
    }

    fn facts(&self) -> Option<LayerFacts> {
        None
    }

    fn stored_bytes(&self) -> io::Result<u64> {
        file_bytes(self.file())
    }
}

/// Opens the file of a form of content for reading.
pub(crate) fn open_file(directory: &OwnedFd, form: Form) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(File::from(openat(directory, form.entry(), flags, Mode::empty())?))
}

/// Returns `None` for the error of a file that ends too early, which is damaged, and any other error
/// as it is.
fn unless_cut_off<T>(error: io::Error) -> io::Result<Option<T>> {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Ok(None),
        _ => Err(error),
    }
}

fn file_bytes(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.blocks().saturating_mul(STAT_BLOCK_BYTES))
}
