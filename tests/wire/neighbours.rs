//! Boxes that run at once.
