//! Request budgets: how often the device of the root finishes requests of a fixed workload.
//!
//! The counts hold on a slow or emulated host, where times do not.

use std::collections::BTreeMap;

use serde_json::json;

use a3s_box_vm_tests::{Shim, variable};

/// Rounds of the workload in one boot. The smallest count of an operation is the one without the
/// requests of the guest kernel's own background work, which writes back what earlier operations
/// have changed.
const ROUNDS: usize = 3;

/// Modules whose imports open several hundred files.
const IMPORTS: &str = "import asyncio, concurrent.futures, decimal, email.mime.text, http.server, \
    logging.config, multiprocessing, sqlite3, ssl, unittest, urllib.request, xml.dom.minidom";

/// Returns the steps of one round: each operation with its name. `$1` is a directory.
fn round(number: usize) -> Vec<String> {
    let step = |name: &str, script: &str| {
        format!("count-requests={name}:set -- /srv/round-{number}; {script}")
    };
    let import = format!("python3 -c '{IMPORTS}'");
    vec![
        step(
            "prepare",
            "mkdir $1; cd /usr/lib/python3.*/; tar -cf $1/tar asyncio email json unittest",
        ),
        "drop-caches".into(),
        step("find cold", "find /usr -xdev >/dev/null"),
        step("find again", "find /usr -xdev >/dev/null"),
        "drop-caches".into(),
        step("python cold", &import),
        step("python again", &import),
        step(
            "create 166 files",
            "mkdir $1/files; for i in $(seq 166); do echo $i >$1/files/$i; done",
        ),
        step("read 166 files", "cat $1/files/* >/dev/null"),
        step("remove 166 files", "rm -r $1/files"),
        step("unpack", "tar -xf $1/tar -C $1"),
    ]
}

/// Interrupts of the disks and of the file systems (virtio-fs) during one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Requests {
    block: u64,
    file_system: u64,
}

/// Runs the rounds of the workload with a root of this kind. Returns the smallest count of each operation.
fn measure(kind: &str, rounds: usize) -> (Shim, BTreeMap<String, Requests>) {
    let steps: Vec<String> = (0..rounds).flat_map(round).collect();
    let steps: Vec<&str> = steps.iter().map(String::as_str).collect();
    let mut shim = Shim::start_workload(&steps, |config| {
        let layout = variable("A3S_BOX_KINDS").join("kinds");
        config["image"] = json!({"layout": layout, "reference": "python"});
        config["root"] = json!({"kind": kind});
        // The first box unpacks the image, which takes half a minute in the lab.
        config["resources"] = json!({"timeout_ms": 200_000});
    });
    shim.ends_with(0, "exited", None);
    let console = String::from_utf8(shim.console()).unwrap();
    let mut least = BTreeMap::new();
    let mut lines = 0;
    for line in console.lines().filter_map(|line| line.strip_prefix("requests ")) {
        let words: Vec<&str> = line.rsplitn(3, ' ').collect();
        let [file_system, block, name] = words[..] else { panic!("{line}\n{shim}") };
        let found =
            Requests { block: block.parse().unwrap(), file_system: file_system.parse().unwrap() };
        let entry = least.entry(name.to_owned()).or_insert(found);
        entry.block = entry.block.min(found.block);
        entry.file_system = entry.file_system.min(found.file_system);
        lines += 1;
    }
    assert_eq!(lines, least.len() * rounds, "{shim}");
    (shim, least)
}

/// Returns one line for each operation: its name, and the interrupts of disks and of file systems.
fn table(found: &BTreeMap<String, Requests>) -> String {
    let line = |(name, requests): (&String, &Requests)| {
        format!("  {name:<18} {:>6} {:>6}\n", requests.block, requests.file_system)
    };
    found.iter().map(line).collect()
}

/// Largest number of interrupts of the disks of a block root during each operation: twice what was
/// counted (150, 0, 301, 0, 13, 2, 2 and 32), and at least 8, because the guest kernel may write
/// something back at any time.
const BUDGETS: [(&str, u64); 8] = [
    ("find cold", 300),
    ("find again", 8),
    ("python cold", 600),
    ("python again", 8),
    ("create 166 files", 30),
    ("read 166 files", 8),
    ("remove 166 files", 8),
    ("unpack", 64),
];

#[test]
fn a_block_root_keeps_its_request_budgets() {
    let (shim, found) = measure("block", ROUNDS);
    println!("block root, interrupts of disks and of file systems:\n{}", table(&found));
    for (name, budget) in BUDGETS {
        let Requests { block, file_system } = found[name];
        assert!(block <= budget, "{name}: {block} interrupts, budget {budget}\n{shim}");
        assert_eq!(file_system, 0, "{name}: a block root has used virtio-fs\n{shim}");
    }
}

#[test]
fn a_shared_root_uses_no_disk() {
    let (shim, found) = measure("shared", 1);
    println!("shared root, interrupts of disks and of file systems:\n{}", table(&found));
    for (name, _) in BUDGETS {
        assert_eq!(found[name].block, 0, "{name}\n{shim}");
    }
    // The counting works: operations on a shared root need at least one request for each file.
    assert!(found["create 166 files"].file_system >= 166, "{shim}");
}
