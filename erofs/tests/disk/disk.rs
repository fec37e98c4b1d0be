//! A disk in a temporary file: the metadata image and the devices behind it.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use a3s_box_erofs::{BLOCK_BYTES, Device, Summary, Tree, write};
use tempfile::TempDir;

/// Blocks of a device from this one on contain zeros.
const WRITTEN_BLOCKS: u32 = 4096;

/// Returns the content of a block of a device, which is unlike that of all other blocks.
pub(crate) fn block_content(device: u16, block: u32) -> Vec<u8> {
    if block >= WRITTEN_BLOCKS {
        return vec![0; 4096];
    }
    let word = (u64::from(device) << 32 | u64::from(block) << 8 | 0xa5).to_le_bytes();
    word.repeat(512)
}

/// The UUID of each disk.
pub(crate) const UUID: [u8; 16] = *b"a UUID of a disk";

/// A disk in a temporary directory.
pub(crate) struct Disk {
    directory: TempDir,
    devices: Vec<Device>,
    pub(crate) summary: Summary,
}

impl Disk {
    /// Writes a tree and its devices.
    pub(crate) fn new(tree: &Tree, devices: &[Device]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut file = BufWriter::new(File::create(directory.path().join("disk")).unwrap());
        let summary = write(tree, devices, UUID, &mut file).unwrap();
        assert_eq!(file.stream_position().unwrap(), summary.metadata_bytes);
        let mut start = summary.metadata_bytes;
        for (device, Device { blocks }) in (1..).zip(devices) {
            file.seek(SeekFrom::Start(start)).unwrap();
            for block in 0..(*blocks).min(WRITTEN_BLOCKS) {
                file.write_all(&block_content(device, block)).unwrap();
            }
            start += u64::from(*blocks) * BLOCK_BYTES;
        }
        assert_eq!(start, summary.disk_bytes);
        file.into_inner().unwrap().set_len(start).unwrap();
        Self { directory, devices: devices.to_vec(), summary }
    }

    /// Returns the path of the file.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("disk")
    }

    /// Returns the metadata image.
    pub(crate) fn image(&self) -> Vec<u8> {
        let mut image = Vec::new();
        let file = File::open(self.path()).unwrap();
        file.take(self.summary.metadata_bytes).read_to_end(&mut image).unwrap();
        image
    }

    /// Copies the image and each device to a file of their own, and returns these files.
    pub(crate) fn split(&self, directory: &Path) -> Vec<PathBuf> {
        let mut disk = File::open(self.path()).unwrap();
        let devices = self.devices.iter().map(|device| u64::from(device.blocks) * BLOCK_BYTES);
        let sizes = [self.summary.metadata_bytes].into_iter().chain(devices);
        let copy = |(number, size): (usize, u64)| {
            let path = directory.join(number.to_string());
            let mut part = File::create(&path).unwrap();
            let copied = std::io::copy(&mut (&mut disk).take(size), &mut part).unwrap();
            assert_eq!(copied, size);
            path
        };
        sizes.enumerate().map(copy).collect()
    }

    /// Mounts the disk read-only, by a loop device.
    pub(crate) fn mount(&self) -> Mounted<'_> {
        let root = self.directory.path().join("root");
        std::fs::create_dir_all(&root).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "erofs", "-o", "ro,loop"]).args([&self.path(), &root]);
        let status = mount.status().unwrap();
        assert!(status.success(), "the mount failed (these tests need root): {status}");
        Mounted { root, _disk: self }
    }
}

/// A mounted disk.
pub(crate) struct Mounted<'a> {
    root: PathBuf,
    _disk: &'a Disk,
}

impl Mounted<'_> {
    /// Returns the mount point.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // The temporary directory could not be removed below a mount. The mount may be busy for a
        // moment, because a program that another test starts inherits files until its exec. So it
        // is only detached here.
        let status = Command::new("umount").arg("--lazy").arg(&self.root).status();
        let is_detached = status.is_ok_and(|status| status.success());
        assert!(is_detached || std::thread::panicking(), "umount failed");
    }
}
