//! Where an unfinished message stands.

use std::sync::Arc;

use async_trait::async_trait;

use super::query::Query;
use super::{Backend, DEADLINE, SqlStore, within};
use crate::domain::id::MessageId;
use crate::domain::time::Timestamp;
use crate::store::situation::{AHEAD, Ahead, Holder, Situation, Situations};
use crate::store::{NodeId, Nodes as _, Result};

#[derive(sqlx::FromRow)]
struct Row {
    due_at: i64,
    retried: i64,
    cancel_requested: bool,
    node: i64,
    node_name: Option<String>,
    gate: Option<String>,
    flow: Option<String>,
    place: Option<i64>,
    slot: Option<String>,
}

#[async_trait]
impl Situations for SqlStore {
    async fn situation(&self, id: &MessageId) -> Result<Option<Situation>> {
        within(DEADLINE, async {
            let now = self.now().await?;
            let pools = self.readers();
            let mut query = Query::new(&pools);
            query
                .sql(
                    "SELECT d.due_at, d.retried, d.cancel_requested_at IS NOT NULL AS cancel_requested, d.node, \
                         n.name AS node_name, d.gate, d.flow, d.place, d.slot \
                     FROM deliveries d LEFT JOIN nodes n ON n.incarnation = d.node WHERE d.message_id = ",
                )
                .text(id.as_str());
            let Some(row) = query.fetch::<Row>(&pools).await?.pop() else { return Ok(None) };
            let has_slot = row.slot.is_some() && row.slot == row.gate;
            let ahead = match (&row.gate, row.place) {
                (Some(gate), Some(place)) if row.node == 0 && !has_slot => {
                    Some(self.ahead(id, gate, place).await?)
                }
                _ => None,
            };
            Ok(Some(Situation {
                now,
                due_at: Timestamp::from_millis(row.due_at),
                retried: u32::try_from(row.retried).unwrap_or(u32::MAX),
                cancel_requested: row.cancel_requested,
                holder: (row.node != 0).then_some(Holder { node: NodeId(row.node), name: row.node_name }),
                gate: row.gate.map(Arc::from),
                flow: row.flow.map(Arc::from),
                has_slot,
                ahead,
            }))
        })
        .await
    }
}

impl SqlStore {
    async fn ahead(&self, id: &MessageId, gate: &str, place: i64) -> Result<Ahead> {
        let limit = i64::try_from(AHEAD).unwrap_or(i64::MAX);
        let pools: Backend<_, _> = self.readers();
        let mut query = Query::new(&pools);
        query
            .sql("SELECT message_id FROM deliveries WHERE node = 0 AND gate = ")
            .text(gate)
            .sql(" AND (slot IS NULL OR slot <> gate) AND (place < ")
            .number(place)
            .sql(" OR place = ")
            .number(place)
            .sql(" AND message_id < ")
            .text(id.as_str())
            .sql(") ORDER BY place, message_id LIMIT ")
            .number(limit);
        let waiting: Vec<(String,)> = query.fetch(&pools).await?;
        let mut query = Query::new(&pools);
        query
            .sql("SELECT holder FROM deliveries WHERE holder IS NOT NULL AND slot = ")
            .text(gate)
            .sql(" GROUP BY holder ORDER BY holder LIMIT ")
            .number(limit);
        let holders: Vec<(String,)> = query.fetch(&pools).await?;
        Ok(Ahead {
            waiting: waiting.len(),
            first: waiting.into_iter().next().map(|(id,)| MessageId::new(id)),
            holders: holders.into_iter().map(|(id,)| MessageId::new(id)).collect(),
        })
    }
}
