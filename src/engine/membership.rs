//! Being one of several nodes: the heartbeat, taking over what silent nodes hold, and comparing what the store has leased
//! to this node with what it holds.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::{HEARTBEAT, NODE_TTL, Shared, cancelling, ids, millis, recent};
use crate::clock::{Jumps, pause};
use crate::store::Result;

/// How often silent nodes are looked for, which with the time to live and the sweep is well below 20 s; and what others have
/// changed without its being heard.
const LOOK: Duration = Duration::from_millis(2500);
/// How often the clock is looked at.
const CLOCK_LOOK: Duration = Duration::from_secs(1);
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
            biased;
            () = shared.stopping.cancelled() => return,
            () = pause(HEARTBEAT) => {}
        }
    }
}

async fn beat_once(shared: &Arc<Shared>) -> Result<()> {
    let asked = shared.clock.since_boot();
    match shared.store.heartbeat(shared.node()).await? {
        Some(now) => {
            shared.clock.observe(now, shared.clock.since_boot().saturating_sub(asked));
            shared.renewed(millis(asked));
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
            biased;
            () = shared.stopping.cancelled() => return,
            () = pause(if shared.store.is_shared() || shared.is_unsure() { LOOK } else { RECONCILE }) => {}
            // Many doubts at once are settled by one look.
            () = async { shared.reconcile.notified().await; pause(SETTLE).await } => {}
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
            shared.note_due(shared.clock.now());
            shared.gates.look_at_all();
            shared.schedules.notify_one();
        }
        tokio::select! {
            biased;
            () = shared.stopping.cancelled() => return,
            () = pause(CLOCK_LOOK) => {}
        }
    }
}

/// Another node may have rotated the keys.
async fn read_keys(shared: &Shared) -> Result<()> {
    let fresh = super::keys::fresh_pair(&shared.chance);
    let stored = shared.store.signing_keys(&fresh, shared.clock.now());
    shared.keys.follow(async { Ok(stored.await?.pair) }).await?;
    Ok(())
}

/// Follows what other nodes change, and the database to where it moves. A word of it may get lost, with the connection
/// that listens or otherwise, so this node looks every [`LOOK`] as well; for keys [`look`] does.
pub(super) async fn follow(shared: Arc<Shared>) {
    let mut moves = shared.store.moves();
    while shared.store.is_shared() {
        // Asked again and again, and not anew: nothing must be missed during a look.
        let mut heard = std::pin::pin!(shared.store.changed_elsewhere());
        let result = loop {
            tokio::select! {
                biased;
                () = shared.stopping.cancelled() => return,
                heard = heard.as_mut() => break heard,
                () = pause(LOOK) => look_for_cancels(&shared).await,
            }
        };
        if std::mem::replace(&mut moves, shared.store.moves()) != moves {
            recent::store_again(&shared).await;
            // What else is missing there may have freed leases that are ours again.
            shared.doubt_leases();
        }
        let result = match result {
            Ok(()) => read_keys(&shared).await,
            Err(error) => {
                pause(LOOK).await;
                Err(error)
            }
        };
        look_for_cancels(&shared).await;
        if let Err(error) = result {
            tracing::debug!(error = &error as &dyn std::error::Error, "changes by other nodes are not heard");
        }
    }
}

async fn look_for_cancels(shared: &Arc<Shared>) {
    if let Err(error) = cancelling::withdraw_cancelled(shared).await {
        tracing::debug!(error = &error as &dyn std::error::Error, "looking for cancelled messages failed");
    }
}

/// The others have taken over: what is here is theirs now. A new incarnation begins with nothing; what steps under way
/// still lease in the old one's name is fenced off, and freed by reconciling.
async fn rejoin(shared: &Arc<Shared>) -> Result<()> {
    let node = ids::incarnation(&shared.chance);
    let asked_ms = shared.boot_ms();
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
