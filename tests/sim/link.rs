//! The line between a node and the store: time, and faults for a while.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use homing::clock::pause;
use homing::store::model::{Fate, Link};
use homing::store::{Result, StoreError};

use crate::dice::Dice;
use crate::history::{History, Life, What};

/// How the store treats a node's calls, in percent of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Storm {
    /// Calls that fail without effect.
    pub(crate) refuse: u64,
    /// Calls that take effect, and whose answer is lost.
    pub(crate) lose: u64,
    /// Calls that fail, and take effect later.
    pub(crate) late: u64,
    /// The longest that a call takes each way.
    pub(crate) slow: Duration,
}

/// The longest that a step may take effect after its caller has given up: the database's own limits end it then.
const LATEST: Duration = Duration::from_secs(9);
/// How long a caller waits for an answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// The link of one start of a node.
pub(crate) struct Line {
    pub(crate) life: Life,
    /// The longest that a call takes each way when all is well.
    pub(crate) latency: Duration,
    /// The store's mood towards this node, which outlives its starts.
    pub(crate) storm: Arc<Mutex<Option<Storm>>>,
    pub(crate) dice: Dice,
    pub(crate) history: History,
}

impl Line {
    async fn take_time(&self, longest: Duration) {
        if !longest.is_zero() {
            let time = self.dice.up_to(longest);
            if !time.is_zero() {
                pause(time).await;
            }
        }
    }

    fn fault(&self, call: &'static str, fate: &'static str) {
        self.history.note(What::Fault { life: self.life, call, fate });
    }

    fn error(&self) -> StoreError {
        if self.dice.percent(20) {
            StoreError::Deadline(DEADLINE)
        } else {
            StoreError::Unavailable("the connection has ended".into())
        }
    }
}

#[async_trait]
impl Link for Line {
    async fn before(&self, call: &'static str) -> Fate {
        let storm = *self.storm.lock().unwrap();
        let Some(storm) = storm else {
            self.take_time(self.latency).await;
            return Fate::Now;
        };
        self.take_time(storm.slow).await;
        let drawn = self.dice.below(100);
        if drawn < storm.refuse {
            self.fault(call, "refused");
            Fate::Refused(self.error())
        } else if drawn < storm.refuse + storm.late {
            self.fault(call, "given up");
            Fate::Late(self.error())
        } else {
            Fate::Now
        }
    }

    async fn after(&self, call: &'static str) -> Result<()> {
        let storm = *self.storm.lock().unwrap();
        let Some(storm) = storm else {
            self.take_time(self.latency).await;
            return Ok(());
        };
        self.take_time(storm.slow).await;
        if self.dice.percent(storm.lose) {
            self.fault(call, "answer lost");
            return Err(self.error());
        }
        Ok(())
    }

    fn late(&self, call: &'static str, step: Box<dyn FnOnce() + Send>) {
        let (history, time) = (self.history.clone(), self.dice.up_to(LATEST));
        tokio::spawn(async move {
            pause(time).await;
            history.note(What::Late { call });
            step();
        });
    }
}
