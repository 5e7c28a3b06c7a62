//! Wake-ups for the tasks that fetch work from the store. A lost one costs a sweep interval, never a message.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::domain::gate::{Path, is_gated};
use crate::domain::id::MessageId;
use crate::domain::message::Message;
use crate::domain::time::Timestamp;
use crate::mutation::{self, Mutation};
use crate::store::Delivery;

/// The wake-ups of one node.
#[derive(Default)]
pub(super) struct Wakeups {
    /// For what waits for its due time alone.
    pub(super) due: Due,
    /// For what waits at gates.
    pub(super) gates: Gates,
    /// For occurrences of schedules.
    pub(super) schedules: Notify,
}

impl Wakeups {
    /// Something waits in the store that is due then, of whatever kind.
    pub(super) fn due_at(&self, due_at: Timestamp) {
        self.due.wake_at(due_at);
        self.gates.wake_at(due_at);
    }

    /// A message waits in the store.
    pub(super) fn waits(&self, message: &Message) {
        if is_gated(message) {
            self.gates.joined(message);
        } else {
            self.due.wake_at(message.due_at);
        }
    }
}

/// The earliest due time that is known and that no query has covered yet.
#[derive(Default)]
pub(super) struct Due {
    earliest: Mutex<Option<Timestamp>>,
    wake: Notify,
}

impl Due {
    fn earliest(&self) -> MutexGuard<'_, Option<Timestamp>> {
        self.earliest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the task at that time, at once if it has passed.
    pub(super) fn wake_at(&self, due_at: Timestamp) {
        if lower(&mut self.earliest(), due_at) && !mutation::on(Mutation::TellsNothingDue) {
            self.wake.notify_one();
        }
    }

    /// The earliest time that was given since the last reset.
    pub(super) fn next(&self) -> Option<Timestamp> {
        *self.earliest()
    }

    /// Forgets the times that were given so far. To be called before a query for what is due, so that a wake-up during it is
    /// kept.
    pub(super) fn reset(&self) {
        *self.earliest() = None;
    }

    /// Waits for an earlier time than was known.
    pub(super) async fn changed(&self) {
        self.wake.notified().await;
    }
}

/// Sets the earlier of the two times; whether that is the new one.
fn lower(earliest: &mut Option<Timestamp>, time: Timestamp) -> bool {
    let is_earlier = earliest.is_none_or(|before| time < before);
    if is_earlier {
        *earliest = Some(time);
    }
    is_earlier
}

/// The gates at which something may go through.
#[derive(Default)]
pub(super) struct Gates {
    news: Mutex<GateNews>,
    wake: Notify,
}

/// Events at gates since the news was last taken.
#[derive(Default)]
pub(super) struct GateNews {
    /// Something may go through these that could not before.
    pub(super) opened: BTreeSet<Arc<str>>,
    /// More waits at these than before.
    pub(super) joined: BTreeSet<Arc<str>>,
    /// Slots of queues that have become free.
    pub(super) freed: Vec<Freed>,
    /// Something may go through any gate.
    pub(super) all: bool,
    /// Something is due then, at a gate that the store names at that time.
    pub(super) due_at: Option<Timestamp>,
}

/// A queue's slot that has become free.
pub(super) struct Freed {
    pub(super) queue: Arc<str>,
    /// The message that had it.
    pub(super) holder: MessageId,
    /// A time since boot before the finish was sent: a snapshot whose answer had come by then has counted the slot as taken.
    pub(super) held_at: Duration,
}

impl Gates {
    fn tell(&self, change: impl FnOnce(&mut GateNews)) {
        let size =
            |news: &GateNews| (news.opened.len(), news.joined.len(), news.freed.len(), news.all, news.due_at);
        let mut news = self.news();
        let before = size(&news);
        change(&mut news);
        if size(&news) != before {
            self.wake.notify_one();
        }
    }

    fn news(&self) -> MutexGuard<'_, GateNews> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something may go through these gates.
    pub(super) fn opened(&self, gates: impl IntoIterator<Item = Arc<str>>) {
        self.tell(|news| news.opened.extend(gates));
    }

    /// Something may go through any gate.
    pub(super) fn all_opened(&self) {
        self.tell(|news| news.all = true);
    }

    /// Deliveries have ended that were held at that time since boot; beside each, whether it frees its slot.
    pub(super) fn ended(&self, deliveries: impl Iterator<Item = (Delivery, bool)>, held_at: Duration) {
        self.tell(|news| {
            for (delivery, frees_slot) in deliveries {
                match delivery.slot {
                    Some(slot) if frees_slot => {
                        news.freed.push(Freed { queue: slot.queue, holder: slot.holder, held_at });
                        news.opened.extend(delivery.flow);
                    }
                    _ => news.opened.extend(opened_by(&delivery)),
                }
            }
        });
    }

    /// Deliveries have ended whose slots others have got.
    pub(super) fn passed_on(&self, deliveries: Vec<Delivery>) {
        self.tell(|news| news.opened.extend(deliveries.into_iter().filter_map(|delivery| delivery.flow)));
    }

    /// Something is due then.
    pub(super) fn wake_at(&self, due_at: Timestamp) {
        self.tell(|news| {
            lower(&mut news.due_at, due_at);
        });
    }

    /// A message waits at its gate; if it is due later, the next snapshot tells when. It may have changed its key's limits.
    pub(super) fn joined(&self, message: &Message) {
        let gates = Path::of(message).into_iter().flat_map(|path| [Some(path.gate), path.flow]).flatten();
        self.tell(|news| news.joined.extend(gates));
    }

    /// Takes what has happened.
    pub(super) fn take(&self) -> GateNews {
        std::mem::take(&mut self.news())
    }

    /// Waits for news.
    pub(super) async fn changed(&self) {
        self.wake.notified().await;
    }
}

/// The gates that may let others through when a delivery ends.
pub(super) fn opened_by(delivery: &Delivery) -> impl Iterator<Item = Arc<str>> + use<> {
    let queue = delivery.slot.as_ref().map(|slot| Arc::clone(&slot.queue));
    [queue, delivery.flow.clone()].into_iter().flatten()
}
