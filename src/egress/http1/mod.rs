//! HTTP/1.1 towards destinations: one request after the other on a connection (RFC 9112).
//!
//! It is not a library's, since the outcome of an attempt hangs on what libraries keep to themselves or refuse: lines in a
//! response that are no header, how many 1xx responses came, and whether a request that got no answer can have been
//! processed.

mod body;
mod head;

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::buf::Chain;
use bytes::{Buf as _, Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use rustix::io::Errno;
use tokio::io::{AsyncRead as _, AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _, Interest, ReadBuf};

use self::body::Body;
use self::head::HeadError;
use super::connector::Stream;
use super::exchange::{
    BodyError, Broken, Failure, Head, Request, malformed, too_large, too_many_informational,
};
use super::{MAX_HEADERS, MAX_INFORMATIONAL, tls};
use crate::domain::outcome::FailureClass;

/// Room for what is read at once.
const READ: usize = 8 << 10;
/// How long after a request the reset may come that shows that the request met a closed connection: more than a round
/// trip to the other side of the world.
const RESET_WAIT: Duration = Duration::from_secs(1);

/// A connection that speaks HTTP/1.1.
pub(super) struct Connection {
    stream: Stream,
    /// What came and was not taken yet.
    input: BytesMut,
    /// What of the request is still to be written.
    output: Chain<Bytes, Bytes>,
    /// Whether all of it has gone out, buffers included.
    written: bool,
    /// Why the rest of it can't be written.
    write_error: Option<io::Error>,
    body: Body,
    keep_alive: bool,
    /// Whether it has carried a request before the present one.
    reused: bool,
}

impl Connection {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            output: Bytes::new().chain(Bytes::new()),
            written: true,
            write_error: None,
            body: Body::Ended,
            keep_alive: true,
            reused: false,
        }
    }

    /// Sends a request and waits for the head of its response.
    pub(super) async fn send(&mut self, request: &Request) -> Result<Head, Broken> {
        let began = tokio::time::Instant::now();
        self.output = request_head(request).chain(request.body.clone());
        self.written = false;
        let size = self.output.remaining();
        let mut answered = false;
        let mut informational = 0;
        let mut searched = 0;
        loop {
            while let Some(length) = head::end(&self.input, searched) {
                searched = 0;
                let head = self.input.split_to(length);
                let head = head::parse(&head).map_err(|error| match error {
                    HeadError::TooLarge => too_large(),
                    HeadError::Malformed(what) => malformed(what),
                })?;
                if !(100..200).contains(&head.status) || head.status == 101 {
                    self.body = Body::new(head.framing);
                    self.keep_alive = head.keep_alive;
                    return Ok(Head { status: head.status, headers: head.headers });
                }
                informational += 1;
                if informational > MAX_INFORMATIONAL {
                    return Err(too_many_informational().into());
                }
            }
            searched = self.input.len();
            if searched > MAX_HEADERS {
                return Err(too_large().into());
            }
            let error = match self.fill().await {
                Ok(0) => None,
                Ok(_) => {
                    answered = true;
                    continue;
                }
                Err(error) => Some(error),
            };
            let untouched = self.output.remaining() == size
                || (self.reused && !answered && self.was_refused(error.as_ref(), began).await);
            let failure = no_head(error.as_ref(), answered);
            return Err(if untouched { Broken::Unprocessed(failure) } else { failure.into() });
        }
    }

    /// Whether a connection that ended without a byte of an answer shows that its peer had closed it before it had all of
    /// the request: the kernel there answers what nobody will read with a reset. Who has read all and closes, without
    /// an answer, sends none; that request may have been processed.
    async fn was_refused(&self, error: Option<&io::Error>, began: tokio::time::Instant) -> bool {
        let is_reset =
            |error: &io::Error| matches!(Errno::from_io_error(error), Some(Errno::CONNRESET | Errno::PIPE));
        // A reset that comes later may be of something between here and there that has lost patience.
        if began.elapsed() > RESET_WAIT {
            return false;
        }
        // Or the peer's TLS could not even read it.
        let is_refusal = |error: &io::Error| is_reset(error) || tls::error_in(error).is_some_and(is_alert);
        if error.is_some_and(is_refusal) {
            return true;
        }
        let tcp = self.stream.tcp();
        drop(tokio::time::timeout(RESET_WAIT, tcp.ready(Interest::ERROR)).await);
        let pending = tcp.take_error().ok().flatten();
        pending.as_ref().or(self.write_error.as_ref()).is_some_and(is_reset)
    }

    /// The next piece of the response's body; `None` at its end.
    pub(super) async fn data(&mut self) -> Result<Option<Bytes>, BodyError> {
        loop {
            match self.body.take(&mut self.input) {
                Ok(Some(data)) if data.is_empty() => {}
                Ok(Some(data)) => return Ok(Some(data)),
                Ok(None) if self.body == Body::Ended => return Ok(None),
                Ok(None) => match self.fill().await {
                    Ok(0) if self.body == Body::UntilClose => return Ok(None),
                    Ok(0) => return Err(BodyError::Short("the connection was closed".to_owned())),
                    Ok(_) => {}
                    // Only its close ends this body. An unclean one may have cut it off, or not.
                    Err(_) if self.body == Body::UntilClose => return Err(BodyError::PerhapsShort),
                    Err(error) => return Err(BodyError::Short(error.to_string())),
                },
                Err(error) => return Err(BodyError::Short(error.to_owned())),
            }
        }
    }

    /// Makes it ready for another request, if it can carry one: a response that has come completely, to a request that
    /// has gone out completely.
    pub(super) fn reuse(mut self: Box<Self>) -> Option<Box<Self>> {
        let ended = self.body == Body::Ended && self.input.is_empty();
        self.input = BytesMut::new();
        self.reused = true;
        (self.keep_alive && ended && self.written).then_some(self)
    }

    /// Whether nothing has come on the unused connection: neither its end nor anything else. Never waits.
    pub(super) fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        Pin::new(&mut self.stream)
            .poll_read(&mut Context::from_waker(Waker::noop()), &mut buffer)
            .is_pending()
    }

    /// Reads something, while the rest of the request goes out. 0 at the end.
    async fn fill(&mut self) -> io::Result<usize> {
        poll_fn(|context| self.poll_fill(context)).await
    }

    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if !self.written && self.write_error.is_none() {
            match self.poll_write(context) {
                Poll::Ready(Ok(())) => self.written = true,
                // A peer that takes no more may have answered all the same.
                Poll::Ready(Err(error)) => self.write_error = Some(error),
                Poll::Pending => {}
            }
        }
        self.input.reserve(READ);
        pin!(self.stream.read_buf(&mut self.input)).poll(context)
    }

    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.output.has_remaining() {
            match pin!(self.stream.write_buf(&mut self.output)).poll(context) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Pin::new(&mut self.stream).poll_flush(context)
    }
}

/// Why a connection ended without a response's head.
fn no_head(error: Option<&io::Error>, answered: bool) -> Failure {
    let class = FailureClass::Reset;
    match error {
        Some(error) if tls::error_in(error).is_some_and(is_alert) => {
            let text = tls::error_in(error).map(tls::text).unwrap_or_default();
            Failure { class: FailureClass::Tls, error: text }
        }
        Some(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
            Failure { class, error: error.to_string() }
        }
        _ => {
            let what = if answered { "the response was complete" } else { "it answered" };
            Failure { class, error: format!("the destination closed the connection before {what}") }
        }
    }
}

fn is_alert(error: &rustls::Error) -> bool {
    matches!(error, rustls::Error::AlertReceived(_))
}

/// The request line with the target exactly as it was published, and the fields.
fn request_head(request: &Request) -> Bytes {
    let target = request.uri.path_and_query().map_or("/", |target| target.as_str());
    let mut head = Vec::with_capacity(1024);
    for part in [request.method.as_str(), " ", target, " HTTP/1.1\r\n"] {
        head.extend_from_slice(part.as_bytes());
    }
    for (name, value) in &request.headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    if !request.body.is_empty() && !request.headers.contains_key(CONTENT_LENGTH) {
        head.extend_from_slice(format!("content-length: {}\r\n", request.body.len()).as_bytes());
    }
    head.extend_from_slice(b"\r\n");
    head.into()
}
