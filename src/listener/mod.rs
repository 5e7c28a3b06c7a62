//! Connections coming in: our own accept loop, since every connection needs its limits.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

mod answer;
mod bare_errors;
mod framing;
mod guests;
mod stream;
mod streams;

use self::answer::Answer;
use self::bare_errors::BareErrors;
pub(crate) use self::guests::lobby;
use self::guests::{Entry, Exchange, Guest, Guests};
use self::stream::{ClientStream, Protocol};
use self::streams::Streams;
use crate::api::error::ApiError;
use crate::api::{Api, Peer, is_health_check};
use crate::failure::Failure;

/// Bytes of a request's head at most, for both protocols. Its buffer may be twice as large, and there may be one for each
/// connection.
const MAX_HEAD: u32 = 64 << 10;
/// Header fields of a request at most; the API's own limit is lower and answers with a reason.
const MAX_HEADERS: usize = 512;
/// Requests at once on one HTTP/2 connection.
const MAX_STREAMS: u32 = 256;
/// Time for the answers in flight when the server stops.
const STOP: Duration = Duration::from_secs(5);
/// How often idle connections are looked for while others wait.
const LOOK: Duration = Duration::from_millis(250);
/// How long a request waits for its connection to get a place. Idle connections leave much earlier.
const PLACE_WAIT: Duration = Duration::from_secs(20);
/// The least time between two lines of the log about one kind of trouble.
const SELDOM: Duration = Duration::from_secs(10);

/// Limits of connections.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Connections open at once. Beside them there is a lobby for a few more, where only health checks are answered.
    pub max_connections: usize,
    /// Time until the head of the next request is complete, the wait for it included.
    pub idle_timeout: Duration,
    /// Time in which a client must take something of its answer.
    pub stall_timeout: Duration,
    /// Time for a request's body to arrive.
    pub body_timeout: Duration,
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
    let guests = Arc::new(Guests::new(settings.max_connections));
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut refusals, mut crowds) = (Seldom::default(), Seldom::default());
    loop {
        let next = async { (guests.lobby().await, socket.accept().await) };
        let (lobby, accepted) = tokio::select! {
            biased;
            _ = look.tick(), if guests.crowded() => {
                if guests.make_room() > 0 && crowds.due() {
                    tracing::warn!(
                        max_connections = settings.max_connections,
                        "all connections are taken; idle ones are closed to make room"
                    );
                }
                continue;
            }
            next = next => next,
            () = stopping.cancelled() => return,
        };
        let Some(lobby) = lobby else { return };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                refused(&error, &mut refusals).await;
                continue;
            }
        };
        let entry = guests.enter(lobby);
        let desk =
            Desk { api: Arc::clone(&api), guests: Arc::clone(&guests), guest: Arc::clone(&entry.guest) };
        connections.spawn(attend(stream, entry, desk, settings, stopping.clone()));
    }
}

/// A failed accept is the connection's own fault, or there are no file descriptors left; then waiting may help.
async fn refused(error: &io::Error, log: &mut Seldom) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        if log.due() {
            tracing::error!(%error, "connections can't be accepted");
        }
        crate::clock::pause(Duration::from_millis(100)).await;
    }
}

/// Keeps something that may happen often from filling the log.
#[derive(Default)]
struct Seldom(Option<Instant>);

impl Seldom {
    /// Whether it is time for the next line.
    fn due(&mut self) -> bool {
        let due = self.0.is_none_or(|last| last.elapsed() >= SELDOM);
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }
}

/// Serves a connection while it is here, in the lobby or on a place.
async fn attend(
    stream: TcpStream,
    mut entry: Entry,
    desk: Desk,
    settings: Settings,
    stopping: CancellationToken,
) {
    tokio::select! {
        biased;
        () = serve(stream, desk, settings, stopping) => {}
        () = entry.wait_for_place() => {}
    }
}

/// Runs a connection. When the server stops, it ends after the answers in flight; when it has to leave, it may take as
/// much longer as `$farewell` says.
macro_rules! run {
    ($connection:expr, $guest:expr, $settings:expr, $farewell:expr, $stopping:expr) => {{
        let connection = $connection;
        tokio::pin!(connection);
        tokio::select! {
            biased;
            result = connection.as_mut() => result,
            () = $stopping.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            () = $guest.leaves($settings.idle_timeout) => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    biased;
                    result = connection.as_mut() => result,
                    () = $guest.farewell($farewell) => Ok(()),
                }
            }
        }
    }};
}

async fn serve(stream: TcpStream, desk: Desk, settings: Settings, stopping: CancellationToken) {
    let Ok(peer) = stream.peer_addr() else { return };
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    let guest = Arc::clone(&desk.guest);
    let opened = tokio::select! {
        biased;
        opened = ClientStream::open(stream, settings.stall_timeout) => opened,
        () = guest.leaves(settings.idle_timeout) => return,
        () = stopping.cancelled() => return,
    };
    let Ok((protocol, stream)) = opened else { return };
    let result = match protocol {
        Protocol::Http1 => {
            let service = service_fn(|request| desk.answer(request, peer.ip(), Some(desk.guest.begin())));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(settings.idle_timeout)
                .max_buf_size(MAX_HEAD as usize)
                .max_headers(MAX_HEADERS)
                .serve_connection(BareErrors::new(stream), service);
            run!(connection, guest, settings, settings.stall_timeout, stopping)
        }
        Protocol::Http2 => {
            let streams = Streams::new(Arc::clone(&desk.guests), Arc::clone(&guest), settings.stall_timeout);
            let begin = streams.clone();
            let desk = Arc::new(desk);
            let service = service_fn(move |request| {
                let (desk, exchange) = (Arc::clone(&desk), begin.begin());
                async move { desk.answer(request, peer.ip(), exchange).await }
            });
            let connection = http2::Builder::new(streams)
                .timer(TokioTimer::new())
                .max_concurrent_streams(MAX_STREAMS)
                .max_header_list_size(MAX_HEAD)
                .keep_alive_interval(settings.idle_timeout)
                .serve_connection(stream, service);
            // Each of its requests has its own limits; one that isn't read must not end the others.
            let farewell = settings.body_timeout.max(settings.stall_timeout);
            run!(connection, guest, settings, farewell, stopping)
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended with an error");
    }
}

/// Where a connection's requests are answered.
struct Desk {
    api: Arc<Api>,
    guests: Arc<Guests>,
    guest: Arc<Guest>,
}

impl Desk {
    /// Answers a request; without an exchange, for which there was no room, the client may try again at once
    /// (RFC 9113, 8.7).
    async fn answer(
        &self,
        mut request: Request<Incoming>,
        peer: IpAddr,
        exchange: Option<Exchange>,
    ) -> Result<http::Response<Answer>, h2::Error> {
        let exchange = exchange.ok_or(h2::Reason::REFUSED_STREAM)?;
        request.extensions_mut().insert(Peer(peer));
        let response = match framing::refuse(&request) {
            Some(refusal) => refusal,
            // In a box, which is gone when the answer is made: as a part of the connection's or the stream's task its some
            // 20 KiB would stay there for as long as the answer isn't read, or the connection is open.
            None => Box::pin(self.respond(request)).await,
        };
        Ok(Answer::new(response, exchange))
    }

    async fn respond(&self, request: Request<Incoming>) -> Response {
        if !self.guest.is_seated()
            && !is_health_check(&request)
            && tokio::time::timeout(PLACE_WAIT, self.guest.seated()).await.is_err()
        {
            self.guest.ask_to_leave();
            return Api::refuse(request.map(Body::new), ApiError::unavailable("too many connections")).await;
        }
        self.api.answer(request.map(Body::new)).await
    }
}
