//! HTTP/2 towards destinations: many requests at once on a connection (RFC 9113).
//!
//! Invariant: a connection on which an exchange did not come to its end takes no further requests, and is closed when the
//! last of its exchanges has ended, so that nothing goes on there for an attempt that is over.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream};
use http::Version;
use http::header::{CONTENT_LENGTH, HOST, HeaderValue};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::connector::Stream;
use super::exchange::{
    BodyError, Broken, Failure, Head, Request, malformed, too_large, too_many_informational,
};
use super::{MAX_HEADERS, MAX_INFORMATIONAL};
use crate::domain::outcome::FailureClass;

/// Bytes that a destination may send of one body before they are read. The bound on the memory for responses doesn't count
/// them.
const STREAM_WINDOW: u32 = 256 << 10;
/// Bytes that a destination may send of all bodies on a connection before they are read.
const CONNECTION_WINDOW: u32 = 5 << 20;
/// Requests at once before the destination has said how many it takes: as many as it should take at least (RFC 9113,
/// 6.5.2).
const FIRST_STREAMS: usize = 100;

/// A connection that speaks HTTP/2.
pub(super) struct Connection {
    sender: SendRequest<Bytes>,
    /// Exchanges that have not ended.
    open: AtomicUsize,
    /// Whether it takes no further requests.
    retired: AtomicBool,
    /// When the last exchange ended.
    used: Mutex<Instant>,
    /// What reads and writes; the connection is closed with it.
    task: AbortOnDropHandle<()>,
}

impl Connection {
    /// Begins to speak HTTP/2.
    pub(super) async fn new(stream: Stream) -> Result<Arc<Self>, Failure> {
        let (sender, connection) = Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_max_send_streams(FIRST_STREAMS)
            .max_header_list_size(MAX_HEADERS.try_into().expect("it fits"))
            .enable_push(false)
            .handshake(stream)
            .await
            .map_err(|error| failure(&error))?;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an HTTP/2 connection ended");
            }
        });
        Ok(Arc::new(Self {
            sender,
            open: AtomicUsize::new(0),
            retired: AtomicBool::new(false),
            used: Mutex::new(Instant::now()),
            task: AbortOnDropHandle::new(task),
        }))
    }

    /// A place for one more exchange, unless the destination takes no more of them at once.
    pub(super) fn place(self: &Arc<Self>) -> Option<Place> {
        let max = self.sender.current_max_send_streams();
        let more = |open: usize| (open < max).then_some(open + 1);
        if !self.is_usable() || self.open.fetch_update(Ordering::AcqRel, Ordering::Relaxed, more).is_err() {
            return None;
        }
        let place = Place { connection: Arc::clone(self), ended: false };
        // The last exchange before may have ended it meanwhile.
        self.is_usable().then_some(place)
    }

    /// Whether it takes further requests.
    pub(super) fn is_usable(&self) -> bool {
        !self.retired.load(Ordering::Relaxed) && !self.task.is_finished()
    }

    /// Whether it has had no exchange for so long.
    pub(super) fn is_idle(&self, time: Duration) -> bool {
        let used = *self.used.lock().unwrap_or_else(PoisonError::into_inner);
        self.open.load(Ordering::Relaxed) == 0 && used.elapsed() >= time
    }
}

/// The right to one exchange on a connection.
pub(super) struct Place {
    connection: Arc<Connection>,
    /// Whether the exchange came to its end.
    ended: bool,
}

impl Place {
    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Sends a request.
    pub(super) async fn start(self, request: &Request) -> Result<Exchange, Broken> {
        // Nothing has gone out where these fail.
        let unsent = |error: h2::Error| {
            let gone = error.is_io() || error.is_go_away();
            if gone { Broken::Unprocessed(closed()) } else { failure(&error).into() }
        };
        let mut sender = self.connection.sender.clone().ready().await.map_err(unsent)?;
        let empty = request.body.is_empty();
        let (response, mut body) = sender.send_request(message(request), empty).map_err(unsent)?;
        if !empty {
            // What is wrong with the stream will be known from its response.
            if let Err(error) = body.send_data(request.body.clone(), true) {
                tracing::debug!(%error, "a request's body could not be sent");
            }
        }
        Ok(Exchange { place: self, response, body: None, left: None })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Connection { open, retired, used, task, .. } = &*self.connection;
        *used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        if !self.ended {
            retired.store(true, Ordering::Relaxed);
        }
        if open.fetch_sub(1, Ordering::AcqRel) == 1 && retired.load(Ordering::Relaxed) {
            task.abort();
        }
    }
}

/// A request on its way and its response.
pub(super) struct Exchange {
    place: Place,
    response: ResponseFuture,
    body: Option<RecvStream>,
    /// Bytes of the body that are still to come, if its length was announced.
    left: Option<u64>,
}

impl Exchange {
    /// Waits for the response's head.
    pub(super) async fn head(&mut self) -> Result<Head, Broken> {
        let mut informational = 0;
        poll_fn(|context| self.poll_head(context, &mut informational)).await
    }

    fn poll_head(
        &mut self,
        context: &mut Context<'_>,
        informational: &mut usize,
    ) -> Poll<Result<Head, Broken>> {
        while let Poll::Ready(next) = self.response.poll_informational(context) {
            match next {
                // RFC 9113, 8.6 has none of it.
                Some(Ok(response)) if response.status() == 101 => {
                    let headers = response.into_parts().0.headers;
                    return Poll::Ready(Ok(Head { status: 101, headers }));
                }
                Some(Ok(_)) if *informational < MAX_INFORMATIONAL => *informational += 1,
                Some(Ok(_)) => {
                    // Whatever else is on the connection: it must not go on.
                    self.place.connection.task.abort();
                    return Poll::Ready(Err(too_many_informational().into()));
                }
                Some(Err(error)) => return Poll::Ready(Err(broken(&error))),
                None => break,
            }
        }
        Pin::new(&mut self.response).poll(context).map(|response| {
            let (parts, body) = response.map_err(|error| broken(&error))?.into_parts();
            self.body = Some(body);
            let length = parts.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
            self.left = length.and_then(|length| length.parse().ok());
            Ok(Head { status: parts.status.as_u16(), headers: parts.headers })
        })
    }

    /// The next piece of the response's body; `None` at its end.
    pub(super) async fn data(&mut self) -> Result<Option<Bytes>, BodyError> {
        let Some(body) = &mut self.body else { return Ok(None) };
        match body.data().await {
            None => {
                self.place.ended = true;
                Ok(None)
            }
            Some(Ok(data)) => {
                self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                if let Err(error) = body.flow_control().release_capacity(data.len()) {
                    tracing::debug!(%error, "a response's window could not be opened again");
                }
                Ok(Some(data))
            }
            // Some servers end their bodies so.
            Some(Err(error)) if matches!(error.reason(), Some(Reason::NO_ERROR | Reason::CANCEL)) => {
                match self.left {
                    Some(0) => Ok(None),
                    Some(left) => Err(BodyError::Short(format!("{left} bytes of it are missing"))),
                    None => Err(BodyError::PerhapsShort),
                }
            }
            Some(Err(error)) => Err(BodyError::Short(failure(&error).error)),
        }
    }
}

fn message(request: &Request) -> http::Request<()> {
    let mut message = http::Request::new(());
    *message.method_mut() = request.method.clone();
    *message.uri_mut() = request.uri.clone();
    *message.version_mut() = Version::HTTP_2;
    *message.headers_mut() = request.headers.clone();
    // `:authority` says it (RFC 9113, 8.3.1).
    message.headers_mut().remove(HOST);
    if !request.body.is_empty() {
        message.headers_mut().entry(CONTENT_LENGTH).or_insert(HeaderValue::from(request.body.len()));
    }
    message
}

/// What a request came to that has no response.
fn broken(error: &h2::Error) -> Broken {
    let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    if error.is_remote() && error.is_go_away() {
        // A stream above the last one that GOAWAY names (RFC 9113, 6.8). The others go on, so they don't see this error.
        Broken::Unprocessed(closed())
    } else if error.is_remote() && refused {
        Broken::Unprocessed(failure(error))
    } else {
        failure(error).into()
    }
}

fn closed() -> Failure {
    let error = "the destination closed the connection before it took the request".to_owned();
    Failure { class: FailureClass::Reset, error }
}

fn failure(error: &h2::Error) -> Failure {
    let reset = |error: String| Failure { class: FailureClass::Reset, error };
    match (error.get_io(), error.reason()) {
        (Some(error), _)
            if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof) =>
        {
            reset("the destination closed the connection before the response was complete".to_owned())
        }
        // The library says no more about headers beyond the limit than about others that break the rules.
        (_, Some(Reason::PROTOCOL_ERROR)) if error.is_library() && error.is_reset() => {
            let failure = too_large();
            Failure { error: format!("{}, or they break the rules of HTTP/2", failure.error), ..failure }
        }
        (_, Some(Reason::ENHANCE_YOUR_CALM | Reason::COMPRESSION_ERROR)) if error.is_library() => too_large(),
        _ if error.is_library() => malformed(&error.to_string()),
        (_, Some(reason)) if error.is_remote() => {
            reset(format!("the destination ended the exchange with the HTTP/2 error {reason:?}: {reason}"))
        }
        _ => reset(error.to_string()),
    }
}
