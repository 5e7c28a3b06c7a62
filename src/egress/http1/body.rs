//! Where a response's body ends (RFC 9112, 6 and 7).

use bytes::{Buf as _, Bytes, BytesMut};

use super::head::Framing;
use crate::egress::MAX_HEADERS;

/// Bytes of a chunk's size line, its extensions included.
const MAX_SIZE_LINE: usize = 4 << 10;

/// What of a body is still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    Ended,
    Length(u64),
    /// Everything, until the connection is closed.
    UntilClose,
    ChunkSize,
    ChunkData(u64),
    /// The line end behind a chunk's data.
    ChunkEnd,
    /// Fields behind the last chunk, which are dropped as they come.
    Trailers {
        /// Bytes of them that have come.
        size: usize,
        /// Whether nothing of the present line has come, CR aside.
        empty: bool,
    },
}

impl Body {
    pub(super) fn new(framing: Framing) -> Self {
        match framing {
            Framing::Length(0) => Self::Ended,
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::ChunkSize,
            Framing::UntilClose => Self::UntilClose,
        }
    }

    /// Takes the next piece out of what has come. `None`: it has ended, or more has to come first. An error says what is
    /// wrong with it.
    pub(super) fn take(&mut self, input: &mut BytesMut) -> Result<Option<Bytes>, &'static str> {
        loop {
            match self {
                Self::Ended => return Ok(None),
                _ if input.is_empty() => return Ok(None),
                Self::UntilClose => return Ok(Some(input.split().freeze())),
                Self::Length(left) => {
                    let data = take_up_to(input, left);
                    if *left == 0 {
                        *self = Self::Ended;
                    }
                    return Ok(Some(data));
                }
                Self::ChunkSize => match line(input, MAX_SIZE_LINE)? {
                    None => return Ok(None),
                    Some(line) => *self = chunk(&line).ok_or("a chunk's size can't be read")?,
                },
                Self::ChunkData(left) => {
                    let data = take_up_to(input, left);
                    if *left == 0 {
                        *self = Self::ChunkEnd;
                    }
                    return Ok(Some(data));
                }
                Self::ChunkEnd => match line(input, 2)? {
                    None => return Ok(None),
                    Some(line) if line.is_empty() => *self = Self::ChunkSize,
                    Some(_) => return Err("a chunk is longer than it says"),
                },
                Self::Trailers { size, empty } => {
                    *size += 1;
                    if *size > MAX_HEADERS {
                        return Err("its trailers are too large");
                    }
                    match input.get_u8() {
                        b'\n' if *empty => *self = Self::Ended,
                        b'\n' => *empty = true,
                        b'\r' => {}
                        _ => *empty = false,
                    }
                }
            }
        }
    }
}

fn take_up_to(input: &mut BytesMut, left: &mut u64) -> Bytes {
    let length = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
    *left -= length as u64;
    input.split_to(length).freeze()
}

/// The next line, without its end; `None` if that has not come yet.
fn line(input: &mut BytesMut, max: usize) -> Result<Option<Bytes>, &'static str> {
    let Some(length) = input.iter().take(max).position(|byte| *byte == b'\n') else {
        return if input.len() < max { Ok(None) } else { Err("a line in its chunked coding is too long") };
    };
    let mut line = input.split_to(length).freeze();
    input.advance(1);
    if line.ends_with(b"\r") {
        line.truncate(length - 1);
    }
    Ok(Some(line))
}

/// What follows a chunk's size line.
fn chunk(line: &[u8]) -> Option<Body> {
    let size = line.split(|byte| *byte == b';').next()?.trim_ascii();
    let hexadecimal = size.iter().all(u8::is_ascii_hexdigit);
    let size = u64::from_str_radix(std::str::from_utf8(size).ok().filter(|_| hexadecimal)?, 16).ok()?;
    Some(if size == 0 { Body::Trailers { size: 0, empty: true } } else { Body::ChunkData(size) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds a body's bytes in pieces of that size; what came out, and what of the input is left.
    fn read(framing: Framing, text: &str, piece: usize) -> Result<(String, Body, String), &'static str> {
        let mut body = Body::new(framing);
        let (mut input, mut output) = (BytesMut::new(), Vec::new());
        for piece in text.as_bytes().chunks(piece) {
            input.extend_from_slice(piece);
            while let Some(data) = body.take(&mut input)? {
                output.extend_from_slice(&data);
            }
        }
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Ok((text(&output), body, text(&input)))
    }

    #[test]
    fn bodies_end_where_they_should() {
        for (framing, text, expected, body, left) in [
            (Framing::Length(3), "abcdef", "abc", Body::Ended, "def"),
            (Framing::Length(0), "abc", "", Body::Ended, "abc"),
            (Framing::Length(4), "abc", "abc", Body::Length(1), ""),
            (Framing::UntilClose, "abc", "abc", Body::UntilClose, ""),
            (Framing::Chunked, "3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\nf", "abcde", Body::Ended, "f"),
            (Framing::Chunked, "3\nabc\n0\n\n", "abc", Body::Ended, ""),
            (
                Framing::Chunked,
                "a \r\n0123456789\r\n0\r\nA: b\r\nC: d\r\n\r\n",
                "0123456789",
                Body::Ended,
                "",
            ),
            (Framing::Chunked, "03\r\nab", "ab", Body::ChunkData(1), ""),
            (
                Framing::Chunked,
                "3\r\nabc\r\n0\r\nA: b\r\n\r",
                "abc",
                Body::Trailers { size: 7, empty: true },
                "",
            ),
        ] {
            for piece in [1, 2, 7, 100] {
                let got = read(framing, text, piece);
                assert_eq!(got, Ok((expected.to_owned(), body, left.to_owned())), "{text:?} by {piece}");
            }
        }
    }

    #[test]
    fn chunks_that_make_no_sense_are_errors() {
        let long = format!("1;{}", "x".repeat(MAX_SIZE_LINE));
        let trailers = format!("0\r\n{}", "a: b\r\n".repeat(MAX_HEADERS / 5 + 1));
        for text in [
            "x\r\n",
            "\r\n",
            "-1\r\n",
            "+1\r\n",
            "0x1\r\n",
            "1\r\nab\r\n",
            "1 2\r\n",
            "11111111111111111\r\n",
            &long,
            &trailers,
        ] {
            assert!(read(Framing::Chunked, text, 100).is_err(), "{:?}", &text[..text.len().min(20)]);
        }
    }
}
