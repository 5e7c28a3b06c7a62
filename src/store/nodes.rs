//! The store's part in telling which nodes are alive, what time it is, and what has changed elsewhere.

use std::time::Duration;

use async_trait::async_trait;

use super::{Lease, NodeId, Result};
use crate::domain::time::Timestamp;

/// Nodes and what they hold. A call that frees deliveries makes their gates due in a second step, which the gates' own
/// recheck replaces when it is lost.
#[async_trait]
pub trait Nodes: Send + Sync {
    /// Whether several nodes may share it. One that isn't shared goes by this machine's clock, and nobody takes over.
    fn is_shared(&self) -> bool;

    /// Now, by the clock that decides what is due.
    async fn now(&self) -> Result<Timestamp>;

    /// Registers this process; an earlier incarnation of the same name loses its leases at once, and so does everybody
    /// who is not registered.
    async fn register(&self, node: NodeId, name: &str) -> Result<()>;
    /// Registers a new incarnation of a process whose last one was taken over; others of that name keep their leases.
    async fn rejoin(&self, node: NodeId, name: &str) -> Result<()>;
    /// Renews the registration and tells the time. `None`: others have taken over what this incarnation held.
    async fn heartbeat(&self, node: NodeId) -> Result<Option<Timestamp>>;
    /// Removes nodes whose heartbeat is older than `ttl`, and frees what they held. How many nodes that were.
    async fn take_over(&self, ttl: Duration) -> Result<u64>;
    /// How many nodes are registered.
    async fn count_nodes(&self) -> Result<u64>;
    /// Ends the registration and frees what it still holds.
    async fn deregister(&self, node: NodeId) -> Result<()>;
    /// Frees the node's leases up to the number `last` other than `live` ones, and those of nodes that are not registered
    /// (any more): one that was taken over may store leases in its old name until it notices. Later leases are none of
    /// its business: they are being taken at this moment. How many deliveries that were.
    async fn reconcile(&self, node: NodeId, live: &[Lease], last: Lease) -> Result<u64>;

    /// Waits until another node says that something all must know has changed, such as the signing keys, or may have said so
    /// unheard. Where there are no other nodes it waits for ever.
    async fn changed_elsewhere(&self) -> Result<()> {
        std::future::pending().await
    }
    /// Says so to the other nodes. Seldom: on Postgres it takes a lock that all who do it share.
    async fn tell_others(&self) -> Result<()> {
        Ok(())
    }

    /// How often it has become another database, by a failover: what the last steps have changed may be missing there.
    fn moves(&self) -> u64 {
        0
    }
    /// Whether another database follows it and may take its place.
    fn is_followed(&self) -> bool {
        false
    }
}
