//! The configuration of an image: how to run its process.

use std::collections::{BTreeMap, HashMap};

use super::documents::Process;
use super::healthcheck::Healthcheck;

/// Largest number of texts in a field of the configuration, where names and values count
/// separately. Real images have far fewer.
const FIELD_TEXTS: usize = 4096;

/// Largest size of a text in the configuration: the kernel's limit on one argument or one
/// environment variable of a process (`MAX_ARG_STRLEN`, execve(2)).
const TEXT_BYTES: usize = 128 * 1024;

/// A configuration that cannot be given to a process.
#[derive(Debug, thiserror::Error)]
pub enum ImageConfigError {
    /// A variable of the environment has no name.
    #[error("`config.env[{position}]` of the image is malformed: expected a name before `=`")]
    EnvSyntax {
        /// Position in the list.
        position: usize,
    },
    /// A field has more texts than any real image, or a text is longer than the kernel allows.
    #[error(
        "`config.{field}` of the image is too large: expected at most {FIELD_TEXTS} texts of \
         {TEXT_BYTES} bytes"
    )]
    TooLarge {
        /// The field.
        field: &'static str,
    },
    /// A text contains a NUL byte, which ends a string for execve(2).
    #[error("`config.{field}` of the image holds a NUL byte")]
    Nul {
        /// The field.
        field: &'static str,
    },
}

/// The process that an image defines. An empty value means that the image leaves the field
/// out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// The first words of the command.
    pub entrypoint: Vec<String>,
    /// The last words of the command, which a user can replace.
    pub cmd: Vec<String>,
    /// Environment variables, in the order of the image.
    pub env: Vec<(String, String)>,
    /// Working directory of the process. Empty means `/`.
    pub working_dir: String,
    /// User by name or number, and optionally a colon and a group. Empty means root.
    pub user: String,
    /// Signal that asks the process to stop.
    pub stop_signal: Option<String>,
    /// The test of whether the process works.
    pub healthcheck: Option<Healthcheck>,
    /// Directories for data, sorted. Docker mounts an anonymous volume on each, so that data does
    /// not go to the image's layers. A box has a private writable layer, so no volume needs to be
    /// mounted.
    pub volumes: Vec<String>,
    /// Ports on which the process listens, such as `80/tcp`, sorted.
    pub exposed_ports: Vec<String>,
    /// Metadata of the image, by name.
    pub labels: BTreeMap<String, String>,
}

impl ImageConfig {
    pub(super) fn from_document(
        process: Process,
        healthcheck: Option<Healthcheck>,
    ) -> Result<Self, ImageConfigError> {
        let this = Self {
            entrypoint: command(process.entrypoint),
            cmd: process.cmd,
            env: environment(&process.env)?,
            working_dir: process.working_dir,
            user: process.user,
            // Some tools write an empty text instead of leaving the field out.
            stop_signal: Some(process.stop_signal).filter(|signal| !signal.is_empty()),
            healthcheck,
            volumes: process.volumes,
            exposed_ports: process.exposed_ports,
            labels: process.labels,
        };
        this.check()?;
        Ok(this)
    }

    /// Checks that the texts can be given to a process, and that there are not too many.
    fn check(&self) -> Result<(), ImageConfigError> {
        // An error contains the name of the field instead of the text, which may be a secret.
        let mut entries = BTreeMap::new();
        for (field, text) in self.texts() {
            let count = entries.entry(field).or_insert(0);
            *count += 1;
            if *count > FIELD_TEXTS || text.len() > TEXT_BYTES {
                return Err(ImageConfigError::TooLarge { field });
            }
            if text.contains('\0') {
                return Err(ImageConfigError::Nul { field });
            }
        }
        Ok(())
    }

    /// Returns all texts, each with the name of its field.
    fn texts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        fn of<'a>(
            field: &'static str,
            texts: impl IntoIterator<Item = &'a String>,
        ) -> impl Iterator<Item = (&'static str, &'a str)> {
            texts.into_iter().map(move |text| (field, text.as_str()))
        }
        of("entrypoint", &self.entrypoint)
            .chain(of("cmd", &self.cmd))
            .chain(of("env", self.env.iter().flat_map(|(name, value)| [name, value])))
            .chain(of("working_dir", [&self.working_dir]))
            .chain(of("user", [&self.user]))
            .chain(of("stop_signal", &self.stop_signal))
            .chain(of("healthcheck", self.healthcheck.iter().flat_map(|check| &check.test)))
            .chain(of("volumes", &self.volumes))
            .chain(of("exposed_ports", &self.exposed_ports))
            .chain(of("labels", self.labels.iter().flat_map(|(name, value)| [name, value])))
    }
}

/// Returns an entrypoint. One empty word means that there is none: `ENTRYPOINT [""]` in a
/// Dockerfile removes the entrypoint of the base image (Docker, podman).
fn command(entrypoint: Vec<String>) -> Vec<String> {
    if entrypoint == [""] { Vec::new() } else { entrypoint }
}

/// Splits each `NAME=value`. The last one of a name counts, as in all container engines.
///
/// An entry without `=` sets no variable, and one without a name is an error (decision 0014). The
/// error contains the position instead of the text, which may be a secret.
fn environment(entries: &[String]) -> Result<Vec<(String, String)>, ImageConfigError> {
    let mut environment: Vec<(String, String)> = Vec::new();
    let mut positions = HashMap::new();
    for (position, entry) in entries.iter().enumerate() {
        // A value can contain `=`, a name cannot.
        let Some((name, value)) = entry.split_once('=') else { continue };
        if name.is_empty() {
            return Err(ImageConfigError::EnvSyntax { position });
        }
        let place = *positions.entry(name).or_insert(environment.len());
        match environment.get_mut(place) {
            Some((_, earlier)) => value.clone_into(earlier),
            None => environment.push((name.to_owned(), value.to_owned())),
        }
    }
    Ok(environment)
}
