//! The configuration of an image, in a layout that is as it should be.

#![no_main]

use std::sync::LazyLock;

use ground::Ground;
use libfuzzer_sys::fuzz_target;

static GROUND: LazyLock<Ground> = LazyLock::new(Ground::build);

const INDEX: &str = r#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json",
    "platform":{"os":"linux","architecture":"amd64"},$M}]}"#;

const MANIFEST: &str = r#"{"schemaVersion":2,"layers":[],
    "config":{"mediaType":"application/vnd.oci.image.config.v1+json",$C}}"#;

fuzz_target!(|config: &[u8]| {
    GROUND.resolve(INDEX.as_bytes(), MANIFEST.as_bytes(), config);
    GROUND.clear();
});
