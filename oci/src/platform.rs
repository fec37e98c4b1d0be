//! The platform of an image, and which image runs on which platform.
//!
//! Names are those of Go (`amd64`, `arm64`), as image indexes have them.

use std::fmt;
use std::str::FromStr;

/// An operating system and processor, written `linux/amd64` or `linux/arm64/v8`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// The operating system, as `GOOS` names it.
    pub os: String,
    /// The processor, as `GOARCH` names it.
    pub architecture: String,
    /// The processor's generation, when it is not the architecture's usual one.
    pub variant: Option<String>,
}

/// A text that is not a platform.
#[derive(Debug, thiserror::Error)]
#[error("malformed platform `{found}`: expected `os/architecture` or `os/architecture/variant`")]
pub struct PlatformError {
    found: String,
}

impl Platform {
    /// Returns the platform that a guest of this machine has: Linux on the host's processor.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    /// Says how well an image made for `image` suits `self`: `None` not at all, else higher is
    /// better.
    ///
    /// A variant is a generation; an older one than asked for runs, a newer one does not.
    pub(crate) fn suitability(&self, image: &Self) -> Option<u32> {
        if self.os != image.os || self.architecture != image.architecture {
            return None;
        }
        match (self.generation(), image.generation()) {
            (Some(wanted), Some(offered)) => (offered <= wanted).then_some(offered),
            _ => (self.variant == image.variant).then_some(0),
        }
    }

    /// Returns the variant as a number; a missing one is the architecture's first that images are
    /// built for.
    fn generation(&self) -> Option<u32> {
        match (self.variant.as_deref(), self.architecture.as_str()) {
            (Some(variant), _) => variant.strip_prefix('v')?.parse().ok(),
            (None, "arm64") => Some(8),
            (None, "arm") => Some(7),
            (None, "amd64") => Some(1),
            (None, _) => None,
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let malformed = || PlatformError { found: text.to_owned() };
        let parts: Vec<&str> = text.split('/').collect();
        let named = |part: &&str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        if !parts.iter().all(named) {
            return Err(malformed());
        }
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant.to_owned())),
            _ => return Err(malformed()),
        };
        Ok(Self { os: os.to_owned(), architecture: architecture.to_owned(), variant })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn platform_text_round_trips() {
        for text in ["linux/amd64", "linux/arm64/v8", "windows/amd64"] {
            assert_eq!(platform(text).to_string(), text);
        }
    }

    #[test]
    fn malformed_platform_is_refused() {
        for text in ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux/am d64"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }

    #[test]
    fn variant_decides_what_runs() {
        let cases = [
            ("linux/amd64", "linux/amd64", Some(1)),
            ("linux/amd64", "linux/amd64/v3", None),
            ("linux/amd64/v4", "linux/amd64/v3", Some(3)),
            ("linux/arm64", "linux/arm64/v8", Some(8)),
            ("linux/arm64/v8", "linux/arm64", Some(8)),
            ("linux/arm/v7", "linux/arm/v6", Some(6)),
            ("linux/amd64", "linux/arm64", None),
            ("linux/amd64", "windows/amd64", None),
            ("linux/riscv64", "linux/riscv64", Some(0)),
            ("linux/riscv64", "linux/riscv64/rva23", None),
        ];
        for (wanted, image, expected) in cases {
            assert_eq!(
                platform(wanted).suitability(&platform(image)),
                expected,
                "{wanted} for {image}"
            );
        }
    }
}
