//! Being one of several nodes: the heartbeat, taking over what silent nodes hold, and comparing what the store has leased
//! to this node with what it holds.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{HEARTBEAT, NODE_TTL, Shared, ids};
use crate::clock::pause;
use crate::store::Result;

/// How often silent nodes are looked for: with the time to live and the sweep this is well below 20 s.
const LOOK: Duration = Duration::from_millis(2500);
/// How often the leases are compared without a reason.
const RECONCILE: Duration = Duration::from_hours(1);

pub(super) async fn run(shared: Arc<Shared>) {
    if shared.store.engine() == "sqlite" {
        return run_alone(&shared).await;
    }
    let mut ticks: u64 = 0;
    let beats = HEARTBEAT.as_millis() / LOOK.as_millis();
    loop {
        if u128::from(ticks) % beats == 0
            && let Err(error) = beat(&shared).await
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "the heartbeat failed");
        }
        if let Err(error) = look(&shared).await {
            tracing::debug!(error = &error as &dyn std::error::Error, "looking for silent nodes failed");
        }
        if ticks % (RECONCILE.as_secs() * 2 / 5) == 1 {
            shared.doubt_leases();
        }
        reconcile(&shared).await;
        ticks += 1;
        tokio::select! {
            () = pause(LOOK) => {}
            () = shared.reconcile.notified() => {}
            () = shared.stopping.cancelled() => return,
        }
    }
}

/// On SQLite nobody else is there; only doubts about our own leases are settled.
async fn run_alone(shared: &Arc<Shared>) {
    loop {
        tokio::select! {
            () = shared.reconcile.notified() => {}
            () = shared.stopping.cancelled() => return,
        }
        reconcile(shared).await;
        if shared.unsure.load(Ordering::Acquire) {
            pause(LOOK).await;
            shared.reconcile.notify_one();
        }
    }
}

async fn beat(shared: &Arc<Shared>) -> Result<()> {
    match shared.store.heartbeat(shared.node()).await? {
        Some(now) => {
            shared.clock.observe(now);
            shared.renewed();
        }
        None => rejoin(shared).await?,
    }
    shared.refill.set_nodes(shared.store.count_nodes().await?);
    read_keys(shared).await
}

/// Another node may have rotated the keys.
async fn read_keys(shared: &Shared) -> Result<()> {
    let stored = shared.store.signing_keys(&super::keys::fresh_pair(), shared.clock.now()).await?;
    shared.keys.replace(stored.pair);
    Ok(())
}

/// Follows what other nodes change. A change that is not heard is seen at the next heartbeat.
pub(super) async fn follow(shared: Arc<Shared>) {
    loop {
        let heard = tokio::select! {
            heard = shared.store.changed_elsewhere() => heard,
            () = shared.stopping.cancelled() => return,
        };
        let read = match heard {
            Ok(()) => read_keys(&shared).await,
            Err(error) => Err(error),
        };
        if let Err(error) = read {
            tracing::debug!(error = &error as &dyn std::error::Error, "changes by other nodes are not heard");
            pause(LOOK).await;
        }
    }
}

/// The others have taken over: what waits here is theirs now. A new incarnation begins with nothing.
async fn rejoin(shared: &Arc<Shared>) -> Result<()> {
    let node = ids::incarnation();
    let dropped = shared.dispatcher.withdraw_all();
    shared.store.register(node, &shared.settings.node_name).await?;
    shared.set_node(node);
    shared.renewed();
    // A step that was under way may still have leased something to the old incarnation.
    shared.doubt_leases();
    tracing::warn!(
        deliveries = dropped.len(),
        "this node was silent for too long; others have taken over its deliveries, and it begins anew"
    );
    Ok(())
}

async fn look(shared: &Shared) -> Result<()> {
    if !shared.leases_hold() {
        return Ok(());
    }
    let dead = shared.store.take_over(NODE_TTL).await?;
    if dead > 0 {
        tracing::warn!(nodes = dead, "took over the deliveries of silent nodes");
        shared.refill.note_due(shared.clock.now());
    }
    Ok(())
}

/// Frees what the store has leased to this node and this node does not know of.
async fn reconcile(shared: &Shared) {
    if !shared.unsure.swap(false, Ordering::AcqRel) {
        return;
    }
    let (live, last) = shared.dispatcher.live_leases();
    match shared.store.reconcile(shared.node(), &live, last).await {
        Ok(0) => {}
        Ok(freed) => {
            tracing::info!(deliveries = freed, "freed deliveries whose lease had got lost");
            shared.refill.note_due(shared.clock.now());
        }
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "comparing the leases failed");
            shared.unsure.store(true, Ordering::Release);
        }
    }
}
