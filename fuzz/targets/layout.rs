//! The documents of a layout, with a NUL between each two: index, manifest, configuration.

#![no_main]

use std::sync::LazyLock;

use ground::Ground;
use libfuzzer_sys::fuzz_target;

static GROUND: LazyLock<Ground> = LazyLock::new(Ground::build);

fuzz_target!(|documents: &[u8]| {
    let mut documents = documents.splitn(3, |byte| *byte == 0);
    let mut next = || documents.next().unwrap_or_default();
    GROUND.resolve(next(), next(), next());
    GROUND.clear();
});
