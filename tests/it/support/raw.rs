//! A destination that answers with exactly the bytes it is given: what no HTTP library would send.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// What comes after a request's answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// The next request on the connection.
    Keep,
    /// The connection's end; in TLS without a goodbye.
    Close,
    /// The answer again and again, for as long as anybody listens.
    Repeat,
    /// The connection's end as soon as the next request has come, which nobody reads.
    CloseOnNext,
}

/// What a request is answered with.
#[derive(Clone)]
pub(crate) struct Bytes {
    bytes: Vec<u8>,
    then: Then,
}

impl Bytes {
    pub(crate) fn new(bytes: impl AsRef<[u8]>, then: Then) -> Self {
        Self { bytes: bytes.as_ref().to_vec(), then }
    }

    /// An empty 200 on a connection that stays.
    pub(crate) fn ok() -> Self {
        Self::new("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Then::Keep)
    }
}

/// A request, as its first line's target, and which connection it came on, from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    pub(crate) target: String,
    pub(crate) connection: usize,
}

type Script = Box<dyn Fn(&str, usize) -> Bytes + Send + Sync>;

struct Shared {
    script: Script,
    arrivals: Mutex<Vec<Arrival>>,
    /// Connections that have ended.
    ended: Mutex<Vec<usize>>,
}

/// An HTTP/1.1 server on a free port of loopback, in the clear or in TLS. Its connections end when it is dropped.
pub(crate) struct RawReceiver {
    address: SocketAddr,
    tls: bool,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

impl RawReceiver {
    /// Answers each request as `script` says, from its target and how many came before it.
    pub(crate) async fn start(script: impl Fn(&str, usize) -> Bytes + Send + Sync + 'static) -> Self {
        Self::start_with(None, script).await
    }

    /// The same in TLS.
    pub(crate) async fn start_tls(
        acceptor: TlsAcceptor,
        script: impl Fn(&str, usize) -> Bytes + Send + Sync + 'static,
    ) -> Self {
        Self::start_with(Some(acceptor), script).await
    }

    async fn start_with(
        acceptor: Option<TlsAcceptor>,
        script: impl Fn(&str, usize) -> Bytes + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let shared = Arc::new(Shared {
            script: Box::new(script),
            arrivals: Mutex::default(),
            ended: Mutex::default(),
        });
        let tls = acceptor.is_some();
        let task = tokio::spawn(accept(listener, acceptor, Arc::clone(&shared)));
        Self { address, tls, shared, accepting: task.abort_handle() }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        if self.tls {
            format!("https://localhost:{}{path}", self.address.port())
        } else {
            format!("http://{}{path}", self.address)
        }
    }

    /// Which requests have come, in order.
    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        self.shared.arrivals.lock().unwrap().clone()
    }

    pub(crate) fn count(&self, target: &str) -> usize {
        self.arrivals().iter().filter(|arrival| arrival.target == target).count()
    }

    /// The connections that have ended.
    pub(crate) fn ended(&self) -> Vec<usize> {
        self.shared.ended.lock().unwrap().clone()
    }
}

impl Drop for RawReceiver {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, acceptor: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    for connection in 0.. {
        let (tcp, _) = listener.accept().await.expect("accepting a connection");
        let (shared, acceptor) = (Arc::clone(&shared), acceptor.clone());
        connections.spawn(async move {
            // An error is a connection that the other side has closed.
            match acceptor {
                None => drop(serve(tcp, connection, &shared).await),
                Some(acceptor) => {
                    if let Ok(tls) = acceptor.accept(tcp).await {
                        drop(serve(tls, connection, &shared).await);
                    }
                }
            }
            shared.ended.lock().unwrap().push(connection);
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Something whose next bytes can be waited for without reading them.
trait Peek {
    async fn peeked(&mut self) -> io::Result<()>;
}

impl Peek for TcpStream {
    async fn peeked(&mut self) -> io::Result<()> {
        self.peek(&mut [0]).await.map(drop)
    }
}

impl Peek for tokio_rustls::server::TlsStream<TcpStream> {
    async fn peeked(&mut self) -> io::Result<()> {
        self.get_mut().0.peeked().await
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Peek + Unpin,
    connection: usize,
    shared: &Shared,
) -> io::Result<()> {
    loop {
        let target = read_request(&mut stream).await?;
        let before = {
            let mut arrivals = shared.arrivals.lock().unwrap();
            let before = arrivals.iter().filter(|arrival| arrival.target == target).count();
            arrivals.push(Arrival { target: target.clone(), connection });
            before
        };
        let Bytes { bytes, then } = (shared.script)(&target, before);
        stream.write_all(&bytes).await?;
        stream.flush().await?;
        match then {
            Then::Keep => {}
            Then::Close => return Ok(()),
            Then::Repeat => loop {
                stream.write_all(&bytes).await?;
                stream.flush().await?;
            },
            Then::CloseOnNext => return stream.peeked().await,
        }
    }
}

/// Reads a request with its body; its target.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head);
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().expect("a length"))];
    stream.read_exact(&mut body).await?;
    Ok(head.split(' ').nth(1).expect("a request line").to_owned())
}

/// How long a connection may stay that should be closed: shorter than unused ones are kept.
pub(crate) const CLOSED_WITHIN: Duration = Duration::from_secs(15);
