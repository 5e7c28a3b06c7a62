//! The product's operations: typed in, typed out, and the same for every face. The API is one of them.
//!
//! Here is what follows once a request is understood: where messages may go, what limits apply, which ids things get, what
//! the store is asked and what the engine is told afterwards, so that no face can forget a part of it. Nothing here knows
//! HTTP, names of headers, or status codes.

use std::sync::Arc;
use std::time::Duration;

use crate::domain::destination::{Origin, validate_url};
use crate::domain::message::{CallbackSpec, Options};
use crate::domain::time::Timestamp;
use crate::egress::policy::Policy;
use crate::engine::Engine;
use crate::store::Store;
use crate::store::url_groups::UrlGroupLimits;

pub mod counts;
pub mod dead_letters;
mod error;
pub mod events;
pub mod explain;
pub mod flow_control;
pub mod log;
pub mod memory;
pub mod messages;
pub mod publish;
pub mod queues;
mod quota;
pub mod run_letters;
pub mod runs;
pub mod schedules;
pub mod signing_keys;
pub mod stories;
pub mod url_groups;

pub use self::error::{OperationError, Result};
use self::memory::RequestMemory;
use self::quota::DailyQuota;

/// The operator's rules.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bytes of what the messages of one request hold together.
    pub max_batch: usize,
    /// Bytes of requests in memory at once.
    pub max_request_memory: usize,
    /// How long a deduplication key is held.
    pub deduplication_window: Duration,
    /// The most schedules; `None`: no limit.
    pub max_schedules: Option<u32>,
    /// Messages in a day; `None`: no limit.
    pub max_messages_per_day: Option<u64>,
    pub url_groups: UrlGroupLimits,
    /// Where messages to `api/llm` go; `None`: they are refused.
    pub llm_url: Option<String>,
    /// The most queues; `None`: no limit.
    pub max_queues: Option<u32>,
    /// The highest parallelism of a queue; `None`: no limit.
    pub max_queue_parallelism: Option<u32>,
    /// The longest flow-control key, in bytes.
    pub max_flow_control_key: usize,
}

/// All operations, on a running engine.
pub struct Operations {
    settings: Settings,
    policy: Arc<Policy>,
    engine: Arc<Engine>,
    memory: RequestMemory,
    daily_quota: Option<DailyQuota>,
}

impl Operations {
    pub fn new(settings: Settings, policy: Arc<Policy>, engine: Arc<Engine>) -> Self {
        let memory = RequestMemory::new(settings.max_request_memory);
        let daily_quota = settings.max_messages_per_day.map(DailyQuota::new);
        Self { settings, policy, engine, memory, daily_quota }
    }

    /// Now, by the store's clock.
    pub fn now(&self) -> Timestamp {
        self.engine.now()
    }

    /// The memory that requests share.
    pub const fn memory(&self) -> &RequestMemory {
        &self.memory
    }

    /// Whether this node accepts messages and delivers them; if not, why, in words.
    pub async fn readiness(&self) -> std::result::Result<(), String> {
        self.engine.readiness().await
    }

    /// Attempts that run on this node now, and the most that may.
    pub fn parallelism(&self) -> (usize, usize) {
        self.engine.parallelism()
    }

    fn store(&self) -> &dyn Store {
        &**self.engine.store()
    }

    /// Checks where messages are to go.
    fn check_destination(&self, url: &str) -> Result<Origin> {
        self.check_url(url, "destination")
    }

    /// Checks a URL that is `what`. Literal addresses are checked here, names when they are connected to.
    fn check_url(&self, url: &str, what: &str) -> Result<Origin> {
        let origin = validate_url(url)?;
        self.policy
            .check_literal(&origin.host)
            .map_err(|refusal| OperationError::Invalid(format!("invalid {what} url: {refusal}")))?;
        Ok(origin)
    }

    fn check_callbacks(&self, options: &Options) -> Result<()> {
        let callbacks = [&options.callback, &options.failure_callback];
        callbacks.into_iter().flatten().try_for_each(|spec| self.check_callback(spec))
    }

    fn check_callback(&self, spec: &CallbackSpec) -> Result<()> {
        self.check_url(&spec.url, "callback")?;
        self.check_callbacks(&spec.options)
    }

    /// Where `api/llm` goes.
    fn llm_url(&self) -> Result<String> {
        self.settings.llm_url.clone().ok_or_else(|| {
            OperationError::invalid(
                "api/llm is not available: no language model is configured; llm_url sets one",
            )
        })
    }
}
