//! Deliveries over TLS, by HTTP/1.1 and HTTP/2.

use std::convert::Infallible;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use http::{HeaderName, Request, Response, Version};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::pki_types::PrivateKeyDer;
use tempfile::NamedTempFile;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use crate::support::{Test, eventually};

engines! {
    an_authority_of_ones_own_is_trusted,
    http1_is_spoken_where_http2_is_not,
    an_unknown_authority_is_a_failed_attempt,
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

/// A TLS destination on loopback, with a certificate of its own for `localhost`.
struct TlsReceiver {
    address: SocketAddr,
    certificate: NamedTempFile,
    seen: mpsc::Receiver<Seen>,
}

impl TlsReceiver {
    async fn start(protocols: &[&str]) -> Self {
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let mut certificate = NamedTempFile::new().unwrap();
        certificate.write_all(own.cert.pem().as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key)
            .unwrap();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(config));
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
