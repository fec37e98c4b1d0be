//! The state of a box on this host: its directory, the two records in it, and the disk for what the
//! box writes.

#[expect(dead_code, reason = "no root on a block device calls it yet")]
pub(crate) mod block_disk;
pub(crate) mod dir;
pub(crate) mod disk;
pub(crate) mod record;
