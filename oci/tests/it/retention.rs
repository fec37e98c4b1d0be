//! Retention: the cache keeps the most recently used layers within the limits, and each layer that
//! is in use.

use std::fs;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use a3s_box_oci::{Collected, Image, Retention};

use crate::archive::Tar;
use crate::bench::{Bench, names};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Returns layers that count as 8 KiB each: a file of 4096 bytes, and 4096 bytes for its entry.
fn layers(count: usize) -> Vec<Tar> {
    (0..count).map(|number| Tar::new().file(&format!("f{number}"), &"x".repeat(4096))).collect()
}

/// Sets the time of a layer's last use, which is the modification time of its lock file.
fn age(bench: &Bench, image: &Image, layer: usize, age: Duration) {
    let name = image.layers[layer].id().to_string().replace(':', "-");
    let lock = fs::File::options().write(true).open(bench.path("cache/layers-v5/locks").join(name));
    lock.unwrap().set_modified(SystemTime::now() - age).unwrap();
}

/// Returns the number of entries in a directory of the cache.
fn count(bench: &Bench, directory: &str) -> usize {
    fs::read_dir(bench.path("cache/layers-v5").join(directory)).unwrap().count()
}

#[test]
fn least_recently_used_layer_is_removed_first_and_unpacked_again_on_demand() {
    let bench = Bench::new();
    let image = bench.resolved(&layers(4));
    drop(bench.compose(&image).unwrap());
    for (layer, days) in [(0, 2), (1, 4), (2, 1), (3, 3)] {
        age(&bench, &image, layer, DAY * days);
    }
    let collect = |retention| bench.cache().collect(&retention).unwrap();
    let all = collect(Retention::default());
    assert_eq!(all, Collected { removed: 0, freed_bytes: 0, kept: 4, kept_bytes: 4 * 8192 });
    let by_size = collect(Retention { max_bytes: Some(3 * 8192), max_age: None });
    assert_eq!((by_size.removed, by_size.freed_bytes, by_size.kept), (1, 8192, 3));
    let by_age = collect(Retention { max_bytes: None, max_age: Some(DAY * 5 / 2) });
    assert_eq!((by_age.removed, by_age.kept, by_age.kept_bytes), (1, 2, 2 * 8192));
    assert_eq!(
        (count(&bench, "ready"), count(&bench, "locks"), count(&bench, "stacks")),
        (2, 2, 0)
    );
    let ready: Vec<String> = names(&bench.path("cache/layers-v5/ready"));
    let is_there =
        |layer: usize| ready.iter().any(|name| name.ends_with(&format!("tree/f{layer}")));
    assert_eq!([0, 1, 2, 3].map(is_there), [true, false, true, false]);
    assert_eq!(bench.compose(&image).unwrap().hits, 2);
    assert_eq!(count(&bench, "ready"), 4);
}

#[test]
fn layer_in_use_is_kept_and_damaged_layers_are_removed() {
    let bench = Bench::new();
    let image = bench.resolved(&layers(3));
    let stack = bench.compose(&image).unwrap();
    let nothing = Retention { max_bytes: Some(0), max_age: Some(Duration::ZERO) };
    assert_eq!(bench.cache().collect(&nothing).unwrap().removed, 0);
    assert!(stack.trees().all(|tree| tree.exists()));
    let damaged = stack.trees().next().unwrap().to_owned();
    drop(stack);
    fs::remove_dir_all(damaged).unwrap();
    // The remains of a process that died while it unpacked a layer, and of one that died while it
    // removed a layer.
    fs::create_dir(bench.path("cache/layers-v5/staging/sha256-dead")).unwrap();
    fs::write(bench.path("cache/layers-v5/locks/sha256-gone"), "").unwrap();
    // No process of the cache creates a regular file here.
    fs::write(bench.path("cache/layers-v5/ready/sha256-file"), "").unwrap();
    let collected = bench.cache().collect(&Retention::default()).unwrap();
    assert_eq!((collected.removed, collected.kept), (2, 2));
    assert_eq!((count(&bench, "staging"), count(&bench, "locks")), (0, 2));
    assert_eq!(bench.compose(&image).unwrap().hits, 2);
    assert_eq!(bench.cache().collect(&nothing).unwrap().removed, 3);
    assert_eq!(["ready", "staging", "locks", "stacks"].map(|name| count(&bench, name)), [0; 4]);
}

#[test]
fn concurrent_collection_and_use_do_not_fail_or_remove_layers_in_use() {
    let bench = Bench::new();
    let link = Tar::new().symlink("l", "d").dir("d");
    let image =
        bench.resolved(&[link, Tar::new().file("l/through", "x"), Tar::new().file("b", "x")]);
    let (ends, nothing) = (AtomicBool::new(false), Retention { max_bytes: Some(0), max_age: None });
    let rounds: usize = thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !ends.load(Ordering::Relaxed) {
                    bench.cache().collect(&nothing).unwrap();
                }
            });
        }
        let boxes: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut rounds = 0;
                    while !ends.load(Ordering::Relaxed) {
                        let progress = &mut |_, _| ControlFlow::Continue(());
                        let stack = bench
                            .cache()
                            .compose(&bench.layout(), &image.layers, progress)
                            .unwrap();
                        let files = |tree| names(tree).len();
                        assert_eq!(stack.trees().map(files).collect::<Vec<_>>(), [2, 2, 1]);
                        rounds += 1;
                    }
                    rounds
                })
            })
            .collect();
        thread::sleep(Duration::from_secs(2));
        ends.store(true, Ordering::Relaxed);
        boxes.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(rounds > 10, "{rounds} rounds");
}
