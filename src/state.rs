//! The state of a box on this host: its directory, the two records in it, and the disk for what the
//! box writes.

pub(crate) mod block_disk;
pub(crate) mod dir;
pub(crate) mod disk;
mod disk_template;
pub(crate) mod record;
