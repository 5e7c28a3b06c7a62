//! Being one of several nodes: the heartbeat, taking over what silent nodes hold, and comparing what the store has leased
//! to this node with what it holds.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::node::{HEARTBEAT, NODE_TTL};
use super::observer::{Happened, Membership};
use super::shared::Shared;
use super::{cancelling, failover, ids, keys};
use crate::clock::{Jumps, pause};
use crate::store::Result;

/// How often to look for silent nodes, which with the time to live and the sweep is well below 20 s, and for changes by
/// other nodes of which no word was heard.
const CHECK: Duration = Duration::from_millis(2500);
/// How often the clock is checked.
const CLOCK_CHECK: Duration = Duration::from_secs(1);
/// Checks from one comparison of the leases without a reason to the next: five minutes, where there are other nodes.
const CHECKS_PER_RECONCILE: u32 = 120;
/// From a doubt to the comparison that settles it, so that one settles many.
const SETTLE: Duration = Duration::from_millis(500);
/// How long to wait for a doubt where there are no other nodes: there is nothing else to do.
const RECONCILE: Duration = Duration::from_hours(1);

/// Says that this node is alive, in a task and on a connection of its own: nothing else may keep it from that.
pub(super) async fn beat(shared: Arc<Shared>) {
    while shared.store.is_shared() {
        if let Err(error) = beat_once(&shared).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "the heartbeat failed");
        }
        tokio::select! {
            biased;
            () = shared.stopping.cancelled() => return,
            () = pause(HEARTBEAT) => {}
        }
    }
}

async fn beat_once(shared: &Shared) -> Result<()> {
    let asked = shared.clock.since_boot();
    match shared.store.heartbeat(shared.node.id()).await? {
        Some(now) => {
            shared.clock.observe(now, shared.clock.since_boot().saturating_sub(asked));
            shared.node.renewed(asked);
            Ok(())
        }
        None => rejoin(shared).await,
    }
}

/// Looks after the others and after our own leases.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut checks: u32 = 0;
    loop {
        if shared.store.is_shared()
            && let Err(error) = check(&shared, checks).await
        {
            tracing::debug!(error = &error as &dyn std::error::Error, "looking after the other nodes failed");
        }
        reconcile(&shared).await;
        checks = checks.wrapping_add(1);
        tokio::select! {
            biased;
            () = shared.stopping.cancelled() => return,
            () = pause(if shared.store.is_shared() || shared.node.is_in_doubt() { CHECK } else { RECONCILE }) => {}
            // Many doubts at once are settled by comparing once.
            () = async { shared.node.doubted().await; pause(SETTLE).await } => {}
        }
    }
}

/// Watches the clock: what a jump made due, timers don't know of, and what it moved into the future is brought back.
pub(super) async fn watch_clock(shared: Arc<Shared>) {
    let (started, mut jumps) = (Instant::now(), Jumps::default());
    loop {
        if jumps.seen(shared.clock.now(), started.elapsed()) {
            tracing::info!("the clock has jumped, or the machine was suspended; looking at what is due now");
            if let Err(error) = shared.store.wake_gates().await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "what is due after the jump could not be looked for"
                );
            }
            shared.wakeups.due_at(shared.clock.now());
            shared.wakeups.gates.all_opened();
            shared.wakeups.schedules.notify_one();
        }
        tokio::select! {
            biased;
            () = shared.stopping.cancelled() => return,
            () = pause(CLOCK_CHECK) => {}
        }
    }
}

/// Another node may have rotated the keys.
async fn read_keys(shared: &Shared) -> Result<()> {
    let fresh = keys::fresh_pair(&shared.chance);
    let stored = shared.store.signing_keys(&fresh, shared.clock.now());
    shared.keys.follow(async { Ok(stored.await?.pair) }).await?;
    Ok(())
}

/// Follows what other nodes change, and the database to where it moves. A word of it may get lost, with the connection
/// that listens or otherwise, so this node looks every [`CHECK`] as well; for keys [`check`] does.
pub(super) async fn follow(shared: Arc<Shared>) {
    let mut moves = shared.store.moves();
    while shared.store.is_shared() {
        // The call goes on during a check, and is not made anew: no word must be missed.
        let mut heard = std::pin::pin!(shared.store.changed_elsewhere());
        let result = loop {
            tokio::select! {
                biased;
                () = shared.stopping.cancelled() => return,
                heard = heard.as_mut() => break heard,
                () = pause(CHECK) => look_for_cancels(&shared).await,
            }
        };
        if std::mem::replace(&mut moves, shared.store.moves()) != moves {
            failover::store_again(&shared).await;
            // Other steps that are missing there may have freed leases that are ours again.
            shared.node.mark_in_doubt();
        }
        let result = match result {
            Ok(()) => read_keys(&shared).await,
            Err(error) => {
                pause(CHECK).await;
                Err(error)
            }
        };
        look_for_cancels(&shared).await;
        if let Err(error) = result {
            tracing::debug!(error = &error as &dyn std::error::Error, "changes by other nodes are not heard");
        }
    }
}

async fn look_for_cancels(shared: &Shared) {
    if let Err(error) = cancelling::withdraw_cancelled(shared).await {
        tracing::debug!(error = &error as &dyn std::error::Error, "looking for cancelled messages failed");
    }
}

/// The others have taken over: what is here is theirs now. A new incarnation begins with nothing; what steps under way
/// still lease in the old one's name is fenced off, and freed by reconciling.
async fn rejoin(shared: &Shared) -> Result<()> {
    let node = ids::incarnation(&shared.chance);
    let asked = shared.clock.since_boot();
    shared.store.rejoin(node, &shared.settings.node_name).await?;
    shared.node.begin_anew(node);
    let (dropped, last) = shared.dispatcher.let_go_of_waiting();
    shared.node.fence_off(last);
    shared.node.renewed(asked);
    shared.node.mark_in_doubt();
    tracing::warn!(
        deliveries = dropped,
        "this node was silent for too long; others have taken over its deliveries, and it begins anew"
    );
    shared.tell(Happened::Membership(Membership::BeganAnew { dropped }));
    Ok(())
}

async fn check(shared: &Shared, checks: u32) -> Result<()> {
    shared.node.set_alive(shared.store.count_nodes().await?);
    if checks % CHECKS_PER_RECONCILE == 1 {
        shared.node.mark_in_doubt();
    }
    read_keys(shared).await?;
    if !shared.node.leases_hold() {
        return Ok(());
    }
    let dead = shared.store.take_over(NODE_TTL).await?;
    if dead > 0 {
        tracing::warn!(nodes = dead, "took over the deliveries of silent nodes");
        shared.tell(Happened::Membership(Membership::TookOver { nodes: dead }));
        shared.wakeups.due_at(shared.clock.now());
    }
    Ok(())
}

/// Frees what the store has leased to this node and this node does not know of, while there may be something.
async fn reconcile(shared: &Shared) {
    if !shared.node.is_in_doubt() {
        return;
    }
    let (live, last) = shared.dispatcher.live_leases();
    match shared.store.reconcile(shared.node.id(), &live, last).await {
        Ok(0) => {}
        Ok(freed) => {
            tracing::info!(deliveries = freed, "freed deliveries whose lease had got lost");
            shared.tell(Happened::Membership(Membership::Reconciled { deliveries: freed }));
            shared.wakeups.due_at(shared.clock.now());
        }
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "comparing the leases failed");
            shared.node.stay_in_doubt();
        }
    }
}
