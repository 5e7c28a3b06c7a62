//! HTTP out: the one client, the address policy that it obeys, capped responses.
//!
//! Invariant: the address that was checked is the address that is dialled. `connector` resolves, checks and connects;
//! nothing else opens a connection to a destination.

use async_trait::async_trait;

use self::client::{Outgoing, Received, SendError};

pub mod client;
mod connector;
mod exchange;
mod http1;
mod http2;
pub mod policy;
mod pool;
mod tls;

/// Where deliveries go.
#[async_trait]
pub trait Destinations: Send + Sync + 'static {
    /// Makes one attempt. Dropping it gives the attempt up; the caller limits the time.
    async fn send(&self, outgoing: Outgoing) -> Result<Received, SendError>;
}

/// Bytes of a response's header section at most, counted as RFC 9113, 6.5.2 does.
const MAX_HEADERS: usize = 384 << 10;
/// Informational (1xx) responses in one attempt at most.
const MAX_INFORMATIONAL: usize = 16;
