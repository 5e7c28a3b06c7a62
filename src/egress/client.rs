//! The client for deliveries: HTTP/1.1 and HTTP/2, pooled connections, rustls, nothing followed and nothing inflated.
//!
//! It is hyper's pooled client and not a larger one on top of it, since the request line must carry the URL exactly as
//! it was published, and since the address check must see literals too.

use std::error::Error as _;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::connector::{ConnectError, Connector, Timed};
use super::policy::Policy;
use crate::domain::message::{Headers, Method};
use crate::domain::outcome::{FailureClass, Response};

/// Response bodies up to this size are read without asking; beyond, the attempt takes a share of the memory for large
/// responses.
const SMALL_BODY: usize = 64 << 10;
/// Header fields of a response at most; hyper refuses more.
const MAX_HEADERS: usize = 200;
/// How long an unused connection stays in the pool: shorter than common servers keep theirs, since a request that meets
/// a closing connection is a failed attempt.
const POOL_IDLE: Duration = Duration::from_secs(30);

/// How the client is set up.
pub struct Settings<'a> {
    pub policy: Arc<Policy>,
    /// For resolving, connecting and TLS together.
    pub connect_timeout: Duration,
    /// Idle connections kept per origin.
    pub idle_per_origin: usize,
    /// Bytes of a response body that are kept.
    pub max_response: usize,
    /// Bytes of large response bodies in memory at once.
    pub max_response_memory: usize,
    /// A PEM file with further certificate authorities.
    pub extra_ca: Option<&'a Path>,
}

/// Why a client could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("extra_ca_file: {path} can't be used: {reason}")]
    ExtraCa { path: String, reason: String },
    #[error("TLS could not be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// A failed exchange: no complete response.
#[derive(Debug)]
pub struct Failure {
    pub class: FailureClass,
    /// One sentence for users.
    pub error: String,
}

/// A response, and the share of memory that its body holds until it is dropped.
#[derive(Debug)]
pub struct Received {
    pub response: Response,
    pub memory: Option<OwnedSemaphorePermit>,
}

/// A request to a destination.
pub struct Outgoing {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Sends requests to destinations. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    inner: legacy::Client<Timed<HttpsConnector<Connector>>, Full<Bytes>>,
    max_response: usize,
    large_bodies: Arc<Semaphore>,
}

impl Client {
    /// A client with an empty pool. Reads the system's certificate authorities.
    pub fn new(settings: &Settings<'_>) -> Result<Self, ClientError> {
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls(settings.extra_ca)?)
            .https_or_http()
            .enable_all_versions()
            .wrap_connector(Connector::new(Arc::clone(&settings.policy)));
        let inner = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(settings.idle_per_origin)
            .http1_max_headers(MAX_HEADERS)
            .set_host(false)
            .build(Timed::new(connector, settings.connect_timeout));
        let memory = settings.max_response_memory.max(settings.max_response);
        Ok(Self {
            inner,
            max_response: settings.max_response,
            large_bodies: Arc::new(Semaphore::new(kib(memory) as usize)),
        })
    }

    /// One exchange. Dropping it closes the connection. The caller limits the time.
    pub async fn send(&self, outgoing: Outgoing) -> Result<Received, Failure> {
        let mut request = Request::new(Full::new(outgoing.body));
        *request.method_mut() = method(outgoing.method);
        *request.uri_mut() = outgoing.uri;
        *request.headers_mut() = outgoing.headers;
        let response = self.inner.request(request).await.map_err(|error| failure(&error))?;
        let (parts, body) = response.into_parts();
        let headers = read_headers(&parts.headers);
        let (body, memory) = self.read_body(body).await?;
        Ok(Received { response: Response { status: parts.status.as_u16(), headers, body }, memory })
    }

    /// The body up to the cap. What comes beyond is not read: the connection is closed.
    async fn read_body(&self, mut body: Incoming) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Failure> {
        let mut memory = None;
        let mut whole = BytesMut::new();
        let mut first: Option<Bytes> = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Failure {
                class: FailureClass::Body,
                error: format!("the response body broke off: {error}"),
            })?;
            let Ok(data) = frame.into_data() else { continue };
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
                break;
            }
            if have > SMALL_BODY && memory.is_none() {
                // The whole of what may come at once: holding a part while waiting for the rest could block all.
                let permits = kib(self.max_response);
                memory = Arc::clone(&self.large_bodies).acquire_many_owned(permits).await.ok();
            }
        }
        Ok((first.unwrap_or_else(|| whole.freeze()), memory))
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

fn tls(extra_ca: Option<&Path>) -> Result<rustls::ClientConfig, ClientError> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::debug!(%error, "a system certificate can't be read");
    }
    let (_, ignored) = roots.add_parsable_certificates(system.certs);
    if ignored > 0 {
        tracing::debug!(ignored, "system certificates that can't be used");
    }
    if let Some(path) = extra_ca {
        let unreadable = |reason: String| ClientError::ExtraCa { path: path.display().to_string(), reason };
        let certificates = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| unreadable(error.to_string()))?;
        if certificates.is_empty() {
            return Err(unreadable("it holds no certificate".to_owned()));
        }
        for certificate in certificates {
            roots.add(certificate).map_err(|error| unreadable(error.to_string()))?;
        }
    }
    if roots.is_empty() {
        tracing::warn!("no certificate authorities were found: deliveries to https destinations will fail");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// Which class a failed exchange belongs to, and a sentence about it.
fn failure(error: &legacy::Error) -> Failure {
    let mut class = if error.is_connect() { FailureClass::Connect } else { FailureClass::Reset };
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = cause.to_string();
        if let Some(found) = cause.downcast_ref::<ConnectError>() {
            return Failure { class: found.class, error: found.to_string() };
        }
        if let Some(tls) = tls_error(cause) {
            return Failure { class: FailureClass::Tls, error: tls_text(tls) };
        }
        if let Some(hyper) = cause.downcast_ref::<hyper::Error>() {
            if hyper.is_parse() || hyper.is_parse_too_large() {
                class = FailureClass::Headers;
            }
            if hyper.is_incomplete_message() {
                "the connection was closed before the response was complete".clone_into(&mut text);
                break;
            }
        }
        source = cause.source();
    }
    if class == FailureClass::Headers {
        text.insert_str(0, "malformed response: ");
    }
    Failure { class, error: text }
}

fn tls_text(error: &rustls::Error) -> String {
    use rustls::{CertificateError, Error};
    match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            format!("TLS failed: {error}; an authority of your own can be named in extra_ca_file")
        }
        _ => format!("TLS failed: {error}"),
    }
}

/// The TLS error in an I/O error, which is how handshakes report theirs, perhaps in another I/O error.
fn tls_error<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    cause.downcast_ref::<rustls::Error>().or_else(|| tls_error(inner?))
}
