//! The state that the engine's tasks share.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::dispatcher::{Dispatcher, Held};
use super::keys::Keys;
use super::known_runs::Runs;
use super::node::Node;
use super::observer::{Event, Happened, Observer};
use super::recent::Recent;
use super::wakeups::Wakeups;
use super::world::Settings;
use crate::chance::Chance;
use crate::clock::Clock;
use crate::domain::id::MessageId;
use crate::store::{Lease, Store};
use crate::tasks::Tasks;

/// The state that the engine's tasks share.
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) store: Arc<dyn Store>,
    pub(super) clock: Clock,
    pub(super) chance: Chance,
    pub(super) keys: Keys,
    /// This process among the nodes of the store.
    pub(super) node: Arc<Node>,
    /// The deliveries that this node holds.
    pub(super) dispatcher: Dispatcher,
    pub(super) wakeups: Wakeups,
    /// Runs of late.
    pub(super) runs: Runs,
    /// Steps that may have to be stored again after a failover.
    pub(super) recent: Recent,
    pub(super) observer: Option<Arc<dyn Observer>>,
    pub(super) tasks: Tasks,
    /// The attempts that run.
    pub(super) attempts: TaskTracker,
    /// All other tasks.
    pub(super) background: TaskTracker,
    /// No new work.
    pub(super) draining: CancellationToken,
    /// Everything ends.
    pub(super) stopping: CancellationToken,
}

impl Shared {
    /// Starts a task that ends when the engine drains or stops.
    pub(super) fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(name, self.background.track_future(task));
    }

    /// Tells the observer, if there is one.
    pub(super) fn tell(&self, what: Happened<'_>) {
        if let Some(observer) = &self.observer {
            observer.happened(&Event { node: self.node.id(), at: self.clock.now(), what });
        }
    }
}

/// The ids of held deliveries, with their leases.
pub(super) fn names(held: &[Held]) -> Vec<(MessageId, Lease)> {
    held.iter().map(|held| (held.delivery.message.id.clone(), held.delivery.lease)).collect()
}
