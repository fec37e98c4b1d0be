//! The platform of an image, and which images run on which platform.
//!
//! Names are the ones of Go (`amd64`, `arm64`), which image indexes use. Other spellings that
//! container engines understand, such as `x86_64`, are changed into these.

use std::fmt;
use std::str::FromStr;

use super::documents::{Configuration, DescriptorPlatform};

/// An operating system and a processor, written `linux/amd64` or `linux/arm64/v8`.
///
/// ```
/// use a3s_box_oci::Platform;
///
/// let platform: Platform = "linux/arm64/v8".parse()?;
/// assert_eq!(platform.variant.as_deref(), Some("v8"));
/// assert_eq!(Platform::host().os, "linux");
/// # Ok::<(), a3s_box_oci::PlatformError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// The operating system, as `GOOS` names it.
    pub os: String,
    /// The processor, as `GOARCH` names it.
    pub architecture: String,
    /// The generation of the processor, such as `v8`, unless it is the default of the architecture.
    pub variant: Option<String>,
}

/// A text that is not a platform.
#[derive(Debug, thiserror::Error)]
#[error("malformed platform `{found}`: expected `os/architecture` or `os/architecture/variant`")]
pub struct PlatformError {
    found: String,
}

impl Platform {
    /// Returns the platform of a guest on this machine: Linux on the processor of the host.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        // Images for the first generation have no variant in an index.
        let variant = Some(host_generation()).filter(|generation| *generation > 1);
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(|generation| format!("v{generation}")),
        }
    }

    /// Makes a platform from names in any spelling that container engines understand. The list is
    /// the one of `platforms.Normalize` in containerd.
    fn from_names(os: &str, architecture: &str, variant: &str) -> Self {
        let (os, architecture, variant) =
            (lower_case(os), lower_case(architecture), lower_case(variant));
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("i386", _) => ("386", ""),
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            other => other,
        };
        let is_arm = matches!(architecture, "arm" | "arm64");
        let variant = match variant.parse::<u8>() {
            Ok(generation) if is_arm => format!("v{generation}"),
            _ => variant.to_owned(),
        };
        Self {
            os: if os == "macos" { "darwin".to_owned() } else { os },
            architecture: architecture.to_owned(),
            // An empty variant means the same as a missing one.
            variant: Some(variant).filter(|variant| !variant.is_empty()),
        }
    }

    /// Returns the platform in a descriptor, or `None` if the descriptor leaves a part of it out.
    pub(crate) fn of_descriptor(platform: &DescriptorPlatform) -> Option<Self> {
        let DescriptorPlatform { os, architecture, variant } = platform;
        let is_complete = !os.is_empty() && !architecture.is_empty();
        is_complete.then(|| Self::from_names(os, architecture, variant))
    }

    /// Returns the platform in an image configuration.
    ///
    /// An image that names no operating system is for Linux. One that names no architecture is
    /// taken for the architecture of `wanted`, because nothing shows that it is for another one.
    pub(crate) fn of_configuration(configuration: &Configuration, wanted: &Self) -> Self {
        let Configuration { os, architecture, variant, .. } = configuration;
        let os = if os.is_empty() { "linux" } else { os };
        let architecture =
            if architecture.is_empty() { &wanted.architecture } else { architecture };
        Self::from_names(os, architecture, variant)
    }

    /// Returns how well an image for the platform `image` suits this platform. `None` means that it
    /// does not run, and a higher number is better.
    ///
    /// A variant is a generation of the processor. An image for an older generation runs, and an
    /// image for a newer one does not.
    pub(crate) fn suitability(&self, image: &Self) -> Option<u32> {
        if self.os != image.os || self.architecture != image.architecture {
            return None;
        }
        // Variants that are no generations have no order, so they must be equal.
        match (self.generation(), image.generation()) {
            (Some(wanted), Some(offered)) => (offered <= wanted).then_some(offered),
            _ => (self.variant == image.variant).then_some(0),
        }
    }

    /// Returns the variant as a number. If it is missing, the result is the oldest generation of
    /// the architecture for which images are built.
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

/// Returns a name in lower case. A text that cannot be a name stays as it is, for the error.
fn lower_case(name: &str) -> String {
    if name.bytes().all(is_name_byte) { name.to_ascii_lowercase() } else { name.to_owned() }
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._-".contains(&byte)
}

/// Returns the micro-architecture level of the x86-64 processor (System V ABI, section 3.1.1). A
/// guest has the same instructions as the host.
#[cfg(target_arch = "x86_64")]
fn host_generation() -> u32 {
    macro_rules! has {
        ($($feature:tt)*) => { true $(&& is_x86_feature_detected!($feature))* };
    }
    let levels = [
        has!("cmpxchg16b" "popcnt" "sse3" "sse4.1" "sse4.2" "ssse3"),
        has!("avx" "avx2" "bmi1" "bmi2" "f16c" "fma" "lzcnt" "movbe"),
        has!("avx512f" "avx512bw" "avx512cd" "avx512dq" "avx512vl"),
    ];
    levels.into_iter().take_while(|has| *has).fold(1, |level, _| level + 1)
}

/// Returns the first generation, because images for other architectures are built for it.
#[cfg(not(target_arch = "x86_64"))]
fn host_generation() -> u32 {
    1
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let malformed = || PlatformError { found: text.to_owned() };
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, ""),
            // A script that joins the three parts writes `linux/amd64/` if there is no variant.
            [os, architecture, variant] => (os, architecture, variant),
            _ => return Err(malformed()),
        };
        // The text appears in errors and log lines, so it must have no control characters.
        let is_name = |part: &str| part.bytes().all(is_name_byte);
        let is_complete = !os.is_empty() && !architecture.is_empty();
        if !is_complete || ![os, architecture, variant].into_iter().all(is_name) {
            return Err(malformed());
        }
        Ok(Self::from_names(os, architecture, variant))
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
        for text in ["", "linux", "linux/", "/amd64", "linux//v8", "linux/arm/v7/x", "linux/am d64"]
        {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }

    #[test]
    fn each_spelling_of_an_engine_names_the_same_platform() {
        for (spelling, expected) in [
            ("linux/x86_64", "linux/amd64"),
            ("linux/x86-64", "linux/amd64"),
            ("Linux/AMD64", "linux/amd64"),
            ("linux/amd64/", "linux/amd64"),
            ("linux/amd64/V3", "linux/amd64/v3"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/ARM64/8", "linux/arm64/v8"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/i386", "linux/386"),
            ("macOS/arm64", "darwin/arm64"),
            ("linux/riscv64/8", "linux/riscv64/8"),
        ] {
            assert_eq!(platform(spelling).to_string(), expected, "{spelling}");
        }
    }

    #[test]
    fn platform_of_a_configuration_has_defaults_and_the_one_of_a_descriptor_has_none() {
        let wanted = platform("linux/amd64/v3");
        let of = |os: &str, architecture: &str| {
            let configuration = Configuration {
                os: os.to_owned(),
                architecture: architecture.to_owned(),
                ..Configuration::default()
            };
            Platform::of_configuration(&configuration, &wanted).to_string()
        };
        assert_eq!(of("", ""), "linux/amd64");
        assert_eq!(of("", "aarch64"), "linux/arm64");
        assert_eq!(of("windows", ""), "windows/amd64");
        let of = |os: &str, architecture: &str| {
            Platform::of_descriptor(&DescriptorPlatform {
                os: os.to_owned(),
                architecture: architecture.to_owned(),
                variant: String::new(),
            })
        };
        assert_eq!(of("linux", "x86_64"), Some(platform("linux/amd64")));
        assert_eq!((of("", "amd64"), of("linux", ""), of("", "")), (None, None, None));
    }

    #[test]
    fn host_runs_images_for_every_processor_of_its_architecture() {
        let plain = format!("linux/{}", Platform::host().architecture);
        assert!(Platform::host().suitability(&platform(&plain)).is_some(), "{}", Platform::host());
        assert!(Platform::host().suitability(&platform(&format!("{plain}/v99"))).is_none());
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn level_of_the_host_matches_the_flags_in_cpuinfo() {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let flags = info.lines().find(|line| line.starts_with("flags")).unwrap();
        let has = |all: &str| all.split(' ').all(|flag| flags.split(' ').any(|has| has == flag));
        // The host kernel calls SSE3 `pni`, CMPXCHG16B `cx16`, and LZCNT `abm`.
        let levels = [
            has("cx16 popcnt pni sse4_1 sse4_2 ssse3"),
            has("avx avx2 bmi1 bmi2 f16c fma abm movbe"),
            has("avx512f avx512bw avx512cd avx512dq avx512vl"),
        ];
        let expected = levels.iter().take_while(|has| **has).count() + 1;
        assert_eq!(usize::try_from(host_generation()).unwrap(), expected);
    }

    #[test]
    fn image_runs_if_its_variant_is_not_newer() {
        let cases = [
            ("linux/amd64", "linux/amd64", Some(1)),
            ("linux/amd64", "linux/amd64/v3", None),
            ("linux/amd64/v4", "linux/amd64/v3", Some(3)),
            ("linux/arm64", "linux/arm64/v8", Some(8)),
            ("linux/arm64/v8", "linux/arm64", Some(8)),
            ("linux/arm/v7", "linux/arm/v6", Some(6)),
            ("linux/amd64", "linux/x86_64", Some(1)),
            ("linux/aarch64", "linux/arm64/8", Some(8)),
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
