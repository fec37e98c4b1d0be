//! Hostile layers that are not files of the corpus: a blob damaged at each byte or cut at each
//! length, and layers that are too large or too deep.

use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use a3s_box_oci::{
    ArchiveError, BlobError, CacheError, Digest, EntryError, LayerError, Limits, Progress,
    StepLimits, StepsError, TreeLimits, WindowError,
};
use tar::EntryType;

use crate::archive::Tar;
use crate::bench::{Bench, GZIP, ROOT, amd64, chain, gzip, names, tree};

/// Unpacks a layer that must be refused, and returns its error.
fn refusal(tar: Tar) -> LayerError {
    let bench = Bench::new();
    layer_error(&bench, bench.unpack_tar(tar).map(drop))
}

/// Returns the error of a refused layer, and asserts that the cache holds nothing of the layer.
fn layer_error(bench: &Bench, outcome: Result<(), CacheError>) -> LayerError {
    bench.assert_cache_is_empty();
    match outcome {
        Err(CacheError::Layer { source, .. }) => source,
        other => panic!("expected an error of the layer, found {other:?}"),
    }
}

/// Unpacks a blob as a gzip layer with the given `DiffID`, and returns the layer's error.
///
/// `damage` receives the path of the blob, and changes it after the image has been resolved.
fn blob_error(blob: &[u8], diff_id: Digest, damage: impl Fn(&Path)) -> LayerError {
    let bench = Bench::new();
    let blob = bench.blob(GZIP, blob);
    bench.publish(&[bench
        .image_of("linux/amd64", std::slice::from_ref(&blob), &[diff_id])
        .descriptor("")]);
    let image = bench.layout().resolve(None, &amd64()).unwrap();
    damage(&bench.blob_path(blob.digest));
    layer_error(&bench, bench.unpack(&image.layers[0]).map(drop))
}

#[test]
fn missing_or_changed_blob_is_refused() {
    let tar = Tar::new().file("a", "content").bytes();
    let (blob, diff_id) = (gzip(&tar), Digest::of(&tar));
    let error = blob_error(&blob, diff_id, |path| fs::remove_file(path).unwrap());
    assert!(matches!(error, LayerError::Blob(BlobError::Missing { .. })), "{error:?}");
    let error =
        blob_error(&blob, diff_id, |path| fs::write(path, [&blob[..], b"x"].concat()).unwrap());
    assert!(matches!(error, LayerError::Blob(BlobError::Size { .. })), "{error:?}");
    // The digest is the reported error even if the damage also makes the archive malformed.
    for position in 0..blob.len() {
        let error = blob_error(&blob, diff_id, |path| {
            let mut damaged = blob.clone();
            damaged[position] ^= 0x55;
            fs::write(path, damaged).unwrap();
        });
        assert!(
            matches!(error, LayerError::Blob(BlobError::Digest { .. })),
            "byte {position}: {error:?}"
        );
    }
}

#[test]
fn bytes_behind_the_gzip_stream_are_refused() {
    let tar = Tar::new().file("a", "content").bytes();
    let end = gzip(&tar);
    for tail in [&b"x"[..], b"\0\0x", b"\0\x1f\x8b", b"\x1f", b"\x1f\x8b\x08\0"] {
        let error = blob_error(&[&end, tail].concat(), Digest::of(&tar), |_| {});
        assert!(matches!(error, LayerError::Archive { .. }), "{tail:?}: {error:?}");
    }
}

#[test]
fn archive_with_a_wrong_diff_id_is_refused() {
    let tar = Tar::new().file("a", "content").bytes();
    let error = blob_error(&gzip(&tar), Digest::of(b"another"), |_| {});
    assert!(
        matches!(error, LayerError::DiffId { found, .. } if found == Digest::of(&tar)),
        "{error:?}"
    );
    // The DiffID also covers the bytes behind the archive's end.
    let behind_the_end = Tar::new().file("a", "content").then(b"x").bytes();
    let error = blob_error(&gzip(&behind_the_end), Digest::of(&tar), |_| {});
    assert!(matches!(error, LayerError::DiffId { .. }), "{error:?}");
}

#[test]
fn truncated_or_extended_gzip_stream_is_refused() {
    let tar = Tar::new().file("a", &"content".repeat(100)).bytes();
    let blob = gzip(&tar);
    // Length 0 is left out, because an empty blob is an empty layer.
    for length in 1..blob.len() {
        let error = blob_error(&blob[..length], Digest::of(&tar), |_| {});
        let expected = matches!(error, LayerError::Archive { source: ArchiveError::Read(_), .. });
        assert!(expected, "{length}: {error:?}");
    }
    let error = blob_error(&[&blob[..], b"garbage"].concat(), Digest::of(&tar), |_| {});
    assert!(matches!(error, LayerError::Archive { .. }), "{error:?}");
    // The gzip stream is whole here, and the archive inside is cut off in its first body.
    let error = blob_error(&gzip(&tar[..700]), Digest::of(&tar[..700]), |_| {});
    assert!(
        matches!(error, LayerError::Archive { source: ArchiveError::Truncated, .. }),
        "{error:?}"
    );
}

#[test]
fn truncated_or_extended_zstd_stream_is_refused() {
    let tar = Tar::new().file("a", &"content".repeat(100)).bytes();
    let blob = zstd::encode_all(&tar[..], 1).unwrap();
    let truncated = (1..blob.len()).map(|length| blob[..length].to_vec());
    let tails = [&b"x"[..], b"garbage", b"\0\0\0\0", &blob[..5]];
    let extended = tails.map(|tail| [&blob, tail].concat());
    for (number, blob) in truncated.chain(extended).enumerate() {
        let error = blob_error(&blob, Digest::of(&tar), |_| {});
        assert!(matches!(error, LayerError::Archive { .. }), "{number}: {error:?}");
    }
}

#[test]
fn name_that_leads_out_of_the_root_is_resolved_in_the_root() {
    let bench = Bench::new();
    let tar = Tar::new()
        .file("../one", "1")
        .file("/../../two", "2")
        .file("not/there/../../../three", "3")
        .dir("../dir/../../dir")
        .hard_link("four", "../../../one")
        .hard_link("../dir/./five", "/dir/../../two")
        .file("../.wh.six", "")
        .file("dir/../../.wh.one", "")
        .entry(EntryType::Directory, "..", 0o710, b"");
    let layer = bench.unpack_tar(tar).unwrap();
    let found = names(&layer.path);
    assert_eq!(found, ["dir", "dir/five", "four", "one", "six", "three", "two"]);
    let read = |name: &str| fs::read_to_string(layer.path.join(name)).unwrap();
    assert_eq!([read("one"), read("four"), read("dir/five"), read("three")], ["1", "1", "2", "3"]);
    assert_eq!(tree(&layer.path)[""], ROOT);
    assert!(fs::symlink_metadata(layer.path.join("six")).unwrap().file_type().is_char_device());
    // The cache has two trees of the layer: unpacked alone, and on top of an empty stack, where its
    // whiteouts have nothing to hide. No other directory received the file `one`.
    let ones: Vec<_> =
        names(&bench.root).into_iter().filter(|name| name.ends_with("one")).collect();
    assert!(ones.len() == 2 && ones.iter().all(|name| name.ends_with("/tree/one")), "{ones:?}");
}

#[test]
fn only_a_directory_can_have_the_name_of_the_root() {
    for name in ["..", "a/..", "/../.", "a/../../.."] {
        for tar in [
            Tar::new().file(name, "x"),
            Tar::new().symlink(name, "/"),
            Tar::new().entry(EntryType::Fifo, name, 0o644, b""),
            Tar::new().entry(EntryType::Char, name, 0o644, b""),
            Tar::new().file("f", "").hard_link(name, "f"),
        ] {
            let error = refusal(tar);
            let is_root = matches!(error, LayerError::Entry { source: EntryError::Root, .. });
            assert!(is_root, "{name}: {error:?}");
        }
        let error = refusal(Tar::new().hard_link("b", name));
        let expected = EntryError::HardLinkToDirectory { target: "/".to_owned() };
        assert!(chain(&error).ends_with(&expected.to_string()), "{name}: {error:?}");
    }
}

#[test]
fn hard_link_to_a_file_of_the_host_or_to_a_missing_file_is_refused() {
    let cases: [fn() -> Tar; 4] = [
        || Tar::new().hard_link("a", "/etc/passwd"),
        || Tar::new().symlink("s", "/etc").hard_link("a", "s/passwd"),
        || Tar::new().file(".wh.hidden", "").hard_link("a", "hidden"),
        || Tar::new().hard_link("a", "a"),
    ];
    for tar in cases {
        // In the second image a lower layer has `hidden`, but the whiteout hides it.
        for layers in [vec![tar()], vec![Tar::new().file("hidden", ""), tar()]] {
            let bench = Bench::new();
            let image = bench.resolved(&layers);
            let outcome = bench.compose(&image).map(drop);
            let Err(CacheError::Layer { source: LayerError::Entry { source, .. }, .. }) = outcome
            else {
                panic!("{outcome:?}");
            };
            assert!(matches!(source, EntryError::HardLinkTarget { .. }), "{source:?}");
        }
    }
    let error = refusal(Tar::new().dir("d").hard_link("a", "d"));
    assert!(
        matches!(error, LayerError::Entry { source: EntryError::HardLinkToDirectory { .. }, .. }),
        "{error:?}"
    );
}

#[test]
fn size_of_a_layer_is_limited() {
    let bench = Bench::new();
    let image = bench.resolved(&[Tar::new().file("zeros", &"\0".repeat(2 << 20))]);
    let cache = bench.cache().with_limits(Limits { unpacked_bytes: 1 << 20, ..Limits::default() });
    let outcome =
        cache.get_or_unpack(&bench.layout(), &image.layers[0], &mut |_| ControlFlow::Continue(()));
    let error = layer_error(&bench, outcome.map(drop));
    assert!(matches!(error, LayerError::Limit { what: "unpacked bytes", .. }), "{error:?}");
}

#[test]
fn ratio_counts_no_zeros_that_became_holes() {
    let outcome = |content: &str| {
        let bench = Bench::new();
        let image = bench.resolved(&[Tar::new().file("f", content).file("g", "")]);
        let limits = Limits { ratio: 20, ratio_floor_bytes: 1 << 20, ..Limits::default() };
        let cache = bench.cache().with_limits(limits);
        let outcome = cache
            .get_or_unpack(&bench.layout(), &image.layers[0], &mut |_| ControlFlow::Continue(()));
        outcome.map(|layer| {
            let blocks = |name: &str| fs::metadata(layer.path.join(name)).unwrap().blocks();
            assert_eq!(blocks("f"), blocks("g"), "a file of zeros takes no block");
            assert!(fs::read(layer.path.join("f")).unwrap() == content.as_bytes());
            (layer.facts.bytes, layer.facts.hole_bytes)
        })
    };
    let size = 8 << 20;
    assert_eq!(outcome(&"\0".repeat(8 << 20)).unwrap(), (size, size));
    let error = outcome(&"x".repeat(8 << 20)).unwrap_err();
    assert!(chain(&error).contains("unpacked bytes for each compressed byte"), "{error:?}");
}

#[test]
fn window_of_a_zstd_layer_is_limited_and_named_in_the_error() {
    let tar = Tar::new().file("a", &"content".repeat(100)).bytes();
    let with_window = |bytes: &[u8]| {
        // A stream whose size the encoder does not know declares the whole window.
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(20).unwrap();
        std::io::Write::write_all(&mut encoder, bytes).unwrap();
        encoder.finish().unwrap()
    };
    // A skippable frame and a whole frame before the header do not hide it.
    let frames = [
        &b"\x50\x2a\x4d\x18\0\0\0\0"[..],
        &zstd::encode_all(&tar[..512], 1).unwrap(),
        &with_window(&tar[512..]),
    ];
    for blob in [with_window(&tar), frames.concat()] {
        let outcome = |zstd_window_bytes| {
            let bench = Bench::new();
            let descriptor = bench.blob(GZIP, &blob);
            let manifest = bench.image_of("linux/amd64", &[descriptor], &[Digest::of(&tar)]);
            bench.publish(&[manifest.descriptor("")]);
            let layer = bench.layout().resolve(None, &amd64()).unwrap().layers[0];
            let limits = Limits { zstd_window_bytes, ..Limits::default() };
            let outcome = bench.cache().with_limits(limits).get_or_unpack(
                &bench.layout(),
                &layer,
                &mut |_| ControlFlow::Continue(()),
            );
            match outcome {
                Err(CacheError::Layer { source: LayerError::Window(error), .. }) => Some(error),
                Err(error) => panic!("{}", chain(&error)),
                Ok(_) => None,
            }
        };
        let (found_bytes, limit_bytes) = (1 << 20, 1 << 19);
        assert_eq!(outcome(limit_bytes), Some(WindowError { found_bytes, limit_bytes }));
        assert_eq!(outcome(found_bytes), None);
    }
}

#[test]
fn tree_deeper_than_path_max_is_removed_after_a_failure() {
    let mut tar = Tar::new();
    for number in 0..13 {
        // An entry's name can have 256 components, so one chain of directories is not enough. Each
        // link leads to the end of the previous chain, where the next one begins.
        let mut path = format!("l{number}");
        let end = format!("l{}{}", number - 1, "/d".repeat(170));
        tar = match number {
            0 => tar.dir(&path),
            _ => tar.pax(&[("linkpath", end.as_bytes())]).symlink(&path, "end"),
        };
        for _ in 0..170 {
            path += "/d";
            tar = tar.pax(&[("path", path.as_bytes())]).dir("d");
        }
    }
    // The entry without a name is refused after the deep tree has been created.
    let bench = Bench::new();
    let image = bench.resolved(&[tar.file("", "")]);
    let steps = StepLimits { floor: 1 << 24, ..StepLimits::default() };
    let cache = bench.cache().with_limits(Limits { steps, ..Limits::default() });
    let outcome =
        cache.get_or_unpack(&bench.layout(), &image.layers[0], &mut |_| ControlFlow::Continue(()));
    let error = layer_error(&bench, outcome.map(drop));
    assert!(matches!(error, LayerError::Entry { source: EntryError::Name(_), .. }), "{error:?}");
}

/// Appends the link `l0` to `d`, which has `names` names, and further links, each of which leads
/// through as many names to the link before it.
fn links(tar: Tar, count: usize, names: usize) -> Tar {
    (0..count).fold(tar.dir("d"), |tar, number| {
        let next = if number == 0 { "d".to_owned() } else { format!("l{}", number - 1) };
        let target = format!("{}{next}", "d/../".repeat(names / 2));
        tar.pax(&[("linkpath", target.as_bytes())]).symlink(&format!("l{number}"), "target")
    })
}

/// Makes both kinds of root of an image within these limits, and returns their errors of steps.
fn steps_errors(layers: &[Tar], steps: StepLimits) -> [Option<StepsError>; 2] {
    let bench = Bench::new();
    let image = bench.resolved(layers);
    let progress = &mut |_, _| ControlFlow::Continue(());
    let cache = || {
        let limits = TreeLimits { steps, ..TreeLimits::default() };
        bench.cache().with_limits(Limits { steps, ..Limits::default() }).with_tree_limits(limits)
    };
    let shared = cache().compose(&bench.layout(), &image.layers, progress).map(drop);
    let block = cache().compose_block(&bench.layout(), &image.layers, progress).map(drop);
    [shared, block].map(|outcome| match outcome {
        Ok(()) => None,
        Err(CacheError::Layer {
            source: LayerError::Entry { source: EntryError::Steps(error), .. },
            ..
        }) => Some(error),
        Err(error) => panic!("{}", chain(&error)),
    })
}

#[test]
fn entry_with_too_many_names_on_its_way_is_refused_for_both_kinds_of_root() {
    let lower = || links(Tar::new(), 39, 1600);
    let through = [
        Tar::new().file("l38/f", ""),
        Tar::new().file("l38/.wh.f", ""),
        Tar::new().file("l38/.wh..wh..opq", ""),
        Tar::new().hard_link("h", "l38/f"),
        Tar::new().hard_link("h", "l38/f").file("f", ""),
    ];
    let expected = Some(StepsError::Entry { limit: 4096 });
    for upper in through {
        assert_eq!(steps_errors(&[lower(), upper], StepLimits::default()), [expected; 2]);
    }
    let alone = steps_errors(&[lower().file("l38/f", "")], StepLimits::default());
    assert_eq!(alone, [expected; 2]);
}

#[test]
fn layer_with_too_many_names_on_its_ways_is_refused_for_both_kinds_of_root() {
    let many = |count: usize| {
        (0..count).fold(links(Tar::new(), 1, 200), |tar, n| tar.file(&format!("l0/{n}"), ""))
    };
    let steps = StepLimits { floor: 10_000, ..StepLimits::default() };
    let is_layer = |error: &Option<StepsError>| matches!(error, Some(StepsError::Layer { .. }));
    assert!(steps_errors(&[many(400)], steps).iter().all(is_layer));
    assert_eq!(steps_errors(&[many(20)], steps), [None; 2]);
}

/// Returns a layer with paths as those of a distribution with `/usr` merged, and of deep trees of
/// packages.
fn realistic_layer() -> Tar {
    let mut tar = Tar::new().dir("usr").dir("usr/bin").dir("usr/lib").symlink("lib", "usr/lib");
    tar = tar.symlink("bin", "usr/bin");
    for n in 0..200 {
        tar = tar.file(&format!("lib/x86_64-linux-gnu/lib{n}.so.1.2"), "");
        tar = tar.symlink(&format!("lib/x86_64-linux-gnu/lib{n}.so"), &format!("lib{n}.so.1.2"));
        tar = tar.file(&format!("usr/lib/python3/dist-packages/pip/vendor/rich/m{n}.py"), "");
        // Hard links, half of them to files that come later.
        tar = tar.hard_link(&format!("usr/lib/git-core/git-{n}"), &format!("bin/git{}", n / 100));
        tar = if n == 50 { tar.file("bin/git0", "") } else { tar };
        tar = if n == 150 { tar.file("bin/git1", "") } else { tar };
    }
    for n in 0..100 {
        let path = format!("opt/app{}/f{n}", "/node_modules/p".repeat(1 + n % 15));
        tar = tar.pax(&[("path", path.as_bytes())]).file("f", "");
    }
    tar
}

#[test]
fn real_paths_take_a_small_part_of_the_steps() {
    let all = StepLimits::default();
    let part = StepLimits { entry: all.entry / 16, average: all.average / 2, floor: 0 };
    assert_eq!(steps_errors(&[realistic_layer()], part), [None; 2]);
    // These limits are close to what the layer takes, which shows that its steps are counted.
    let less = StepLimits { average: 4, ..part };
    assert!(steps_errors(&[realistic_layer()], less).iter().all(Option::is_some));
}

#[test]
fn slow_layer_is_cancelled_in_its_middle() {
    let bench = Bench::new();
    // Each entry takes some milliseconds, and there are fewer entries than between two reports.
    let tar = (0..500).fold(links(Tar::new(), 5, 790), |tar, n| tar.file(&format!("l4/{n}"), ""));
    let image = bench.resolved(&[tar]);
    let steps = StepLimits { floor: 1 << 24, ..StepLimits::default() };
    let cache = bench.cache().with_limits(Limits { steps, ..Limits::default() });
    let (start, mut stopped_at) = (Instant::now(), 0);
    let outcome =
        cache.get_or_unpack(&bench.layout(), &image.layers[0], &mut |progress| match progress {
            Progress::Unpacking { entries, .. } if start.elapsed() > Duration::from_millis(200) => {
                stopped_at = entries;
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        });
    assert!(matches!(outcome, Err(CacheError::Cancelled { .. })), "{outcome:?}");
    assert!((1..500).contains(&stopped_at), "stopped at entry {stopped_at}");
}

#[test]
fn work_after_the_last_entry_reports_progress() {
    let bench = Bench::new();
    let tar = (0..10).fold(Tar::new(), |tar, n| tar.hard_link(&format!("h{n}"), "f"));
    let image = bench.resolved(&[tar.file("f", "").file(".wh.w", "").dir("d")]);
    let size = image.layers[0].size_bytes;
    let mut calls = 0;
    let progress = &mut |progress| {
        if matches!(progress, Progress::Unpacking { read_bytes, entries: 13, .. } if read_bytes == size)
        {
            calls += 1;
        }
        // Each further step is then reported, because the interval between reports is over.
        thread::sleep(Duration::from_millis(30));
        ControlFlow::Continue(())
    };
    bench.cache().get_or_unpack(&bench.layout(), &image.layers[0], progress).unwrap();
    // Ten links, a whiteout, and the times of two directories.
    assert!(calls >= 13, "{calls} calls");
}
