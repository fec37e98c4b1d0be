//! Makes text of a guest or of another program safe to print: bounded, in one line and without
//! control characters, which could imitate a line or act on a terminal.

/// Longest message in an event or report, in characters.
pub(crate) const MESSAGE_CHARS: usize = 1024;

/// Returns the first characters of `text`, with control characters replaced by U+FFFD.
pub(crate) fn printable(text: &str, max_chars: usize) -> String {
    let shown = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().take(max_chars).map(shown).collect()
}
