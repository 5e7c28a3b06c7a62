//! The events of a run, in order.

use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use homing::domain::id::MessageId;
use homing::store::{Accepted, Cancellation};
use tokio::time::Instant;

/// Which start of which node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Life {
    pub(crate) node: usize,
    pub(crate) start: usize,
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    Status(u16),
    /// The connection was refused.
    Refused,
    /// The node gave it up, or ended.
    Dropped,
}

/// One thing that happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum What {
    Started(Life),
    Crashed(Life),
    Suspended(Life),
    Resumed(Life),
    Stopping(Life),
    Stopped(Life),
    /// The store of a node begins to misbehave, or ends to.
    Storm {
        node: usize,
        text: String,
    },
    Calm {
        node: usize,
    },
    /// A call did not go well.
    Fault {
        life: Life,
        call: &'static str,
        fate: &'static str,
    },
    Late {
        call: &'static str,
    },
    /// A client calls; `ids` are what it is about.
    Asked {
        op: usize,
        life: Life,
        text: String,
    },
    Publishing {
        op: usize,
        life: Life,
        ids: Vec<MessageId>,
    },
    /// `None`: the client doesn't know what became of it.
    Published {
        op: usize,
        answers: Option<Vec<Accepted>>,
    },
    Cancelling {
        op: usize,
        life: Life,
        ids: Vec<MessageId>,
    },
    Cancelled {
        op: usize,
        answer: Option<Cancellation>,
    },
    /// A call that cancels many; how many it says.
    CancelledMany {
        op: usize,
        count: Option<usize>,
    },
    Answered {
        op: usize,
        text: String,
    },
    Arrived {
        request: usize,
        life: Life,
        id: MessageId,
        retried: u32,
    },
    Ended {
        request: usize,
        answer: Answer,
    },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Event {
    /// Since the run's start.
    pub(crate) at: Duration,
    pub(crate) what: What,
}

/// The events of a run. Clones are one history.
#[derive(Clone)]
pub(crate) struct History {
    start: Instant,
    events: Arc<Mutex<Vec<Event>>>,
}

impl History {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), events: Arc::default() }
    }

    pub(crate) fn note(&self, what: What) {
        self.events.lock().unwrap().push(Event { at: self.start.elapsed(), what });
    }

    /// Notes the arrival of a request; its number.
    pub(crate) fn arrived(&self, life: Life, id: MessageId, retried: u32) -> usize {
        let mut events = self.events.lock().unwrap();
        let request = events.len();
        events.push(Event { at: self.start.elapsed(), what: What::Arrived { request, life, id, retried } });
        request
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = char::from(b'A' + u8::try_from(self.node).unwrap_or(25));
        write!(f, "{name}{}", self.start)
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9.3} s  ", self.at.as_secs_f64())?;
        match &self.what {
            What::Started(life) => write!(f, "{life} has started"),
            What::Crashed(life) => write!(f, "{life} crashes"),
            What::Suspended(life) => write!(f, "{life} is suspended"),
            What::Resumed(life) => write!(f, "{life} goes on"),
            What::Stopping(life) => write!(f, "{life} is told to stop"),
            What::Stopped(life) => write!(f, "{life} has stopped"),
            What::Storm { node, text } => write!(f, "the store of node {node}: {text}"),
            What::Calm { node } => write!(f, "the store of node {node} is well again"),
            What::Fault { life, call, fate } => write!(f, "{life}'s call {call}: {fate}"),
            What::Late { call } => write!(f, "a late {call} takes effect"),
            What::Asked { op, life, text } => write!(f, "#{op} {life} is asked: {text}"),
            What::Publishing { op, life, ids } => write!(f, "#{op} {life} is to publish {}", names(ids)),
            What::Published { op, answers: None } => write!(f, "#{op} no answer to the publish"),
            What::Published { op, answers: Some(answers) } => write!(f, "#{op} published: {answers:?}"),
            What::Cancelling { op, life, ids } => write!(f, "#{op} {life} is to cancel {}", names(ids)),
            What::Cancelled { op, answer } => write!(f, "#{op} cancel: {answer:?}"),
            What::CancelledMany { op, count } => write!(f, "#{op} cancelled: {count:?}"),
            What::Answered { op, text } => write!(f, "#{op} answer: {text}"),
            What::Arrived { request, life, id, retried } => {
                write!(f, "request {request} of {life}: {id}, attempt {retried}")
            }
            What::Ended { request, answer } => write!(f, "request {request} ends: {answer:?}"),
        }
    }
}

fn names(ids: &[MessageId]) -> String {
    ids.iter().map(MessageId::as_str).collect::<Vec<_>>().join(" ")
}

/// The part of a history that is about some messages, and what happened to nodes and store meanwhile; of no message in
/// particular, all of it.
pub(crate) fn story(events: &[Event], about: &[MessageId]) -> String {
    let mut requests = Vec::new();
    let mut ops = Vec::new();
    let mut text = String::new();
    let known = |ids: &[MessageId]| ids.iter().any(|id| about.contains(id));
    for event in events {
        let tells = about.is_empty()
            || match &event.what {
                What::Publishing { op, ids, .. } | What::Cancelling { op, ids, .. } => {
                    let tells = known(ids);
                    ops.extend(tells.then_some(*op));
                    tells
                }
                What::Published { op, .. } | What::Cancelled { op, .. } => ops.contains(op),
                What::Arrived { request, id, .. } => {
                    let tells = about.contains(id);
                    requests.extend(tells.then_some(*request));
                    tells
                }
                What::Ended { request, .. } => requests.contains(request),
                _ => true,
            };
        if tells {
            writeln!(text, "{event}").unwrap();
        }
    }
    text
}
