use super::*;

/// Returns the header of an entry with mode 04755 and owner 1:2.
fn header(kind: EntryType, path: &str, size: u64) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_path(path).unwrap();
    header.set_size(size);
    header.set_mode(0o4755);
    header.set_uid(1);
    header.set_gid(2);
    header.set_mtime(3);
    header.set_cksum();
    header.as_bytes().to_vec()
}

/// Returns the bytes with zeros up to the end of their last block.
fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(BLOCK), 0);
    padded
}

/// Reads an archive, and returns name and body of each entry.
fn entries(bytes: &[u8]) -> Result<Vec<(String, Vec<u8>)>, ArchiveError> {
    let mut archive = Archive::new(bytes);
    let mut all = Vec::new();
    while let Some(entry) = archive.next_entry()? {
        let mut body = Vec::new();
        archive.read_to_end(&mut body).map_err(body_error)?;
        all.push((String::from_utf8_lossy(&entry.path).into_owned(), body));
    }
    Ok(all)
}

#[test]
fn pax_size_after_a_value_with_a_newline_is_used() {
    // A reader that ends a record at a newline misses the second record, and reads the body as a
    // header.
    let hidden = padded(&header(EntryType::Regular, "hidden", 0));
    let pax = b"27 SCHILY.xattr.user.a=x\ny\n12 size=512\n";
    let bytes = [
        header(EntryType::XHeader, "pax", pax.len() as u64),
        padded(pax),
        header(EntryType::Regular, "outer", 0),
        hidden.clone(),
        vec![0; 2 * BLOCK],
    ];
    assert_eq!(entries(&bytes.concat()).unwrap(), [("outer".to_owned(), hidden)]);
}

#[test]
fn size_of_an_entry_without_a_body_is_ignored() {
    for kind in [EntryType::Symlink, EntryType::Directory, EntryType::Link, EntryType::Fifo] {
        let bytes = [header(kind, "a", 512), header(EntryType::Regular, "b", 0)].concat();
        let names: Vec<String> =
            entries(&bytes).unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a", "b"], "{kind:?}");
    }
}

#[test]
fn archive_that_ends_inside_an_entry_is_refused_at_every_byte() {
    let bytes = [header(EntryType::Regular, "a", 5), padded(b"hello")].concat();
    assert!(entries(&bytes).is_ok(), "an archive without zero blocks at its end is accepted");
    // The padding of the last body can be cut off without a loss.
    let end_of_body = BLOCK + 5;
    for length in 1..end_of_body {
        assert!(matches!(entries(&bytes[..length]), Err(ArchiveError::Truncated)), "{length}");
    }
    for length in end_of_body..bytes.len() {
        assert_eq!(entries(&bytes[..length]).unwrap()[0].1, b"hello", "{length}");
    }
}

#[test]
fn entry_after_a_single_zero_block_is_refused() {
    let bytes = [vec![0; BLOCK], header(EntryType::Regular, "a", 0)].concat();
    assert!(matches!(entries(&bytes), Err(ArchiveError::LoneZeroBlock)));
}

#[test]
fn archive_that_ends_with_one_zero_block_or_with_extension_headers_is_accepted() {
    let entry = header(EntryType::Regular, "a", 0);
    let extension =
        |kind, body: &[u8]| [header(kind, "x", body.len() as u64), padded(body)].concat();
    let pax = extension(EntryType::XHeader, b"9 path=x\n");
    for end in [
        vec![],
        vec![0; BLOCK],
        pax.clone(),
        extension(EntryType::GNULongName, b"name\0"),
        [extension(EntryType::GNULongLink, b"link\0"), pax.clone()].concat(),
        [pax, vec![0; 2 * BLOCK]].concat(),
    ] {
        let found = entries(&[entry.clone(), end].concat()).unwrap();
        assert_eq!(found, [("a".to_owned(), Vec::new())]);
    }
}

#[test]
fn checksum_of_signed_bytes_is_accepted() {
    // Some old writers sum signed bytes. Only a byte above 0x7f makes a difference.
    let mut bytes = header(EntryType::Regular, "a", 0);
    bytes[1] = 0xe9;
    // The checksum field counts as eight blanks.
    let blanks = [&bytes[..148], &[b' '; 8], &bytes[156..]].concat();
    let signed: i64 = blanks.iter().map(|byte| i64::from(byte.cast_signed())).sum();
    for (sum, expected) in [(signed, true), (signed + 256, true), (signed + 1, false)] {
        bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        assert_eq!(entries(&bytes).is_ok(), expected, "{sum}");
    }
}

#[test]
fn header_with_a_flipped_bit_is_refused() {
    let bytes = header(EntryType::Regular, "a", 0);
    for position in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[position] ^= 1;
        assert!(entries(&flipped).is_err(), "byte {position}");
    }
}

#[test]
fn gnu_long_name_ends_at_the_first_nul() {
    let name = format!("{}\0junk", "n/".repeat(150));
    let long = header(EntryType::GNULongName, "././@LongLink", name.len() as u64);
    let bytes =
        [long.clone(), padded(name.as_bytes()), header(EntryType::Directory, "short", 0)].concat();
    assert_eq!(entries(&bytes).unwrap()[0].0, "n/".repeat(150));
    // Two long names for one entry are ambiguous.
    let twice = [long.clone(), padded(name.as_bytes()), long, padded(name.as_bytes())].concat();
    assert!(matches!(entries(&twice), Err(ArchiveError::Ambiguous { .. })));
}

#[test]
fn oversized_extension_is_refused_before_it_is_read() {
    let bytes = header(EntryType::XHeader, "pax", u64::from(u32::MAX));
    assert!(matches!(entries(&bytes), Err(ArchiveError::ExtensionTooLarge { .. })));
}

#[test]
fn numbers_are_read_as_go_reads_them() {
    let cases: [(&[u8], Option<u64>); 10] = [
        (b"0000644\0", Some(0o644)),
        (b"   644 \0", Some(0o644)),
        (b"\0\0\0\0", Some(0)),
        (b"644\x00999", Some(0o644)),
        (b"9", None),
        (b"-1", None),
        (b"\x80\0\0\0\0\0\0\0\0\0\x01\0", Some(256)),
        (b"\x80\0\0\x01\0\0\0\0\0\0\0\0", None),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        (b"\x81\0\0\0\0\0\0\x01", None),
    ];
    for (raw, expected) in cases {
        assert_eq!(number("size", raw).ok(), expected, "{}", raw.escape_ascii());
    }
    assert_eq!(seconds(&[0xff; 12]).unwrap(), -1);
}
