//! Being one of several nodes: the heartbeat, taking over what silent nodes hold, and comparing what the store has leased
//! to this node with what it holds.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{HEARTBEAT, NODE_TTL, Shared, boot_ms, cancelling, ids, recent};
use crate::clock::pause;
use crate::store::Result;

/// How often silent nodes are looked for: with the time to live and the sweep this is well below 20 s.
const LOOK: Duration = Duration::from_millis(2500);
/// How often the leases are compared without a reason: each five minutes where there are other nodes.
const LOOKS_PER_RECONCILE: u32 = 120;
/// Between a doubt and the look that settles it.
const SETTLE: Duration = Duration::from_millis(500);
/// How often nothing is looked at, on a store that is not shared.
const RECONCILE: Duration = Duration::from_hours(1);

/// Says that this node is alive, in a task and on a connection of its own: nothing else may keep it from that.
pub(super) async fn beat(shared: Arc<Shared>) {
    while shared.store.is_shared() {
        if let Err(error) = beat_once(&shared).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "the heartbeat failed");
        }
        tokio::select! {
            () = pause(HEARTBEAT) => {}
            () = shared.stopping.cancelled() => return,
        }
    }
}

async fn beat_once(shared: &Arc<Shared>) -> Result<()> {
    let asked_ms = boot_ms();
    match shared.store.heartbeat(shared.node()).await? {
        Some(now) => {
            shared.clock.observe(now, Duration::from_millis(boot_ms() - asked_ms));
            shared.renewed(asked_ms);
            Ok(())
        }
        None => rejoin(shared).await,
    }
}

/// Looks after the others and after our own leases.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut looks: u32 = 0;
    loop {
        if shared.store.is_shared()
            && let Err(error) = look(&shared, looks).await
        {
            tracing::debug!(error = &error as &dyn std::error::Error, "looking after the other nodes failed");
        }
        reconcile(&shared).await;
        looks = looks.wrapping_add(1);
        tokio::select! {
            () = pause(if shared.store.is_shared() || shared.is_unsure() { LOOK } else { RECONCILE }) => {}
            // Many doubts at once are settled by one look.
            () = async { shared.reconcile.notified().await; pause(SETTLE).await } => {}
            () = shared.stopping.cancelled() => return,
        }
    }
}

/// Another node may have rotated the keys.
async fn read_keys(shared: &Shared) -> Result<()> {
    let fresh = super::keys::fresh_pair();
    let stored = shared.store.signing_keys(&fresh, shared.clock.now());
    shared.keys.follow(async { Ok(stored.await?.pair) }).await?;
    Ok(())
}

/// Follows what other nodes change, and the database to where it moves. A change that is not heard is seen at the next
/// heartbeat.
pub(super) async fn follow(shared: Arc<Shared>) {
    let mut moves = shared.store.moves();
    loop {
        let heard = tokio::select! {
            heard = shared.store.changed_elsewhere() => heard,
            () = shared.stopping.cancelled() => return,
        };
        if std::mem::replace(&mut moves, shared.store.moves()) != moves {
            recent::store_again(&shared).await;
            // What else is missing there may have freed leases that are ours again.
            shared.doubt_leases();
        }
        let read = match heard {
            Ok(()) => read_keys(&shared).await.and(cancelling::withdraw_cancelled(&shared).await),
            Err(error) => Err(error),
        };
        if let Err(error) = read {
            tracing::debug!(error = &error as &dyn std::error::Error, "changes by other nodes are not heard");
            pause(LOOK).await;
        }
    }
}

/// The others have taken over: what is here is theirs now. A new incarnation begins with nothing; what steps under way
/// still lease in the old one's name is fenced off, and freed by reconciling.
async fn rejoin(shared: &Arc<Shared>) -> Result<()> {
    let node = ids::incarnation();
    let asked_ms = boot_ms();
    shared.store.rejoin(node, &shared.settings.node_name).await?;
    shared.set_node(node);
    let (dropped, last) = shared.dispatcher.fence();
    shared.fence.store(last.0, Ordering::Release);
    shared.renewed(asked_ms);
    shared.doubt_leases();
    tracing::warn!(
        deliveries = dropped,
        "this node was silent for too long; others have taken over its deliveries, and it begins anew"
    );
    Ok(())
}

async fn look(shared: &Shared, looks: u32) -> Result<()> {
    shared.refill.set_nodes(shared.store.count_nodes().await?);
    if looks % LOOKS_PER_RECONCILE == 1 {
        shared.doubt_leases();
    }
    read_keys(shared).await?;
    if !shared.leases_hold() {
        return Ok(());
    }
    let dead = shared.store.take_over(NODE_TTL).await?;
    if dead > 0 {
        tracing::warn!(nodes = dead, "took over the deliveries of silent nodes");
        shared.note_due(shared.clock.now());
    }
    Ok(())
}

/// Frees what the store has leased to this node and this node does not know of, while there may be something.
async fn reconcile(shared: &Shared) {
    if !shared.is_unsure() {
        return;
    }
    let (live, last) = shared.dispatcher.live_leases();
    match shared.store.reconcile(shared.node(), &live, last).await {
        Ok(0) => {}
        Ok(freed) => {
            tracing::info!(deliveries = freed, "freed deliveries whose lease had got lost");
            shared.note_due(shared.clock.now());
        }
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "comparing the leases failed");
            shared.stay_unsure();
        }
    }
}
