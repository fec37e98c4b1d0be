//! The layer cache: each layer is unpacked once, for all boxes, under the name of its content.

pub(crate) mod layer_cache;
pub(crate) mod record;
pub(crate) mod retention;
