//! A client's socket: what was read of it to see the protocol comes again, and it must take what is written to it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::api::LEAST;

/// Which protocol a client speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// A socket. Writing fails when it took less than [`LEAST`] for as long as the limit, while there was more to be written.
pub(super) struct ClientStream {
    inner: TokioIo<TcpStream>,
    /// What was read before.
    first: Bytes,
    limit: Duration,
    /// When the limit is reached; `None` while nothing waits to be written.
    late: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// Bytes taken since `late` was set.
    taken: usize,
}

impl ClientStream {
    /// Reads what shows the protocol: HTTP/2 with prior knowledge begins with a preface (RFC 9113, 3.4) that is no request
    /// of HTTP/1. The caller limits the time; `limit` is for writing.
    pub(super) async fn open(mut stream: TcpStream, limit: Duration) -> io::Result<(Protocol, Self)> {
        const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let mut first = [0; PREFACE.len()];
        let mut seen = 0;
        let protocol = loop {
            let count = stream.read(&mut first[seen..]).await?;
            seen += count;
            if count == 0 || !PREFACE.starts_with(&first[..seen]) {
                break Protocol::Http1;
            }
            if seen == PREFACE.len() {
                break Protocol::Http2;
            }
        };
        let first = Bytes::copy_from_slice(&first[..seen]);
        Ok((protocol, Self { inner: TokioIo::new(stream), first, limit, late: None, taken: 0 }))
    }

    /// Judges the outcome of a write.
    fn progress(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(count)) => {
                self.taken += count;
                if self.taken >= LEAST {
                    self.late = None;
                }
                Poll::Ready(Ok(count))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                if self.late.is_none() {
                    self.late = Some(Box::pin(crate::clock::pause(self.limit)));
                    self.taken = 0;
                }
                match self.late.as_mut().map(|late| late.as_mut().poll(context)) {
                    Some(Poll::Ready(())) => {
                        // What the kernel has of it would wait for the client for minutes.
                        drop(self.inner.inner().set_zero_linger());
                        Poll::Ready(Err(io::Error::new(
                            io::ErrorKind::TimedOut,
                            "the client doesn't read its answer",
                        )))
                    }
                    _ => Poll::Pending,
                }
            }
        }
    }
}

impl Read for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.inner).poll_read(context, buffer);
        }
        let count = self.first.len().min(buffer.remaining());
        buffer.put_slice(&self.first[..count]);
        self.first.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl Write for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, buffer);
        self.progress(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(context, buffers);
        self.progress(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Both protocols flush when they have written all they have.
        self.late = None;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
