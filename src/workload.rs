//! What the box runs: the image's config and `process`, merged as container engines do it.
//!
//! `args` replace the image's default arguments and follow its entrypoint; an `entrypoint` replaces
//! the image's and drops its default arguments; the environment is merged name by name. The guest is
//! told what is here, and so is the reader of events, but for the values of the environment.

use std::str::FromStr;
use std::time::Duration;

use a3s_box_core::event::{EventKind, ResolvedHealthcheck, ResolvedRun};
use a3s_box_oci::{Healthcheck, Image, ImageConfig};
use nix::sys::signal::Signal;

use crate::spec::VmSpec;

/// The search path of a workload whose image and config set none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Bytes of text in one event: JSON may write each byte as six, and readers take lines of 1 MiB.
const EVENT_TEXT_BYTES: usize = 128 * 1024;

/// What a box runs; without `Debug`, as the environment's values are secrets.
pub(crate) struct RunSpec {
    pub(crate) entrypoint: Vec<String>,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: String,
    /// Empty: root.
    pub(crate) user: String,
    /// A known signal by its full name, or what the image says.
    pub(crate) stop_signal: String,
    healthcheck: Option<Healthcheck>,
    /// Not mounted: the box's private writable layer is what an anonymous volume would be.
    volumes: Vec<String>,
    exposed_ports: Vec<String>,
}

impl RunSpec {
    /// Merges image and config.
    pub(crate) fn merge(spec: &VmSpec, image: Option<&ImageConfig>) -> Self {
        let process = &spec.process;
        let image = image.cloned().unwrap_or_default();
        let (entrypoint, default_args) = match &process.entrypoint {
            Some(entrypoint) => (entrypoint.clone(), Vec::new()),
            None => (image.entrypoint, image.cmd),
        };
        let args = if process.args.is_empty() { default_args } else { process.args.clone() };
        let cwd = process.cwd.clone().unwrap_or(image.working_dir);
        let stop_signal = match (spec.stop_signal, image.stop_signal) {
            (Some(signal), _) => signal.as_str().to_owned(),
            (None, Some(name)) => {
                parse_signal(&name).map_or(name, |signal| signal.as_str().to_owned())
            }
            (None, None) => Signal::SIGTERM.as_str().to_owned(),
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

/// The event that tells which image was found, and what the box will run of it.
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
        // The manifest is bounded far below this.
        layers: u32::try_from(image.layers.len()).unwrap_or(u32::MAX),
        image_bytes_total: sizes.fold(0, u64::saturating_add),
        run: Box::new(run.into_event(budget)),
    }
}

impl RunSpec {
    /// Tells what may be told, within a bound.
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

/// Bytes of text that an event may still hold.
struct Budget {
    left: usize,
    exceeded: bool,
}

impl Budget {
    /// Takes a text, or its beginning.
    fn text(&mut self, mut text: String) -> String {
        if text.len() > self.left {
            self.exceeded = true;
            text.truncate(text.floor_char_boundary(self.left));
        }
        // In a list a text has two quotes and a comma.
        self.left = self.left.saturating_sub(text.len() + 3);
        text
    }

    /// Takes as many texts as there is room for.
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
        // Durations are 64-bit numbers of nanoseconds in the image.
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

/// Images write `SIGTERM`, `TERM` or `15`.
pub(crate) fn parse_signal(name: &str) -> Option<Signal> {
    let number = name.parse().ok().and_then(|number: i32| Signal::try_from(number).ok());
    number
        .or_else(|| Signal::from_str(name).ok())
        .or_else(|| Signal::from_str(&format!("SIG{name}")).ok())
}

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
    fn words_of_the_command_are_the_configs_else_the_images() {
        let (of_image, none): (&[&str], &[&str]) = (&["/entry", "-x"], &[]);
        let cases: [(&str, &[&str], &[&str]); 6] = [
            ("{}", of_image, &["serve"]),
            (r#"{"args":["a","b"]}"#, of_image, &["a", "b"]),
            (r#"{"entrypoint":["/other"]}"#, &["/other"], none),
            (r#"{"entrypoint":["/other"],"args":["a"]}"#, &["/other"], &["a"]),
            (r#"{"entrypoint":[],"args":["a"]}"#, none, &["a"]),
            (r#"{"entrypoint":[]}"#, none, none),
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
    fn event_of_an_endless_image_is_one_short_line_and_says_so() {
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
    fn environment_is_merged_name_by_name_and_has_a_path() {
        let run = merge(r#"{"env":{"B":"config","C":"config"}}"#, Some(&image()));
        let all: Vec<String> =
            run.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(all[..3], ["A=image", "B=config", "C=config"]);
        assert_eq!(all[3..], [format!("PATH={DEFAULT_PATH}")]);
        let own = ImageConfig { env: vec![("PATH".into(), "/bin".into())], ..image() };
        assert_eq!(merge("{}", Some(&own)).env, own.env);
    }

    #[test]
    fn directory_user_and_signal_are_the_configs_else_the_images() {
        let run = merge("{}", Some(&image()));
        assert_eq!([&run.cwd, &run.user, &run.stop_signal], ["/srv", "web", "SIGQUIT"]);
        let run = merge(r#"{"cwd":"/tmp","user":"7"}"#, Some(&image()));
        assert_eq!([&run.cwd, &run.user], ["/tmp", "7"]);
        for (name, expected) in
            [("15", "SIGTERM"), ("SIGINT", "SIGINT"), ("HUP", "SIGHUP"), ("SIGMAYBE", "SIGMAYBE")]
        {
            let image = ImageConfig { stop_signal: Some(name.into()), ..image() };
            assert_eq!(merge("{}", Some(&image)).stop_signal, expected);
        }
    }
}
