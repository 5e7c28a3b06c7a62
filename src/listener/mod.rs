//! Connections coming in: our own accept loop, since every connection needs its limits.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

mod bare_errors;

use self::bare_errors::BareErrors;
use crate::api::{Api, Peer};
use crate::failure::Failure;

/// Bytes of a request's head at most, for both protocols.
const MAX_HEAD: u32 = 128 << 10;
/// Header fields of a request at most; the API's own limit is lower and answers with a reason.
const MAX_HEADERS: usize = 512;
/// Requests at once on one HTTP/2 connection.
const MAX_STREAMS: u32 = 256;
/// Time for the answers in flight when the server stops.
const STOP: Duration = Duration::from_secs(5);

/// Limits of connections.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Connections open at once; further ones wait to be accepted.
    pub max_connections: usize,
    /// Time until the head of the next request is complete, the wait for it included.
    pub idle_timeout: Duration,
}

/// The running accept loop.
pub struct Listener {
    stopping: CancellationToken,
    connections: TaskTracker,
}

impl Listener {
    /// Serves connections until [`Listener::stop`].
    pub fn start(socket: TcpListener, api: Arc<Api>, settings: Settings, failure: &Failure) -> Self {
        let stopping = CancellationToken::new();
        let connections = TaskTracker::new();
        let accepting = accept(socket, api, settings, stopping.clone(), connections.clone());
        connections.spawn(failure.guard("accepting connections", accepting));
        Self { stopping, connections }
    }

    /// Accepts nothing more, answers what is in flight, and closes.
    pub async fn stop(self) {
        self.stopping.cancel();
        self.connections.close();
        if tokio::time::timeout(STOP, self.connections.wait()).await.is_err() {
            tracing::warn!(connections = self.connections.len(), "some requests were cut off");
        }
    }
}

async fn accept(
    socket: TcpListener,
    api: Arc<Api>,
    settings: Settings,
    stopping: CancellationToken,
    connections: TaskTracker,
) {
    let places = Arc::new(Semaphore::new(settings.max_connections));
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, socket.accept().await)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            () = stopping.cancelled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                refused(&error).await;
                continue;
            }
        };
        let (api, stopping) = (Arc::clone(&api), stopping.clone());
        connections.spawn(async move {
            serve(stream, api, settings, stopping).await;
            drop(place);
        });
    }
}

/// A failed accept is the connection's own fault, or there are no file descriptors left; then waiting may help.
async fn refused(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        tracing::error!(%error, "a connection could not be accepted");
        crate::clock::pause(Duration::from_millis(100)).await;
    }
}

/// Runs a connection; when the server stops, it ends after the answers in flight.
macro_rules! until_stopped {
    ($connection:expr, $stopping:expr) => {{
        let connection = $connection;
        tokio::pin!(connection);
        tokio::select! {
            result = connection.as_mut() => result,
            () = $stopping.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    }};
}
async fn serve(stream: TcpStream, api: Arc<Api>, settings: Settings, stopping: CancellationToken) {
    let Ok(peer) = stream.peer_addr() else { return };
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    let protocol = tokio::select! {
        protocol = tokio::time::timeout(settings.idle_timeout, protocol(&stream)) => protocol,
        () = stopping.cancelled() => return,
    };
    let Ok(Ok(protocol)) = protocol else { return };
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer.ip()));
        let api = Arc::clone(&api);
        async move { Ok::<_, Infallible>(api.answer(request.map(Body::new)).await) }
    });
    let result = match protocol {
        Protocol::Http1 => {
            let stream = BareErrors::new(TokioIo::new(stream));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(settings.idle_timeout)
                .max_buf_size(MAX_HEAD as usize)
                .max_headers(MAX_HEADERS)
                .serve_connection(stream, service);
            until_stopped!(connection, stopping)
        }
        Protocol::Http2 => {
            let connection = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(MAX_STREAMS)
                .max_header_list_size(MAX_HEAD)
                .keep_alive_interval(settings.idle_timeout)
                .serve_connection(TokioIo::new(stream), service);
            until_stopped!(connection, stopping)
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended with an error");
    }
}

enum Protocol {
    Http1,
    Http2,
}

/// Which protocol the client speaks, by what it sends first: HTTP/2 with prior knowledge begins with a preface
/// (RFC 9113, 3.4) that is no request of HTTP/1. The caller limits the time.
async fn protocol(stream: &TcpStream) -> io::Result<Protocol> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut first = [0; PREFACE.len()];
    loop {
        let seen = stream.peek(&mut first).await?;
        if seen == 0 || !PREFACE.starts_with(&first[..seen]) {
            return Ok(Protocol::Http1);
        }
        if seen == PREFACE.len() {
            return Ok(Protocol::Http2);
        }
        // A part of the preface; a look tells nothing about when more comes.
        crate::clock::pause(Duration::from_millis(10)).await;
    }
}
