use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::*;

fn directory() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    (directory, path)
}

/// Reads the current and the previous file. A missing file counts as empty.
fn both(path: &Path) -> (Vec<u8>, Vec<u8>) {
    let previous = path.with_extension("1");
    (fs::read(path).unwrap_or_default(), fs::read(previous).unwrap_or_default())
}

#[test]
fn dropped_bytes_are_the_oldest_and_all_are_counted() {
    let (_directory, path) = directory();
    let mut file = RotatedFile::open(&path, 1000).unwrap();
    let mut all = Vec::new();
    let mut lost = 0;
    for i in 0..500_u32 {
        let chunk = format!("{i:0width$}", width = 1 + i as usize % 97).into_bytes();
        let loss = file.append(&chunk);
        assert_eq!(loss.new_bytes, 0);
        lost += loss.old_bytes;
        all.extend(chunk);
        let (current, previous) = both(&path);
        assert!(current.len() + previous.len() <= 1000);
        let kept = [previous, current].concat();
        assert!(all.ends_with(&kept));
        assert_eq!(all.len() as u64, kept.len() as u64 + lost);
    }
    assert!(lost > 0);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn chunk_of_many_times_the_bound_leaves_its_end() {
    let (_directory, path) = directory();
    let mut file = RotatedFile::open(&path, 100).unwrap();
    let chunk: Vec<u8> = (0..=255).cycle().take(10_000).collect();
    let loss = file.append(&chunk);
    let (current, previous) = both(&path);
    let kept = [previous, current].concat();
    assert!((50..=100).contains(&kept.len()) && chunk.ends_with(&kept));
    assert_eq!(loss, Loss { old_bytes: 10_000 - kept.len() as u64, new_bytes: 0 });
}

#[test]
fn lines_are_never_split_between_files_and_the_bound_holds() {
    let (_directory, path) = directory();
    let mut file = RotatedFile::open(&path, 1000).unwrap();
    for i in 0..300_usize {
        let line = format!("{}\n", "x".repeat(i % 200));
        file.append_line(line.as_bytes()).unwrap();
        let (current, previous) = both(&path);
        assert!(current.len() + previous.len() <= 1000);
        assert!(current.ends_with(line.as_bytes()));
        assert!(previous.is_empty() || previous.ends_with(b"\n"));
    }
    let longest = format!("{}\n", "y".repeat(499));
    file.append_line(longest.as_bytes()).unwrap();
    let (current, _) = both(&path);
    let refused = file.append_line(format!("{}\n", "z".repeat(500)).as_bytes());
    assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    assert_eq!(both(&path).0, current);
}

#[test]
fn file_of_an_earlier_process_is_continued_within_the_bound() {
    // Sizes of the current and the previous file, before and after a line of 10 bytes is appended.
    let cases = [
        ((0, 0), (10, 0)),
        ((490, 500), (500, 500)),
        ((491, 500), (10, 491)),
        ((600, 300), (10, 600)),
        ((995, 300), (10, 0)),
        ((1001, 300), (10, 0)),
        ((100, 950), (110, 0)),
        ((0, 5000), (10, 0)),
    ];
    for ((current, previous), expected) in cases {
        let (_directory, path) = directory();
        fs::write(&path, vec![b'\n'; current]).unwrap();
        fs::write(path.with_extension("1"), vec![b'\n'; previous]).unwrap();
        let mut file = RotatedFile::open(&path, 1000).unwrap();
        file.append_line(b"123456789\n").unwrap();
        let (now, before) = both(&path);
        assert_eq!((now.len(), before.len()), expected, "{current} {previous}");
    }
}

#[test]
fn bytes_of_an_earlier_process_are_not_counted_as_lost() {
    let (_directory, path) = directory();
    fs::write(&path, [b'a'; 50]).unwrap();
    fs::write(path.with_extension("1"), [b'b'; 50]).unwrap();
    let mut file = RotatedFile::open(&path, 100).unwrap();
    assert_eq!(file.append(&[b'c'; 100]).old_bytes, 0);
    assert_eq!(file.append(&[b'd'; 1]).old_bytes, 50);
}

#[test]
fn line_that_was_cut_by_a_kill_gets_a_line_feed() {
    for (left, expected) in [("", "b\n"), ("a\n", "a\nb\n"), ("a", "a\nb\n")] {
        let (_directory, path) = directory();
        fs::write(&path, left).unwrap();
        let mut file = RotatedFile::open(&path, 1000).unwrap();
        file.complete_line().unwrap();
        file.append_line(b"b\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    }
}

#[test]
fn created_file_is_empty_and_has_no_previous_file() {
    let (_directory, path) = directory();
    fs::write(&path, "old").unwrap();
    fs::write(path.with_extension("1"), "older").unwrap();
    let mut file = RotatedFile::create(&path, 1000).unwrap();
    assert!(!path.with_extension("1").exists());
    file.append(b"new");
    assert_eq!(fs::read_to_string(&path).unwrap(), "new");
}

#[test]
fn error_names_the_type_of_a_file_that_is_not_regular() {
    let (directory, path) = directory();
    let found = || match RotatedFile::open(&path, 1000) {
        Err(RotatedFileError::NotRegular { found, .. }) => found,
        other => panic!("{other:?}"),
    };
    let target = directory.path().join("target");
    symlink(&target, &path).unwrap();
    assert_eq!(found(), "a symlink");
    assert!(!target.exists());
    fs::remove_file(&path).unwrap();
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    assert_eq!(found(), "a FIFO");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(found(), "a directory");
    let device = RotatedFile::open(Path::new("/dev/null"), 1000).unwrap_err();
    assert!(matches!(device, RotatedFileError::NotRegular { found: "a device", .. }));
}

#[test]
fn previous_file_that_another_user_has_made_receives_nothing() {
    let (directory, path) = directory();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(path.with_extension("1"), "").unwrap();
    chown(path.with_extension("1"), Some(1), None).unwrap();
    let mut file =
        RotatedFile::open_for(OutputPlace::find(&path).unwrap(), 20, Rotation::Copy).unwrap();
    assert_eq!(file.append(b"0123456789abc"), Loss { old_bytes: 10, new_bytes: 0 });
    assert_eq!(both(&path), (b"abc".to_vec(), Vec::new()));
}

#[test]
fn second_writer_is_refused_before_and_after_a_rotation() {
    let (_directory, path) = directory();
    let mut file = RotatedFile::open(&path, 10).unwrap();
    for _ in 0..2 {
        let second = RotatedFile::open(&path, 10).unwrap_err();
        assert!(matches!(second, RotatedFileError::InUse { .. }), "{second:?}");
        file.append(b"12345678");
        assert_eq!(both(&path).1.len(), 5);
    }
    drop(file);
    RotatedFile::open(&path, 10).unwrap();
}

#[test]
fn bound_holds_with_one_file_if_it_cannot_be_renamed() {
    let (_directory, path) = directory();
    fs::create_dir(path.with_extension("1")).unwrap();
    let mut file = RotatedFile::open(&path, 100).unwrap();
    assert_eq!(file.append(&[b'a'; 50]), Loss::default());
    assert_eq!(file.append(&[b'b'; 20]), Loss { old_bytes: 50, new_bytes: 0 });
    assert_eq!(fs::read(&path).unwrap(), [b'b'; 20]);
}

#[test]
fn removed_file_is_created_again_by_the_next_rotation() {
    let (_directory, path) = directory();
    let mut file = RotatedFile::open(&path, 100).unwrap();
    file.append(&[b'a'; 50]);
    fs::remove_file(&path).unwrap();
    assert_eq!(file.append(&[b'b'; 20]), Loss { old_bytes: 50, new_bytes: 0 });
    assert_eq!(fs::read(&path).unwrap(), [b'b'; 20]);
}
