//! Deliveries over TLS, by HTTP/1.1 and HTTP/2.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::body::Body;
use http::{HeaderName, Request, Response, Version};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::pki_types::PrivateKeyDer;
use tempfile::NamedTempFile;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use crate::support::raw::{Bytes, CLOSED_WITHIN, RawReceiver, Then};
use crate::support::{Server, Test, eventually, within};

engines! {
    an_authority_of_ones_own_is_trusted,
    http1_is_spoken_where_http2_is_not,
    an_unknown_authority_is_a_failed_attempt,
    a_certificate_marked_as_an_authority_is_trusted_where_it_is_named,
    a_certificate_that_has_expired_is_not_trusted_for_being_named,
    an_answer_counts_that_ends_without_a_goodbye,
    a_connection_that_was_closed_costs_no_attempt,
    what_met_a_reset_is_not_sent_again,
    dials_that_stall_let_others_go_on,
    requests_above_a_goaway_are_sent_again,
    a_goaway_with_an_error_costs_no_attempt_of_what_is_above_it,
    a_refused_stream_costs_no_attempt,
    a_destination_that_refuses_all_streams_fails,
    a_reset_stream_is_a_failed_attempt,
    a_body_that_is_reset_lacks_what_was_announced,
    a_body_that_is_reset_counts_where_nothing_was_announced,
    headers_have_the_limit_of_http1,
    some_informational_answers_are_skipped,
    endless_informational_answers_end_the_connection,
    a_connection_whose_request_timed_out_is_closed,
}

const X_NAME: HeaderName = HeaderName::from_static("x-name");

/// What a TLS destination saw of a request.
struct Seen {
    version: Version,
    target: String,
    host: Option<String>,
    name: Option<Vec<u8>>,
    body: Vec<u8>,
}

/// What a TLS destination shows, and a file with its certificate.
struct Identity {
    acceptor: TlsAcceptor,
    certificate: NamedTempFile,
}

impl Identity {
    /// A certificate for `localhost` that has signed itself.
    fn new(protocols: &[&str], params: impl FnOnce(&mut rcgen::CertificateParams)) -> Self {
        let mut all = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        params(&mut all);
        let key = rcgen::KeyPair::generate().unwrap();
        let own = all.self_signed(&key).unwrap();
        let mut certificate = NamedTempFile::new().unwrap();
        certificate.write_all(own.pem().as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![own.der().clone()], key)
            .unwrap();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Self { acceptor: TlsAcceptor::from(Arc::new(config)), certificate }
    }

    /// A server that trusts it.
    async fn trusted_by(&self, t: &Test) -> Server {
        t.server_with(&[("HOMING_EXTRA_CA_FILE", self.certificate.path().to_str().unwrap())]).await
    }
}

/// A TLS destination on loopback, with a certificate of its own for `localhost`.
struct TlsReceiver {
    address: SocketAddr,
    certificate: NamedTempFile,
    seen: mpsc::Receiver<Seen>,
}

impl TlsReceiver {
    async fn start(protocols: &[&str]) -> Self {
        let Identity { acceptor, certificate } = Identity::new(protocols, |_| ());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, seen) = mpsc::channel(64);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, sender) = (acceptor.clone(), sender.clone());
                tokio::spawn(async move {
                    // A client that does not trust us hangs up here.
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(|request| answer(request, sender.clone()));
                    let server = auto::Builder::new(TokioExecutor::new());
                    drop(server.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Self { address, certificate, seen }
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.address.port())
    }
}

async fn answer(
    request: Request<Incoming>,
    sender: mpsc::Sender<Seen>,
) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let host = parts.headers.get("host").map(|host| host.to_str().unwrap().to_owned());
    let seen = Seen {
        version: parts.version,
        target: parts.uri.path_and_query().unwrap().to_string(),
        host: host.or_else(|| parts.uri.authority().map(ToString::to_string)),
        name: parts.headers.get("x-name").map(|name| name.as_bytes().to_vec()),
        body: body.collect().await.unwrap().to_bytes().to_vec(),
    };
    sender.send(seen).await.unwrap();
    let mut response = Response::new(Body::from("thanks"));
    response.headers_mut().extend(parts.headers.get("x-name").map(|name| (X_NAME, name.clone())));
    Ok(response)
}

async fn delivered_by(t: Test, protocols: &[&str], version: Version) {
    let mut receiver = TlsReceiver::start(protocols).await;
    let ca = receiver.certificate.path().to_str().unwrap().to_owned();
    let server = t.server_with(&[("HOMING_EXTRA_CA_FILE", &ca)]).await;
    for body in ["first", "second"] {
        // Neither UTF-8 nor all Latin-1.
        let name = b"J\xf6rg J\xc3\xb6rg";
        let call = server.call("POST", &format!("/v2/publish/{}", receiver.url("/a//b/../c?x=1")));
        let answer = call.header("Upstash-Forward-X-Name", name).body(body).send().await.json(200);
        let id = answer["messageId"].as_str().expect("an id").to_owned();
        let seen = eventually("a request comes", async || receiver.seen.try_recv().ok()).await;
        assert_eq!(seen.version, version);
        assert_eq!(seen.target, "/a//b/../c?x=1");
        assert_eq!(seen.host.as_deref(), Some(&*format!("localhost:{}", receiver.address.port())));
        assert_eq!(seen.body, body.as_bytes());
        assert_eq!(seen.name.as_deref(), Some(&name[..]));
        assert_eq!(server.ended(&id).await, "CREATED ACTIVE DELIVERED");
        let events = server.events(&id).await;
        let delivered = events.iter().find(|event| event["state"] == "DELIVERED").expect("it is delivered");
        assert_eq!(delivered["responseHeader"]["X-Name"][0], "J\u{f6}rg J\u{c3}\u{b6}rg");
    }
}

async fn an_authority_of_ones_own_is_trusted(t: Test) {
    delivered_by(t, &["h2", "http/1.1"], Version::HTTP_2).await;
}

async fn http1_is_spoken_where_http2_is_not(t: Test) {
    delivered_by(t, &["http/1.1"], Version::HTTP_11).await;
}

async fn an_unknown_authority_is_a_failed_attempt(t: Test) {
    let receiver = TlsReceiver::start(&["h2", "http/1.1"]).await;
    let server = t.server().await;
    let id = server.publish(&receiver.url("/"), &[("Upstash-Retries", "0")], "x").await;
    assert_eq!(server.ended(&id).await, "CREATED ACTIVE ERROR FAILED");
    let events = server.get_json(&format!("/v2/events?messageId={id}&state=FAILED")).await;
    let error = events["events"][0]["error"].as_str().unwrap();
    assert!(error.starts_with("TLS failed: "), "{error}");
}

const ONCE: [(&str, &str); 1] = [("Upstash-Retries", "0")];

/// The error of a message that failed.
async fn error_of(server: &Server, id: &str) -> String {
    assert_eq!(server.ended(id).await, "CREATED ACTIVE ERROR FAILED");
    server.events(id).await.last().unwrap()["error"].as_str().unwrap().to_owned()
}

/// `openssl req -x509` makes such certificates.
async fn a_certificate_marked_as_an_authority_is_trusted_where_it_is_named(t: Test) {
    let ca = |params: &mut rcgen::CertificateParams| {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    };
    let identity = Identity::new(&["http/1.1"], ca);
    let receiver = RawReceiver::start_tls(identity.acceptor.clone(), |_, _| Bytes::ok()).await;
    let server = identity.trusted_by(&t).await;
    let id = server.publish(&receiver.url("/"), &ONCE, "x").await;
    assert_eq!(server.ended(&id).await, "CREATED ACTIVE DELIVERED");
    // Only for its names, and no other that looks like it.
    let by_address = receiver.url("/").replace("localhost", "127.0.0.1");
    let id = server.publish(&by_address, &ONCE, "x").await;
    assert!(error_of(&server, &id).await.starts_with("TLS failed: "));
    let other = Identity::new(&["http/1.1"], ca);
    let receiver = RawReceiver::start_tls(other.acceptor, |_, _| Bytes::ok()).await;
    let id = server.publish(&receiver.url("/"), &ONCE, "x").await;
    assert!(error_of(&server, &id).await.contains("CA:TRUE"));
}

async fn a_certificate_that_has_expired_is_not_trusted_for_being_named(t: Test) {
    let expired = Identity::new(&["http/1.1"], |params| {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
    });
    let receiver = RawReceiver::start_tls(expired.acceptor.clone(), |_, _| Bytes::ok()).await;
    let server = expired.trusted_by(&t).await;
    let id = server.publish(&receiver.url("/"), &ONCE, "x").await;
    let error = error_of(&server, &id).await;
    assert!(error.contains("expired"), "{error}");
}

async fn an_answer_counts_that_ends_without_a_goodbye(t: Test) {
    let identity = Identity::new(&["http/1.1"], |_| ());
    let receiver =
        RawReceiver::start_tls(identity.acceptor.clone(), |target, before| match (target, before) {
            ("/failure", 0) => Bytes::new("HTTP/1.0 500 Oops\r\nRetry-After: 0\r\n\r\ncut", Then::Close),
            _ => Bytes::new("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nthanks", Then::Close),
        })
        .await;
    let server = identity.trusted_by(&t).await;
    let id = server.publish(&receiver.url("/success"), &ONCE, "x").await;
    assert_eq!(server.ended(&id).await, "CREATED ACTIVE DELIVERED");
    assert!(server.log().text().contains("perhaps cut off"));
    // An hour, if the response did not say otherwise.
    let headers = [("Upstash-Retries", "1"), ("Upstash-Retry-Delay", "3600000")];
    let id = server.publish(&receiver.url("/failure"), &headers, "x").await;
    assert_eq!(server.ended(&id).await, "CREATED ACTIVE ERROR RETRY ACTIVE DELIVERED");
}

async fn a_connection_that_was_closed_costs_no_attempt(t: Test) {
    let identity = Identity::new(&["http/1.1"], |_| ());
    let receiver = RawReceiver::start_tls(identity.acceptor.clone(), |_, _| {
        Bytes::new("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Then::Close)
    })
    .await;
    let server = identity.trusted_by(&t).await;
    for path in ["/first", "/second"] {
        let id = server.publish(&receiver.url(path), &ONCE, "x").await;
        assert_eq!(server.ended(&id).await, "CREATED ACTIVE DELIVERED", "{path}");
    }
    assert_eq!(receiver.arrivals().len(), 2);
}

/// Whoever closes a connection with something unread on it may have read the rest.
async fn what_met_a_reset_is_not_sent_again(t: Test) {
    let identity = Identity::new(&["http/1.1"], |_| ());
    let receiver = RawReceiver::start_tls(identity.acceptor.clone(), |target, _| match target {
        "/first" => Bytes::new("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Then::CloseOnNext),
        _ => Bytes::ok(),
    })
    .await;
    let server = identity.trusted_by(&t).await;
    let id = server.publish(&receiver.url("/first"), &ONCE, "x").await;
    assert_eq!(server.ended(&id).await, "CREATED ACTIVE DELIVERED");
    let id = server.publish(&receiver.url("/second"), &ONCE, "x").await;
    let error = error_of(&server, &id).await;
    assert!(error.contains("reset"), "{error}");
    assert_eq!(receiver.count("/second"), 0);
}

/// One dial at a time would let them wait for each other.
async fn dials_that_stall_let_others_go_on(t: Test) {
    // Whoever comes first is not answered.
    let identity = Identity::new(&["http/1.1"], |_| ());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = identity.acceptor.clone();
    let (dialled, mut dials) = mpsc::channel(8);
    tokio::spawn(async move {
        let mut stalled = Vec::new();
        while let Ok((tcp, _)) = listener.accept().await {
            dialled.send(()).await.unwrap();
            if stalled.is_empty() {
                stalled.push(tcp);
                continue;
            }
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                drop(tls.read(&mut [0; 4096]).await);
                drop(tls.write_all(answer).await);
                drop(tls.shutdown().await);
            });
        }
    });
    let server = identity.trusted_by(&t).await;
    let url = format!("https://localhost:{port}/");
    let timeout = [("Upstash-Retries", "0"), ("Upstash-Timeout", "30s")];
    server.publish(&url, &timeout, "stalls").await;
    dials.recv().await.unwrap();
    let second = server.publish(&url, &timeout, "x").await;
    assert_eq!(server.ended(&second).await, "CREATED ACTIVE DELIVERED");
}

type Respond = h2::server::SendResponse<bytes::Bytes>;
type H2 = h2::server::Connection<tokio_rustls::server::TlsStream<tokio::net::TcpStream>, bytes::Bytes>;

/// What an HTTP/2 destination does with the n-th request of a connection, both from 0.
type Act = fn(&mut H2, Request<h2::RecvStream>, Respond, usize, usize);

/// An HTTP/2 destination whose frames a test decides on.
struct H2Receiver {
    identity: Identity,
    address: SocketAddr,
    /// How often each message has come.
    counts: Arc<Mutex<HashMap<String, usize>>>,
    connections: Arc<AtomicUsize>,
    ended: Arc<Mutex<Vec<usize>>>,
}

impl H2Receiver {
    async fn start(act: Act) -> Self {
        Self::start_with(None, act).await
    }

    /// The first connection is answered with these bytes when its first request has come, if there are any.
    async fn start_with(first: Option<&'static [u8]>, act: Act) -> Self {
        let identity = Identity::new(&["h2"], |_| ());
        let acceptor = identity.acceptor.clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let receiver = Self {
            identity,
            address: listener.local_addr().unwrap(),
            counts: Arc::default(),
            connections: Arc::default(),
            ended: Arc::default(),
        };
        let (counts, connections, ended) =
            (Arc::clone(&receiver.counts), Arc::clone(&receiver.connections), Arc::clone(&receiver.ended));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, counts, ended) = (acceptor.clone(), Arc::clone(&counts), Arc::clone(&ended));
                let number = connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    if let Some(frames) = first.filter(|_| number == 0) {
                        return answer_with(&mut stream, frames).await.unwrap();
                    }
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    let mut served = 0;
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        let id = request.headers()["upstash-message-id"].to_str().unwrap().to_owned();
                        *counts.lock().unwrap().entry(id).or_default() += 1;
                        act(&mut connection, request, respond, number, served);
                        served += 1;
                    }
                    ended.lock().unwrap().push(number);
                });
            }
        });
        receiver
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.address.port())
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    async fn first_connection_ends(&self) {
        let ended = async || self.ended.lock().unwrap().contains(&0).then_some(());
        within(CLOSED_WITHIN, "the first connection ends", ended).await;
    }
}

/// Answers the first request of a connection with frames, and closes it.
async fn answer_with(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), frames: &[u8]) -> io::Result<()> {
    const NO_SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
    const HEADERS: u8 = 1;
    stream.write_all(NO_SETTINGS).await?;
    stream.read_exact(&mut [0; 24]).await?;
    let mut kind = 0;
    while kind != HEADERS {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let [_, high, low, this, ..] = head;
        stream.read_exact(&mut vec![0; usize::from(u16::from_be_bytes([high, low]))]).await?;
        kind = this;
    }
    stream.write_all(frames).await?;
    stream.shutdown().await
}

fn thank(mut respond: Respond) {
    drop(respond.send_response(Response::new(()), true));
}

/// Publishes by several at once, without retries.
async fn publish_many(server: &Server, url: &str, publishers: usize, each: usize) {
    let publisher = async || {
        let mut ids = Vec::new();
        for _ in 0..each {
            ids.push(server.publish(url, &ONCE, "{}").await);
        }
        for id in ids {
            assert_eq!(server.ended(&id).await, "CREATED ACTIVE DELIVERED");
        }
    };
    futures_util::future::join_all((0..publishers).map(|_| publisher())).await;
}

async fn requests_above_a_goaway_are_sent_again(t: Test) {
    let receiver = H2Receiver::start(|connection, _, respond, _, served| {
        thank(respond);
        if served == 4 {
            connection.graceful_shutdown();
        }
    })
    .await;
    let server = receiver.identity.trusted_by(&t).await;
    publish_many(&server, &receiver.url("/x"), 8, 10).await;
    let counts = receiver.counts.lock().unwrap();
    assert!(counts.len() == 80 && counts.values().all(|count| *count == 1), "{counts:?}");
}

async fn a_goaway_with_an_error_costs_no_attempt_of_what_is_above_it(t: Test) {
    // GOAWAY with the last stream 0 and ENHANCE_YOUR_CALM.
    let goaway = b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0b";
    let receiver = H2Receiver::start_with(Some(goaway), |_, _, respond, _, _| thank(respond)).await;
    let server = receiver.identity.trusted_by(&t).await;
    publish_many(&server, &receiver.url("/x"), 1, 1).await;
    assert_eq!(receiver.connections(), 2);
}

async fn a_refused_stream_costs_no_attempt(t: Test) {
    let receiver = H2Receiver::start(|_, _, mut respond, number, _| {
        if number < 2 { respond.send_reset(h2::Reason::REFUSED_STREAM) } else { thank(respond) }
    })
    .await;
    let server = receiver.identity.trusted_by(&t).await;
    publish_many(&server, &receiver.url("/x"), 1, 3).await;
}

async fn a_destination_that_refuses_all_streams_fails(t: Test) {
    let receiver =
        H2Receiver::start(|_, _, mut respond, _, _| respond.send_reset(h2::Reason::REFUSED_STREAM)).await;
    let server = receiver.identity.trusted_by(&t).await;
    let id = server.publish(&receiver.url("/"), &ONCE, "x").await;
    let error = error_of(&server, &id).await;
    assert!(error.contains("REFUSED_STREAM"), "{error}");
    assert_eq!(receiver.counts.lock().unwrap()[&id], 4, "not without end");
}

/// It may have been processed.
async fn a_reset_stream_is_a_failed_attempt(t: Test) {
    let receiver =
        H2Receiver::start(|_, _, mut respond, _, _| respond.send_reset(h2::Reason::INTERNAL_ERROR)).await;
    let server = receiver.identity.trusted_by(&t).await;
    let id = server.publish(&receiver.url("/"), &ONCE, "x").await;
    let error = error_of(&server, &id).await;
    assert!(error.contains("INTERNAL_ERROR"), "{error}");
    assert_eq!(receiver.counts.lock().unwrap()[&id], 1);
}

/// Publishes a message whose answer is these frames, and a body of two bytes that ends with `RST_STREAM` and CANCEL.
async fn reset_after(t: &Test, head: &'static [u8]) -> (String, Server) {
    const REST: &[u8] = b"\0\0\x02\0\0\0\0\0\x01ab\0\0\x04\x03\0\0\0\0\x01\0\0\0\x08";
    let frames = Vec::leak([head, REST].concat());
    let receiver = H2Receiver::start_with(Some(frames), |_, _, respond, _, _| thank(respond)).await;
    let server = receiver.identity.trusted_by(t).await;
    (server.publish(&receiver.url("/"), &ONCE, "x").await, server)
}

async fn a_body_that_is_reset_lacks_what_was_announced(t: Test) {
    // Status 200 and `content-length: 5`.
    let (id, server) = reset_after(&t, b"\0\0\x05\x01\x04\0\0\0\x01\x88\x0f\x0d\x01\x35").await;
    let error = error_of(&server, &id).await;
    assert!(error.contains("3 bytes of it are missing"), "{error}");
}

async fn a_body_that_is_reset_counts_where_nothing_was_announced(t: Test) {
    let (id, server) = reset_after(&t, b"\0\0\x01\x01\x04\0\0\0\x01\x88").await;
    assert_eq!(server.ended(&id).await, "CREATED ACTIVE DELIVERED");
}

async fn headers_have_the_limit_of_http1(t: Test) {
    let receiver = H2Receiver::start(|_, request, mut respond, _, _| {
        let (size, count) = match request.uri().path() {
            "/one" => (17_000, 1),
            "/large" => (300_000, 1),
            "/many" => (300, 1000),
            _ => (500_000, 1),
        };
        let mut response = Response::new(());
        for _ in 0..count {
            response.headers_mut().append("set-cookie", "x".repeat(size).parse().unwrap());
        }
        respond.send_response(response, true).unwrap();
    })
    .await;
    let server = receiver.identity.trusted_by(&t).await;
    for path in ["/one", "/large", "/many"] {
        let id = server.publish(&receiver.url(path), &ONCE, "x").await;
        assert_eq!(server.ended(&id).await, "CREATED ACTIVE DELIVERED", "{path}");
    }
    let id = server.publish(&receiver.url("/too-large"), &ONCE, "x").await;
    let error = error_of(&server, &id).await;
    assert!(error.starts_with("the response's headers are too large: more than 384 KiB"), "{error}");
}

fn hint() -> Response<()> {
    Response::builder().status(103).header("link", "</a>").body(()).unwrap()
}

async fn some_informational_answers_are_skipped(t: Test) {
    let receiver = H2Receiver::start(|_, request, mut respond, _, _| {
        for _ in 0..request.uri().path()[1..].parse().unwrap() {
            respond.send_informational(hint()).unwrap();
        }
        thank(respond);
    })
    .await;
    let server = receiver.identity.trusted_by(&t).await;
    for path in ["/0", "/16"] {
        let id = server.publish(&receiver.url(path), &ONCE, "x").await;
        assert_eq!(server.ended(&id).await, "CREATED ACTIVE DELIVERED", "{path}");
    }
    let id = server.publish(&receiver.url("/17"), &ONCE, "x").await;
    let error = error_of(&server, &id).await;
    assert!(error.contains("more than 16 informational"), "{error}");
}

async fn endless_informational_answers_end_the_connection(t: Test) {
    let receiver = H2Receiver::start(|_, _, mut respond, number, _| {
        if number > 0 {
            return thank(respond);
        }
        tokio::spawn(async move {
            while respond.send_informational(hint()).is_ok() {
                tokio::task::yield_now().await;
            }
        });
    })
    .await;
    let server = receiver.identity.trusted_by(&t).await;
    let id = server.publish(&receiver.url("/"), &ONCE, "x").await;
    let error = error_of(&server, &id).await;
    assert!(error.contains("more than 16 informational"), "{error}");
    receiver.first_connection_ends().await;
    publish_many(&server, &receiver.url("/"), 1, 1).await;
    assert_eq!(receiver.connections(), 2);
}

async fn a_connection_whose_request_timed_out_is_closed(t: Test) {
    let receiver = H2Receiver::start(|_, request, respond, _, _| {
        if request.uri().path() == "/silent" {
            std::mem::forget(respond);
        } else {
            thank(respond);
        }
    })
    .await;
    let server = receiver.identity.trusted_by(&t).await;
    let headers = [("Upstash-Retries", "0"), ("Upstash-Timeout", "1s")];
    let id = server.publish(&receiver.url("/silent"), &headers, "x").await;
    assert_eq!(error_of(&server, &id).await, "no complete response within 1s");
    receiver.first_connection_ends().await;
    publish_many(&server, &receiver.url("/"), 1, 2).await;
    assert_eq!(receiver.connections(), 2);
}
