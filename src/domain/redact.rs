//! Which parts of a message the API hides, and what it shows instead.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::excerpt::Excerpt;
use super::message::{Redact, canonical_name, is_token_byte};

/// An entry of `Upstash-Redact-Fields` that is not known.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("unknown field {:?}; allowed are body, header (all headers) and header[Name]", Excerpt(.0))]
pub struct RedactError(pub String);

/// Reads a comma-separated list of `body`, `header` or `headers` (all of them) and `header[Name]` or `headers[Name]`.
///
/// Case and spaces don't matter; empty entries are skipped.
pub fn parse(text: &str) -> Result<Redact, RedactError> {
    let mut redact = Redact::default();
    for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        let unknown = || RedactError(entry.to_owned());
        let (word, name) = match entry.split_once('[') {
            Some((word, rest)) => (word.trim_end(), Some(rest.strip_suffix(']').ok_or_else(unknown)?.trim())),
            None => (entry, None),
        };
        let is_header = word.eq_ignore_ascii_case("header") || word.eq_ignore_ascii_case("headers");
        match name {
            None if word.eq_ignore_ascii_case("body") => redact.body = true,
            None if is_header => redact.all_headers = true,
            Some(name) if is_header && !name.is_empty() && name.bytes().all(is_token_byte) => {
                let name = canonical_name(name);
                if !redact.headers.contains(&name) {
                    redact.headers.push(name);
                }
            }
            _ => return Err(unknown()),
        }
    }
    Ok(redact)
}

/// What is shown in place of a hidden value: `REDACTED:` and the value's SHA-256 in lower-case hex.
pub fn marker(value: &[u8]) -> String {
    let mut text = String::with_capacity(9 + 64);
    text.push_str("REDACTED:");
    push_hex(&mut text, &Sha256::digest(value));
    text
}

/// Appends bytes in lower-case hex.
pub(super) fn push_hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        write!(text, "{byte:02x}").expect("writing to a String never fails");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, body: bool, all_headers: bool, headers: &[&str]) {
        let headers = headers.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(parse(text), Ok(Redact { body, all_headers, headers }), "{text}");
    }

    #[test]
    fn lists() {
        check("", false, false, &[]);
        check("body", true, false, &[]);
        check("headers", false, true, &[]);
        check("Body ,header", true, true, &[]);
        check(
            "header[x-api-key], headers[AUTHORIZATION],header[X-Api-Key],",
            false,
            false,
            &["X-Api-Key", "Authorization"],
        );
    }

    #[test]
    fn refused() {
        for entry in ["url", "body[x]", "header[]", "header[x", "header[a b]", "header]x[", "headersx"] {
            let error = parse(&format!("body, {entry}")).unwrap_err();
            assert_eq!(error, RedactError(entry.to_owned()));
        }
    }

    #[test]
    fn markers_are_hashes() {
        assert_eq!(marker(b""), "REDACTED:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
