//! The model's nodes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;

use super::{Model, Processes};
use crate::domain::time::Timestamp;
use crate::store::{Lease, NodeId, Nodes, Result};

#[async_trait]
impl Nodes for Model {
    fn is_shared(&self) -> bool {
        self.processes == Processes::Several
    }

    async fn now(&self) -> Result<Timestamp> {
        self.read("now", |state| Ok(state.tick())).await
    }

    async fn register(&self, node: NodeId, name: &str) -> Result<()> {
        let (name, processes) = (name.to_owned(), self.processes);
        self.write("register", move |state| {
            let now = state.tick();
            state.end_nodes(|_, (other, _)| processes == Processes::One || *other == name);
            state.nodes.insert(node.0, (name, now));
            state.free_orphans();
            state.wake_gates();
            Ok(())
        })
        .await
    }

    async fn rejoin(&self, node: NodeId, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.write("rejoin", move |state| {
            let now = state.tick();
            state.nodes.insert(node.0, (name, now));
            Ok(())
        })
        .await
    }

    async fn heartbeat(&self, node: NodeId) -> Result<Option<Timestamp>> {
        let processes = self.processes;
        self.write("heartbeat", move |state| {
            let now = state.tick();
            if processes == Processes::One {
                return Ok(Some(now));
            }
            Ok(state.nodes.get_mut(&node.0).map(|(_, heartbeat_at)| {
                *heartbeat_at = now;
                now
            }))
        })
        .await
    }

    async fn take_over(&self, ttl: Duration) -> Result<u64> {
        let processes = self.processes;
        self.write("take_over", move |state| {
            if processes == Processes::One {
                return Ok(0);
            }
            let stale = state.tick().before(ttl);
            let dead = state.end_nodes(|_, (_, heartbeat_at)| *heartbeat_at < stale);
            state.free(|node, _| dead.contains(&node.0));
            if !dead.is_empty() {
                state.wake_gates();
            }
            Ok(dead.len() as u64)
        })
        .await
    }

    async fn count_nodes(&self) -> Result<u64> {
        self.read("count_nodes", |state| match self.processes {
            Processes::One => Ok(1),
            Processes::Several => Ok(state.nodes.len() as u64),
        })
        .await
    }

    async fn deregister(&self, node: NodeId) -> Result<()> {
        self.write("deregister", move |state| {
            state.free(|holder, _| holder == node);
            state.end_nodes(|other, _| other == node.0);
            state.wake_gates();
            Ok(())
        })
        .await
    }

    async fn reconcile(&self, node: NodeId, live: &[Lease], last: Lease) -> Result<u64> {
        let live = live.to_vec();
        self.write("reconcile", move |state| {
            let own = state.free(|holder, lease| holder == node && !live.contains(&lease) && lease <= last);
            // What this node holds is settled by `live`, whether it is registered or not.
            let mut registered: BTreeSet<i64> = state.nodes.keys().copied().collect();
            registered.insert(node.0);
            let freed = own + state.free(|holder, _| !registered.contains(&holder.0));
            if freed > 0 {
                state.wake_gates();
            }
            Ok(freed)
        })
        .await
    }

    async fn changed_elsewhere(&self) -> Result<()> {
        loop {
            let changed = self.changed.notified();
            let words = self.state().words;
            if self.heard.swap(words, Ordering::Relaxed) == words {
                changed.await;
            } else {
                return self.read("changed_elsewhere", |_| Ok(())).await;
            }
        }
    }

    async fn tell_others(&self) -> Result<()> {
        let changed = Arc::clone(&self.changed);
        self.write("tell_others", move |state| {
            state.words += 1;
            changed.notify_waiters();
            Ok(())
        })
        .await
    }
}
