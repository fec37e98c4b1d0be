//! [`Extent`]: how much of a layer of the confinement is in force.

/// How much of a layer is in force after it was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// All of it.
    Full,
    /// A part of it, with the description of what is missing.
    Partial(&'static str),
}

impl From<()> for Extent {
    fn from((): ()) -> Self {
        Self::Full
    }
}
