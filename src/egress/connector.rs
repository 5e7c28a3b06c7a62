//! Connections to destinations: resolve, check every address against the policy, dial what passed, and speak TLS there.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
use rustix::io::Errno;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::exchange::{Failure, SendError};
use super::policy::{Policy, Refusal, parse_literal};
use super::tls;
use crate::domain::outcome::FailureClass;

/// How long an address has before the next one is tried beside it ("Connection Attempt Delay", RFC 8305, 5).
const STAGGER: Duration = Duration::from_millis(250);
/// Addresses of one host that are tried.
const MAX_ADDRESSES: usize = 16;
/// Addresses that are tried at the same time: as many as an attempt's share of descriptors (`descriptors::ATTEMPT`).
const MAX_DIALS: usize = 2;
/// How long a peer may leave data unacknowledged, or not take what is waiting for it, until the connection ends
/// (`TCP_USER_TIMEOUT`). That ends connections of receivers that live but have stopped reading, too, so it must be long
/// enough for one that is merely slow.
const USER_TIMEOUT: Duration = Duration::from_mins(1);
/// After how long a silence a peer that has acknowledged everything is asked whether it is still there, and how often.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Descriptors that looking up a name may need at once: files, and a socket for each kind of address.
const LOOKUP_DESCRIPTORS: usize = 4;
/// How long after a lack of descriptors or memory a lookup that fails is put down to it: the resolver doesn't tell, and
/// what was lacking may be there again by the time of the answer.
const LACK_LASTS: Duration = Duration::from_secs(3);

/// A connection that is ready for requests.
pub(super) struct Connection {
    pub(super) stream: Stream,
    /// Whether TLS has agreed on HTTP/2.
    pub(super) http2: bool,
}

/// Dials destinations that the policy allows.
#[derive(Clone)]
pub(super) struct Connector {
    policy: Arc<Policy>,
    tls: TlsConnector,
    /// The time for resolving a host's name, connecting and the TLS handshake together.
    limit: Duration,
    /// When this machine was last short of something, if it was.
    lacked_at: Arc<Mutex<Option<Instant>>>,
}

impl Connector {
    pub(super) fn new(policy: Arc<Policy>, tls: rustls::ClientConfig, limit: Duration) -> Self {
        Self { policy, tls: TlsConnector::from(Arc::new(tls)), limit, lacked_at: Arc::default() }
    }

    /// Connects to a URI's origin.
    pub(super) async fn connect(&self, uri: &Uri) -> Result<Connection, SendError> {
        let mut failures = Vec::new();
        let establishing = self.establish(uri, &mut failures);
        let Ok(result) = tokio::time::timeout(self.limit, establishing).await else {
            return Err(self.too_late(uri, &failures));
        };
        if matches!(result, Err(SendError::Lacking(_))) {
            *self.lacked_at() = Some(Instant::now());
        }
        result
    }

    fn lacked_at(&self) -> MutexGuard<'_, Option<Instant>> {
        self.lacked_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The failure at the deadline; the text tells what was tried in vain.
    fn too_late(&self, uri: &Uri, failures: &[(SocketAddr, io::Error)]) -> SendError {
        let scheme = uri.scheme_str().unwrap_or_default();
        let authority = uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
        let text = format!("no connection to {scheme}://{authority} within {:?}", self.limit);
        let each = failures.iter().map(|(address, error)| format!("; {address}: {}", describe(error)));
        failed(FailureClass::Timeout, text + &each.collect::<String>())
    }

    /// Connects; what addresses answered that could not be reached goes into `failures`.
    async fn establish(
        &self,
        uri: &Uri,
        failures: &mut Vec<(SocketAddr, io::Error)>,
    ) -> Result<Connection, SendError> {
        let host = uri.host().unwrap_or_default();
        let https = uri.scheme() == Some(&Scheme::HTTPS);
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        let addresses = self.resolve(host, port).await?;
        let Some(tcp) = dial(addresses, failures).await else { return Err(unreachable(host, failures)) };
        if !https {
            return Ok(Connection { stream: Stream::Plain(tcp), http2: false });
        }
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let name = ServerName::try_from(bare.to_owned())
            .map_err(|error| failed(FailureClass::Tls, format!("TLS failed: {host}: {error}")))?;
        let stream = self.tls.connect(name, tcp).await.map_err(|error| {
            let text = tls::error_in(&error).map_or_else(|| format!("TLS failed: {error}"), tls::text);
            failed(FailureClass::Tls, text)
        })?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok(Connection { stream: Stream::Tls(Box::new(stream)), http2 })
    }

    /// The addresses of a host that the policy allows, in the resolver's order. An error when none is left.
    async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, SendError> {
        let blocked = |refusal: Refusal| failed(FailureClass::Blocked, refusal.to_string());
        // Resolvers are not asked about literals, so that these are checked here.
        self.policy.check_literal(host).map_err(blocked)?;
        if let Some(address) = parse_literal(host) {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let found = match tokio::net::lookup_host((host, port)).await {
            Ok(found) => found,
            Err(error) if self.lacked_at().is_some_and(|at| at.elapsed() < LACK_LASTS) => {
                return Err(SendError::Lacking(describe(&error)));
            }
            Err(error) => return Err(unresolved(host, &error)),
        };
        let mut refusal = None;
        let mut allowed: Vec<SocketAddr> = Vec::new();
        for address in found {
            match self.policy.check_addr(Some(host), address.ip()) {
                Ok(()) => allowed.push(address),
                Err(refused) => refusal = Some(refused),
            }
        }
        match refusal {
            Some(refused) if allowed.is_empty() => Err(blocked(refused)),
            _ => Ok(allowed),
        }
    }
}

/// Connects to the first address that answers, as RFC 8305 says: each one gets a head start over the next. The oldest is
/// given up when there are too many at once.
async fn dial(addresses: Vec<SocketAddr>, failures: &mut Vec<(SocketAddr, io::Error)>) -> Option<TcpStream> {
    let mut waiting = in_turn(addresses).into_iter();
    let mut dialling = VecDeque::new();
    loop {
        if let Some(address) = waiting.next() {
            if dialling.len() == MAX_DIALS
                && let Some((oldest, _)) = dialling.pop_front()
            {
                failures.push((oldest, io::Error::new(io::ErrorKind::TimedOut, "no answer yet")));
            }
            dialling.push_back((address, Box::pin(TcpStream::connect(address))));
        } else if dialling.is_empty() {
            return None;
        }
        tokio::select! {
            biased;
            (address, result) = first_done(&mut dialling) => match result {
                Ok(tcp) => {
                    set_options(&tcp);
                    return Some(tcp);
                }
                Err(error) => failures.push((address, error)),
            },
            () = crate::clock::pause(STAGGER), if waiting.len() > 0 => {}
        }
    }
}

/// Waits for the first of some futures, and takes it out. Never ends if there are none.
async fn first_done<K: Copy, F: Future + Unpin>(running: &mut VecDeque<(K, F)>) -> (K, F::Output) {
    poll_fn(|context| {
        for at in 0..running.len() {
            let (key, future) = &mut running[at];
            if let Poll::Ready(output) = Pin::new(future).poll(context) {
                let done = (*key, output);
                running.remove(at);
                return Poll::Ready(done);
            }
        }
        Poll::Pending
    })
    .await
}

/// Sets what a connection needs. Without these it works as well, only worse.
fn set_options(tcp: &TcpStream) {
    let socket = SockRef::from(tcp);
    // Small requests must not wait for an acknowledgement of the previous one.
    let result =
        tcp.set_nodelay(true).and_then(|()| socket.set_tcp_user_timeout(Some(USER_TIMEOUT))).and_then(|()| {
            socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE))
        });
    if let Err(error) = result {
        tracing::debug!(%error, "a socket's options could not be set");
    }
}

/// The families in turn, beginning with that of the first address (RFC 8305, 4).
fn in_turn(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let begins_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == begins_v6);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut mixed = Vec::new();
    loop {
        let pair = [first.next(), second.next()];
        if pair == [None, None] || mixed.len() >= MAX_ADDRESSES {
            return mixed;
        }
        mixed.extend(pair.into_iter().flatten());
    }
}

fn failed(class: FailureClass, error: String) -> SendError {
    SendError::Failed(Failure { class, error })
}

/// Why none of a host's addresses could be connected to.
fn unreachable(host: &str, failures: &[(SocketAddr, io::Error)]) -> SendError {
    if let Some((_, error)) = failures.iter().find(|(address, error)| is_own_lack(*address, error)) {
        return SendError::Lacking(describe(error));
    }
    match failures {
        [] => failed(FailureClass::Dns, format!("{host} has no address")),
        [(address, error)] => {
            failed(FailureClass::Connect, format!("can't connect to {address}: {}", describe(error)))
        }
        several => {
            let each: Vec<_> =
                several.iter().map(|(address, error)| format!("{address}: {}", describe(error))).collect();
            failed(FailureClass::Connect, format!("can't connect to {host}: {}", each.join("; ")))
        }
    }
}

fn unresolved(host: &str, error: &io::Error) -> SendError {
    // A resolver that gets no descriptor says that the lookup failed for now, which the destination is not to blame for.
    let probe = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
    let probes: Result<Vec<_>, _> = (0..LOOKUP_DESCRIPTORS).map(|_| probe()).collect();
    if let Some(lack) =
        [Some(error), probes.as_ref().err()].into_iter().flatten().find(|error| is_short(error))
    {
        return SendError::Lacking(describe(lack));
    }
    failed(FailureClass::Dns, format!("unable to resolve host: lookup {host}: {error}"))
}

fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        _ => error.to_string(),
    }
}

/// Whether this machine, not the destination, is why a connection could not be made.
fn is_own_lack(address: SocketAddr, error: &io::Error) -> bool {
    is_short(error) || (Errno::from_io_error(error) == Some(Errno::ADDRNOTAVAIL) && has_source(address))
}

/// Whether the process or the machine is short of descriptors or memory.
fn is_short(error: &io::Error) -> bool {
    let short = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|errno| short.contains(&errno))
}

/// Whether there is an address to reach that one from. If so, "address not available" means that no port is free; if
/// not (no IPv6 here, perhaps), waiting doesn't help. Sends nothing.
fn has_source(address: SocketAddr) -> bool {
    let any = match address {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    UdpSocket::bind((any, 0)).and_then(|socket| socket.connect(address)).is_ok()
}

/// A connection's bytes.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// The socket below.
    pub(super) fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Self::Tls(tls) = self {
            // Says goodbye (close_notify), if there is room for it now; nobody waits for more.
            drop(Pin::new(tls).poll_shutdown(&mut Context::from_waker(Waker::noop())));
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(context, buffer),
            Self::Tls(tls) => Pin::new(tls).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(context, bytes),
            Self::Tls(tls) => Pin::new(tls).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(context, slices),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(tcp) => tcp.is_write_vectored(),
            Self::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(context),
            Self::Tls(tls) => Pin::new(tls).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(context),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 80)).collect()
    }

    #[test]
    fn families_take_turns() {
        for (given, expected) in [
            (&["1.1.1.1", "1.1.1.2"][..], &["1.1.1.1", "1.1.1.2"][..]),
            (&["::1", "::2", "1.1.1.1", "1.1.1.2"], &["::1", "1.1.1.1", "::2", "1.1.1.2"]),
            (&["1.1.1.1", "1.1.1.2", "1.1.1.3", "::1"], &["1.1.1.1", "::1", "1.1.1.2", "1.1.1.3"]),
            (&[], &[]),
        ] {
            assert_eq!(in_turn(addresses(given)), addresses(expected), "{given:?}");
        }
        assert_eq!(in_turn(addresses(&["1.1.1.1"; 40])).len(), MAX_ADDRESSES);
    }

    #[test]
    fn only_the_servers_own_lack_is_one() {
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        let of = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL] {
            assert!(is_own_lack(here, &of(errno)), "{errno}");
        }
        for errno in [Errno::CONNREFUSED, Errno::NETUNREACH, Errno::HOSTUNREACH, Errno::TIMEDOUT] {
            assert!(!is_own_lack(here, &of(errno)), "{errno}");
        }
        assert!(matches!(unreachable("h", &[(here, of(Errno::MFILE))]), SendError::Lacking(_)));
        let mixed = [(here, of(Errno::CONNREFUSED)), (here, of(Errno::MFILE))];
        assert!(matches!(unreachable("h", &mixed), SendError::Lacking(_)), "an address was not tried");
    }

    #[test]
    fn an_error_names_each_address() {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let [a, b] = [1, 2].map(|last| SocketAddr::from(([127, 0, 0, last], 9)));
        let SendError::Failed(failure) = unreachable("h", &[(a, refused()), (b, refused())]) else {
            panic!("not a lack")
        };
        let text = "can't connect to h: 127.0.0.1:9: connection refused; 127.0.0.2:9: connection refused";
        assert_eq!((failure.class, failure.error.as_str()), (FailureClass::Connect, text));
    }

    /// An address that takes no connection and refuses none, as if packets to it were lost, and what keeps it so.
    async fn silent_address() -> (SocketAddr, TcpListener, Vec<TcpStream>) {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.3:0".parse().unwrap()).unwrap();
        // It accepts nothing; when its queue is full, the kernel drops what comes.
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queue = Vec::new();
        while let Ok(tcp) = tokio::time::timeout(STAGGER, TcpStream::connect(address)).await {
            queue.push(tcp.unwrap());
        }
        (address, listener, queue)
    }

    #[tokio::test]
    async fn a_silent_address_makes_way_after_a_moment() {
        let (silent, _listener, _queue) = silent_address().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let living = listener.local_addr().unwrap();
        let mut failures = Vec::new();
        let tcp = dial(vec![silent, living], &mut failures).await.expect("a connection");
        assert_eq!((tcp.peer_addr().unwrap(), failures.len()), (living, 0));
        // Two at once: the third takes the place of the first.
        let tcp = dial(vec![silent, silent, living], &mut failures).await.expect("a connection");
        assert_eq!((tcp.peer_addr().unwrap(), failures.len()), (living, 1));
    }

    #[tokio::test]
    async fn peers_that_vanish_are_noticed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = dial(vec![listener.local_addr().unwrap()], &mut Vec::new()).await.expect("a connection");
        let socket = SockRef::from(&tcp);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEP_ALIVE);
    }

    #[tokio::test]
    async fn a_refused_address_makes_way_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let living = listener.local_addr().unwrap();
        let unused = TcpListener::bind("127.0.0.2:0").await.unwrap();
        let refused = unused.local_addr().unwrap();
        drop(unused);
        let mut failures = Vec::new();
        let tcp = dial(vec![refused, living], &mut failures).await.expect("a connection");
        assert_eq!(tcp.peer_addr().unwrap(), living);
        assert_eq!(failures.len(), 1);
        assert!(dial(Vec::new(), &mut Vec::new()).await.is_none());
    }
}
