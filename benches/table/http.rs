//! As much of HTTP/1.1 as the load, the sink and the driver need. A body's length is always said; chunks are refused.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// The head of a request or an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Head {
    /// Its bytes, the empty line included.
    pub(crate) length: usize,
    /// Bytes of the body behind it.
    pub(crate) body: usize,
    /// Whether the connection ends with it.
    pub(crate) close: bool,
}

/// Reads a head; `None` when there is more to come.
pub(crate) fn head(bytes: &[u8]) -> Result<Option<Head>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let mut head = Head { length: end + 4, body: 0, close: false };
    for line in bytes[..end].split(|byte| *byte == b'\n').skip(1) {
        if let Some(value) = field(line, b"content-length") {
            head.body = value.parse().with_context(|| format!("a length of {value:?}"))?;
        } else if let Some(value) = field(line, b"connection") {
            head.close = value.eq_ignore_ascii_case("close");
        } else if let Some(value) = field(line, b"transfer-encoding") {
            bail!("a body in the encoding {value}, which is not read here");
        }
    }
    Ok(Some(head))
}

fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a str> {
    let (have, value) = line.split_at_checked(name.len())?;
    if !have.eq_ignore_ascii_case(name) {
        return None;
    }
    Some(str::from_utf8(value.strip_prefix(b":")?).ok()?.trim())
}

/// The status of an answer.
pub(crate) fn status(head: &[u8]) -> Result<u16> {
    let text = head.strip_prefix(b"HTTP/1.1 ").and_then(|rest| str::from_utf8(rest.get(..3)?).ok());
    text.and_then(|text| text.parse().ok()).context("no HTTP/1.1 answer")
}

/// A request as it goes out.
pub(crate) fn request(
    method: &str,
    host: SocketAddr,
    target: &str,
    headers: &[(String, String)],
    body: &str,
) -> String {
    let mut text =
        format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        text.extend([name, ": ", value, "\r\n"]);
    }
    text.extend(["\r\n", body]);
    text
}

/// One request on a connection of its own; status and body of the answer.
pub(crate) fn call(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(String, String)],
    body: &str,
) -> Result<(u16, String)> {
    let close = ("Connection".to_owned(), "close".to_owned());
    let headers = [headers, &[close]].concat();
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(request(method, address, target, &headers, body).as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let head = head(&answer)?.context("the answer ends in its head")?;
    let body = answer.get(head.length..head.length + head.body).context("the answer ends in its body")?;
    Ok((status(&answer)?, String::from_utf8_lossy(body).into_owned()))
}
