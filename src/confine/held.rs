//! [`Held`]: what came of taking a layer on.

/// How much of a layer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    Whole,
    /// What it lacks.
    Part(&'static str),
}

impl From<()> for Held {
    fn from((): ()) -> Self {
        Self::Whole
    }
}
