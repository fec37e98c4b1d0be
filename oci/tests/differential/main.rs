//! Differential tests: this crate and other tools unpack the same images, and the trees are
//! compared.
//!
//! ```text
//! images, build     real images that umoci, buildah and skopeo make from packages
//! edges             generated images of a few entries, one for each disagreement of unpackers
//! ours              this crate: resolves an image, unpacks it into a cache and mounts it
//! umoci             applies one layer after the other to one directory
//! containerd        the overlayfs snapshotter, and the native one, which copies and applies
//! tree              reads a tree in a form that can be compared
//! case              an image, and the run of all tools on it
//! verdict           the expected outcome of each tool, and its comparison with the real one
//! ```
//!
//! This crate also makes a block root of each image, which the kernel mounts. Its tree is compared
//! with the tree of the unpacked image.
//!
//! Where tools disagree, the image specification decides: layers are applied in order. Each image
//! lists its disagreements with a reason. A test fails if a tool disagrees in another way, and also
//! if a listed disagreement no longer occurs. See
//! `docs/decisions/0005-where-unpackers-disagree.md`.
//!
//! The tests run as root. Each test needs a process of its own, as nextest starts it, because it
//! changes the mount namespace of its process. The tests need umoci and containerd. The first build
//! of the real images also needs buildah, skopeo, and packages of Debian and Python from the
//! network.

#![expect(clippy::unwrap_used, reason = "a failed setup or check is a failure of the test")]

#[expect(dead_code, reason = "shared with the test binary `it`, which uses all of it")]
#[path = "../it/archive.rs"]
mod archive;
mod bench;
mod case;
mod containerd;
#[path = "../property/disk.rs"]
mod disk;
mod edges;
mod images;
mod layout;
mod ours;
mod tree;
mod umoci;
mod verdict;
