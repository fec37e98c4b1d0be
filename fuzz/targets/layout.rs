//! Fuzzes the documents of a layout: index, manifest and configuration, separated by NUL bytes.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use scratch::Scratch;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::build);

fuzz_target!(|documents: &[u8]| {
    let mut documents = documents.splitn(3, |byte| *byte == 0);
    let mut next = || documents.next().unwrap_or_default();
    SCRATCH.resolve(next(), next(), next());
    SCRATCH.clear();
});
