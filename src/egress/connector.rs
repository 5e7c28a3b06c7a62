//! Connections to destinations: resolve, check every address against the policy, dial what passed.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

use super::policy::{Policy, parse_literal};
use crate::domain::outcome::FailureClass;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct ConnectError {
    pub class: FailureClass,
    text: String,
}

impl ConnectError {
    fn new(class: FailureClass, text: String) -> Self {
        Self { class, text }
    }
}

/// Dials destinations that the policy allows.
#[derive(Clone)]
pub struct Connector {
    policy: Arc<Policy>,
}

impl Connector {
    /// A connector that has no time limit of its own: see [`Timed`].
    pub fn new(policy: Arc<Policy>) -> Self {
        Self { policy }
    }

    async fn connect(self, uri: Uri) -> Result<TcpStream, ConnectError> {
        let host = uri.host().unwrap_or_default();
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        self.dial(host, port).await
    }

    async fn dial(&self, host: &str, port: u16) -> Result<TcpStream, ConnectError> {
        let mut failure = None;
        for address in self.resolve(host, port).await? {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    // Small requests must not wait for an acknowledgement of the previous one.
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "TCP_NODELAY could not be set");
                    }
                    return Ok(stream);
                }
                Err(error) => failure = Some((address, error)),
            }
        }
        Err(match failure {
            Some((address, error)) => ConnectError::new(
                FailureClass::Connect,
                format!("can't connect to {address}: {}", describe(&error)),
            ),
            None => ConnectError::new(FailureClass::Dns, format!("{host} has no address")),
        })
    }

    /// The addresses of a host that the policy allows, in the order to try them. An error when none is left.
    async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, ConnectError> {
        let blocked =
            |refusal: super::policy::Refusal| ConnectError::new(FailureClass::Blocked, refusal.to_string());
        // Resolvers are not asked about literals, so that these are checked here.
        self.policy.check_literal(host).map_err(blocked)?;
        if let Some(address) = parse_literal(host) {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let found = tokio::net::lookup_host((host, port)).await.map_err(|error| {
            ConnectError::new(FailureClass::Dns, format!("unable to resolve host: lookup {host}: {error}"))
        })?;
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

fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        _ => error.to_string(),
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect(uri).await.map(TokioIo::new) })
    }
}

/// Limits the time until an inner connector's connection is ready for requests, TLS included.
#[derive(Clone)]
pub struct Timed<C> {
    inner: C,
    limit: Duration,
}

impl<C> Timed<C> {
    /// Limits `inner` to `limit`.
    pub fn new(inner: C, limit: Duration) -> Self {
        Self { inner, limit }
    }
}

impl<C> Service<Uri> for Timed<C>
where
    C: Service<Uri>,
    C::Error: Into<BoxError>,
    C::Future: Send + 'static,
    C::Response: Send,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let limit = self.limit;
        let text = format!(
            "no connection to {}://{} within {limit:?}",
            uri.scheme_str().unwrap_or_default(),
            uri.authority().map(http::uri::Authority::as_str).unwrap_or_default(),
        );
        let connecting = self.inner.call(uri);
        Box::pin(async move {
            match tokio::time::timeout(limit, connecting).await {
                Ok(result) => result.map_err(Into::into),
                Err(_) => Err(ConnectError::new(FailureClass::Timeout, text).into()),
            }
        })
    }
}
