//! The layer cache: each layer is read once, for all boxes, and named by its content. A layer has
//! two forms, a tree and a layer file, which the cache treats alike.
//!
//! ```text
//! <dir>/                       mode 0700, because trees hold setuid files; see `host/private_dir`
//! └── layers-v5[-user-<map>]/  one directory for each format and, by its id maps, each user
//!     │                        namespace; mode 0700, like all directories in it
//!     ├── ready/<name>/        verified content in one of three forms; no file of it is written again
//!     │   ├── tree/            a tree: the lower directory of overlayfs, with whiteouts in its form
//!     │   ├── facts.json, seams    what a tree needs besides; see `record`
//!     │   ├── layer            a layer file; see `block`
//!     │   ├── root.erofs       a metadata image; see `block`
//!     │   ├── boot             symbolic link to the id of the boot that wrote the content
//!     │   └── synced           empty file, made when all of the content is on the disk
//!     ├── stacks/<list>        the content that makes the root of an image; see `list`
//!     ├── staging/<name>/      content that the holder of the exclusive lock is writing
//!     └── locks/<name>         locked: exclusive to write or remove the content, shared to use it;
//!                              the modification time is the time of the last use; see `lock`
//!
//! trees:  sha256-<hex>         a layer that was unpacked alone, by its id
//!         on-sha256-<hex>      a layer that was unpacked on top of those below it, by the chain id
//!         meta-sha256-<hex>    directories with the metadata of lower layers, by the chain id
//! files:  file-sha256-<hex>    a layer file, by the id of the layer
//!         root-sha256-<hex>    the metadata image of the layers with this chain id
//! lists:  sha256-<hex>         the trees of a stack, by the chain id
//!         root-sha256-<hex>    the metadata image of a block root and its devices, by the chain id
//! ```
//!
//! The id of a layer is a digest of its blob's digest and its `DiffID`
//! ([`Layer::id`](crate::Layer)), and the chain id is made of ids as a `ChainID` of `DiffID`s.
//!
//! This module contains no stacks and no block roots. `stack` decides which content an image needs
//! and makes it by a [`Recipe`](publish::Recipe).
//!
//! # State after a crash
//!
//! One rename publishes a layer. A process that dies therefore leaves a staging directory without a
//! lock, and the next process that unpacks a layer removes it.
//!
//! A crash of the machine can leave the rename on the disk without the content of the files. A
//! layer therefore counts as ready in two cases only. In the boot that wrote it, all processes see
//! the same page cache. In later boots, the layer must have been marked as `synced` after
//! `syncfs(2)`, which runs after the box has started, because it can take seconds. Any other layer
//! is unpacked again.

pub(crate) mod content;
pub(crate) mod error;
pub(crate) mod layer_cache;
pub(crate) mod list;
pub(crate) mod lock;
pub(crate) mod lookup;
pub(crate) mod name;
pub(crate) mod publish;
pub(crate) mod record;
pub(crate) mod retention;
pub(crate) mod staged;
pub(crate) mod task;
pub(crate) mod wait;
