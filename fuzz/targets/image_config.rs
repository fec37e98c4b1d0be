//! Fuzzes the configuration of an image in an otherwise valid layout.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use scratch::Scratch;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::build);

const INDEX: &str = r#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json",
    "platform":{"os":"linux","architecture":"amd64"},$M}]}"#;

const MANIFEST: &str = r#"{"schemaVersion":2,"layers":[],
    "config":{"mediaType":"application/vnd.oci.image.config.v1+json",$C}}"#;

fuzz_target!(|config: &[u8]| {
    SCRATCH.resolve(INDEX.as_bytes(), MANIFEST.as_bytes(), config);
    SCRATCH.clear();
});
