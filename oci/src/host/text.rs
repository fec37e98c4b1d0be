//! Texts of an image in errors, made fit to be shown: an image must not be able to write to the
//! terminal or the log of the person who reads them.

use std::fmt;

/// Longest text that is shown: longer than any real digest, media type or name.
const SHOWN_CHARS: usize = 200;

/// A text that somebody else wrote; it is shown without control characters, and cut where nobody
/// reads on.
pub(crate) struct Shown<'a>(pub(crate) &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut chars = self.0.chars();
        for char in chars.by_ref().take(SHOWN_CHARS) {
            match char.is_control() {
                true => write!(f, "{}", char.escape_default())?,
                false => write!(f, "{char}")?,
            }
        }
        if chars.next().is_some() { f.write_str("…") } else { Ok(()) }
    }
}

/// Makes a name printable: no control characters, no endless line.
pub(crate) fn shown_name(name: &[u8]) -> String {
    const SHOWN: usize = 200;
    let text = String::from_utf8_lossy(name);
    let shown: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() { shown + "…" } else { shown }
}

/// Joins texts of an image for an error, and names only the number of those beyond the twentieth.
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
    fn text_is_shown_as_it_is_unless_it_could_do_harm() {
        assert_eq!(Shown("ubuntu:24.04 é").to_string(), "ubuntu:24.04 é");
        assert_eq!(Shown("a\n\u{1b}[2J\u{9b}").to_string(), r"a\n\u{1b}[2J\u{9b}");
        assert_eq!(Shown(&"x".repeat(201)).to_string(), format!("{}…", "x".repeat(200)));
    }
}
