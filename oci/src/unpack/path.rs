//! Checks and normalizes the names of entries before they are used.
//!
//! A name is a sequence of bytes and relative to the root of the tree: `/etc`, `./etc` and `etc/`
//! are the same name. `..` removes the component before it, and is ignored at the root: `a/../b`
//! and `../b` are `b`. This uses only the text of the name, even if `a` is a symbolic link, because
//! other tools do the same (Go's `filepath.Clean`).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::limits::Limits;

/// The kernel's limit on one component (`NAME_MAX`).
pub(crate) const NAME_BYTES: usize = 255;

/// The kernel's limit on a path (`PATH_MAX`), without the final NUL.
pub(crate) const PATH_BYTES: usize = 4095;

/// Limit on symbolic links in one path. The kernel has the same limit (`MAXSYMLINKS`).
pub(crate) const SYMLINK_HOPS: usize = 40;

/// A name of an entry, or of a hard link's target, that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The name is empty.
    #[error("the name is empty")]
    Empty,
    /// The name holds a NUL byte, which no file name can have.
    #[error("the name holds a NUL byte")]
    Nul,
    /// The name or a component exceeds the limits of the kernel.
    #[error(
        "the name is too long: expected at most {PATH_BYTES} bytes, and {NAME_BYTES} between slashes"
    )]
    TooLong,
    /// The name has more components than [`Limits::path_depth`].
    #[error("the name is too deep: expected at most {limit} components")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
}

/// The path of an entry below the root of a tree: components that are joined by single slashes. The
/// path of the root itself is empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct EntryPath(Vec<u8>);

impl EntryPath {
    pub(crate) fn parse(raw: &[u8], limits: &Limits) -> Result<Self, PathError> {
        if raw.is_empty() {
            return Err(PathError::Empty);
        }
        // `tar` refuses a NUL in the records `path` and `linkpath`, but not in `GNU.sparse.name`. A
        // system call would end the path at the NUL, so that no file can have this name.
        if raw.contains(&0) {
            return Err(PathError::Nul);
        }
        let mut clean: Vec<&[u8]> = Vec::new();
        for component in components(raw) {
            match component {
                // At the root there is nothing to remove. `..` in the root directory is the root
                // itself (`path_resolution(7)`).
                b".." => drop(clean.pop()),
                _ => clean.push(component),
            }
        }
        // The limits apply to the normalized path, because only this path reaches the kernel. The
        // archive bounds the original name: a name longer than a header field is in an extension
        // header of at most 1 MiB.
        if clean.len() > limits.path_depth {
            return Err(PathError::TooDeep { limit: limits.path_depth });
        }
        let path = clean.join(&b'/');
        if path.len() > PATH_BYTES || clean.iter().any(|component| component.len() > NAME_BYTES) {
            return Err(PathError::TooLong);
        }
        Ok(Self(path))
    }

    /// Returns the path of the root.
    pub(crate) fn root() -> Self {
        Self(Vec::new())
    }

    /// Returns the path with these bytes, or `None` if [`Self::parse`] returns no such path.
    pub(crate) fn from_normalized(bytes: Vec<u8>) -> Option<Self> {
        let is_name = |component: &[u8]| {
            !matches!(component, b"" | b"." | b"..") && component.len() <= NAME_BYTES
        };
        // The path of the root is empty, and has no components.
        let is_path = bytes.is_empty() || bytes.split(|byte| *byte == b'/').all(is_name);
        (is_path && bytes.len() <= PATH_BYTES && !bytes.contains(&0)).then_some(Self(bytes))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn to_path(&self) -> PathBuf {
        PathBuf::from(OsStr::from_bytes(&self.0))
    }

    /// Returns the directory and the name in it, or `None` for the root.
    pub(crate) fn split(&self) -> Option<(&[u8], &[u8])> {
        if self.0.is_empty() {
            return None;
        }
        Some(match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&self.0[..slash], &self.0[slash + 1..]),
            None => (&[], &self.0),
        })
    }

    /// Returns the path of the directory. The parent of the root is the root.
    pub(crate) fn parent(&self) -> Self {
        Self(self.split().map(|(parent, _)| parent.to_vec()).unwrap_or_default())
    }

    /// Returns the path of `name` in the same directory.
    pub(crate) fn sibling(&self, name: &[u8]) -> Self {
        match self.split() {
            Some((parent, _)) if !parent.is_empty() => Self([parent, name].join(&b'/')),
            // The parent is the root, whose path is empty. A slash before the name would make the
            // path absolute.
            _ => Self(name.to_vec()),
        }
    }

    /// Iterates over the path itself and all directories above it. The root is last.
    pub(crate) fn ancestors(&self) -> impl Iterator<Item = Self> {
        std::iter::successors(Some(self.clone()), |path| path.split().map(|_| path.parent()))
    }
}

/// Splits a path at slashes, and omits empty components and `.`.
pub(crate) fn components(raw: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    raw.split(|byte| *byte == b'/').filter(|component| !component.is_empty() && *component != b".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(raw: &[u8]) -> Result<EntryPath, PathError> {
        EntryPath::parse(raw, &Limits::default())
    }

    #[test]
    fn spellings_of_one_path_are_equal() {
        for raw in ["a/b", "./a/b", "/a/b", "a//b/", "///a/./b/."] {
            assert_eq!(parse(raw.as_bytes()).unwrap().as_bytes(), b"a/b", "{raw}");
        }
        for raw in
            ["../a/b", "/../../a/b", "a/../a/b", "a/b/c/..", "x/../../../a/./y/../b", "..//../a/b"]
        {
            assert_eq!(parse(raw.as_bytes()).unwrap().as_bytes(), b"a/b", "{raw}");
        }
        assert_eq!(parse(b".../..a/a..").unwrap().as_bytes(), b".../..a/a..");
        for raw in [".", "./", "/", "..", "../..", "a/..", "/a/b/../../.."] {
            assert_eq!(parse(raw.as_bytes()).unwrap().split(), None, "{raw}");
        }
    }

    #[test]
    fn unusable_name_is_refused() {
        let long_name = vec![b'n'; 256];
        let long_path = b"0123456789/".repeat(400);
        let deep = b"a/".repeat(300);
        let cases: [(&[u8], PathError); 5] = [
            (b"", PathError::Empty),
            (b"a\0b", PathError::Nul),
            (&long_name, PathError::TooLong),
            (&long_path, PathError::TooDeep { limit: 256 }),
            (&deep, PathError::TooDeep { limit: 256 }),
        ];
        for (raw, expected) in cases {
            assert_eq!(parse(raw), Err(expected), "{}", raw.escape_ascii());
        }
    }

    #[test]
    fn only_a_normalized_path_is_taken_as_it_is() {
        for raw in ["", "a", "a/b", ".a/..b/..."] {
            let path = EntryPath::from_normalized(raw.into()).unwrap();
            assert_eq!(path.as_bytes(), raw.as_bytes());
        }
        let long = ["n".repeat(256), "n/".repeat(2048)];
        for raw in ["/", "/a", "a/", "a//b", ".", "a/./b", "..", "a/..", "a\0", &long[0], &long[1]]
        {
            assert_eq!(EntryPath::from_normalized(raw.into()), None, "{}", raw.escape_debug());
        }
    }

    #[test]
    fn sibling_and_ancestors_of_a_path_are_returned() {
        let path = parse(b"a/b/c").unwrap();
        assert_eq!(path.sibling(b"d"), parse(b"a/b/d").unwrap());
        assert_eq!(parse(b"a").unwrap().sibling(b"d"), parse(b"d").unwrap());
        let ancestors: Vec<Vec<u8>> =
            path.ancestors().map(|path| path.as_bytes().to_vec()).collect();
        assert_eq!(ancestors, [&b"a/b/c"[..], b"a/b", b"a", b""]);
    }
}
