//! What a block root requires of the guest kernel, found in the kernel's image without a boot.
//!
//! A kernel that is built with a driver or a file system contains texts that no other part of it
//! has: the name of the cache for its inodes (`/proc/slabinfo`), or a message. libkrunfw bundles
//! the kernel uncompressed, so that these texts are in its image as they are in the source. Names of
//! functions are not: the table of symbols is compressed (`scripts/kallsyms.c` of Linux). A driver
//! that is a module is not in the image, and libkrunfw has no modules.
//!
//! | requirement | text in the image | its place in Linux 6.12 |
//! |---|---|---|
//! | EROFS | `erofs_inode`, an inode cache | `fs/erofs/super.c`, `erofs_module_init` |
//! | EROFS with extended attributes | one of two messages about a damaged inode | `fs/erofs/xattr.c`, which is compiled only with `CONFIG_EROFS_FS_XATTR` |
//! | ext4 | `ext4_inode_cache`, an inode cache | `fs/ext4/super.c`, `init_inodecache` |
//! | overlayfs | `ovl_inode`, an inode cache | `fs/overlayfs/super.c`, `ovl_init` |
//! | virtio-blk | one of two messages about a disk | `drivers/block/virtio_blk.c`, `virtblk_update_capacity` and `virtblk_read_limits` |
//!
//! Where two messages count, one of them may change with Linux. The files of a block root are
//! divided into chunks on several devices. EROFS has chunks since Linux 5.15 and devices since 5.16,
//! without an option of its own. The version of the library that
//! [`GuestKernel::load`](super::GuestKernel::load) accepts began with Linux 6.12.
//!
//! An image cannot show whether EROFS returns `security.*`, and with it the capabilities of files,
//! because `CONFIG_EROFS_FS_SECURITY` adds no text.
//!
//! These libraries were examined, all for x86-64. Each has all five:
//!
//! | libkrunfw | Linux | source |
//! |---|---|---|
//! | 5.6.1 | 6.12.113 | PyPI, `microsandbox` 0.7.11 |
//! | 5.5.0 | 6.12.91 | Debian sid, `libkrunfw5` |
//! | not stated | 6.12.87 | PyPI, inside of `boxlite` 0.10.8 |
//! | not stated | 6.12.76 | PyPI, inside of `boxlite` 0.9.0 |
//! | 5.2.1 | 6.12.68 | PyPI, `microsandbox` 0.3.13, 0.4.6 and 0.5.10 |

use memchr::memmem;

/// A part of the kernel.
struct Requirement {
    name: &'static str,
    /// The kernel has the part if its image contains one of these texts.
    texts: &'static [&'static str],
}

/// The first byte of a text is not tied to what stands before it, because the linker stores a
/// string that is the end of another one only once. The NUL at the end excludes longer names.
const REQUIREMENTS: [Requirement; 5] = [
    Requirement { name: "EROFS", texts: &["erofs_inode\0"] },
    Requirement {
        name: "EROFS with extended attributes",
        texts: &["xattr_isize %d of nid %llu", "bogus xattr ibody @ nid %llu"],
    },
    Requirement { name: "ext4", texts: &["ext4_inode_cache\0"] },
    Requirement { name: "overlayfs", texts: &["ovl_inode\0"] },
    Requirement {
        name: "virtio-blk",
        texts: &["%d-byte logical blocks (%s/%s)", "virtio_blk: max_secure_erase_seg"],
    },
];

/// Part of the image that is searched for all texts before the next part. It fits into the cache of
/// a CPU.
const PART_BYTES: usize = 256 * 1024;

/// Where the search begins, in percent of the image. The linker puts the texts of all drivers
/// together, and in the examined libraries they are at 77 to 82 %.
const FIRST_PERCENT: usize = 79;

/// Bound on the length of a text.
const MAX_TEXT_BYTES: usize = 32;

/// Returns the names of the requirements that the kernel in `image` does not meet.
pub(super) fn lacks(image: &[u8]) -> Vec<&'static str> {
    let mut missing: Vec<_> = REQUIREMENTS
        .iter()
        .map(|Requirement { name, texts }| {
            (*name, texts.iter().map(memmem::Finder::new).collect::<Vec<_>>())
        })
        .collect();
    for part in parts(image) {
        missing.retain(|(_, texts)| !texts.iter().any(|text| text.find(part).is_some()));
        if missing.is_empty() {
            break;
        }
    }
    missing.into_iter().map(|(name, _)| name).collect()
}

/// Returns the parts of an image, from the most likely place of the texts outwards, which saves
/// most of the search. Each continues into the next one by the length of a text, because a text may
/// begin in one part and end in the other.
fn parts(image: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut starts: Vec<_> = (0..image.len()).step_by(PART_BYTES).collect();
    starts.sort_by_key(|start| start.abs_diff(image.len() / 100 * FIRST_PERCENT));
    starts
        .into_iter()
        .map(|start| &image[start..image.len().min(start + PART_BYTES + MAX_TEXT_BYTES)])
}

/// Returns the names of the requirements that the environment variable `A3S_BOX_FAKE_KERNEL_LACKS`
/// lists, separated by commas. For the fake VM, which has no guest kernel.
pub(super) fn lacks_of_fake() -> Vec<&'static str> {
    if !cfg!(feature = "fake") {
        return Vec::new();
    }
    let lacks = std::env::var("A3S_BOX_FAKE_KERNEL_LACKS").unwrap_or_default();
    let names = REQUIREMENTS.iter().map(|requirement| requirement.name);
    names.filter(|name| lacks.split(',').any(|lacking| lacking == *name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image of four parts with the first text of each requirement at one of many places.
    fn image(without: Option<usize>, place: impl Fn(usize) -> usize) -> Vec<u8> {
        let mut image = vec![0x90; 4 * PART_BYTES];
        for (index, Requirement { texts, .. }) in REQUIREMENTS.iter().enumerate() {
            if Some(index) != without {
                let text = texts[index % texts.len()].as_bytes();
                image[place(index)..][..text.len()].copy_from_slice(text);
            }
        }
        image
    }

    #[test]
    fn each_requirement_is_found_at_any_place_and_missed_alone() {
        for step in [0, 1, MAX_TEXT_BYTES / 2, MAX_TEXT_BYTES] {
            // The places are at the beginning of the image, and across the borders of the parts.
            let place = |index| index * PART_BYTES - if index == 0 { 0 } else { step };
            let place = |index: usize| if index == 4 { 100 } else { place(index) };
            assert_eq!(lacks(&image(None, place)), [""; 0], "{step}");
            for (index, Requirement { name, .. }) in REQUIREMENTS.iter().enumerate() {
                assert_eq!(lacks(&image(Some(index), place)), [*name], "{step}");
            }
        }
    }

    #[test]
    fn image_without_any_text_lacks_everything() {
        let all = REQUIREMENTS.map(|requirement| requirement.name);
        assert_eq!(lacks(&[]), all);
        assert_eq!(lacks(b"erofs_inode"), all);
        assert_eq!(lacks(b"ext4_inode_cacheX ovl_inode_x"), all);
    }

    #[test]
    fn texts_have_the_assumed_lengths() {
        for text in REQUIREMENTS.iter().flat_map(|requirement| requirement.texts) {
            assert!((8..=MAX_TEXT_BYTES).contains(&text.len()), "{text:?}");
        }
    }
}
