//! Shims that run at the same time and need the same layers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use a3s_box_core::config::RootKind;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::image::Image;
use crate::scratch::{ROOT_KINDS, Scratch};
use crate::shim::{Ended, Shim, Until};
use crate::tree;

/// Shims that run at the same time.
const SHIMS: usize = 16;

/// Longer than a shim on a busy machine needs until it holds the lock of a layer.
const PATIENCE: Duration = Duration::from_secs(30);

fn start_at_once(kind: RootKind) {
    let image = Image::realistic();
    let scratch = Scratch::new(&image, kind);
    let ids: Vec<String> = (0..SHIMS).map(|i| format!("box{i}")).collect();
    let mut shims: Vec<Shim> =
        ids.iter().map(|id| Shim::start(&scratch, id, Until::Stopped)).collect();
    for shim in &mut shims {
        shim.wait_for("shim.confined");
    }
    let expected = image.tree(kind);
    for (id, shim) in ids.iter().zip(&shims) {
        tree::assert_equal(&shim.mounted(), &expected, id);
    }
    for shim in &shims {
        shim.send(Signal::SIGTERM);
    }
    let ended: Vec<Ended> = shims.into_iter().map(Shim::end).collect();
    let mut shims_by_layers = BTreeMap::<u64, usize>::new();
    for ended in &ended {
        ended.assert_code(128 + Signal::SIGTERM as i32);
        assert!(ended.event("rootfs.progress").is_some(), "{:#?}", ended.events);
        *shims_by_layers.entry(ended.unpacked_layers()).or_default() += 1;
    }
    println!("number of shims by the layers that each unpacked: {shims_by_layers:?}");
    let unpacked: u64 = ended.iter().map(Ended::unpacked_layers).sum();
    assert_eq!(unpacked, image.layer_count() as u64, "{shims_by_layers:?}");
    scratch.assert_nothing_runs();
    // The same number of warm starts. They must not unpack again.
    let shims: Vec<Shim> =
        ids.iter().map(|id| Shim::start(&scratch, id, Until::Prepared)).collect();
    for ended in shims.into_iter().map(Shim::end) {
        ended.assert_code(0);
        assert_eq!(ended.unpacked_layers(), 0);
    }
    scratch.assert_nothing_left();
}

#[test]
fn sixteen_shims_unpack_each_layer_once() {
    start_at_once(RootKind::Shared);
}

#[test]
fn sixteen_shims_with_block_roots_read_each_layer_once() {
    start_at_once(RootKind::Block);
}

/// Shims that run at the same time, each with a fake VM. Half of them have each kind of root.
const BOXES: usize = 100;

#[test]
fn a_hundred_boxes_run_at_the_same_time() {
    let mut scratch = Scratch::new(&Image::of_one_layer(10_000), RootKind::Block);
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
    let mut start_box = |(id, kind): (&String, RootKind)| {
        scratch.kind = kind;
        Shim::start(&scratch, id, Until::Played(&script))
    };
    let kinds = ROOT_KINDS.into_iter().cycle();
    let mut shims: Vec<Shim> = ids.iter().zip(kinds).map(&mut start_box).collect();
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
    scratch.assert_nothing_runs();
    scratch.assert_no_file_elsewhere();
    let each = |time: Duration| time / u32::try_from(BOXES).unwrap();
    let (most, sum) = (pss_kib.iter().max().unwrap(), pss_kib.iter().sum::<u64>());
    println!(
        "{BOXES} boxes at once: ready in {ready:?} ({:?} each), stopped in {stopped:?} ({:?} each)",
        each(ready),
        each(stopped),
    );
    println!("PSS of a shim (unoptimized): {} KiB on average, {most} at most", sum / BOXES as u64);
    // This bounds only the memory that each further box costs, because the shims share their pages.
    // `tests/vm/lifecycle.rs` measures an optimized shim with a real VM.
    assert!(*most <= 5 * 1024, "{most} KiB");
}

/// An image of one layer, which takes so long that a signal arrives meanwhile. Reading a layer into
/// a file takes less time than unpacking it, so the layer is larger for a block root.
fn slow_image(kind: RootKind) -> Image {
    Image::of_one_layer(if kind == RootKind::Block { 16_000_000 } else { 8_000_000 })
}

/// Starts a shim and stops its processes in the middle of unpacking, where it holds the layer's lock.
fn hold_the_layer(scratch: &Scratch) -> Shim {
    let shim = Shim::start(scratch, "first", Until::Prepared);
    let start = Instant::now();
    while scratch.staged() == 0 {
        assert!(start.elapsed() < PATIENCE, "no unpacking begins within {PATIENCE:?}");
    }
    shim.hold();
    shim
}

fn kill_the_one_that_unpacks(kind: RootKind) {
    let image = slow_image(kind);
    let scratch = Scratch::new(&image, kind);
    let first = hold_the_layer(&scratch);
    let mut second = Shim::start(&scratch, "second", Until::Stopped);
    // The second shim cannot unpack while the first one holds the lock, so it reports no bytes.
    let progress = second.wait_for("rootfs.progress");
    assert_eq!(progress["bytes_done"], 0, "{progress}");
    second.wait_for("rootfs.progress");
    assert!(scratch.visible().is_empty(), "{:?}", scratch.visible().keys());
    let first = first.kill_at(Duration::ZERO);
    assert!(first.was_killed() && first.event("rootfs.ready").is_none(), "{:#?}", first.events);
    second.wait_for("shim.confined");
    tree::assert_equal(&second.mounted(), &image.tree(kind), "the mounted root");
    second.send(Signal::SIGTERM);
    let second = second.end();
    scratch.assert_nothing_runs();
    assert_eq!(second.unpacked_layers(), 1, "{:#?}", second.events);
    for id in ["first", "second"] {
        Shim::start(&scratch, id, Until::Prepared).end().assert_code(0);
    }
    scratch.assert_nothing_left();
}

#[test]
fn a_waiting_shim_unpacks_the_layer_after_the_first_one_is_killed() {
    kill_the_one_that_unpacks(RootKind::Shared);
}

#[test]
fn a_waiting_shim_with_a_block_root_reads_the_layer_after_the_first_one_is_killed() {
    kill_the_one_that_unpacks(RootKind::Block);
}

#[test]
fn a_shim_that_waits_for_a_layer_is_stopped_by_its_timeout() {
    for kind in ROOT_KINDS {
        let mut scratch = Scratch::new(&slow_image(kind), kind);
        let first = hold_the_layer(&scratch);
        scratch.resources["timeout_ms"] = json!(600);
        let ended = Shim::start(&scratch, "second", Until::Stopped).end();
        ended.assert_code(124);
        assert!(ended.took < PATIENCE, "the timeout is not heard: {:?}", ended.took);
        let stopped = ended.event("box.stopped").unwrap();
        assert_eq!(
            (&stopped["reason"], &stopped["stop"]["cause"]),
            (&json!("timeout"), &json!("timeout")),
            "{stopped}"
        );
        assert!(ended.event("error").is_none(), "{:#?}", ended.events);
        let first = first.kill_at(Duration::ZERO);
        assert!(first.was_killed(), "{:#?}", first.events);
        scratch.assert_nothing_runs();
    }
}
