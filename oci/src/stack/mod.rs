//! Stacks: the layers of an image as they are mounted.

pub(crate) mod batch;
pub(crate) mod compose;
pub(crate) mod overlap;
pub(crate) mod verify;
