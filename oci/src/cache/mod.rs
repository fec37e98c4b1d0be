pub(crate) mod layer_cache;
pub(crate) mod record;
pub(crate) mod retention;
