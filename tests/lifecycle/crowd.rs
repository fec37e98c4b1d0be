//! Shims that want the same layers at the same time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::ground::Ground;
use crate::image::Image;
use crate::shim::{Ended, Shim, Until};
use crate::tree;

/// Shims at once.
const SHIMS: usize = 16;

/// Longer than it takes a shim on a busy machine to come to a layer's lock.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn sixteen_shims_unpack_each_layer_once() {
    let image = Image::realistic();
    let ground = Ground::new(&image);
    let ids: Vec<String> = (0..SHIMS).map(|i| format!("box{i}")).collect();
    let mut shims: Vec<Shim> =
        ids.iter().map(|id| Shim::start(&ground, id, Until::Stopped)).collect();
    for shim in &mut shims {
        shim.wait_for("shim.confined");
    }
    let expected = image.tree();
    for (id, shim) in ids.iter().zip(&shims) {
        tree::assert_equal(&shim.mounted(), &expected, id);
    }
    for shim in &shims {
        shim.send(Signal::SIGTERM);
    }
    let ended: Vec<Ended> = shims.into_iter().map(Shim::end).collect();
    let mut by_shim = BTreeMap::<u64, usize>::new();
    for ended in &ended {
        ended.assert_code(128 + Signal::SIGTERM as i32);
        assert!(ended.event("rootfs.progress").is_some(), "{:#?}", ended.events);
        *by_shim.entry(ended.unpacked_layers()).or_default() += 1;
    }
    println!("layers unpacked by a shim, and the number of such shims: {by_shim:?}");
    let unpacked: u64 = ended.iter().map(Ended::unpacked_layers).sum();
    assert_eq!(unpacked, image.layer_count() as u64, "{by_shim:?}");
    ground.assert_nothing_runs();
    // All once more with a full cache, at once, to an end of their own.
    let shims: Vec<Shim> = ids.iter().map(|id| Shim::start(&ground, id, Until::Prepared)).collect();
    for ended in shims.into_iter().map(Shim::end) {
        ended.assert_code(0);
        assert_eq!(ended.unpacked_layers(), 0);
    }
    ground.assert_nothing_left();
}

/// Shims at once, each with a VM.
const BOXES: usize = 100;

#[test]
fn a_hundred_boxes_live_side_by_side() {
    let ground = Ground::new(&Image::of_one_layer(10_000));
    let script = [
        "connect",
        "hello",
        "serve",
        "started=7",
        "wait-stop",
        "exited=0",
        "drained",
        "wait-ack",
        "exit=0",
    ];
    let start = Instant::now();
    let ids: Vec<String> = (0..BOXES).map(|i| format!("box{i}")).collect();
    let mut shims: Vec<Shim> =
        ids.iter().map(|id| Shim::start(&ground, id, Until::Played(&script))).collect();
    for shim in &mut shims {
        shim.wait_for("agent.ready");
    }
    let ready = start.elapsed();
    let pss_kib: Vec<u64> = shims.iter().map(Shim::pss_kib).collect();
    let start = Instant::now();
    for shim in &shims {
        shim.send(Signal::SIGTERM);
    }
    for ended in shims.into_iter().map(Shim::end) {
        ended.assert_code(0);
    }
    let stopped = start.elapsed();
    ground.assert_nothing_runs();
    ground.assert_no_file_elsewhere();
    let each = |time: Duration| time / u32::try_from(BOXES).unwrap();
    let (most, sum) = (pss_kib.iter().max().unwrap(), pss_kib.iter().sum::<u64>());
    println!(
        "{BOXES} boxes at once: ready in {ready:?} ({:?} each), stopped in {stopped:?} ({:?} each)",
        each(ready),
        each(stopped),
    );
    println!("PSS of a shim (unoptimized): {} KiB on average, {most} at most", sum / BOXES as u64);
    // A bound on what a box adds; the shim itself, optimized and with a real VM, is measured there.
    assert!(*most <= 5 * 1024, "{most} KiB");
}

#[test]
fn shim_that_waits_takes_over_from_one_that_is_killed() {
    let image = Image::of_one_layer(8_000_000);
    let ground = Ground::new(&image);
    let first = Shim::start(&ground, "first", Until::Prepared);
    let start = Instant::now();
    while ground.staged() == 0 {
        assert!(start.elapsed() < PATIENCE, "nothing is unpacked");
    }
    // It stands in the middle of its work, with the layer's lock.
    first.send(Signal::SIGSTOP);
    let mut second = Shim::start(&ground, "second", Until::Stopped);
    let waits = second.wait_for("rootfs.progress");
    assert_eq!(waits["bytes_done"], 0, "{waits}");
    second.wait_for("rootfs.progress");
    assert!(ground.visible().is_empty(), "{:?}", ground.visible().keys());
    let first = first.kill_at(Duration::ZERO);
    assert!(first.was_killed() && first.event("rootfs.ready").is_none(), "{:#?}", first.events);
    second.wait_for("shim.confined");
    tree::assert_equal(&second.mounted(), &image.tree(), "the mounted root");
    second.send(Signal::SIGTERM);
    let second = second.end();
    ground.assert_nothing_runs();
    assert_eq!(second.unpacked_layers(), 1, "{:#?}", second.events);
    for id in ["first", "second"] {
        Shim::start(&ground, id, Until::Prepared).end().assert_code(0);
    }
    ground.assert_nothing_left();
}
