//! Connections coming in: our own accept loop, since every connection needs its limits.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

mod bare_errors;

use self::bare_errors::BareErrors;
use crate::api::{Api, Peer};

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
    pub fn start(socket: TcpListener, api: Arc<Api>, settings: Settings) -> Self {
        let stopping = CancellationToken::new();
        let connections = TaskTracker::new();
        connections.spawn(accept(socket, api, settings, stopping.clone(), connections.clone()));
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
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(settings.idle_timeout)
        .max_buf_size(MAX_HEAD as usize)
        .max_headers(MAX_HEADERS)
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD)
        .keep_alive_interval(settings.idle_timeout);
    let server = Arc::new(server);
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
        let (server, api, stopping) = (Arc::clone(&server), Arc::clone(&api), stopping.clone());
        connections.spawn(async move {
            serve(&server, stream, api, stopping).await;
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

async fn serve(
    server: &auto::Builder<TokioExecutor>,
    stream: TcpStream,
    api: Arc<Api>,
    stopping: CancellationToken,
) {
    let Ok(peer) = stream.peer_addr() else { return };
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer.ip()));
        let api = Arc::clone(&api);
        async move { Ok::<_, Infallible>(api.answer(request.map(Body::new)).await) }
    });
    let connection = server.serve_connection(BareErrors::new(TokioIo::new(stream)), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended with an error");
    }
}
