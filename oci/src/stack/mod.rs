//! Stacks and block roots: the content of the cache that makes the root of an image. The layers of a
//! stack are in the order in which overlayfs mounts them.
//!
//! ```text
//!  batch: each layer alone, several at once ──► overlap: is it right on the layers below it?
//!         sha256-…                                yes: it is used     no: it is unpacked
//!                                                      as it is           on top: on-sha256-…
//!                                           ──► directories get the metadata of lower layers:
//!                                               meta-sha256-…
//!                                           ──► the names are listed: stacks/<chain>
//! ```
//!
//! A block root has a layer file for each layer, and one metadata image for all of them:
//!
//! ```text
//!  batch: each layer alone, several at once ──► block_recipe: all are merged in order
//!         file-sha256-…                         root-sha256-…
//!                                           ──► the names are listed: stacks/root-<chain>
//! ```
//!
//! The result depends on the blobs of the layers alone. The next box with the same layers
//! therefore reads the list, locks its content, and is done.
//!
//! ```text
//! verify           compares cached content with its blobs
//! block_verify     compares layer files and metadata images
//! tree_difference  compares two trees
//! durability       writes a stack or a block root to the disk
//! compose          makes a stack, or finds it by its list
//! overlap          decides where stacking differs from applying one layer after the other
//! block_compose    makes a block root, or finds it by its list
//! block_recipe     the two ways to make a part of a block root
//! batch            makes the layers of an image, several at once
//! recipe           the three ways to make a tree
//! perform          does the work of a recipe in this process, or by an unpacker
//! ```

pub(crate) mod batch;
mod block_compose;
mod block_recipe;
pub(crate) mod block_root;
mod block_verify;
pub(crate) mod compose;
mod durability;
pub(crate) mod members;
mod overlap;
mod perform;
mod recipe;
mod tree_difference;
pub(crate) mod verify;
