//! Why a message waits: each reason by itself, typed and in words.

use std::fmt;

use super::{OperationError, Operations, Result};
use crate::domain::gate::{Gate, Limits, Refusal, Starts, bare_name, is_queue};
use crate::domain::id::MessageId;
use crate::domain::time::Timestamp;
use crate::store::gates::FlowKey;
use crate::store::situation::{Ahead, Holder, Situation};
use crate::store::{LogEntry, LogFilter, Order, Owner, State};

/// Bytes of the last response that may be read for its status.
const ONE_ENTRY: usize = 1;

/// Where a message stands, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explanation {
    pub id: MessageId,
    /// When this was so.
    pub now: Timestamp,
    pub phase: Phase,
    /// When the next attempt is due; `None`: there is none to come.
    pub due_at: Option<Timestamp>,
    /// Everything that holds it up at this moment; empty if it is finished.
    pub reasons: Vec<Reason>,
}

/// How far a message is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    Waiting,
    /// A node has it.
    InFlight,
    /// Ended, in this state.
    Finished(State),
}

/// Why a message waits, or what is happening to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reason {
    /// The publisher wants it sent later.
    Delayed {
        until: Timestamp,
    },
    /// An attempt has failed, and the next one is due later.
    Backoff {
        until: Timestamp,
    },
    /// Attempts have failed: this many. The last one came to `status`, or to none, with this error.
    Retried {
        attempts: u32,
        status: Option<u16>,
        error: Option<String>,
    },
    /// A user has cancelled it, and the attempt in flight has not ended.
    CancelRequested,
    /// This node makes an attempt, or stores its outcome.
    Attempted,
    /// Another node has it: it makes an attempt, or will as soon as it has room. `node`: its name, if it is registered.
    ElsewhereHeld {
        node: Option<String>,
    },
    /// This node has it in memory, and as many attempts run as may, to its destination or of all.
    NoRoom {
        running: usize,
        most: usize,
    },
    /// Nothing holds it up: a node takes it as soon as the node has room.
    Due {
        since: Timestamp,
    },
    QueuePaused {
        queue: String,
    },
    /// The queue's parallelism is used up: by these messages, among others.
    QueueFull {
        queue: String,
        parallelism: u32,
        holders: Vec<MessageId>,
    },
    /// Others come before it in its queue; `first` is the first of them.
    Behind {
        queue: String,
        messages: usize,
        first: MessageId,
    },
    KeyPaused {
        key: String,
    },
    /// The key's parallelism is used up.
    KeyFull {
        key: String,
        parallelism: u32,
    },
    /// The key's rate is used up.
    KeyRate {
        key: String,
        rate: u32,
        period_s: u32,
        until: Timestamp,
    },
}

impl Operations {
    /// Explains why a message waits at this moment, or how it ended.
    pub async fn explain(&self, id: &MessageId) -> Result<Explanation> {
        let Some(situation) = self.store().situation(id).await? else {
            return self.explain_finished(id).await;
        };
        let mut reasons = Vec::new();
        if situation.cancel_requested {
            reasons.push(Reason::CancelRequested);
        }
        if situation.retried > 0 {
            reasons.push(self.explain_retry(id, situation.retried).await?);
        }
        let phase = if let Some(holder) = &situation.holder {
            reasons.push(self.explain_held(id, holder));
            Phase::InFlight
        } else {
            self.explain_waiting(&situation, &mut reasons).await?;
            Phase::Waiting
        };
        let due_at = Some(situation.due_at);
        Ok(Explanation { id: id.clone(), now: situation.now, phase, due_at, reasons })
    }

    async fn explain_finished(&self, id: &MessageId) -> Result<Explanation> {
        let ends = vec![State::Delivered, State::Failed, State::Cancelled];
        let Some(end) = self.last_entry(id, ends).await? else {
            return Err(OperationError::not_found("message", id.as_str()));
        };
        let phase = Phase::Finished(end.state);
        Ok(Explanation { id: id.clone(), now: self.now(), phase, due_at: None, reasons: Vec::new() })
    }

    async fn explain_retry(&self, id: &MessageId, attempts: u32) -> Result<Reason> {
        let last = self.last_entry(id, vec![State::Error]).await?;
        let status = last.as_ref().and_then(|entry| entry.response.as_ref()).map(|response| response.status);
        Ok(Reason::Retried { attempts, status, error: last.and_then(|entry| entry.error) })
    }

    async fn last_entry(&self, id: &MessageId, states: Vec<State>) -> Result<Option<LogEntry>> {
        let messages = vec![id.clone()];
        let filter = LogFilter { owner: Owner::Any, messages, states, ..LogFilter::default() };
        let page = self.store().log(&filter, Order::LatestFirst, None, 1, ONE_ENTRY).await?;
        Ok(page.items.into_iter().next())
    }

    fn explain_held(&self, id: &MessageId, holder: &Holder) -> Reason {
        if !self.engine.is_node(holder.node) {
            return Reason::ElsewhereHeld { node: holder.name.clone() };
        }
        if self.engine.waits_for_room(id) {
            let (running, most) = self.engine.parallelism();
            return Reason::NoRoom { running, most };
        }
        Reason::Attempted
    }

    async fn explain_waiting(&self, situation: &Situation, reasons: &mut Vec<Reason>) -> Result<()> {
        let (due_at, now) = (situation.due_at, situation.now);
        let before = reasons.len();
        if due_at > now {
            reasons.push(match situation.retried {
                0 => Reason::Delayed { until: due_at },
                _ => Reason::Backoff { until: due_at },
            });
        }
        if let Some(gate) = situation.gate.as_deref().filter(|gate| is_queue(gate)) {
            let queue = self.store().queue(bare_name(gate)).await?;
            let settings = queue.map(|queue| (queue.parallelism, queue.paused));
            queue_reasons(bare_name(gate), settings, situation, reasons);
        }
        if let Some(gate) = &situation.flow
            && let Some(key) = self.store().flow_key(bare_name(gate), now).await?
        {
            reasons.extend(key_reason(&key, now));
        }
        if reasons.len() == before {
            reasons.push(Reason::Due { since: due_at });
        }
        Ok(())
    }
}

/// Adds what holds a message up in its queue of this parallelism, paused or not.
fn queue_reasons(
    queue: &str,
    settings: Option<(u32, bool)>,
    Situation { now, due_at, ahead, .. }: &Situation,
    reasons: &mut Vec<Reason>,
) {
    let Some((parallelism, paused)) = settings else { return };
    let queue = || queue.to_owned();
    // One that keeps a slot has its turn.
    let Ahead { waiting, first, holders } =
        ahead.clone().unwrap_or(Ahead { waiting: 0, first: None, holders: Vec::new() });
    let gate = Gate {
        limits: Limits { parallelism: Some(parallelism), rate: None },
        paused,
        in_use: u32::try_from(holders.len()).unwrap_or(u32::MAX),
        starts: Starts::default(),
        passed: 0,
    };
    match gate.refusal(*now) {
        Some(Refusal::Paused) => reasons.push(Reason::QueuePaused { queue: queue() }),
        Some(Refusal::Full) => reasons.push(Reason::QueueFull { queue: queue(), parallelism, holders }),
        Some(Refusal::Rate(_)) | None => {}
    }
    if let Some(first) = first.filter(|_| due_at <= now) {
        reasons.push(Reason::Behind { queue: queue(), messages: waiting, first });
    }
}

/// The reason why a flow-control key lets nothing through.
fn key_reason(FlowKey { key, control, starts, in_flight, .. }: &FlowKey, now: Timestamp) -> Option<Reason> {
    let gate = Gate {
        limits: control.limits,
        paused: control.paused,
        in_use: u32::try_from(*in_flight).unwrap_or(u32::MAX),
        starts: starts.clone(),
        passed: 0,
    };
    let key = key.clone();
    match gate.refusal(now)? {
        Refusal::Paused => Some(Reason::KeyPaused { key }),
        Refusal::Full => Some(Reason::KeyFull { key, parallelism: control.limits.parallelism? }),
        Refusal::Rate(until) => {
            let rate = control.limits.rate?;
            Some(Reason::KeyRate { key, rate: rate.count, period_s: rate.period_s, until })
        }
    }
}

/// A time in words.
struct At(Timestamp);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0.as_millis()) {
            Ok(time) => write!(f, "{time:.3}"),
            Err(_) => write!(f, "{} ms after 1970", self.0.as_millis()),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delayed { until } => write!(f, "it is delayed until {}", At(*until)),
            Self::Backoff { until } => write!(f, "the next attempt is due at {}", At(*until)),
            Self::Retried { attempts, status, error } => {
                write!(f, "{attempts} attempts have failed, the last one ")?;
                match (status, error) {
                    (Some(status), _) => write!(f, "with status {status}"),
                    (None, Some(error)) => write!(f, "without a response: {error}"),
                    (None, None) => f.write_str("without a response"),
                }
            }
            Self::CancelRequested => f.write_str("it is cancelled as soon as the attempt in flight ends"),
            Self::Attempted => f.write_str("an attempt is in flight on this node"),
            Self::ElsewhereHeld { node: Some(node) } => write!(f, "the node {node} has it"),
            Self::ElsewhereHeld { node: None } => f.write_str("a node that is gone had it; it will be freed"),
            Self::NoRoom { running, most } => write!(
                f,
                "this node has it, and waits for an attempt to end: {running} of at most {most} run, or its destination \
                 has as many as it may"
            ),
            Self::Due { since } => {
                write!(f, "it is due since {}, and a node takes it as soon as it has room", At(*since))
            }
            Self::QueuePaused { queue } => write!(f, "the queue {queue} is paused"),
            Self::QueueFull { queue, parallelism, .. } => {
                write!(f, "the queue {queue} works on {parallelism} at once, and does")
            }
            Self::Behind { queue, messages, .. } => {
                write!(f, "{messages} come before it in the queue {queue}")
            }
            Self::KeyPaused { key } => write!(f, "the flow-control key {key} is paused"),
            Self::KeyFull { key, parallelism } => {
                write!(
                    f,
                    "under the flow-control key {key}, {parallelism} attempts are in flight, the most that may be"
                )
            }
            Self::KeyRate { key, rate, period_s, until } => write!(
                f,
                "the rate of the flow-control key {key}, {rate} in {period_s} s, is used up until {}",
                At(*until)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::gate::{Control, Rate};

    const NOW: Timestamp = Timestamp::from_millis(1_760_000_000_000);

    fn situation(ahead: Option<Ahead>) -> Situation {
        Situation {
            now: NOW,
            due_at: NOW,
            retried: 0,
            cancel_requested: false,
            holder: None,
            gate: Some("q:orders".into()),
            flow: None,
            has_slot: ahead.is_none(),
            ahead,
        }
    }

    fn ahead(waiting: usize, holders: usize) -> Ahead {
        let id = |number: usize| MessageId::new(format!("msg_{number}"));
        let holders = (0..holders).map(id).collect();
        Ahead { waiting, first: (waiting > 0).then(|| id(9)), holders }
    }

    #[track_caller]
    fn check_queue(parallelism: u32, paused: bool, ahead: Option<Ahead>, expected: &[&str]) {
        let mut reasons = Vec::new();
        queue_reasons("orders", Some((parallelism, paused)), &situation(ahead), &mut reasons);
        let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
        assert_eq!(reasons, expected);
    }

    #[test]
    fn what_holds_up_in_a_queue() {
        check_queue(1, false, Some(ahead(0, 0)), &[]);
        check_queue(2, false, Some(ahead(0, 1)), &[]);
        check_queue(2, false, Some(ahead(0, 2)), &["the queue orders works on 2 at once, and does"]);
        check_queue(
            1,
            false,
            Some(ahead(3, 1)),
            &["the queue orders works on 1 at once, and does", "3 come before it in the queue orders"],
        );
        check_queue(1, true, Some(ahead(0, 1)), &["the queue orders is paused"]);
        // It keeps its slot between its attempts.
        check_queue(1, false, None, &[]);
        check_queue(1, true, None, &["the queue orders is paused"]);
    }

    #[test]
    fn what_holds_up_at_a_key() {
        let rate = Rate { count: 1, period_s: 60 };
        let mut key = FlowKey {
            key: "k".to_owned(),
            control: Control {
                limits: Limits { parallelism: Some(2), rate: Some(rate) },
                ..Control::default()
            },
            starts: Starts::default(),
            waiting: 1,
            in_flight: 1,
        };
        assert_eq!(key_reason(&key, NOW), None);
        key.starts.add(rate, 1, NOW, Duration::ZERO);
        let Some(Reason::KeyRate { until, .. }) = key_reason(&key, NOW) else { panic!("no rate") };
        assert!(until >= NOW.after(Duration::from_mins(1)), "{until:?}");
        key.in_flight = 2;
        assert_eq!(key_reason(&key, NOW), Some(Reason::KeyFull { key: "k".to_owned(), parallelism: 2 }));
        key.control.paused = true;
        assert_eq!(key_reason(&key, NOW), Some(Reason::KeyPaused { key: "k".to_owned() }));
    }

    #[test]
    fn reasons_in_words() {
        let until = NOW.after(Duration::from_millis(1500));
        assert_eq!(Reason::Delayed { until }.to_string(), "it is delayed until 2025-10-09T08:53:21.500Z");
        let retried = |status, error: Option<&str>| {
            Reason::Retried { attempts: 2, status, error: error.map(str::to_owned) }.to_string()
        };
        assert_eq!(retried(Some(503), Some("x")), "2 attempts have failed, the last one with status 503");
        assert_eq!(retried(None, Some("x")), "2 attempts have failed, the last one without a response: x");
    }
}
