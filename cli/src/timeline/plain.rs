//! Texts that a guest or an image may have written, made safe to show.
//!
//! A terminal obeys control characters, XML forbids most of them, and some characters reorder or
//! hide what stands around them.

use std::fmt;

/// A text in one line, bounded, of characters that only show themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plain(String);

impl Plain {
    /// Cleans `text` and cuts it to `max_chars`.
    pub(crate) fn new(text: &str, max_chars: usize) -> Self {
        let mut kept = String::new();
        let mut count = 0;
        let mut after_mark = false;
        for character in text.chars() {
            // One mark on a letter is an accent; a pile of them covers the lines above and below.
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

impl fmt::Display for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Whether a character shows itself and does nothing else.
pub(crate) fn is_shown(character: char) -> bool {
    shown(character) == character && !is_combining(character)
}

/// What stands for a character.
fn shown(character: char) -> char {
    match character {
        '\t' | '\n' | '\r' => ' ',
        _ if character.is_control() || is_invisible(character) => char::REPLACEMENT_CHARACTER,
        _ => character,
    }
}

/// Format characters of Unicode (general category Cf), line separators, and what is no character.
fn is_invisible(character: char) -> bool {
    matches!(character,
        '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
        | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
        | '\u{fff0}'..='\u{fffb}' | '\u{fffe}'..='\u{ffff}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}')
        || (u32::from(character) & 0xfffe) == 0xfffe
}

fn is_combining(character: char) -> bool {
    matches!(character,
        '\u{300}'..='\u{36f}' | '\u{483}'..='\u{489}' | '\u{591}'..='\u{5c7}'
        | '\u{610}'..='\u{61a}' | '\u{64b}'..='\u{65f}' | '\u{e31}'..='\u{e3a}'
        | '\u{e47}'..='\u{e4e}' | '\u{1ab0}'..='\u{1aff}' | '\u{1dc0}'..='\u{1dff}'
        | '\u{20d0}'..='\u{20ff}' | '\u{fe20}'..='\u{fe2f}')
}

/// Columns that a text takes on a terminal: East Asian characters and emoji take two.
pub(crate) fn columns(text: &str) -> usize {
    text.chars().map(char_columns).sum()
}

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

/// Breaks a text into lines of at most `width` columns, after a space where there is one.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    wrap_by(text, width, char_columns)
}

/// The same for lines whose width is the sum of what `measure` says of their characters.
pub(crate) fn wrap_by(text: &str, width: usize, measure: fn(char) -> usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split_inclusive(' ') {
        if used > 0 && used + word.trim_end().chars().map(measure).sum::<usize>() > width {
            lines.push(String::new());
            used = 0;
        }
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
    fn a_text_shows_what_it_is_and_no_more() {
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
            assert_eq!(Plain::new(given, 10).as_str(), shown);
        }
    }

    #[test]
    fn lines_are_no_wider_than_asked() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("abcdefghij", 4), ["abcd", "efgh", "ij"]);
        assert_eq!(wrap("漢字漢字", 4), ["漢字", "漢字"]);
        assert_eq!(wrap("", 4), [""]);
    }
}
