//! The workload: the image's config and the box's `process`, merged as container engines merge
//! them.
//!
//! `args` replace the image's default arguments and follow its entrypoint. An `entrypoint` replaces
//! the image's entrypoint and drops its default arguments. The environment is merged name by name.
//! Both the guest program and the event `image.resolved` get the result, but the event has no
//! values of the environment, because they can be secrets.

use std::time::Duration;

use a3s_box_core::event::{EventKind, ResolvedHealthcheck, ResolvedRun};
use a3s_box_oci::{Healthcheck, Image, ImageConfig};
use nix::sys::signal::Signal;

use crate::spec::{StopSignal, VmSpec};

/// `$PATH` of a workload if neither image nor config sets one.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Most bytes of text in one event. JSON escapes a byte as at most six, and readers take lines of 1
/// MiB.
const EVENT_TEXT_BYTES: usize = 128 * 1024;

/// The merged workload. It does not implement `Debug`, because the environment can hold secrets.
pub(crate) struct RunSpec {
    pub(crate) entrypoint: Vec<String>,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: String,
    /// An empty name means root.
    pub(crate) user: String,
    /// Full name of a known signal, or the image's text if it is no signal.
    pub(crate) stop_signal: String,
    healthcheck: Option<Healthcheck>,
    /// Volumes of the image. None is mounted, because the box's own writable layer serves the
    /// purpose of an anonymous volume.
    volumes: Vec<String>,
    exposed_ports: Vec<String>,
}

impl RunSpec {
    /// Merges the config of the image with the config of the box.
    pub(crate) fn merge(spec: &VmSpec, image: Option<&ImageConfig>) -> Self {
        let process = &spec.process;
        let image = image.cloned().unwrap_or_default();
        // Arguments of the image were written for its entrypoint, so another entrypoint drops them.
        let (entrypoint, default_args) = match &process.entrypoint {
            // One empty word is no entrypoint, as in an image.
            Some(entrypoint) if entrypoint == &[""] => (Vec::new(), Vec::new()),
            Some(entrypoint) => (entrypoint.clone(), Vec::new()),
            None => (image.entrypoint, image.cmd),
        };
        let args = if process.args.is_empty() { default_args } else { process.args.clone() };
        let cwd = process.cwd.clone().unwrap_or(image.working_dir);
        let stop_signal = match (spec.stop_signal, image.stop_signal) {
            (Some(signal), _) => signal.to_string(),
            (None, Some(name)) => {
                name.parse::<StopSignal>().map_or(name, |signal| signal.to_string())
            }
            (None, None) => StopSignal::from(Signal::SIGTERM).to_string(),
        };
        Self {
            entrypoint,
            args,
            env: environment(spec, image.env),
            cwd: if cwd.is_empty() { "/".to_owned() } else { cwd },
            user: process.user.clone().unwrap_or(image.user),
            stop_signal,
            healthcheck: image.healthcheck,
            volumes: image.volumes,
            exposed_ports: image.exposed_ports,
        }
    }
}

/// Returns the event `image.resolved`, with the image that was found and the merged workload.
pub(crate) fn image_resolved(spec: &VmSpec, image: &Image) -> EventKind {
    let run = RunSpec::merge(spec, Some(&image.config));
    let mut budget = Budget { left: EVENT_TEXT_BYTES, exceeded: false };
    let sizes = image.layers.iter().map(|layer| layer.size_bytes);
    EventKind::ImageResolved {
        image: image.manifest_digest.to_string(),
        reference: spec
            .image
            .as_ref()
            .and_then(|image| image.reference.clone())
            .map(|reference| budget.text(reference)),
        platform: budget.text(image.platform.to_string()),
        // The size of a manifest is limited, so the number of its layers is far below this.
        layers: u32::try_from(image.layers.len()).unwrap_or(u32::MAX),
        image_bytes_total: sizes.fold(0, u64::saturating_add),
        run: Box::new(run.into_event(budget)),
    }
}

impl RunSpec {
    /// Returns the part of the event about the workload, with texts within `budget`.
    fn into_event(self, mut budget: Budget) -> ResolvedRun {
        let names = self.env.into_iter().map(|(name, _)| name).collect();
        ResolvedRun {
            cwd: budget.text(self.cwd),
            user: budget.text(self.user),
            stop_signal: budget.text(self.stop_signal),
            entrypoint: budget.texts(self.entrypoint),
            args: budget.texts(self.args),
            env: budget.texts(names),
            healthcheck: self.healthcheck.map(|check| budget.healthcheck(check)),
            volumes: budget.texts(self.volumes),
            exposed_ports: budget.texts(self.exposed_ports),
            truncated: budget.exceeded,
        }
    }
}

/// Number of bytes of text that still fit into an event.
struct Budget {
    left: usize,
    exceeded: bool,
}

impl Budget {
    /// Returns a text, or its beginning if the rest does not fit.
    fn text(&mut self, mut text: String) -> String {
        if text.len() > self.left {
            self.exceeded = true;
            text.truncate(text.floor_char_boundary(self.left));
        }
        // In a list, JSON adds two quotes and a comma to each text. Without counting them, many
        // empty texts would exceed the limit.
        self.left = self.left.saturating_sub(text.len() + 3);
        text
    }

    /// Returns as many texts as fit.
    fn texts(&mut self, texts: Vec<String>) -> Vec<String> {
        let mut kept = Vec::new();
        for text in texts {
            if self.left == 0 {
                self.exceeded = true;
                break;
            }
            kept.push(self.text(text));
        }
        kept
    }

    fn healthcheck(&mut self, check: Healthcheck) -> ResolvedHealthcheck {
        // The image has durations as 64-bit numbers of nanoseconds, so milliseconds always fit.
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        ResolvedHealthcheck {
            test: self.texts(check.test),
            interval_ms: check.interval.map(ms),
            timeout_ms: check.timeout.map(ms),
            start_period_ms: check.start_period.map(ms),
            retries: check.retries,
        }
    }
}

/// Merges the environments. The image's order is kept, and the variables of the config follow.
fn environment(spec: &VmSpec, of_image: Vec<(String, String)>) -> Vec<(String, String)> {
    let configured = &spec.process.env.0;
    let of_image = of_image.into_iter().filter(|(name, _)| !configured.contains_key(name));
    let added = configured.iter().map(|(name, value)| (name.clone(), value.clone()));
    let mut env: Vec<(String, String)> = of_image.chain(added).collect();
    if !env.iter().any(|(name, _)| name == "PATH") {
        env.push(("PATH".to_owned(), DEFAULT_PATH.to_owned()));
    }
    env
}

#[cfg(test)]
mod tests {
    use a3s_box_core::BoxConfig;

    use super::*;

    fn image() -> ImageConfig {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        ImageConfig {
            entrypoint: owned(&["/entry", "-x"]),
            cmd: owned(&["serve"]),
            env: vec![("A".into(), "image".into()), ("B".into(), "image".into())],
            working_dir: "/srv".into(),
            user: "web".into(),
            stop_signal: Some("QUIT".into()),
            ..ImageConfig::default()
        }
    }

    fn merge(process: &str, image: Option<&ImageConfig>) -> RunSpec {
        let json = format!(r#"{{"process":{process}}}"#);
        let config = BoxConfig::from_json(json.as_bytes()).unwrap();
        RunSpec::merge(&VmSpec::try_from(config).unwrap(), image)
    }

    #[test]
    fn config_overrides_command_of_the_image() {
        let (of_image, none): (&[&str], &[&str]) = (&["/entry", "-x"], &[]);
        let cases: [(&str, &[&str], &[&str]); 8] = [
            ("{}", of_image, &["serve"]),
            (r#"{"args":["a","b"]}"#, of_image, &["a", "b"]),
            (r#"{"entrypoint":["/other"]}"#, &["/other"], none),
            (r#"{"entrypoint":["/other"],"args":["a"]}"#, &["/other"], &["a"]),
            (r#"{"entrypoint":[],"args":["a"]}"#, none, &["a"]),
            (r#"{"entrypoint":[]}"#, none, none),
            (r#"{"entrypoint":[""],"args":["a"]}"#, none, &["a"]),
            (r#"{"entrypoint":[""]}"#, none, none),
        ];
        for (process, entrypoint, args) in cases {
            let run = merge(process, Some(&image()));
            assert_eq!(
                (&run.entrypoint[..], &run.args[..]),
                (&owned(entrypoint)[..], &owned(args)[..])
            );
        }
        let without = merge(r#"{"args":["a"]}"#, None);
        assert_eq!((without.entrypoint.len(), without.args.len()), (0, 1));
        assert_eq!((without.cwd.as_str(), without.user.as_str()), ("/", ""));
        assert_eq!(without.stop_signal, "SIGTERM");
    }

    fn owned(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn event_of_a_huge_image_is_one_short_line_that_is_marked_as_truncated() {
        let spec = VmSpec::try_from(BoxConfig::from_json(b"{}").unwrap()).unwrap();
        let length = |image: ImageConfig| {
            let budget = Budget { left: EVENT_TEXT_BYTES, exceeded: false };
            let run = RunSpec::merge(&spec, Some(&image)).into_event(budget);
            assert!(run.truncated);
            serde_json::to_vec(&run).unwrap().len()
        };
        let controls = "\u{1}".repeat(100_000);
        let words = ImageConfig { cmd: vec![controls.clone(); 40], ..image() };
        assert!((700_000..900_000).contains(&length(words)));
        let empty = ImageConfig { volumes: vec![String::new(); 1_000_000], ..image() };
        assert!(length(empty) < 200_000);
        let user = ImageConfig { user: "é".repeat(100_000), ..image() };
        assert!(length(user) < 200_000);
        let budget = Budget { left: EVENT_TEXT_BYTES, exceeded: false };
        let run = RunSpec::merge(&spec, Some(&image())).into_event(budget);
        assert!(!run.truncated && run.args == ["serve"] && run.volumes.is_empty());
    }

    #[test]
    fn environment_is_merged_by_name_and_always_has_a_path() {
        let run = merge(r#"{"env":{"B":"config","C":"config"}}"#, Some(&image()));
        let all: Vec<String> =
            run.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(all[..3], ["A=image", "B=config", "C=config"]);
        assert_eq!(all[3..], [format!("PATH={DEFAULT_PATH}")]);
        let own = ImageConfig { env: vec![("PATH".into(), "/bin".into())], ..image() };
        assert_eq!(merge("{}", Some(&own)).env, own.env);
    }

    #[test]
    fn config_overrides_directory_user_and_signal_of_the_image() {
        let spec = BoxConfig::from_json(br#"{"stop":{"signal":"hup"}}"#).unwrap();
        let spec = VmSpec::try_from(spec).unwrap();
        assert_eq!(RunSpec::merge(&spec, Some(&image())).stop_signal, "SIGHUP");
        let run = merge("{}", Some(&image()));
        assert_eq!([&run.cwd, &run.user, &run.stop_signal], ["/srv", "web", "SIGQUIT"]);
        let run = merge(r#"{"cwd":"/tmp","user":"7"}"#, Some(&image()));
        assert_eq!([&run.cwd, &run.user], ["/tmp", "7"]);
        for (name, expected) in [
            ("15", "SIGTERM"),
            ("rtmin+3", "SIGRTMIN+3"),
            ("HUP", "SIGHUP"),
            ("SIGMAYBE", "SIGMAYBE"),
        ] {
            let image = ImageConfig { stop_signal: Some(name.into()), ..image() };
            assert_eq!(merge("{}", Some(&image)).stop_signal, expected);
        }
    }
}
