//! Makes texts safe to show. A guest or an image may have written them.
//!
//! A terminal interprets control characters, and XML forbids most of them. Some characters of
//! Unicode reorder or hide the text around them.

use std::fmt;

/// A text in one line, of bounded length and of visible characters only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PlainText(String);

impl PlainText {
    /// Cleans `text` and truncates it to `max_chars` characters and an ellipsis.
    pub(crate) fn new(text: &str, max_chars: usize) -> Self {
        let mut kept = String::new();
        let mut count = 0;
        let mut after_mark = false;
        for character in text.chars() {
            // One combining mark on a letter is an accent. A stack of them would cover the lines
            // above and below, so only the first one is kept.
            let is_mark = is_combining(character);
            if is_mark && (after_mark || count == 0) {
                continue;
            }
            after_mark = is_mark;
            if count == max_chars {
                kept.push('…');
                break;
            }
            count += 1;
            kept.push(shown(character));
        }
        Self(kept)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PlainText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Returns whether a character is visible and has no other effect.
pub(crate) fn is_shown(character: char) -> bool {
    shown(character) == character && !is_combining(character)
}

/// Returns the character to show in place of `character`.
fn shown(character: char) -> char {
    match character {
        '\t' | '\n' | '\r' => ' ',
        _ if character.is_control() || is_invisible(character) => char::REPLACEMENT_CHARACTER,
        _ => character,
    }
}

/// Returns whether Unicode defines a character as a format character (general category Cf), a line
/// separator, a variation selector, an invisible filler or a noncharacter.
fn is_invisible(character: char) -> bool {
    matches!(character,
        '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
        | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
        | '\u{fff0}'..='\u{fffb}' | '\u{fffe}'..='\u{ffff}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}')
        // The last two code points of each plane are noncharacters.
        || (u32::from(character) & 0xfffe) == 0xfffe
}

/// Returns whether a character is drawn on top of the previous one.
fn is_combining(character: char) -> bool {
    matches!(character,
        '\u{300}'..='\u{36f}' | '\u{483}'..='\u{489}' | '\u{591}'..='\u{5c7}'
        | '\u{610}'..='\u{61a}' | '\u{64b}'..='\u{65f}' | '\u{e31}'..='\u{e3a}'
        | '\u{e47}'..='\u{e4e}' | '\u{1ab0}'..='\u{1aff}' | '\u{1dc0}'..='\u{1dff}'
        | '\u{20d0}'..='\u{20ff}' | '\u{fe20}'..='\u{fe2f}')
}

/// Returns how many columns a text takes on a terminal.
pub(crate) fn columns(text: &str) -> usize {
    text.chars().map(char_columns).sum()
}

/// Returns how many columns a character takes: two for East Asian wide characters and emoji, none
/// for a combining mark.
pub(crate) fn char_columns(character: char) -> usize {
    match character {
        '\u{1100}'..='\u{115f}'
        | '\u{2e80}'..='\u{a4cf}'
        | '\u{ac00}'..='\u{d7a3}'
        | '\u{f900}'..='\u{faff}'
        | '\u{fe30}'..='\u{fe6f}'
        | '\u{ff00}'..='\u{ff60}'
        | '\u{ffe0}'..='\u{ffe6}'
        | '\u{1f300}'..='\u{1faff}'
        | '\u{20000}'..='\u{3fffd}' => 2,
        _ if is_combining(character) => 0,
        _ => 1,
    }
}

/// Breaks a text into lines of at most `width` columns. Breaks after a space if the line has one.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    wrap_by(text, width, char_columns)
}

/// Breaks a text like [`wrap`], with the width of each character as `measure` returns it.
pub(crate) fn wrap_by(text: &str, width: usize, measure: fn(char) -> usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split_inclusive(' ') {
        // The space after a word may exceed the width: it is trimmed at the end.
        if used > 0 && used + word.trim_end().chars().map(measure).sum::<usize>() > width {
            lines.push(String::new());
            used = 0;
        }
        // A word that is longer than a line is broken anywhere.
        for character in word.chars() {
            if used + measure(character) > width && character != ' ' {
                lines.push(String::new());
                used = 0;
            }
            used += measure(character);
            if let Some(line) = lines.last_mut() {
                line.push(character);
            }
        }
    }
    lines.iter().map(|line| line.trim_end().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_invisible_characters_and_truncates() {
        let cases = [
            ("ready", "ready"),
            ("a\tb\nc", "a b c"),
            ("\u{1b}[31mre\u{0}\u{7}\u{9b}", "�[31mre���"),
            ("a\u{202e}gpj.exe\u{2066}", "a�gpj.exe�"),
            ("e\u{301}\u{301}\u{301}\u{20dd}x", "e\u{301}x"),
            ("\u{301}x", "x"),
            ("\u{fffe}\u{ffff}\u{1ffff}", "���"),
            ("0123456789ab", "0123456789…"),
            ("<&>", "<&>"),
        ];
        for (given, shown) in cases {
            assert_eq!(PlainText::new(given, 10).as_str(), shown);
        }
    }

    #[test]
    fn wraps_to_the_given_width() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("abcdefghij", 4), ["abcd", "efgh", "ij"]);
        assert_eq!(wrap("漢字漢字", 4), ["漢字", "漢字"]);
        assert_eq!(wrap("", 4), [""]);
    }
}
