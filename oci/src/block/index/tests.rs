use proptest::prelude::*;

use super::*;

fn path(text: &str) -> EntryPath {
    EntryPath::from_normalized(text.into()).unwrap()
}

fn record(text: &str, change: Change) -> Record {
    Record { path: path(text), change }
}

fn range(file_block: u64, block: u32, blocks: u32) -> BlockRange {
    BlockRange { file_block, block, blocks }
}

fn file(size_bytes: u64, ranges: Vec<BlockRange>) -> Change {
    Change::File { metadata: Metadata::default(), size_bytes, ranges }
}

/// One record of each kind.
fn records() -> Vec<Record> {
    let metadata = Metadata {
        mode: 0o6755,
        uid: u32::MAX - 1,
        gid: 100_000,
        mtime_s: -1,
        mtime_ns: 999_999_999,
        xattrs: vec![(b"user.k".to_vec(), b"a\0b".to_vec()), (b"user.l".to_vec(), Vec::new())],
    };
    let target = b"../\xff".to_vec();
    vec![
        record("", Change::Directory(metadata.clone())),
        record("", Change::Opaque),
        record("d", Change::Directory(Metadata::default())),
        record("d/f", file(9 * 4096 + 1, vec![range(0, 0, 2), range(3, 2, 1), range(9, 9, 1)])),
        record("d/g", Change::File { metadata: metadata.clone(), size_bytes: 0, ranges: vec![] }),
        record("s", Change::Symlink { metadata: metadata.clone(), target }),
        record("p", Change::Fifo(metadata)),
        record("h", Change::HardLink(path("d/f"))),
        record("n", Change::Skipped),
        record("w/x", Change::Whiteout),
        record("d", Change::Opaque),
    ]
}

fn encoded(records: &[Record]) -> Vec<u8> {
    let mut out = Vec::new();
    for Record { path, change } in records {
        encode(path, change, &mut out);
        if let Change::File { ranges, .. } = change {
            ranges.iter().for_each(|range| encode_range(range, &mut out));
            encode_end(&mut out);
        }
    }
    out
}

/// Reads an index with the facts of an honest trailer.
fn decode(bytes: &[u8], records: u64) -> Result<Vec<Record>, IndexError> {
    decode_as(bytes, facts(bytes, records))
}

fn facts(bytes: &[u8], records: u64) -> IndexFacts {
    let checksum = Checksum::of(bytes);
    IndexFacts { bytes: bytes.len() as u64, records, checksum, data_blocks: 10 }
}

fn decode_as(bytes: &[u8], facts: IndexFacts) -> Result<Vec<Record>, IndexError> {
    let mut reader = IndexReader::new(bytes, facts);
    let mut found = Vec::new();
    while let Some(record) = reader.next_record()? {
        found.push(record);
    }
    Ok(found)
}

#[test]
fn records_are_read_as_they_were_written() {
    let records = records();
    assert_eq!(decode(&encoded(&records), records.len() as u64).unwrap(), records);
    assert_eq!(decode(b"", 0).unwrap(), []);
}

#[test]
fn each_changed_byte_is_found_at_the_end_at_the_latest() {
    let (records, bytes) = (records(), encoded(&records()));
    let facts = facts(&bytes, records.len() as u64);
    for changed in 0..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[changed] ^= 0x10;
        assert!(decode_as(&bytes, facts).is_err(), "byte {changed}");
    }
}

#[test]
fn wrong_length_or_number_of_records_is_refused() {
    let (records, bytes) = (records(), encoded(&records()));
    let count = records.len() as u64;
    for length in 0..bytes.len() {
        let error = decode(&bytes[..length], count).unwrap_err();
        assert!(matches!(error, IndexError::Length), "{length}: {error:?}");
    }
    assert!(matches!(decode(&bytes, count - 1), Err(IndexError::Length)));
    assert!(matches!(decode(&bytes, count + 1), Err(IndexError::Length)));
    // The trailer promises more bytes than the file has.
    let longer = IndexFacts { bytes: u64::MAX, ..facts(&bytes, u64::MAX) };
    assert!(matches!(decode_as(&bytes, longer), Err(IndexError::Read(_))));
}

#[test]
fn record_that_no_archive_makes_is_refused() {
    let target =
        |target: &[u8]| Change::Symlink { metadata: Metadata::default(), target: target.to_vec() };
    let with = |metadata| Change::Directory(metadata);
    let raw = |bytes: &[u8]| EntryPath::from_normalized(bytes.to_vec());
    assert_eq!(raw(b"a//b"), None);
    let long_attribute = vec![(b"user.k".to_vec(), vec![0; 60_000]); 20];
    let cases = [
        ("path", record("", Change::Whiteout)),
        ("path", record("", Change::Skipped)),
        ("path", record("", file(0, vec![]))),
        ("path", record("", Change::HardLink(path("a")))),
        ("path", record(".wh.a", file(0, vec![]))),
        ("path", record("d/.wh..wh..opq", with(Metadata::default()))),
        ("path", record(".wh.d/f", with(Metadata::default()))),
        ("target", record("s", target(b""))),
        ("target", record("s", target(b"a\0b"))),
        ("target", record("s", target(&[b'a'; 4096]))),
        ("mode", record("d", with(Metadata { mode: 0o10000, ..Metadata::default() }))),
        ("time", record("d", with(Metadata { mtime_ns: 1_000_000_000, ..Metadata::default() }))),
        (
            "attributes",
            record("d", with(Metadata { xattrs: long_attribute, ..Metadata::default() })),
        ),
        ("range", record("f", file(4096, vec![range(0, 0, 2)]))),
        ("range", record("f", file(4096, vec![range(1, 0, 1)]))),
        ("range", record("f", file(0, vec![range(0, 0, 1)]))),
        ("range", record("f", file(1 << 20, vec![range(0, 9, 2)]))),
        ("range", record("f", file(1 << 20, vec![range(0, u32::MAX, 1)]))),
        ("range", record("f", file(1 << 20, vec![range(u64::MAX, 0, 1)]))),
        ("range", record("f", file(1 << 20, vec![range(0, 0, 2), range(1, 2, 1)]))),
        ("range", record("f", file(1 << 20, vec![range(5, 0, 1), range(0, 2, 1)]))),
    ];
    for (expected, case) in cases {
        let error = decode(&encoded(std::slice::from_ref(&case)), 1).unwrap_err();
        let IndexError::Record { field, record: 0 } = error else { panic!("{case:?}: {error:?}") };
        assert_eq!(field, expected, "{case:?}");
    }
}

#[test]
fn path_that_is_not_normalized_is_refused() {
    for raw in ["/", "a/", "a//b", "./a", "..", "a/../b", "a\0b"] {
        let mut bytes = vec![SKIPPED];
        encode_text(raw.as_bytes(), &mut bytes);
        let found = decode(&bytes, 1);
        let is_refused = matches!(found, Err(IndexError::Record { field: "path", .. }));
        assert!(is_refused, "{raw:?}: {found:?}");
    }
    assert!(matches!(decode(&[9, 0, 0], 1), Err(IndexError::Record { field: "kind", .. })));
}

proptest! {
    /// The checksum of each input is right, so that the reader decodes as far as it can.
    #[test]
    fn arbitrary_bytes_give_records_or_an_error(
        bytes in prop::collection::vec(prop_oneof![0..10_u8, any::<u8>()], 0..200),
        records in 0..20_u64,
    ) {
        let _outcome = decode(&bytes, records);
    }

    /// A record that is read from changed bytes satisfies the promises of the reader.
    #[test]
    fn changed_bytes_give_valid_records_or_an_error(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = encoded(&records());
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        for record in decode(&bytes, records().len() as u64).unwrap_or_default() {
            if let Change::File { size_bytes, ranges, .. } = record.change {
                for range in ranges {
                    let end = range.file_block + u64::from(range.blocks);
                    prop_assert!(end <= size_bytes.div_ceil(BLOCK_BYTES));
                    prop_assert!(range.block + range.blocks <= 10);
                }
            }
        }
    }
}
