//! A response's head, read leniently: whoever answered has done its work, and asking again would only make it do that
//! twice. So lines that are no header are dropped and folded ones joined. What leaves the message's length open is an
//! error.

use std::borrow::Cow;

use bytes::{Buf as _, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};

use super::super::MAX_HEADERS;

/// What RFC 9113, 6.5.2 adds to the length of each field. HTTP/1.1 is counted likewise, so that both have the same limit.
const FIELD_OVERHEAD: usize = 32;

/// A response's head.
#[derive(Debug, PartialEq)]
pub(super) struct Head {
    /// 100 to 999.
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) framing: Framing,
    /// Whether the connection may carry another request after this response.
    pub(super) keep_alive: bool,
}

/// How a body's end is found (RFC 9112, 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

/// Why a head can't be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeadError {
    TooLarge,
    /// What is wrong.
    Malformed(&'static str),
}

/// Removes the line ends that may come before a status line (as RFC 9112, 2.2 has it of request lines); how many bytes
/// these were.
pub(super) fn skip_line_ends(input: &mut BytesMut) -> usize {
    let count = input.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    input.advance(count);
    count
}

/// The length of the head that `bytes` begin with, up to and with the empty line. `None`: it is not complete.
/// `searched` bytes have been looked at before. The first byte belongs to the status line.
pub(super) fn end(bytes: &[u8], searched: usize) -> Option<usize> {
    // Lines end with LF, with or without CR before it (RFC 9112, 2.2).
    let mut at = searched.saturating_sub(2);
    loop {
        at += bytes[at..].iter().position(|byte| *byte == b'\n')? + 1;
        match bytes[at..] {
            [b'\n', ..] => return Some(at + 1),
            [b'\r', b'\n', ..] => return Some(at + 2),
            _ => {}
        }
    }
}

/// Reads a complete head.
pub(super) fn parse(bytes: &[u8]) -> Result<Head, HeadError> {
    let mut lines = bytes.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let (minor, status) = status_line(lines.next().unwrap_or_default())
        .ok_or(HeadError::Malformed("no HTTP/1.1 status line"))?;
    let mut fields = Fields::default();
    let mut line: Option<Cow<'_, [u8]>> = None;
    for next in lines {
        match (&mut line, next.first()) {
            (Some(line), Some(b' ' | b'\t')) => {
                // A fold is a blank (RFC 9112, 5.2).
                line.to_mut().push(b' ');
                line.to_mut().extend_from_slice(trim(next));
            }
            // It continues nothing.
            (None, Some(b' ' | b'\t')) => fields.dropped = true,
            (_, first) => {
                if let Some(whole) = line.take() {
                    fields.add(&whole)?;
                }
                if first.is_none() {
                    break;
                }
                line = Some(Cow::Borrowed(next));
            }
        }
    }
    let Fields { headers, dropped, .. } = fields;
    let framing = framing(&headers, minor, status)?;
    let keep_alive = framing != Framing::UntilClose
        && !dropped
        && status != 101
        && !is_doubtful(&headers, status)
        && keeps_alive(&headers, minor);
    Ok(Head { status, headers, framing, keep_alive })
}

/// The minor version and the status of `HTTP/1.x NNN reason`.
fn status_line(line: &[u8]) -> Option<(u8, u16)> {
    let rest = line.strip_prefix(b"HTTP/1.")?;
    let (minor, rest) = rest.split_first().filter(|(minor, _)| minor.is_ascii_digit())?;
    let rest = rest.strip_prefix(b" ").or_else(|| rest.strip_prefix(b"\t"))?.trim_ascii_start();
    let (code, reason) = rest.split_at_checked(3)?;
    let ends = reason.first().is_none_or(u8::is_ascii_whitespace);
    let status = std::str::from_utf8(code).ok()?.parse().ok()?;
    (ends && code.iter().all(u8::is_ascii_digit) && status >= 100).then_some((minor - b'0', status))
}

#[derive(Default)]
struct Fields {
    headers: HeaderMap,
    size: usize,
    /// Whether there was a line that is no header.
    dropped: bool,
}

impl Fields {
    fn add(&mut self, line: &[u8]) -> Result<(), HeadError> {
        self.size += line.len() + FIELD_OVERHEAD;
        if self.size > MAX_HEADERS {
            return Err(HeadError::TooLarge);
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = line.split_at(colon.unwrap_or(line.len()));
        let name = HeaderName::from_bytes(trim(name));
        let value = HeaderValue::from_bytes(trim(value.get(1..).unwrap_or_default()));
        match (name, value) {
            (Ok(name), Ok(value)) if colon.is_some() => {
                self.headers.try_append(name, value).map_err(|_| HeadError::TooLarge)?;
            }
            (Ok(name), _) if name == CONTENT_LENGTH || name == TRANSFER_ENCODING => {
                return Err(HeadError::Malformed("its length can't be told"));
            }
            _ => self.dropped = true,
        }
        Ok(())
    }
}

fn framing(headers: &HeaderMap, minor: u8, status: u16) -> Result<Framing, HeadError> {
    if matches!(status, 100..=199 | 204 | 304) {
        return Ok(Framing::Length(0));
    }
    if let Some(coding) = tokens(headers, &TRANSFER_ENCODING).last() {
        if minor == 0 {
            return Err(HeadError::Malformed("Transfer-Encoding in HTTP/1.0"));
        }
        let chunked = coding.eq_ignore_ascii_case(b"chunked");
        return Ok(if chunked { Framing::Chunked } else { Framing::UntilClose });
    }
    let mut lengths = tokens(headers, &CONTENT_LENGTH).map(length);
    match lengths.next() {
        None if headers.contains_key(CONTENT_LENGTH) => Err(HeadError::Malformed("an empty Content-Length")),
        None => Ok(Framing::UntilClose),
        Some(None) => Err(HeadError::Malformed("a Content-Length that is no number")),
        Some(Some(length)) if lengths.all(|other| other == Some(length)) => Ok(Framing::Length(length)),
        Some(Some(_)) => Err(HeadError::Malformed("different values of Content-Length")),
    }
}

/// Whether a body may come that is longer than the framing says, from who mixes up the rules.
fn is_doubtful(headers: &HeaderMap, status: u16) -> bool {
    let has_coding = headers.contains_key(TRANSFER_ENCODING);
    match status {
        204 => has_coding || tokens(headers, &CONTENT_LENGTH).any(|text| length(text) != Some(0)),
        // Its Content-Length is that of the body which is not sent.
        304 => has_coding,
        _ => has_coding && headers.contains_key(CONTENT_LENGTH),
    }
}

fn length(text: &[u8]) -> Option<u64> {
    let digits = text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

fn keeps_alive(headers: &HeaderMap, minor: u8) -> bool {
    let has = |option: &[u8]| tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case(option));
    !has(b"close") && (minor > 0 || has(b"keep-alive"))
}

/// The elements of a field that is a list.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let values = headers.get_all(name).into_iter();
    values
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(trim)
        .filter(|token| !token.is_empty())
}

/// Without blanks at both ends, and without what is left of line ends that were sent twice.
fn trim(text: &[u8]) -> &[u8] {
    let kept = |byte: &u8| !matches!(byte, b' ' | b'\t' | b'\r');
    let begin = text.iter().position(kept).unwrap_or(text.len());
    let end = text.iter().rposition(kept).map_or(begin, |last| last + 1);
    &text[begin..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: impl AsRef<[u8]>) -> Result<Head, HeadError> {
        let mut text = BytesMut::from(text.as_ref());
        skip_line_ends(&mut text);
        let text = &text[..];
        assert_eq!(end(text, 0), Some(text.len()), "{:?}", String::from_utf8_lossy(text));
        parse(text)
    }

    /// Checks which fields of `200` a head has, as `name: value` lines.
    #[track_caller]
    fn check(lines: impl AsRef<[u8]>, expected: &[&str]) {
        let head =
            read([b"HTTP/1.1 200 OK\r\n", lines.as_ref(), b"Content-Length: 2\r\n\r\n"].concat()).unwrap();
        let fields = head.headers.iter().filter(|(name, _)| *name != CONTENT_LENGTH);
        let fields: Vec<_> =
            fields.map(|(name, value)| format!("{name}: {}", value.as_bytes().escape_ascii())).collect();
        assert_eq!(fields, expected);
        assert_eq!((head.status, head.framing), (200, Framing::Length(2)));
    }

    #[test]
    fn fields_are_read_and_others_dropped() {
        check("", &[]);
        check("A: b\r\nc:d\r\nE:  f \t\r\n", &["a: b", "c: d", "e: f"]);
        check("A: b\nC: d\n", &["a: b", "c: d"]);
        check("A:\r\n", &["a: "]);
        check("A: \u{fc}\r\n", &["a: \\xc3\\xbc"]);
        check(b"A: \xfc\r\n", &["a: \\xfc"]);
        // Folds.
        check("A: b;\r\n c *\r\n", &["a: b; c *"]);
        check("A: b\r\n\tc\r\n  \t d\r\n", &["a: b c d"]);
        check("A:\r\n b\r\n", &["a: b"]);
        check("A: b\r\n \r\n", &["a: b"]);
        check("A: b\n c\n", &["a: b c"]);
        check(" folds: nothing\r\nA: b\r\n", &["a: b"]);
        check("garbage\r\n goes on\r\nA: b\r\n", &["a: b"]);
        // Blanks before the colon.
        check("A : b\r\nC\t: d\r\n", &["a: b", "c: d"]);
        // No headers.
        for bad in
            ["X A: b", "Warning x: y", "garbage without colon", ": novalue", ":", "\"X\": b", "X-\u{dc}: b"]
        {
            check(format!("A: b\r\n{bad}\r\nC: d\r\n"), &["a: b", "c: d"]);
        }
        // Bytes that no value may have.
        for bad in ["a=\x7f1", "\x1b[31m", "\0", "a\0b", "a\rb", "\x08"] {
            check(format!("A: b\r\nX: {bad}\r\nC: d\r\n"), &["a: b", "c: d"]);
            check(format!("A: b\r\nX: y\r\n {bad}\r\nC: d\r\n"), &["a: b", "c: d"]);
        }
        check("a: 1\r\nA: 2\r\n", &["a: 1", "a: 2"]);
    }

    #[test]
    fn a_dropped_line_ends_the_connection() {
        let keeps =
            |lines| read(format!("HTTP/1.1 200\r\n{lines}Content-Length: 0\r\n\r\n")).unwrap().keep_alive;
        assert!(keeps(""));
        assert!(keeps("A: b\r\n c\r\n"));
        assert!(!keeps("garbage\r\n"));
    }

    #[test]
    fn status_lines() {
        for (line, expected) in [
            ("HTTP/1.1 200 OK", Some(200)),
            ("HTTP/1.0 404 Not Found", Some(404)),
            ("HTTP/1.1 200", Some(200)),
            ("HTTP/1.1 200 ", Some(200)),
            ("HTTP/1.1  299 x", Some(299)),
            ("HTTP/1.1 500 \x1b[31m\0", Some(500)),
            ("HTTP/1.1 999 x", Some(999)),
            ("\r\n\nHTTP/1.1 200 OK", Some(200)),
            ("HTTP/1.1 099 x", None),
            ("HTTP/1.1 20 x", None),
            ("HTTP/1.1 2000 x", None),
            ("HTTP/1.1 +20 x", None),
            ("HTTP/1.1200 x", None),
            ("HTTP/2 200 OK", None),
            ("ICY 200 OK", None),
            ("200 OK", None),
        ] {
            let head = read(format!("{line}\r\n\r\n"));
            assert_eq!(head.map(|head| head.status).ok(), expected, "{line:?}");
        }
    }

    #[test]
    fn framing_is_found_or_refused() {
        let of = |lines: &str| read(format!("HTTP/1.1 200 OK\r\n{lines}\r\n")).map(|head| head.framing);
        for (lines, expected) in [
            ("", Framing::UntilClose),
            ("Content-Length: 5\r\n", Framing::Length(5)),
            ("Content-Length : 5\r\n", Framing::Length(5)),
            ("Content-Length:\r\n 5\r\n", Framing::Length(5)),
            ("Content-Length: 5, 5\r\n", Framing::Length(5)),
            ("Content-Length: 5\r\nContent-Length: 05\r\n", Framing::Length(5)),
            ("Transfer-Encoding: chunked\r\n", Framing::Chunked),
            ("Transfer-Encoding: gzip, Chunked\r\n", Framing::Chunked),
            ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", Framing::Chunked),
            ("Transfer-Encoding: gzip\r\n", Framing::UntilClose),
        ] {
            assert_eq!(of(lines), Ok(expected), "{lines:?}");
        }
        for lines in [
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: 5, 6\r\n",
            "Content-Length: 5 6\r\n",
            "Content-Length: -5\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: five\r\n",
            "Content-Length: \r\n",
            "Content-Length\r\n",
            "Content-Length: 99999999999999999999999\r\n",
            "Content-Length: 5\x7f\r\n",
            "Transfer-Encoding: \x0bchunked\r\n",
        ] {
            assert!(matches!(of(lines), Err(HeadError::Malformed(_))), "{lines:?}");
        }
        let old = read("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert!(matches!(old, Err(HeadError::Malformed(_))));
        for status in [101, 103, 204, 304] {
            let head = read(format!("HTTP/1.1 {status} x\r\nContent-Length: 9\r\n\r\n")).unwrap();
            assert_eq!(head.framing, Framing::Length(0), "{status}");
        }
    }

    #[test]
    fn connections_are_kept_where_both_sides_agree() {
        for (head, expected) in [
            ("HTTP/1.1 200\r\nContent-Length: 0\r\n", true),
            ("HTTP/1.1 200\r\nContent-Length: 0\r\nConnection: close\r\n", false),
            (
                "HTTP/1.1 200\r\nContent-Length: 0\r\nConnection: keep-alive\r\nConnection: x, Close\r\n",
                false,
            ),
            ("HTTP/1.1 200\r\n", false),
            ("HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n", true),
            ("HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n", false),
            ("HTTP/1.0 200\r\nContent-Length: 0\r\n", false),
            ("HTTP/1.0 200\r\nContent-Length: 0\r\nConnection: Keep-Alive\r\n", true),
            ("HTTP/1.1 204\r\n", true),
            ("HTTP/1.1 204\r\nContent-Length: 0\r\n", true),
            ("HTTP/1.1 204\r\nContent-Length: 5\r\n", false),
            ("HTTP/1.1 204\r\nTransfer-Encoding: chunked\r\n", false),
            ("HTTP/1.1 304\r\nContent-Length: 5\r\n", true),
            ("HTTP/1.1 304\r\nTransfer-Encoding: chunked\r\n", false),
            ("HTTP/1.1 101\r\n", false),
        ] {
            assert_eq!(read(format!("{head}\r\n")).unwrap().keep_alive, expected, "{head:?}");
        }
    }

    #[test]
    fn the_end_is_the_first_empty_line() {
        for (text, expected) in [
            ("HTTP/1.1 200\r\n\r\nbody\r\n\r\n", Some(16)),
            ("HTTP/1.1 200\n\nbody", Some(14)),
            ("HTTP/1.1 200\r\nA: b\n\r\n", Some(21)),
            ("HTTP/1.1 200\r\n \r\n", None),
            ("HTTP/1.1 200\r\n\r", None),
            ("", None),
        ] {
            assert_eq!(end(text.as_bytes(), 0), expected, "{text:?}");
            for searched in 0..expected.unwrap_or(text.len()) {
                assert_eq!(end(text.as_bytes(), searched), expected, "{text:?} from {searched}");
            }
        }
    }

    #[test]
    fn line_ends_before_a_head_are_skipped() {
        for (text, skipped) in [("\r\n\r\nHTTP", 4), ("\n\rH\n", 2), ("\r\n", 2), ("H", 0), ("", 0)] {
            let mut input = BytesMut::from(text);
            assert_eq!(skip_line_ends(&mut input), skipped, "{text:?}");
            assert_eq!(input, &text[skipped..]);
        }
    }

    #[test]
    fn sizes_are_counted_as_in_http2() {
        let of = |field: usize, count: usize| {
            let fields = format!("a:{}\r\n", "x".repeat(field - 2)).repeat(count);
            read(format!("HTTP/1.1 200\r\n{fields}\r\n")).map(|head| head.headers.len())
        };
        assert_eq!(of(MAX_HEADERS - FIELD_OVERHEAD, 1), Ok(1));
        assert_eq!(of(MAX_HEADERS - FIELD_OVERHEAD + 1, 1), Err(HeadError::TooLarge));
        assert_eq!(of(32, MAX_HEADERS / 64), Ok(MAX_HEADERS / 64));
        assert_eq!(of(32, MAX_HEADERS / 64 + 1), Err(HeadError::TooLarge));
    }
}
