//! The names in the cache: of layers, and of the files in a layer's directory.

use crate::image::digest::Digest;

/// The tree of a layer, in the layer's directory.
pub(crate) const TREE: &str = "tree";

/// The file of a layer, in the directory of the layer file.
pub(crate) const LAYER_FILE: &str = "layer";

/// The metadata image of a block root, in its directory.
pub(crate) const METADATA_IMAGE: &str = "root.erofs";

/// Symbolic link to the id of the boot in which a layer was written, in the layer's directory.
pub(crate) const BOOT: &str = "boot";

/// Marks a layer that is completely on the disk, in the layer's directory.
pub(crate) const SYNCED: &str = "synced";

/// Prefix of the name of a layer that was unpacked on top of the layers below it.
const ON_TOP: &str = "on-";

/// Prefix of the name of a layer that restores the metadata of directories.
const RESTORED: &str = "meta-";

/// Prefix of the name of a layer file.
const FILE: &str = "file-";

/// Prefix of the name of a metadata image.
const ROOT: &str = "root-";

/// The form of what a directory of the cache contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Tree,
    LayerFile,
    MetadataImage,
}

impl Form {
    /// Returns the form of the content with this name.
    pub(crate) fn of(name: &str) -> Self {
        if name.starts_with(FILE) {
            Self::LayerFile
        } else if name.starts_with(ROOT) {
            Self::MetadataImage
        } else {
            Self::Tree
        }
    }

    /// Returns the name of the content in its directory.
    pub(crate) fn entry(self) -> &'static str {
        match self {
            Self::Tree => TREE,
            Self::LayerFile => LAYER_FILE,
            Self::MetadataImage => METADATA_IMAGE,
        }
    }
}

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
pub(crate) fn restored(chain: Digest) -> String {
    format!("{RESTORED}{}", of_digest(chain))
}

/// Returns the name of the layer file of the layer with this `DiffID`.
pub(crate) fn layer_file(diff_id: Digest) -> String {
    format!("{FILE}{}", of_digest(diff_id))
}

/// Returns the name of the metadata image of the layers with this `ChainID`, and also the name of
/// the list of this block root.
pub(crate) fn root(chain: Digest) -> String {
    format!("{ROOT}{}", of_digest(chain))
}

/// Returns whether `text` is the name of a layer or of a metadata image. A name is safe as a path
/// component, because it contains a parsed digest and a known prefix only.
pub(crate) fn is_known(text: &str) -> bool {
    let prefixes = [ON_TOP, RESTORED, FILE, ROOT];
    let digest = prefixes.iter().find_map(|prefix| text.strip_prefix(prefix)).unwrap_or(text);
    digest.replacen('-', ":", 1).parse::<Digest>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_this_module_makes_are_known() {
        let digest = Digest::of(b"layer");
        let names = [of_digest, on_top, restored, layer_file, root].map(|name| name(digest));
        for name in &names {
            assert!(is_known(name), "{name}");
        }
        let entries = names.map(|name| Form::of(&name).entry());
        assert_eq!(entries, [TREE, TREE, TREE, LAYER_FILE, METADATA_IMAGE]);
        for text in
            ["", "..", "on-", "on-meta-", "root-file-", "sha256-00", "../sha256-00", "synced"]
        {
            assert!(!is_known(text), "{text}");
        }
    }
}
