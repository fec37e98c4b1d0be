//! Digests, the only names of content in this crate: SHA-256 or SHA-512.
//!
//! A digest is parsed before it is used, so that no text of an image becomes a file name by
//! accident. Each blob and each `DiffID` of an image can use another algorithm.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};

use crate::host::text::Shown;

/// Size of the longest digest.
const MAX_BYTES: usize = 64;

/// A hash function. The image specification registers these two, and tools use no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// `sha256`, which nearly all images use.
    Sha256,
    /// `sha512`, which the image specification also allows.
    Sha512,
}

/// A digest. Its text is the algorithm, a colon, and two lower-case hexadecimal digits for each
/// byte.
///
/// ```
/// use a3s_box_oci::{Algorithm, Digest};
///
/// let digest: Digest =
///     "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824".parse()?;
/// assert_eq!(digest, Digest::of(b"hello"));
/// assert_eq!(digest.algorithm(), Algorithm::Sha256);
/// assert!("sha256:../../etc/passwd".parse::<Digest>().is_err());
/// # Ok::<(), a3s_box_oci::DigestError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest {
    algorithm: Algorithm,
    /// Bytes that the algorithm does not use are zero, so that equal digests are equal values.
    bytes: [u8; MAX_BYTES],
}

/// A text that is not a digest of a supported algorithm.
#[derive(Debug, thiserror::Error)]
pub enum DigestError {
    /// The algorithm is missing or not supported.
    #[error("digest `{}` is not supported: expected `sha256:…` or `sha512:…`", Shown(found))]
    Algorithm {
        /// The text.
        found: String,
    },
    /// The part after the colon has the wrong length, or a character that is not a lower-case
    /// hexadecimal digit.
    #[error(
        "malformed digest `{}`: expected `{}:` and {} lower-case hexadecimal digits",
        Shown(found),
        algorithm.name(),
        2 * algorithm.bytes()
    )]
    Malformed {
        /// The text.
        found: String,
        /// The algorithm in the text.
        algorithm: Algorithm,
    },
}

impl Algorithm {
    const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    /// Returns the name of the algorithm, which digests start with. It is also the name of a
    /// directory in a layout.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Computes the digest of `bytes`.
    #[must_use]
    pub fn digest(self, bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::new(self);
        hasher.update(bytes);
        hasher.finish()
    }

    const fn bytes(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }
}

/// The computation of a digest from pieces of the content.
#[derive(Debug, Clone)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    /// Starts a computation by the algorithm of `expected`, so that the results can be compared.
    pub(crate) fn for_digest(expected: Digest) -> Self {
        Self::new(expected.algorithm)
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// Returns the digest of all pieces.
    pub(crate) fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest::new(Algorithm::Sha256, &hasher.finalize()),
            Self::Sha512(hasher) => Digest::new(Algorithm::Sha512, &hasher.finalize()),
        }
    }
}

impl Digest {
    /// Computes the SHA-256 digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        // The names that this crate computes itself, such as `ChainID`s, use SHA-256 even for an
        // image with other digests.
        Algorithm::Sha256.digest(bytes)
    }

    /// Returns the algorithm.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the hexadecimal digits. They are the name of the blob in the directory of its
    /// algorithm.
    #[must_use]
    pub fn hex(&self) -> String {
        self.to_string().split_off(self.algorithm.name().len() + 1)
    }

    /// Returns the bytes of the digest.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.algorithm.bytes()]
    }

    fn new(algorithm: Algorithm, from: &[u8]) -> Self {
        let mut bytes = [0; MAX_BYTES];
        bytes.iter_mut().zip(from).for_each(|(byte, from)| *byte = *from);
        Self { algorithm, bytes }
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let found = || text.to_owned();
        // Only known algorithms are accepted, because the name of the algorithm becomes a directory
        // in the path of a blob.
        let named = text.split_once(':').and_then(|(name, hex)| {
            Algorithm::ALL.into_iter().find(|known| known.name() == name).zip(Some(hex))
        });
        let (algorithm, hex) = named.ok_or_else(|| DigestError::Algorithm { found: found() })?;
        let malformed = || DigestError::Malformed { found: found(), algorithm };
        // The length must match exactly: a shorter text would compare equal to a digest that ends
        // in zeros.
        if hex.len() != 2 * algorithm.bytes() {
            return Err(malformed());
        }
        let mut bytes = [0; MAX_BYTES];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            let [high, low] = pair else { return Err(malformed()) };
            // The length was counted in bytes. A character of several bytes fails here, because
            // none of its bytes is a hexadecimal digit.
            *byte =
                nibble(*high).zip(nibble(*low)).map(|(h, l)| h << 4 | l).ok_or_else(malformed)?;
        }
        Ok(Self { algorithm, bytes })
    }
}

/// Returns the value of a hexadecimal digit. The image specification allows lower case only, so
/// that each content has exactly one name.
fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.algorithm.name())?;
        let bytes = self.bytes.iter().take(self.algorithm.bytes());
        bytes.copied().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Logs and failed tests show the text by which users know the digest, not an array of
        // numbers.
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    /// The output of `sha512sum </dev/null`.
    const EMPTY_512: &str = "sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce\
        47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e";

    #[test]
    fn digest_of_empty_content_is_the_published_one() {
        for (algorithm, text) in [(Algorithm::Sha256, EMPTY), (Algorithm::Sha512, EMPTY_512)] {
            let digest = algorithm.digest(b"");
            assert_eq!(digest.to_string(), text);
            assert_eq!(text.parse::<Digest>().unwrap(), digest);
            assert_eq!(format!("{}:{}", algorithm.name(), digest.hex()), text);
        }
        assert_eq!(Digest::of(b""), Algorithm::Sha256.digest(b""));
        assert_ne!(Digest::of(b""), Algorithm::Sha512.digest(b""));
    }

    #[test]
    fn hasher_uses_the_algorithm_of_the_expected_digest() {
        for algorithm in Algorithm::ALL {
            let expected = algorithm.digest(b"two pieces");
            let mut hasher = Hasher::for_digest(expected);
            hasher.update(b"two ");
            hasher.update(b"pieces");
            assert_eq!(hasher.finish(), expected);
        }
    }

    #[test]
    fn malformed_digest_is_refused() {
        let upper = EMPTY.to_uppercase().replace("SHA256", "sha256");
        let no_hex = format!("sha256:{}", "é".repeat(32));
        let of_the_other_length = EMPTY.replace("sha256", "sha512");
        let too_long = EMPTY_512.replace("sha512", "sha256");
        let cases = [
            "",
            "sha256",
            "sha256:",
            "sha256:../../../etc/passwd",
            "sha512:00",
            "blake3:ab",
            &EMPTY[1..],
            &upper,
            &no_hex,
            &of_the_other_length,
            &too_long,
        ];
        for text in cases {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    #[test]
    fn error_names_the_supported_format() {
        let unknown = EMPTY.replace("sha256", "blake3").parse::<Digest>().unwrap_err().to_string();
        assert!(
            unknown.ends_with("is not supported: expected `sha256:…` or `sha512:…`"),
            "{unknown}"
        );
        let short = "sha512:00".parse::<Digest>().unwrap_err().to_string();
        assert!(short.contains("expected `sha512:` and 128 lower-case hexadecimal"), "{short}");
    }
}
