//! This process as a node: its incarnation, until when its leases can be trusted, and what is in doubt.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::clock::Clock;
use crate::mutation::{self, Mutation};
use crate::store::{Lease, NodeId};

/// How often a node says that it is alive.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(5);
/// When the others take over what a silent node holds.
pub(super) const NODE_TTL: Duration = Duration::from_secs(15);
/// A node that could not renew for this long starts no attempt: it stops before the others start.
const LEASE_TRUST: Duration = Duration::from_secs(12);
/// How long a step may still take effect whose answer did not come: the database's own limits end it before.
const IN_DOUBT: Duration = Duration::from_secs(12);

const _: () = assert!(HEARTBEAT.as_secs() * 2 < LEASE_TRUST.as_secs());
const _: () = assert!(LEASE_TRUST.as_secs() < NODE_TTL.as_secs());

/// How often to look for work without a reason: alone on SQLite, alone on Postgres, and beside other nodes.
const SWEEP_SQLITE: Duration = Duration::from_mins(1);
const SWEEP_ALONE: Duration = Duration::from_millis(2500);
const SWEEP_SHARED: Duration = Duration::from_secs(1);

/// This process among the nodes of its store. All times are since boot.
pub(super) struct Node {
    clock: Clock,
    /// Whether other nodes may use the store.
    is_shared: bool,
    state: Mutex<State>,
    /// Notified when something is in doubt.
    doubt: Notify,
}

#[derive(Clone, Copy)]
struct State {
    /// The incarnation; a new one when others have taken over the old one's deliveries.
    id: NodeId,
    /// When the registration was last renewed.
    renewed_at: Duration,
    /// The last claim number of earlier incarnations, whose deliveries are not this node's any more.
    fence: Lease,
    /// Until when a step whose answer was lost may still take effect.
    in_doubt_until: Duration,
    /// Nodes that use the store, this one included, as far as is known.
    alive: u64,
}

impl Node {
    /// A node that registers now as this incarnation.
    pub(super) fn new(id: NodeId, clock: Clock, is_shared: bool) -> Self {
        let renewed_at = clock.since_boot();
        let state = State { id, renewed_at, fence: Lease(0), in_doubt_until: Duration::ZERO, alive: 1 };
        Self { clock, is_shared, state: Mutex::new(state), doubt: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The incarnation.
    pub(super) fn id(&self) -> NodeId {
        self.state().id
    }

    /// Begins a new incarnation.
    pub(super) fn begin_anew(&self, id: NodeId) {
        self.state().id = id;
    }

    /// Distrusts all claim numbers up to this one. To be called after [`Node::begin_anew`] with the last number that was
    /// given out: claims that were opened later know the new incarnation.
    pub(super) fn fence_off(&self, last: Lease) {
        self.state().fence = last;
    }

    /// Takes note of a renewal that was asked for at that time: the store's stamp is not older.
    pub(super) fn renewed(&self, asked_at: Duration) {
        self.state().renewed_at = asked_at;
    }

    /// Whether a lease is this incarnation's and can be trusted.
    pub(super) fn holds(&self, lease: Lease) -> bool {
        lease > self.state().fence && self.leases_hold()
    }

    /// Whether leases can be trusted: the others have not begun to take them over.
    pub(super) fn leases_hold(&self) -> bool {
        !self.is_shared
            || mutation::on(Mutation::TrustsOldLeases)
            || self.clock.since_boot().saturating_sub(self.state().renewed_at) < LEASE_TRUST
    }

    /// Whether the store may have leased something to this node that it doesn't know of.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.clock.since_boot() < self.state().in_doubt_until
    }

    /// Takes note that a step may or may not have leased something to this node, and has the leases compared.
    pub(super) fn mark_in_doubt(&self) {
        self.stay_in_doubt();
        self.doubt.notify_one();
    }

    /// Has the leases compared for as long as a step that began now may take effect.
    pub(super) fn stay_in_doubt(&self) {
        if mutation::on(Mutation::DoubtsNothing) {
            return;
        }
        let until = self.clock.since_boot() + IN_DOUBT;
        let mut state = self.state();
        state.in_doubt_until = state.in_doubt_until.max(until);
    }

    /// Waits for a doubt.
    pub(super) async fn doubted(&self) {
        self.doubt.notified().await;
    }

    /// Takes note of how many nodes use the store.
    pub(super) fn set_alive(&self, nodes: u64) {
        self.state().alive = nodes;
    }

    /// Whether no other node uses the store, as far as this one has heard.
    pub(super) fn is_alone(&self) -> bool {
        !self.is_shared || self.state().alive <= 1
    }

    /// How often to look for work without a reason.
    pub(super) fn sweep(&self) -> Duration {
        match (self.is_shared, self.is_alone()) {
            (false, _) => SWEEP_SQLITE,
            (true, true) => SWEEP_ALONE,
            (true, false) => SWEEP_SHARED,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::pause;
    use crate::domain::time::Timestamp;

    fn node(is_shared: bool) -> Node {
        let clock = Clock::simulated(Timestamp::from_millis(1_700_000_000_000), Duration::from_secs(100));
        Node::new(NodeId(1), clock, is_shared)
    }

    #[tokio::test(start_paused = true)]
    async fn leases_are_trusted_until_the_others_may_take_over() {
        let (shared, alone) = (node(true), node(false));
        pause(LEASE_TRUST.saturating_sub(Duration::from_millis(1))).await;
        assert!(shared.leases_hold());
        pause(Duration::from_millis(2)).await;
        assert!(!shared.leases_hold() && !shared.holds(Lease(1)) && alone.holds(Lease(1)));
        shared.renewed(shared.clock.since_boot());
        assert!(shared.holds(Lease(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_incarnation_holds_nothing_of_the_old_one() {
        let node = node(true);
        node.begin_anew(NodeId(2));
        node.fence_off(Lease(7));
        assert_eq!(node.id(), NodeId(2));
        assert!(!node.holds(Lease(7)) && node.holds(Lease(8)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_doubt_lasts_as_long_as_a_step_may() {
        let node = node(true);
        assert!(!node.is_in_doubt());
        node.mark_in_doubt();
        node.doubted().await;
        pause(IN_DOUBT.saturating_sub(Duration::from_millis(1))).await;
        assert!(node.is_in_doubt());
        pause(Duration::from_millis(2)).await;
        assert!(!node.is_in_doubt());
    }
}
