//! Stacks: the layers that make the root of an image, in the order in which overlayfs mounts them.
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
//! The result depends on the `DiffID`s of the layers alone. The next box with the same layers
//! therefore reads the list, locks the layers, and is done.
//!
//! ```text
//! compose     makes a stack, or finds it by its list
//! overlap     decides where stacking differs from applying one layer after the other
//! recipe      the three ways to make a layer in the cache
//! durability  writes a stack to the disk
//! verify      compares cached layers with their blobs
//! ```

pub(crate) mod batch;
pub(crate) mod compose;
mod durability;
pub(crate) mod members;
mod overlap;
mod recipe;
pub(crate) mod verify;
