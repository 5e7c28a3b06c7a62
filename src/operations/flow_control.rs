//! Flow-control keys.

use super::{OperationError, Operations, Result};
use crate::domain::gate::FlowChange;
use crate::domain::id::is_path_step;
use crate::domain::time::Timestamp;
use crate::store::Page;
use crate::store::gates::FlowKey;

impl Operations {
    /// Keys after that one that contain a text, in the order of the keys, at most `count`; and when they were like this.
    pub async fn flow_keys(
        &self,
        containing: &str,
        after: Option<&str>,
        count: usize,
    ) -> Result<(Page<FlowKey>, Timestamp)> {
        let now = self.now();
        Ok((self.store().flow_keys(containing, after, count, now).await?, now))
    }

    /// A key, and when it was like this.
    pub async fn flow_key(&self, key: &str) -> Result<(FlowKey, Timestamp)> {
        self.check_key(key)?;
        let now = self.now();
        let found = self.store().flow_key(key, now).await?;
        Ok((found.ok_or_else(|| unknown(key))?, now))
    }

    /// Changes a key; some changes make it when it is missing.
    pub async fn change_flow_key(&self, key: &str, change: &FlowChange) -> Result<()> {
        self.check_key(key)?;
        // A key that has such a name from before can still be resumed, but none is made.
        if is_path_step(key) && matches!(change, FlowChange::Pause | FlowChange::Pin(_)) {
            return Err(OperationError::invalid(format!(
                "the flow-control key {key:?} can't be used: clients and proxies resolve it as a step of a path"
            )));
        }
        if !self.store().change_flow_key(key, change, self.now()).await? {
            return Err(unknown(key));
        }
        // Queues may wait for it too.
        self.engine.gates_changed();
        Ok(())
    }

    fn check_key(&self, key: &str) -> Result<()> {
        let max = self.settings.max_flow_control_key;
        if key.is_empty() {
            Err(OperationError::invalid("a flow-control key must be given"))
        } else if key.len() > max {
            Err(OperationError::invalid(format!("the flow-control key is longer than {max} bytes")))
        } else if key.contains(|c: char| c.is_control() && c != '\t') {
            Err(OperationError::invalid("the flow-control key contains a control character"))
        } else {
            Ok(())
        }
    }
}

fn unknown(key: &str) -> OperationError {
    OperationError::not_found("flow-control key", key)
}
