//! The client for deliveries: HTTP/1.1 and HTTP/2, pooled connections, nothing followed and nothing inflated.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, HeaderMap, HeaderName, TE, TRANSFER_ENCODING, UPGRADE};
use http::{Uri, uri};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::AbortOnDropHandle;

use super::connector::Connector;
use super::exchange::{BodyError, Broken, Head, Request};
pub use super::exchange::{Failure, SendError};
use super::policy::Policy;
use super::pool::{Free, Origin, Pool, SWEEP, Turn};
use super::{Destinations, http1, http2, tls};
use crate::domain::message::{Headers, Method};
use crate::domain::outcome::{FailureClass, Response};
use crate::failure::Failure as ServerFailure;

/// Response bodies up to this size are read without asking; beyond, the attempt takes a share of the memory for large
/// responses.
const SMALL_BODY: usize = 64 << 10;
/// How often a request is sent in one attempt, if it is sure each time but the last that it was not processed. The last
/// time it goes out first on a connection of its own.
const MAX_SENDS: usize = 4;
/// Fields that are a connection's own (RFC 9110, 7.6.1).
static HOP_BY_HOP: [HeaderName; 6] = [
    CONNECTION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// How the client is set up.
pub struct Settings<'a> {
    pub policy: Arc<Policy>,
    /// The time for resolving a host's name, connecting and the TLS handshake together.
    pub connect_timeout: Duration,
    /// HTTP/1.1 connections per origin that are kept while they are unused.
    pub idle_per_origin: usize,
    /// Bytes of a response body that are kept.
    pub max_response: usize,
    /// Bytes of large response bodies in memory at once.
    pub max_response_memory: usize,
    /// A PEM file with further certificate authorities, and certificates to be trusted themselves.
    pub extra_ca: Option<&'a Path>,
    /// What is set when the task that closes unused connections fails.
    pub failure: &'a ServerFailure,
}

/// Why a client could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("extra_ca_file: {path} can't be used: {reason}")]
    ExtraCa { path: String, reason: String },
    #[error("TLS could not be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// A response, and the share of memory that its body holds until it is dropped.
#[derive(Debug)]
pub struct Received {
    pub response: Response,
    pub memory: Option<OwnedSemaphorePermit>,
    /// Whether the body may lack its end: the connection broke off.
    pub perhaps_cut: bool,
}

/// A request to a destination.
pub struct Outgoing {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Sends requests to destinations.
pub struct Client {
    connector: Connector,
    pool: Arc<Pool>,
    max_response: usize,
    large_bodies: Arc<Semaphore>,
    _sweeper: AbortOnDropHandle<()>,
}

impl Client {
    /// A client with an empty pool, in a runtime. Reads the system's certificate authorities.
    pub fn new(settings: &Settings<'_>) -> Result<Self, ClientError> {
        let tls = tls::config(settings.extra_ca)?;
        let memory = settings.max_response_memory.max(settings.max_response);
        let pool = Arc::new(Pool::new(settings.idle_per_origin));
        let swept = Arc::clone(&pool);
        let sweeper = settings.failure.spawn("unused connections", async move {
            loop {
                crate::clock::pause(SWEEP).await;
                swept.sweep();
            }
        });
        Ok(Self {
            connector: Connector::new(Arc::clone(&settings.policy), tls, settings.connect_timeout),
            pool,
            max_response: settings.max_response,
            large_bodies: Arc::new(Semaphore::new(kib(memory) as usize)),
            _sweeper: AbortOnDropHandle::new(sweeper),
        })
    }
}

#[async_trait]
impl Destinations for Client {
    /// Makes one attempt. A request that has surely not been processed is sent again, a few times, on another connection.
    /// Dropping it closes the connection, or leaves it to the other requests that are out on it.
    async fn send(&self, outgoing: Outgoing) -> Result<Received, SendError> {
        let Outgoing { method, uri, mut headers, body } = outgoing;
        for name in &HOP_BY_HOP {
            headers.remove(name);
        }
        let request = Request { method: self::method(method), uri, headers, body };
        let mut sends = 0;
        loop {
            sends += 1;
            let last = sends == MAX_SENDS;
            match self.send_once(&request, last).await {
                Ok(received) => return Ok(received),
                Err(Broken::Unprocessed(failure)) if last => return Err(SendError::Failed(failure)),
                Err(Broken::Unprocessed(failure)) => {
                    let origin = request.uri.authority().map(uri::Authority::as_str);
                    tracing::debug!(
                        error = failure.error,
                        origin,
                        "a request was not taken and is sent again"
                    );
                }
                Err(Broken::Final(SendError::Lacking(error))) => {
                    // Some of what is lacking may be here.
                    self.pool.clear();
                    return Err(SendError::Lacking(error));
                }
                Err(Broken::Final(error)) => return Err(error),
            }
        }
    }
}

impl Client {
    /// Sends a request once.
    async fn send_once(&self, request: &Request, fresh: bool) -> Result<Received, Broken> {
        let origin = Origin::of(&request.uri);
        let Obtained { free, new, turn } = self.connection(&origin, request, fresh).await?;
        match free {
            Free::Http1(mut connection) => {
                let head = connection.send(request).await?;
                let mut incoming = Incoming::Http1(connection);
                let received = self.receive(head, &mut incoming).await?;
                if let Incoming::Http1(connection) = incoming
                    && let Some(connection) = connection.reuse()
                {
                    self.pool.put(origin, connection);
                }
                Ok(received)
            }
            Free::Http2(place) => {
                let connection = Arc::clone(place.connection());
                let mut exchange = place.start(request).await?;
                if new {
                    self.pool.share(origin, connection);
                }
                drop(turn);
                let head = exchange.head().await?;
                Ok(self.receive(head, &mut Incoming::Http2(exchange)).await?)
            }
        }
    }

    /// A connection for a request: one from the pool, unless it must be `fresh`, or a new one.
    async fn connection(
        &self,
        origin: &Origin,
        request: &Request,
        fresh: bool,
    ) -> Result<Obtained, SendError> {
        let pooled = || if fresh { None } else { self.pool.take(origin) };
        if let Some(free) = pooled() {
            return Ok(Obtained { free, new: false, turn: None });
        }
        let turn = self.pool.turn(origin).await;
        if let Some(free) = pooled() {
            return Ok(Obtained { free, new: false, turn: None });
        }
        let connection = self.connector.connect(&request.uri).await?;
        if !connection.http2 {
            self.pool.note_http1(origin);
            let free = Free::Http1(Box::new(http1::Connection::new(connection.stream)));
            return Ok(Obtained { free, new: true, turn: None });
        }
        let connection = http2::Connection::new(connection.stream).await.map_err(SendError::Failed)?;
        let place = connection.place().ok_or_else(|| {
            let error = "the destination takes no requests by HTTP/2".to_owned();
            SendError::Failed(Failure { class: FailureClass::Reset, error })
        })?;
        Ok(Obtained { free: Free::Http2(place), new: true, turn })
    }

    /// The response that begins with `head`. One that breaks off in its body counts where it is a failure anyway, and where
    /// its length isn't known to be missed.
    async fn receive(&self, head: Head, incoming: &mut Incoming) -> Result<Received, Failure> {
        let status = head.status;
        let (body, memory, end) = self.read_body(incoming).await;
        if let Err(BodyError::Short(reason)) = &end
            && (200..300).contains(&status)
        {
            let error = format!("the response (status {status}) broke off in its body: {reason}");
            return Err(Failure { class: FailureClass::Body, error });
        }
        let response = Response { status, headers: read_headers(&head.headers), body };
        Ok(Received { response, memory, perhaps_cut: end.is_err() })
    }

    /// The body up to the cap, and whether it came to its end. What comes beyond is not read: the connection is closed.
    async fn read_body(
        &self,
        incoming: &mut Incoming,
    ) -> (Bytes, Option<OwnedSemaphorePermit>, Result<(), BodyError>) {
        let mut memory = None;
        let mut whole = BytesMut::new();
        let mut first: Option<Bytes> = None;
        let end = loop {
            let data = match incoming.data().await {
                Ok(Some(data)) => data,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            };
            let room = self.max_response - whole.len() - first.as_ref().map_or(0, Bytes::len);
            let data = data.slice(..data.len().min(room));
            // Most bodies come in one piece, which is kept as it is.
            if whole.is_empty() && first.is_none() {
                first = Some(data);
            } else {
                if let Some(first) = first.take() {
                    whole.extend_from_slice(&first);
                }
                whole.extend_from_slice(&data);
            }
            let have = whole.len() + first.as_ref().map_or(0, Bytes::len);
            if have >= self.max_response {
                break Ok(());
            }
            if have > SMALL_BODY && memory.is_none() {
                // The whole of what may come at once: holding a part while waiting for the rest could block all.
                let permits = kib(self.max_response);
                memory = Arc::clone(&self.large_bodies).acquire_many_owned(permits).await.ok();
            }
        };
        (first.unwrap_or_else(|| whole.freeze()), memory, end)
    }
}

/// A connection for a request.
struct Obtained {
    free: Free,
    /// Whether it has been opened for this request.
    new: bool,
    /// Kept until others can share the connection.
    turn: Option<Turn>,
}

/// A response whose head has come.
enum Incoming {
    Http1(Box<http1::Connection>),
    Http2(http2::Exchange),
}

impl Incoming {
    async fn data(&mut self) -> Result<Option<Bytes>, BodyError> {
        match self {
            Self::Http1(connection) => connection.data().await,
            Self::Http2(exchange) => exchange.data().await,
        }
    }
}

fn kib(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).min(1 << 28)
}

fn method(method: Method) -> http::Method {
    match method {
        Method::Get => http::Method::GET,
        Method::Post => http::Method::POST,
        Method::Put => http::Method::PUT,
        Method::Patch => http::Method::PATCH,
        Method::Delete => http::Method::DELETE,
    }
}

fn read_headers(map: &HeaderMap) -> Headers {
    let mut headers = Headers::new();
    for (name, value) in map {
        headers.append(name.as_str(), value.as_bytes());
    }
    headers
}
