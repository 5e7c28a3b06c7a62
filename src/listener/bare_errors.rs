//! Gives a JSON body to the errors that the HTTP library answers by itself.
//!
//! A request whose head can't be read never reaches the API: the library answers 400, 414 or 431 without a body and
//! closes. Clients that expect `{"error": …}` on every error would show their users a decoding error instead. An answer
//! of ours is never taken for one: all of ours have a content type.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};

/// A connection whose bare errors get a body on their way out.
pub(super) struct BareErrors<T> {
    inner: T,
    /// An error with its body, and how much of it is written.
    replacement: Option<(Vec<u8>, usize)>,
}

impl<T> BareErrors<T> {
    pub(super) fn new(inner: T) -> Self {
        Self { inner, replacement: None }
    }
}

impl<T: Read + Unpin> Read for BareErrors<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<T: Write + Unpin> BareErrors<T> {
    /// Writes the replacement; then the bytes that it replaces count as written.
    fn poll_replacement(
        &mut self,
        context: &mut Context<'_>,
        replaced: usize,
    ) -> Option<Poll<io::Result<usize>>> {
        let (bytes, written) = self.replacement.as_mut()?;
        while *written < bytes.len() {
            match Pin::new(&mut self.inner).poll_write(context, &bytes[*written..]) {
                Poll::Ready(Ok(0)) => return Some(Poll::Ready(Err(io::ErrorKind::WriteZero.into()))),
                Poll::Ready(Ok(count)) => *written += count,
                Poll::Ready(Err(error)) => return Some(Poll::Ready(Err(error))),
                Poll::Pending => return Some(Poll::Pending),
            }
        }
        self.replacement = None;
        Some(Poll::Ready(Ok(replaced)))
    }
}

impl<T: Write + Unpin> Write for BareErrors<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.replacement.is_none() {
            self.replacement = with_body(buffer).map(|bytes| (bytes, 0));
        }
        match self.poll_replacement(context, buffer.len()) {
            Some(poll) => poll,
            None => Pin::new(&mut self.inner).poll_write(context, buffer),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = buffers.first().map_or(&[][..], |buffer| &buffer[..]);
        if self.replacement.is_some() || with_body(first).is_some() {
            return self.poll_write(context, first);
        }
        Pin::new(&mut self.inner).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_shutdown(context))?;
        Poll::Ready(Ok(()))
    }
}

/// The answer with a body, if it is an error that the library made by itself.
fn with_body(answer: &[u8]) -> Option<Vec<u8>> {
    let status_line = answer.strip_prefix(b"HTTP/1.1 4")?;
    let head = std::str::from_utf8(answer).ok()?.to_ascii_lowercase();
    if !head.contains("\r\ncontent-length: 0\r\n") || head.contains("\r\ncontent-type:") {
        return None;
    }
    let error = match status_line.get(..2)? {
        b"14" => "the request target is too long",
        b"31" => "the request's headers are too many or too large",
        b"08" => "the request did not arrive in time",
        _ => {
            "the request could not be read as HTTP: a header name or value, the target or the framing is malformed"
        }
    };
    let body = serde_json::json!({ "error": error }).to_string();
    let line = head.split("\r\n").next()?.len();
    let line = std::str::from_utf8(&answer[..line]).ok()?;
    let length = body.len();
    Some(
        format!(
            "{line}\r\ncontent-type: application/json\r\ncache-control: no-store\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        )
        .into_bytes(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bare_errors_get_a_body() {
        let bare = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\ndate: x\r\n\r\n";
        let text = String::from_utf8(with_body(bare).unwrap()).unwrap();
        assert!(text.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"), "{text}");
        assert!(text.ends_with(r#"{"error":"the request's headers are too many or too large"}"#), "{text}");
        let ours = b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(with_body(ours), None);
        assert_eq!(with_body(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"), None);
    }
}
