//! Escapes text from images for errors. Without this, an image could send control characters to the
//! terminal or fill the log of the person who reads the error.

use std::fmt;

/// Largest number of characters that are shown. Real digests, media types and names are shorter.
const SHOWN_CHARS: usize = 200;

/// A text from an image. `Display` escapes control characters, and cuts the text after
/// [`SHOWN_CHARS`].
pub(crate) struct Shown<'a>(pub(crate) &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut chars = self.0.chars();
        for char in chars.by_ref().take(SHOWN_CHARS) {
            // These are the characters of the Unicode category `Cc`. ESC and CSI, which start a
            // command to a terminal, are among them.
            match char.is_control() {
                true => write!(f, "{}", char.escape_default())?,
                false => write!(f, "{char}")?,
            }
        }
        if chars.next().is_some() { f.write_str("…") } else { Ok(()) }
    }
}

/// Returns a file name for an error. Control characters are escaped, and a long name is cut.
pub(crate) fn shown_name(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let shown: String = text.chars().take(SHOWN_CHARS).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN_CHARS).is_some() { shown + "…" } else { shown }
}

/// Joins texts from an image for an error. Only the first twenty are shown, with the number of the
/// others.
pub(crate) fn shown_list(found: &[String]) -> String {
    const SHOWN: usize = 20;
    let shown: Vec<String> = found.iter().take(SHOWN).map(|text| Shown(text).to_string()).collect();
    match found.len() {
        0 => "nothing".to_owned(),
        count if count > SHOWN => format!("{} and {} more", shown.join(", "), count - SHOWN),
        _ => shown.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_with_control_characters_or_excessive_length_is_escaped_and_cut() {
        assert_eq!(Shown("ubuntu:24.04 é").to_string(), "ubuntu:24.04 é");
        assert_eq!(Shown("a\n\u{1b}[2J\u{9b}").to_string(), r"a\n\u{1b}[2J\u{9b}");
        assert_eq!(Shown(&"x".repeat(201)).to_string(), format!("{}…", "x".repeat(200)));
    }
}
