//! Makes layers of many small files, with names and depths as in images of programs.

use std::io;

use tar::{Builder, EntryType, Header};

/// Files in a directory.
const DIRECTORY_FILES: usize = 100;

/// Returns the archive of a layer with this number of entries.
///
/// All paths differ from those of other layers, so that each entry makes an inode. The last two
/// entries are a whiteout of a file of the layer below, for which the merge applies the layer to an
/// empty tree first, and a hard link to a file of the first layer.
pub fn archive(layer: usize, entries: usize) -> io::Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::with_capacity(entries * 1024));
    let directory = |layer, number| format!("usr/lib/node_modules/layer{layer}-{number}/dist");
    for number in 0..entries.saturating_sub(2) {
        let of_directory = number / DIRECTORY_FILES;
        let name = directory(layer, of_directory);
        match number % DIRECTORY_FILES {
            0 => append(&mut tar, &format!("{name}/"), EntryType::Directory, "", b"")?,
            file => append(
                &mut tar,
                &format!("{name}/component-{file}.js"),
                EntryType::Regular,
                "",
                b"content",
            )?,
        }
    }
    if let Some(below) = layer.checked_sub(1) {
        let (own, below) = (directory(layer, 0), directory(below, 0));
        append(&mut tar, &format!("{below}/.wh.component-1.js"), EntryType::Regular, "", b"")?;
        let target = format!("{}/component-2.js", directory(0, 0));
        append(&mut tar, &format!("{own}/linked.js"), EntryType::Link, &target, b"")?;
    }
    tar.into_inner()
}

/// Returns the number of inodes of an image of such layers.
pub fn inodes(layers: usize, entries: usize) -> usize {
    let numbered = entries.saturating_sub(2);
    // A directory of files has a parent of its own. Each whiteout hides a file.
    let parents = numbered.div_ceil(DIRECTORY_FILES);
    let root_and_common_parents = 4;
    root_and_common_parents + layers * (numbered + parents) - layers.saturating_sub(1)
}

fn append(
    tar: &mut Builder<Vec<u8>>,
    name: &str,
    kind: EntryType,
    target: &str,
    content: &[u8],
) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_path(name)?;
    if !target.is_empty() {
        header.set_link_name(target)?;
    }
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_size(content.len() as u64);
    header.set_cksum();
    tar.append(&header, content)
}
