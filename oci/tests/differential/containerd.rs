//! containerd, started for one test, with directories of its own.
//!
//! Its overlayfs snapshotter unpacks each layer alone, as this crate does. Its native snapshotter
//! copies the tree below and applies the layer to the copy: layers applied in order, to the letter.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use a3s_box_oci::Digest;

use crate::bench::run;
use crate::layout::pack;

/// What the tests do without: plugins that need other services, or write outside of our directories.
const DISABLED: [&str; 4] = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.restart",
    "io.containerd.internal.v1.tracing",
];

/// Nothing refers to the snapshots that the tests look at: they are not to be collected.
const NO_COLLECTION: &str = r#"
[plugins."io.containerd.gc.v1.scheduler"]
startup_delay = "24h"
schedule_delay = "24h"
deletion_threshold = 0
mutation_threshold = 1000000
"#;

/// A start takes a tenth of a second on an idle machine.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// An image of a layout, under the name that it gets in front of its tag.
pub(crate) struct Import<'a> {
    pub(crate) layout: &'a Path,
    pub(crate) reference: &'a str,
    pub(crate) name: &'a str,
    pub(crate) diff_ids: Vec<Digest>,
}

/// A running containerd; it ends with the value, and with the thread that started it.
pub(crate) struct Containerd {
    daemon: Child,
    directory: PathBuf,
}

impl Containerd {
    /// Starts containerd in a new directory.
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
        let daemon = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "containerd", "--config"])
            .arg(directory.join("config.toml"))
            // Whether `unpigz` is installed is not to make a difference.
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

    fn ctr(&self) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.directory.join("sock"));
        command
    }

    /// Mounts an image with the overlayfs snapshotter, and returns where.
    pub(crate) fn mount(&self, image: &Import<'_>) -> Result<PathBuf, String> {
        let target = self.directory.join(format!("{}.root", image.name));
        fs::create_dir(&target).unwrap();
        self.import(image, &["--no-unpack"])?;
        let reference = format!("{}:{}", image.name, image.reference);
        run(self.ctr().args(["images", "mount", &reference]).arg(&target))?;
        Ok(target)
    }

    /// Unpacks an image with the native snapshotter, and returns its directory.
    pub(crate) fn apply(&self, image: &Import<'_>) -> Result<PathBuf, String> {
        const SNAPSHOTTER: [&str; 2] = ["--snapshotter", "native"];
        self.import(image, &SNAPSHOTTER)?;
        let snapshots =
            |arguments: &[&str]| run(self.ctr().arg("snapshots").args(SNAPSHOTTER).args(arguments));
        snapshots(&["view", image.name, &image.chain_id()])?;
        // It prints `mount -t bind <directory> <target> -o …`.
        let printed = snapshots(&["mounts", "/nowhere", image.name])?;
        Ok(PathBuf::from(printed.split_whitespace().nth(3).unwrap()))
    }

    fn import(&self, image: &Import<'_>, options: &[&str]) -> Result<(), String> {
        let archive = self.directory.join("import.tar");
        pack(image.layout, &archive);
        let import = ["images", "import", "--base-name", image.name];
        run(self.ctr().args(import).args(options).arg(&archive)).map(drop)
    }
}

impl Import<'_> {
    /// Computes the name of the topmost snapshot: the `ChainID` of the image specification.
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
