//! The model's answer to where a message stands.

use std::collections::BTreeSet;

use crate::domain::id::MessageId;
use crate::store::Result;
use crate::store::situation::{AHEAD, Ahead, Holder, Situation, Situations};
use async_trait::async_trait;

use super::Model;

#[async_trait]
impl Situations for Model {
    async fn situation(&self, id: &MessageId) -> Result<Option<Situation>> {
        self.read("situation", |state| {
            let now = state.tick();
            let Some(delivery) = state.deliveries.get(id) else { return Ok(None) };
            let at = &delivery.at;
            let has_slot = at.slot.as_ref().is_some_and(|slot| Some(&slot.queue) == at.gate.as_ref());
            let ahead = at.gate.as_ref().filter(|_| delivery.holder.is_none() && !has_slot).map(|gate| {
                let waiting = state.waiting(gate, false);
                let before: Vec<_> = waiting.iter().take_while(|one| one.id != *id).take(AHEAD).collect();
                let slots = state.deliveries.values().filter_map(|other| other.at.slot.as_ref());
                let holders: BTreeSet<MessageId> =
                    slots.filter(|slot| slot.queue == *gate).map(|slot| slot.holder.clone()).collect();
                Ahead {
                    waiting: before.len(),
                    first: before.first().map(|one| one.id.clone()),
                    holders: holders.into_iter().take(AHEAD).collect(),
                }
            });
            Ok(Some(Situation {
                now,
                due_at: delivery.due_at,
                retried: delivery.retried,
                cancel_requested: delivery.cancel_requested,
                holder: delivery.holder.map(|(node, _)| Holder {
                    node,
                    name: state.nodes.get(&node.0).map(|(name, _)| name.clone()),
                }),
                gate: at.gate.clone(),
                flow: at.flow.clone(),
                has_slot,
                ahead,
            }))
        })
        .await
    }
}
