//! The names in the cache: of layers, and of the files in a layer's directory.

use crate::image::digest::Digest;

/// The tree of a layer, in the layer's directory.
pub(crate) const TREE: &str = "tree";

/// Symbolic link to the id of the boot in which a layer was written, in the layer's directory.
pub(crate) const BOOT: &str = "boot";

/// Marks a layer that is completely on the disk, in the layer's directory.
pub(crate) const SYNCED: &str = "synced";

/// Prefix of the name of a layer that was unpacked on top of the layers below it.
const ON_TOP: &str = "on-";

/// Prefix of the name of a layer that restores the metadata of directories.
const METADATA: &str = "meta-";

/// Returns the name of the layer that was unpacked alone and has this `DiffID`, and also the name
/// of the list of a stack with this `ChainID`.
pub(crate) fn of_digest(digest: Digest) -> String {
    // A colon separates directories in the `lowerdir` option of overlayfs. Without one, a tree can
    // also be mounted by hand.
    digest.to_string().replace(':', "-")
}

/// Returns the name of the layer that was unpacked on top of the layers below it.
pub(crate) fn on_top(chain: Digest) -> String {
    format!("{ON_TOP}{}", of_digest(chain))
}

/// Returns the name of the layer that restores the metadata of directories in the stack `chain`.
pub(crate) fn metadata(chain: Digest) -> String {
    format!("{METADATA}{}", of_digest(chain))
}

/// Returns whether `text` is the name of a layer. A name is safe as a path component, because it
/// contains a parsed digest and a known prefix only.
pub(crate) fn is_layer(text: &str) -> bool {
    let digest = text.strip_prefix(ON_TOP).or_else(|| text.strip_prefix(METADATA)).unwrap_or(text);
    digest.replacen('-', ":", 1).parse::<Digest>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_this_module_makes_are_names_of_layers() {
        let digest = Digest::of(b"layer");
        for name in [of_digest(digest), on_top(digest), metadata(digest)] {
            assert!(is_layer(&name), "{name}");
        }
        for text in ["", "..", "on-", "on-meta-", "sha256-00", "../sha256-00", "synced"] {
            assert!(!is_layer(text), "{text}");
        }
    }
}
