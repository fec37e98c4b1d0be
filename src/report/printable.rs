//! Text of others, bounded, in one line and without control characters.

/// Longest message for people, in characters.
pub(crate) const MESSAGE_CHARS: usize = 1024;

/// The first characters of `text`, with control characters replaced.
pub(crate) fn printable(text: &str, max_chars: usize) -> String {
    let shown = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().take(max_chars).map(shown).collect()
}
