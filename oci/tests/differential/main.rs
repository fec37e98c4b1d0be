//! Differential tests: whole images, as this crate and as other unpackers make them.
//!
//! ```text
//! images, build     real images, made by umoci, buildah and skopeo out of packages
//! edges             images of a few entries, one for each thing that unpackers disagree about
//! ours              resolve, unpack into the cache, overlay mount
//! umoci             flat: one layer after the other into one directory
//! containerd        twice: by its overlayfs snapshotter, and flat by its native one
//! tree              what can be compared of a tree
//! case              an image, and the run of all tools on it
//! verdict           what each tool is expected to make of an image, checked to the letter
//! ```
//!
//! The specification (layers are applied in order) decides where tools disagree. Each disagreement
//! is written down beside its image with the reason; one that no longer occurs fails like one that
//! was not expected. See `docs/decisions/0005-where-unpackers-disagree.md`.
//!
//! They run as root. Each test takes a mount namespace of its own and relies on nextest, which
//! gives each a process. They need umoci and containerd, and to build the real images also buildah,
//! skopeo and, once, packages of Debian and Python from the network.

#![expect(
    clippy::unwrap_used,
    reason = "what cannot be set up or looked at is a failure of the test"
)]

#[expect(dead_code, reason = "shared with the test binary `it`, which uses all of it")]
#[path = "../it/archive.rs"]
mod archive;
mod bench;
mod case;
mod containerd;
mod edges;
mod images;
mod layout;
mod ours;
mod tree;
mod umoci;
mod verdict;
