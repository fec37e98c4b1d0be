//! The SHA-256 digest, the only name that content has in this crate.
//!
//! A digest is parsed before it is used, so that text of an image can never become a file name by
//! accident.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use crate::text::Shown;

/// Prefix of the textual form.
const PREFIX: &str = "sha256:";

/// A SHA-256 digest; its text is `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// A text that is not a digest which this crate can check.
#[derive(Debug, thiserror::Error)]
pub enum DigestError {
    /// The algorithm is another one than `sha256`.
    #[error("digest `{}` is not supported: expected `sha256:…`", Shown(found))]
    Algorithm {
        /// The text, as it was found.
        found: String,
    },
    /// The part behind the algorithm is not 64 lower-case hexadecimal digits.
    #[error(
        "malformed digest `{}`: expected `sha256:` and 64 lower-case hexadecimal digits",
        Shown(found)
    )]
    Malformed {
        /// The text, as it was found.
        found: String,
    },
}

impl Digest {
    /// Computes the digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Takes the digest of all that `hasher` was fed.
    pub(crate) fn finish(hasher: Sha256) -> Self {
        Self(hasher.finalize().into())
    }

    /// Returns the 64 hexadecimal digits, the name of files that hold this content.
    #[must_use]
    pub fn hex(&self) -> String {
        self.to_string().split_off(PREFIX.len())
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let Some(hex) = text.strip_prefix(PREFIX) else {
            return Err(DigestError::Algorithm { found: text.to_owned() });
        };
        let malformed = || DigestError::Malformed { found: text.to_owned() };
        if hex.len() != 64 {
            return Err(malformed());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            let [high, low] = pair else { return Err(malformed()) };
            *byte =
                nibble(*high).zip(nibble(*low)).map(|(h, l)| h << 4 | l).ok_or_else(malformed)?;
        }
        Ok(Self(bytes))
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn digest_of_nothing_is_the_known_one() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), Digest::of(b""));
    }

    #[test]
    fn text_that_is_no_digest_is_refused() {
        let upper = EMPTY.to_uppercase().replace("SHA256", "sha256");
        let no_hex = format!("sha256:{}", "é".repeat(32));
        let cases = [
            "",
            "sha256:",
            "sha256:../../../etc/passwd",
            "sha512:00",
            "blake3:ab",
            &EMPTY[1..],
            &upper,
            &no_hex,
        ];
        for text in cases {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}
