//! The engine's limits, and the world outside of it, as the composition root gives them.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;

use super::observer::Observer;
use crate::chance::Chance;
use crate::clock::Clock;
use crate::egress::Destinations;
use crate::store::Retention;
use crate::tasks::Tasks;

/// The engine's limits.
#[derive(Clone, Debug)]
pub struct Settings {
    pub node_name: String,
    /// Attempts at once.
    pub concurrency: usize,
    /// Attempts at once to one origin.
    pub concurrency_per_origin: usize,
    /// Deliveries held in memory, waiting or running.
    pub prefetch: usize,
    /// Bytes of these.
    pub prefetch_bytes: usize,
    /// Tasks that write batches, each of accepts and of outcomes.
    pub writers: usize,
    /// Limit for an attempt; a message may shorten it.
    pub max_timeout: Duration,
    /// Bytes of a response body that callbacks carry.
    pub max_response: usize,
    /// Bytes of a run's log beyond which an endpoint that can ask for it gets a delivery without it.
    pub lazy_log_bytes: usize,
    pub llm: Option<LlmAccess>,
    pub retention: Retention,
}

/// Access to the configured language model's service, added to a message when it is sent and stored nowhere.
#[derive(Clone, Debug)]
pub struct LlmAccess {
    /// Where messages to it go. A key for one service must not be sent to another that was configured before.
    pub url: String,
    /// Sensitive, so that `Debug` hides it.
    pub authorization: HeaderValue,
}

/// The world outside of the engine, so that a simulation can be another one.
#[derive(Clone)]
pub struct World {
    /// The machine's clock; where the store has one of its own, the engine follows that from here.
    pub clock: Clock,
    pub chance: Chance,
    pub destinations: Arc<dyn Destinations>,
    pub tasks: Tasks,
    /// Told of what happens to messages, if anybody wants to know.
    pub observer: Option<Arc<dyn Observer>>,
}
