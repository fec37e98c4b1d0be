//! [`NamePattern`]: a name in a rule of `network.egress`.

use std::fmt;

/// Longest name of a host as text (RFC 1035, 3.1).
pub(crate) const MAX_NAME_BYTES: usize = 253;

/// Longest label, the part of a name between dots (RFC 1035).
const MAX_LABEL_BYTES: usize = 63;

/// The name of a host, or all names below one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NamePattern {
    /// The name in lower case, without a dot at its end.
    pub(crate) name: String,
    /// Which names the rule is for.
    pub(crate) scope: Scope,
}

/// Which names a pattern matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// The name itself.
    Exact,
    /// The names with at least one label more, and not the name itself.
    Below,
}

impl NamePattern {
    /// Reads a name, or `*.` and a name. Returns `None` for any other text.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let (name, scope) = match text.strip_prefix("*.") {
            Some(name) => (name, Scope::Below),
            None => (text, Scope::Exact),
        };
        let name = name.to_ascii_lowercase();
        // A name whose last label is a number is a mistyped address, for which no resolver asks.
        let has_letter =
            |label: &str| label.bytes().any(|byte| byte.is_ascii_alphabetic() || byte == b'-');
        let is_name = is_name(&name) && name.rsplit('.').next().is_some_and(has_letter);
        is_name.then_some(Self { name, scope })
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = if self.scope == Scope::Below { "*." } else { "" };
        write!(f, "{start}{}", self.name)
    }
}

/// Returns whether a text is a name in lower case as a rule can have it: labels of letters, digits,
/// `-` and `_`, with dots between them. Names of services have a `_`, and so have some hosts.
pub(crate) fn is_name(text: &str) -> bool {
    let is_in_label = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_')
    };
    let is_label = |label: &str| {
        (1..=MAX_LABEL_BYTES).contains(&label.len()) && label.bytes().all(is_in_label)
    };
    text.len() <= MAX_NAME_BYTES && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_read_in_lower_case_with_or_without_a_star() {
        for (text, expected, scope) in [
            ("api.example.org", "api.example.org", Scope::Exact),
            ("API.Example.ORG", "api.example.org", Scope::Exact),
            ("db", "db", Scope::Exact),
            ("_a.b-c.x1", "_a.b-c.x1", Scope::Exact),
            ("xn--bcher-kva.example", "xn--bcher-kva.example", Scope::Exact),
            ("*.pypi.org", "pypi.org", Scope::Below),
            ("*.org", "org", Scope::Below),
        ] {
            let expected = NamePattern { name: expected.to_owned(), scope };
            assert_eq!(NamePattern::read(text), Some(expected.clone()));
            assert_eq!(NamePattern::read(&expected.to_string()), Some(expected));
        }
    }

    #[test]
    fn other_texts_are_no_names() {
        let label = "a".repeat(64);
        let long = ["a".repeat(63).as_str(); 4].join(".");
        for text in [
            "",
            ".",
            "*",
            "*.",
            "*.*.a",
            "a.*",
            "**.a",
            "*a.b",
            "a..b",
            ".a",
            "a.",
            "a b",
            "a/b",
            "bücher.example",
            "a\n",
            "1.2.3",
            "10.0.0.256",
            "a.1",
            &label,
            &long,
        ] {
            assert_eq!(NamePattern::read(text), None, "{text:?}");
        }
    }
}
