//! The runs that were used lately, with their logs as far as they were read.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::domain::id::InstanceId;
use crate::domain::message::Message;
use crate::domain::run::Run;
use crate::domain::run::log::Log;
use crate::store::runs::RunKey;
use crate::store::{Result, Store, StoreError};

/// Bytes of entries that are read at once.
const READ: usize = 8 << 20;

/// The runs that were used lately.
pub(super) struct Runs {
    known: Cache<InstanceId, Kept, Sizes>,
    /// Instances of runs that were live, by the runs' ids.
    live: Cache<String, InstanceId>,
}

/// A run, as far as it doesn't change, and its log, as far as it was read.
pub(super) struct Known {
    pub(super) run: Arc<Run>,
    log: Mutex<Log>,
}

impl Known {
    pub(super) fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A run in the cache.
#[derive(Clone)]
struct Kept {
    known: Arc<Known>,
    /// Bytes that it took when it was put there; what its log has grown since counts when it is put there again.
    bytes: u64,
}

impl Kept {
    fn new(known: Arc<Known>) -> Self {
        let trigger = &known.run.trigger;
        let bytes = 1024 + trigger.headers.size() + trigger.options.size() + known.log().size();
        Self { known, bytes: bytes as u64 }
    }
}

#[derive(Clone)]
struct Sizes;

impl Weighter<InstanceId, Kept> for Sizes {
    fn weight(&self, _: &InstanceId, kept: &Kept) -> u64 {
        kept.bytes
    }
}

/// Ids that are kept; each takes some hundred bytes.
const IDS: usize = 100_000;

impl Runs {
    /// Keeps about so many bytes of runs.
    pub(super) fn new(bytes: u64) -> Self {
        Self { known: Cache::with_weighter(10_000, bytes, Sizes), live: Cache::new(IDS) }
    }

    pub(super) async fn known(&self, store: &dyn Store, instance: &InstanceId) -> Result<Option<Arc<Known>>> {
        // What nobody knows yet of its SDK, another node may have heard.
        if let Some(kept) = self.known.get(instance)
            && !kept.known.run.trigger.features.unknown_sdk
        {
            return Ok(Some(kept.known));
        }
        let Some(run) = store.run(&RunKey::Instance(instance.clone())).await? else { return Ok(None) };
        Ok(Some(self.keep(run)))
    }

    pub(super) fn keep(&self, run: Run) -> Arc<Known> {
        let instance = run.instance.clone();
        let known = Arc::new(Known { run: Arc::new(run), log: Mutex::default() });
        self.known.insert(instance, Kept::new(Arc::clone(&known)));
        known
    }

    /// The body that shows the log up to the message's own entry; for a message that has none, the payload alone.
    pub(super) async fn body(
        &self,
        store: &dyn Store,
        known: &Arc<Known>,
        message: &Message,
    ) -> Result<Bytes> {
        loop {
            let read = {
                let log = known.log();
                if let Some(body) = log.up_to(&message.id) {
                    return Ok(body);
                }
                log.len()
            };
            if !self.read_on(store, known, read).await? {
                return known.log().first().ok_or(StoreError::Corrupt {
                    table: "run_entries",
                    column: "position",
                    id: known.run.instance.as_str().to_owned(),
                });
            }
        }
    }

    /// Reads the entries from a position on; whether there were any.
    pub(super) async fn read_on(&self, store: &dyn Store, known: &Arc<Known>, from: usize) -> Result<bool> {
        let instance = &known.run.instance;
        let from = u32::try_from(from).unwrap_or(u32::MAX);
        let entries = store.run_entries(instance, from, READ).await?;
        let some = !entries.is_empty();
        known.log().extend(entries);
        self.known.insert(instance.clone(), Kept::new(Arc::clone(known)));
        Ok(some)
    }

    pub(super) async fn payload(&self, store: &dyn Store, known: &Arc<Known>) -> Result<Bytes> {
        if known.log().is_empty() {
            self.read_on(store, known, 0).await?;
        }
        Ok(known.log().payload().clone())
    }
}

impl Runs {
    /// A run that is in memory.
    pub(super) fn kept(&self, instance: &InstanceId) -> Option<Arc<Known>> {
        self.known.get(instance).map(|kept| kept.known)
    }

    /// The instance that was live when somebody last asked for the run id.
    pub(super) fn live(&self, id: &str) -> Option<InstanceId> {
        self.live.get(id)
    }

    /// Takes note that a run is live.
    pub(super) fn note_live(&self, run: &Run) {
        self.live.insert(run.id.clone(), run.instance.clone());
    }

    /// Forgets which run of that id is live.
    pub(super) fn forget(&self, id: &str) {
        self.live.remove(id);
    }
}
