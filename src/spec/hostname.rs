//! The host name of the guest: `hostname` of the config, validated.

use a3s_box_core::config::ConfigError;

/// Longest host name (`HOST_NAME_MAX`, gethostname(2)).
const MAX_HOSTNAME_BYTES: usize = 64;

/// Longest label, the part of a host name between dots (RFC 1123).
const MAX_LABEL_BYTES: usize = 63;

/// Returns the host name in the config, or without one a legal host name made from the id.
pub(super) fn hostname(configured: Option<String>, id: &str) -> Result<String, ConfigError> {
    let Some(name) = configured else { return Ok(from_id(id)) };
    let is_label = |label: &str| {
        (1..=MAX_LABEL_BYTES).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() <= MAX_HOSTNAME_BYTES && name.split('.').all(is_label) {
        return Ok(name);
    }
    let expected = "1 to 64 bytes: parts of letters, digits and inner `-`, up to 63 bytes each, with `.` \
                    between them";
    Err(ConfigError::invalid("hostname", format!("`{}`", name.escape_debug()), expected))
}

/// Replaces the characters `.` and `_`, which an id may contain, because a single label allows
/// neither. An id is ASCII and begins with a letter or a digit, so only its end can be illegal
/// afterwards.
fn from_id(id: &str) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let name: String = id.chars().take(MAX_LABEL_BYTES).map(legal).collect();
    name.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_becomes_a_legal_host_name() {
        let long = format!("a{}.{}", "b".repeat(61), "c".repeat(20));
        let cut = format!("a{}", "b".repeat(61));
        for (id, expected) in
            [("demo", "demo"), ("a_b.c-", "a-b-c"), ("9", "9"), (long.as_str(), cut.as_str())]
        {
            assert_eq!(hostname(None, id).unwrap(), expected);
            assert_eq!(hostname(Some(expected.to_owned()), "x").unwrap(), expected);
        }
    }

    #[test]
    fn illegal_host_name_is_refused() {
        let long = format!("{}.{}", "a".repeat(60), "b".repeat(10));
        let label = "a".repeat(64);
        for name in ["", "-a", "a-", "a..b", ".", "a_b", "a b", "ä", "a\n", &long, &label] {
            let error = hostname(Some(name.to_owned()), "x").unwrap_err().to_string();
            assert!(error.starts_with("hostname: found `"), "{error}");
        }
        hostname(Some("web-1.example.org".to_owned()), "x").unwrap();
    }
}
