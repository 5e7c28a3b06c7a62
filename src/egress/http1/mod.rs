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
use socket2::SockRef;
use tokio::io::{AsyncRead as _, AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _, Interest, ReadBuf};
use tokio::task::coop::unconstrained;

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
/// The longest request, in bytes, that goes out as one TLS record with certainty (RFC 8446, 5.1), with room for what
/// encryption adds. Nobody can read a part of a record.
const MAX_RECORD: usize = (16 << 10) - TLS_OVERHEAD;
/// At least the bytes that TLS adds to a record.
const TLS_OVERHEAD: usize = 64;

/// A connection that speaks HTTP/1.1.
pub(super) struct Connection {
    stream: Stream,
    /// What came and was not taken yet.
    input: BytesMut,
    /// What of the request is still to be written.
    output: Chain<Bytes, Bytes>,
    writing: Writing,
    body: Body,
    keep_alive: bool,
    /// Whether it has carried a request before the present one.
    reused: bool,
}

/// How far a request has gone out.
#[derive(PartialEq, Eq)]
enum Writing {
    UnderWay,
    /// All of it has gone out, buffers included.
    Done,
    /// The rest of it can't be written.
    Failed,
}

impl Connection {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            output: Bytes::new().chain(Bytes::new()),
            writing: Writing::Done,
            body: Body::Ended,
            keep_alive: true,
            reused: false,
        }
    }

    /// Sends a request and waits for the head of its response.
    pub(super) async fn send(&mut self, request: &Request) -> Result<Head, Broken> {
        let began = tokio::time::Instant::now();
        self.output = request_head(request).chain(request.body.clone());
        self.writing = Writing::UnderWay;
        let size = self.output.remaining();
        let mut answered = false;
        let mut informational = 0;
        // Bytes of line ends before heads.
        let mut skipped = 0;
        let mut searched = 0;
        loop {
            loop {
                skipped += head::skip_line_ends(&mut self.input);
                let Some(length) = head::end(&self.input, searched) else { break };
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
            if skipped + searched > MAX_HEADERS {
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
            let unprocessed = self.is_unsent(size)
                || (self.reused && !answered && self.was_refused(size, error.as_ref(), began).await);
            let failure = no_head(error.as_ref(), answered);
            return Err(if unprocessed { Broken::Unprocessed(failure) } else { failure.into() });
        }
    }

    /// Whether nothing that can be read of a request of so many bytes has gone out.
    fn is_unsent(&self, size: usize) -> bool {
        // A write of several records may fail when some of them have gone out.
        let counts = matches!(self.stream, Stream::Plain(_)) || size <= MAX_RECORD;
        self.output.remaining() == size && counts
    }

    /// Whether a connection that ended without a byte of an answer shows that its peer had closed it before the request,
    /// of so many bytes, came there.
    ///
    /// Then two things come back: the peer's FIN, and a reset from its kernel for the request that nobody will read. Linux
    /// has `EPIPE` for a reset behind a FIN, and `ECONNRESET` for one without, which may be from a peer that has read the
    /// request, all of it or a part, has done what it asks for and hangs up. A request of one segment came either before
    /// the FIN or after it; of a longer one the peer may have read the beginning.
    async fn was_refused(&self, size: usize, error: Option<&io::Error>, began: tokio::time::Instant) -> bool {
        // A reset that comes later may be of something between here and there that has lost patience.
        if began.elapsed() > RESET_WAIT || !self.fits_segment(size) {
            return false;
        }
        let is_refusal = |error: &io::Error| Errno::from_io_error(error) == Some(Errno::PIPE);
        // Or the peer's TLS could not even read it.
        if error.is_some_and(|error| is_refusal(error) || tls::error_in(error).is_some_and(is_unreadable)) {
            return true;
        }
        let tcp = self.stream.tcp();
        drop(tokio::time::timeout(RESET_WAIT, tcp.ready(Interest::ERROR)).await);
        tcp.take_error().ok().flatten().as_ref().is_some_and(is_refusal)
    }

    /// Whether a request of so many bytes went out in one segment: it is written at once.
    fn fits_segment(&self, size: usize) -> bool {
        let segment = SockRef::from(self.stream.tcp()).tcp_mss().unwrap_or(0) as usize;
        match self.stream {
            Stream::Plain(_) => size <= segment,
            Stream::Tls(_) => size <= MAX_RECORD.min(segment.saturating_sub(TLS_OVERHEAD)),
        }
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
        // What went out of a body keeps the memory of all of it.
        self.output = Bytes::new().chain(Bytes::new());
        self.reused = true;
        (self.keep_alive && ended && self.writing == Writing::Done).then_some(self)
    }

    /// Whether nothing has come on the unused connection: neither its end nor anything else. Never waits.
    pub(super) fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        // The scheduler lets a task that has done much wait at any read.
        let read =
            unconstrained(poll_fn(|context| Pin::new(&mut self.stream).poll_read(context, &mut buffer)));
        pin!(read).poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    /// Reads something, while the rest of the request goes out. 0 at the end.
    async fn fill(&mut self) -> io::Result<usize> {
        poll_fn(|context| self.poll_fill(context)).await
    }

    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.writing == Writing::UnderWay {
            match self.poll_write(context) {
                Poll::Ready(Ok(())) => self.writing = Writing::Done,
                // A peer that takes no more may have answered all the same.
                Poll::Ready(Err(_)) => self.writing = Writing::Failed,
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

/// Whether a peer says that it could not decrypt what it was sent.
fn is_unreadable(error: &rustls::Error) -> bool {
    use rustls::AlertDescription::{BadRecordMac, DecryptError, UnexpectedMessage};
    matches!(error, rustls::Error::AlertReceived(BadRecordMac | DecryptError | UnexpectedMessage))
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

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method, Uri};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// A connection that has carried a request, and its peer's end.
    async fn reused() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut connection = Connection::new(Stream::Plain(tcp));
        connection.reused = true;
        (connection, listener.accept().await.unwrap().0)
    }

    fn request(body: usize) -> Request {
        let uri = Uri::from_static("http://127.0.0.1/");
        Request { method: Method::POST, uri, headers: HeaderMap::new(), body: vec![0; body].into() }
    }

    /// Whether a request that met this end of a connection may be sent again.
    async fn is_unprocessed(connection: &mut Connection, body: usize) -> bool {
        match connection.send(&request(body)).await {
            Err(Broken::Unprocessed(_)) => true,
            Err(Broken::Final(_)) => false,
            Ok(head) => panic!("an answer: {head:?}"),
        }
    }

    #[tokio::test]
    async fn what_comes_after_the_peers_close_may_be_sent_again() {
        let (mut connection, peer) = reused().await;
        drop(peer);
        connection.stream.tcp().readable().await.unwrap();
        assert!(is_unprocessed(&mut connection, 10).await);
        // The peer may have read the first segments of this one before.
        let (mut connection, peer) = reused().await;
        drop(peer);
        connection.stream.tcp().readable().await.unwrap();
        assert!(!is_unprocessed(&mut connection, 200 << 10).await);
    }

    #[tokio::test]
    async fn what_the_peer_has_begun_to_read_is_not_sent_again() {
        // With something unread, with nothing unread, and without a proper end.
        for (read, linger) in [(20, false), (1 << 10, false), (1 << 10, true)] {
            let (mut connection, mut peer) = reused().await;
            let acted = async move {
                let mut buffer = vec![0; read];
                peer.readable().await.unwrap();
                let _ = peer.read(&mut buffer).await.unwrap();
                if linger {
                    SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
                }
            };
            let (unprocessed, ()) = tokio::join!(is_unprocessed(&mut connection, 100), acted);
            assert!(!unprocessed, "{read} bytes read, linger {linger}");
        }
    }

    #[tokio::test]
    async fn a_connection_is_seen_to_have_ended_by_a_task_that_has_done_much() {
        let (mut connection, peer) = reused().await;
        assert!(connection.is_quiet());
        drop(peer);
        connection.stream.tcp().readable().await.unwrap();
        while tokio::task::coop::has_budget_remaining() {
            tokio::task::coop::consume_budget().await;
        }
        assert!(!connection.is_quiet());
    }

    #[tokio::test]
    async fn an_unused_connection_keeps_nothing_of_its_last_request() {
        let (mut connection, mut peer) = reused().await;
        let request = request(100);
        let answer = async {
            let _ = peer.read(&mut [0; 1024]).await.unwrap();
            peer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        };
        let (head, ()) = tokio::join!(connection.send(&request), answer);
        head.unwrap();
        assert!(connection.data().await.unwrap().is_none());
        let _unused = Box::new(connection).reuse().expect("a connection");
        assert!(request.body.is_unique());
    }
}
