//! Unpacks images by containerd, which each test starts with directories of its own.
//!
//! The overlayfs snapshotter unpacks each layer alone, as this crate does. The native snapshotter
//! copies the tree of the lower layers and applies the layer to the copy. This is exactly the order
//! of the image specification.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use a3s_box_oci::Digest;

use crate::bench::run;
use crate::layout::pack;

/// Plugins that are disabled, because they need other services or write outside of the directories
/// of the test.
const DISABLED: [&str; 4] = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.restart",
    "io.containerd.internal.v1.tracing",
];

/// Configuration that prevents garbage collection during a test. The collector would remove the
/// snapshots, because no container uses them.
const NO_COLLECTION: &str = r#"
[plugins."io.containerd.gc.v1.scheduler"]
startup_delay = "24h"
schedule_delay = "24h"
deletion_threshold = 0
mutation_threshold = 1000000
"#;

/// Limit on the time of a start. A start takes a tenth of a second on an idle machine.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// An image of a layout. containerd imports it as `name:reference`.
pub(crate) struct Import<'a> {
    pub(crate) layout: &'a Path,
    pub(crate) reference: &'a str,
    pub(crate) name: &'a str,
    pub(crate) diff_ids: Vec<Digest>,
}

/// A running containerd. It ends when the value is dropped, or with the thread that started it.
pub(crate) struct Containerd {
    daemon: Child,
    directory: PathBuf,
}

impl Containerd {
    /// Starts containerd with all its files in `directory`, which this creates. Returns when
    /// containerd answers requests.
    pub(crate) fn start(directory: &Path) -> Self {
        fs::create_dir(directory).unwrap();
        let (root, state, socket) =
            (directory.join("root"), directory.join("state"), directory.join("sock"));
        let config = format!(
            "version = 2\nroot = {root:?}\nstate = {state:?}\ndisabled_plugins = {DISABLED:?}\n\
             [grpc]\naddress = {socket:?}\n{NO_COLLECTION}"
        );
        fs::write(directory.join("config.toml"), config).unwrap();
        let log = File::create(directory.join("log")).unwrap();
        // `--pdeathsig` ends containerd also if the test is killed, so that no process is left.
        let daemon = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "containerd", "--config"])
            .arg(directory.join("config.toml"))
            // With `unpigz`, containerd accepts streams that its own decoder refuses. Without this
            // variable, the result would depend on whether `unpigz` is installed.
            .env("CONTAINERD_DISABLE_PIGZ", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let this = Self { daemon, directory: directory.to_owned() };
        let started = Instant::now();
        while let Err(error) = run(this.ctr().arg("version")) {
            let log = fs::read_to_string(directory.join("log")).unwrap();
            assert!(started.elapsed() < START_TIMEOUT, "containerd does not start: {error}\n{log}");
            thread::sleep(Duration::from_millis(20));
        }
        this
    }

    /// Returns a command of containerd's client for this daemon.
    fn ctr(&self) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.directory.join("sock"));
        command
    }

    /// Mounts an image by the overlayfs snapshotter, and returns the mount point.
    pub(crate) fn mount(&self, image: &Import<'_>) -> Result<PathBuf, String> {
        let target = self.directory.join(format!("{}.root", image.name));
        fs::create_dir(&target).unwrap();
        self.import(image, &["--no-unpack"])?;
        let reference = format!("{}:{}", image.name, image.reference);
        run(self.ctr().args(["images", "mount", &reference]).arg(&target))?;
        Ok(target)
    }

    /// Unpacks an image by the native snapshotter, and returns the directory of its tree.
    pub(crate) fn apply(&self, image: &Import<'_>) -> Result<PathBuf, String> {
        const SNAPSHOTTER: [&str; 2] = ["--snapshotter", "native"];
        self.import(image, &SNAPSHOTTER)?;
        let snapshots =
            |arguments: &[&str]| run(self.ctr().arg("snapshots").args(SNAPSHOTTER).args(arguments));
        snapshots(&["view", image.name, &image.chain_id()])?;
        // The output is `mount -t bind <directory> <target> -o …`.
        let printed = snapshots(&["mounts", "/nowhere", image.name])?;
        Ok(PathBuf::from(printed.split_whitespace().nth(3).unwrap()))
    }

    /// Imports an image. The options decide whether it is unpacked, and by which snapshotter.
    fn import(&self, image: &Import<'_>, options: &[&str]) -> Result<(), String> {
        let archive = self.directory.join("import.tar");
        pack(image.layout, &archive);
        let import = ["images", "import", "--base-name", image.name];
        run(self.ctr().args(import).args(options).arg(&archive)).map(drop)
    }
}

impl Import<'_> {
    /// Returns the name of the topmost snapshot, which is the `ChainID` of the image specification.
    fn chain_id(&self) -> String {
        let chain = |below, diff_id| Digest::of(format!("{below} {diff_id}").as_bytes());
        self.diff_ids.iter().copied().reduce(chain).unwrap().to_string()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }
}
