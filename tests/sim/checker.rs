//! Holds the promises against what a run has come to: what clients were answered, what destinations saw, and what the
//! store has in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use homing::domain::gate::Path;
use homing::domain::id::MessageId;
use homing::domain::message::Message;
use homing::domain::outcome::{FailureClass, Next, Outcome as Came};
use homing::domain::time::Timestamp;
use homing::store::model::Story;
use homing::store::{Accepted, Cancellation};

use crate::history::{Answer, Event, Life, What, story};
use crate::plan::{LAST, ms};
use crate::run::{Outcome, START, queue_name};

/// How long a node may not know of a cancel that another one has answered.
const UNTOLD: Duration = ms(5_000);

/// How late an attempt may start that nothing holds up: another node may have to find it.
const LATE: Duration = ms(2_000);
/// How long all must have been well for that.
const WELL: Duration = Duration::from_secs(30);

/// A broken promise.
#[derive(Debug)]
pub(crate) struct Violation {
    pub(crate) what: String,
    /// The history of the messages that it is about.
    pub(crate) history: String,
}

/// A request as its destination saw it.
#[derive(Clone, Copy, Debug)]
struct Request<'a> {
    number: usize,
    id: &'a MessageId,
    retried: u32,
    life: Life,
    from: Duration,
    /// Until the run's end, if it never ended.
    to: Duration,
    answer: Answer,
}

struct Publish<'a> {
    asked: Duration,
    ids: &'a [MessageId],
    answered: Option<(Duration, &'a [Accepted])>,
}

struct Cancel<'a> {
    life: Life,
    asked: Duration,
    ids: &'a [MessageId],
    answered: Duration,
    /// `None`: of many.
    answer: Option<Cancellation>,
}

/// A broken promise in words, and the messages that it is about.
type Broken = (String, Vec<MessageId>);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    Storm,
    Suspended,
    Down,
}

/// Since when which node has which trouble.
type Troubles = BTreeMap<(usize, Trouble), Duration>;

fn begin(open: &mut Troubles, node: usize, trouble: Trouble, at: Duration) {
    open.entry((node, trouble)).or_insert(at);
}

struct Checker<'a> {
    run: &'a Outcome,
    stories: BTreeMap<&'a MessageId, &'a Story>,
    requests: Vec<Request<'a>>,
    by_message: BTreeMap<&'a MessageId, Vec<Request<'a>>>,
    publishes: Vec<Publish<'a>>,
    cancels: Vec<Cancel<'a>>,
    /// When each node's store was unwell, or the node was suspended or down.
    troubles: Vec<(usize, Duration, Duration)>,
}

/// The first promise that a run breaks.
pub(crate) fn check(run: &Outcome) -> Result<(), Violation> {
    Checker::new(run).check().map_err(|(what, about)| Violation { what, history: story(&run.events, &about) })
}

fn broken<T>(what: String, about: &[&MessageId]) -> Result<T, Broken> {
    Err((what, about.iter().copied().cloned().collect()))
}

fn since_start(time: Timestamp) -> Duration {
    time.since(START)
}

fn id(story: &Story) -> &MessageId {
    &story.message.id
}

/// When it ended in the store.
fn ended_at(story: &Story) -> Option<Duration> {
    story.ended_at.map(since_start)
}

impl<'a> Checker<'a> {
    fn new(run: &'a Outcome) -> Self {
        let mut checker = Self {
            run,
            stories: run.stories.iter().map(|story| (id(story), story)).collect(),
            requests: Vec::new(),
            by_message: BTreeMap::new(),
            publishes: Vec::new(),
            cancels: Vec::new(),
            troubles: Vec::new(),
        };
        checker.read();
        checker
    }

    /// Reads the history.
    fn read(&mut self) {
        let mut requests: BTreeMap<usize, Request<'a>> = BTreeMap::new();
        let mut publishes: BTreeMap<usize, Publish<'a>> = BTreeMap::new();
        let mut asked: BTreeMap<usize, (Life, Duration, &'a [MessageId])> = BTreeMap::new();
        let mut open: Troubles = BTreeMap::new();
        for Event { at, what } in &self.run.events {
            let at = *at;
            match what {
                What::Arrived { request, life, id, retried } => {
                    let request = Request {
                        number: *request,
                        id,
                        retried: *retried,
                        life: *life,
                        from: at,
                        to: Duration::MAX,
                        answer: Answer::Dropped,
                    };
                    requests.insert(request.number, request);
                }
                What::Ended { request, answer } => {
                    if let Some(request) = requests.get_mut(request) {
                        (request.to, request.answer) = (at, *answer);
                    }
                }
                What::Publishing { op, ids, .. } => {
                    publishes.insert(*op, Publish { asked: at, ids, answered: None });
                }
                What::Published { op, answers: Some(answers) } => {
                    if let Some(publish) = publishes.get_mut(op) {
                        publish.answered = Some((at, answers));
                    }
                }
                What::Cancelling { op, life, ids } => {
                    asked.insert(*op, (*life, at, ids));
                }
                What::Cancelled { op, answer: Some(answer) } => self.cancel(&asked, *op, at, Some(*answer)),
                What::CancelledMany { op, count: Some(_) } => self.cancel(&asked, *op, at, None),
                What::Suspended(life) => begin(&mut open, life.node, Trouble::Suspended, at),
                What::Storm { node, .. } => begin(&mut open, *node, Trouble::Storm, at),
                What::Stopping(life) => begin(&mut open, life.node, Trouble::Down, at),
                What::Crashed(life) => {
                    self.end(&mut open, life.node, Trouble::Suspended, at);
                    begin(&mut open, life.node, Trouble::Down, at);
                }
                What::Resumed(life) => self.end(&mut open, life.node, Trouble::Suspended, at),
                What::Calm { node } => self.end(&mut open, *node, Trouble::Storm, at),
                What::Started(life) => self.end(&mut open, life.node, Trouble::Down, at),
                _ => {}
            }
        }
        self.publishes = publishes.into_values().collect();
        self.requests = requests.into_values().collect();
        self.requests.sort_by_key(|request| (request.from, request.number));
        for request in &self.requests {
            self.by_message.entry(request.id).or_default().push(*request);
        }
    }

    fn cancel(
        &mut self,
        asked: &BTreeMap<usize, (Life, Duration, &'a [MessageId])>,
        op: usize,
        answered: Duration,
        answer: Option<Cancellation>,
    ) {
        if let Some(&(life, asked, ids)) = asked.get(&op) {
            self.cancels.push(Cancel { life, asked, ids, answered, answer });
        }
    }

    fn end(&mut self, open: &mut Troubles, node: usize, trouble: Trouble, at: Duration) {
        if let Some(from) = open.remove(&(node, trouble)) {
            self.troubles.push((node, from, at));
        }
    }

    fn check(&self) -> Result<(), Broken> {
        if let Some(leak) = self.run.leaks.first() {
            return broken(leak.clone(), &[]);
        }
        self.accepted_messages_are_there()?;
        for story in &self.run.stories {
            Self::ends_once(story)?;
            self.attempts_are_what_destinations_saw(story)?;
            self.callbacks_tell_each_outcome(story)?;
            Self::times_are_in_order(story)?;
        }
        self.requests_are_of_stored_messages()?;
        self.nothing_is_early()?;
        self.nothing_is_sent_twice_without_reason()?;
        self.cancelled_messages_are_not_attempted()?;
        self.queues_keep_order_and_parallelism()?;
        self.keys_keep_their_limits()?;
        self.schedules_fire_once()?;
        self.nothing_is_late()
    }

    fn accepted_messages_are_there(&self) -> Result<(), Broken> {
        for publish in &self.publishes {
            let Some((at, answers)) = publish.answered else { continue };
            for (id, answer) in publish.ids.iter().zip(answers) {
                match answer {
                    Accepted::Stored if !self.stories.contains_key(id) => {
                        return broken(format!("{id} was accepted at {at:?} and is lost"), &[id]);
                    }
                    Accepted::Duplicate(of) if !self.stories.contains_key(of) => {
                        return broken(format!("{id} is said to be {of}, which is not there"), &[id, of]);
                    }
                    Accepted::Duplicate(_) if self.stories.contains_key(id) => {
                        return broken(format!("{id} is stored, though it is a duplicate"), &[id]);
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn ends_once(story: &Story) -> Result<(), Broken> {
        if story.ended_at.is_none() {
            return broken(format!("{} has not ended after {LAST:?}", id(story)), &[id(story)]);
        }
        let is = |wanted: fn(&Next) -> bool| story.attempts.iter().filter(|(_, next)| wanted(next)).count();
        let delivered = is(|next| matches!(next, Next::Delivered));
        let failed = is(|next| matches!(next, Next::Failed { .. }));
        let cancelled = usize::from(story.cancelled_at.is_some());
        if delivered + failed + cancelled != 1 {
            let ends = format!("delivered {delivered}, failed {failed}, cancelled {cancelled} times");
            return broken(format!("{} has not one end: {ends}", id(story)), &[id(story)]);
        }
        let last = story.attempts.len().saturating_sub(1);
        for (number, (attempt, next)) in story.attempts.iter().enumerate() {
            let retried = usize::try_from(attempt.retried).unwrap();
            let goes_on = matches!(next, Next::Retry { .. });
            if retried != number || (number < last && !goes_on) {
                return broken(
                    format!("{}: attempt {retried} is its {number}th: {next:?}", id(story)),
                    &[id(story)],
                );
            }
            let is_final = match &attempt.outcome {
                Came::Response(response) => response.status == 489,
                Came::Unsendable { .. } => true,
                Came::NoResponse { .. } => false,
            };
            let may_fail = is_final || attempt.retried == story.message.max_retries;
            let fits = match next {
                Next::Failed { .. } => may_fail,
                Next::Retry { .. } => !may_fail,
                Next::Delivered | Next::Cancelled => true,
            };
            if !fits {
                return broken(format!("{}: attempt {retried} ended with {next:?}", id(story)), &[id(story)]);
            }
        }
        Ok(())
    }

    fn attempts_are_what_destinations_saw(&self, story: &Story) -> Result<(), Broken> {
        for (attempt, next) in &story.attempts {
            let wanted = match &attempt.outcome {
                Came::Response(response) => Answer::Status(response.status),
                Came::NoResponse { class: FailureClass::Connect, .. } => Answer::Refused,
                Came::NoResponse { class: FailureClass::Timeout, .. } => Answer::Dropped,
                Came::Unsendable { .. } => continue,
                other @ Came::NoResponse { .. } => {
                    return broken(format!("{} came to {other:?}", id(story)), &[id(story)]);
                }
            };
            let delivered = matches!(&attempt.outcome, Came::Response(response) if response.status == 200);
            let seen = self.by_message.get(id(story)).is_some_and(|requests| {
                requests.iter().any(|one| one.retried == attempt.retried && one.answer == wanted)
            });
            if !seen || delivered != (*next == Next::Delivered) {
                let what = format!(
                    "{}: attempt {} came to {wanted:?}, {next:?}, which nobody saw",
                    id(story),
                    attempt.retried
                );
                return broken(what, &[id(story)]);
            }
        }
        Ok(())
    }

    fn callbacks_tell_each_outcome(&self, story: &Story) -> Result<(), Broken> {
        let options = &story.message.options;
        if options.callback.is_none() && options.failure_callback.is_none() {
            return Ok(());
        }
        let published: BTreeSet<&MessageId> = self.publishes.iter().flat_map(|publish| publish.ids).collect();
        let mut wanted: Vec<(String, u32, u16)> = Vec::new();
        for (attempt, next) in &story.attempts {
            let status = attempt.response().map_or(0, |response| response.status);
            if *next != Next::Cancelled {
                wanted
                    .extend(options.callback.iter().map(|spec| (spec.url.clone(), attempt.retried, status)));
            }
            if matches!(next, Next::Failed { .. }) {
                wanted.extend(
                    options.failure_callback.iter().map(|spec| (spec.url.clone(), attempt.retried, status)),
                );
            }
        }
        let tells = |message: &Message| {
            let body: serde_json::Value = serde_json::from_slice(&message.body).unwrap();
            let number = |field: &str| body[field].as_u64().unwrap();
            let retried = u32::try_from(number("retried")).unwrap();
            (message.url.clone(), retried, u16::try_from(number("status")).unwrap())
        };
        let of =
            |one: &&Story| one.message.source_id.as_ref() == Some(id(story)) && !published.contains(id(one));
        let mut found: Vec<_> = self.run.stories.iter().filter(of).map(|one| tells(&one.message)).collect();
        wanted.sort();
        found.sort();
        if wanted != found {
            return broken(format!("{}: callbacks {found:?} instead of {wanted:?}", id(story)), &[id(story)]);
        }
        Ok(())
    }

    /// The log tells things in the order in which they were, whoever's clock it was.
    fn times_are_in_order(story: &Story) -> Result<(), Broken> {
        let attempts = story.attempts.iter().flat_map(|(attempt, _)| [attempt.started_at, attempt.ended_at]);
        let times: Vec<Timestamp> = [story.message.due_at].into_iter().chain(attempts).collect();
        let ended = story.attempts.last().map_or(story.message.created_at, |(attempt, _)| attempt.ended_at);
        let cancels = story.cancelled_at.is_none_or(|at| at >= ended && Some(at) >= story.requested_at);
        let starts = story.requested_at.is_none_or(|at| at >= story.message.created_at);
        if !times.is_sorted() || !cancels || !starts {
            return broken(format!("{}: its times are out of order: {story:?}", id(story)), &[id(story)]);
        }
        Ok(())
    }

    fn requests_are_of_stored_messages(&self) -> Result<(), Broken> {
        for request in &self.requests {
            if !self.stories.contains_key(request.id) {
                return broken(format!("{} was attempted and is not there", request.id), &[request.id]);
            }
        }
        Ok(())
    }

    fn nothing_is_early(&self) -> Result<(), Broken> {
        for request in &self.requests {
            let story = self.stories[request.id];
            let message = &story.message;
            let due = match request.retried.checked_sub(1).map(|before| usize::try_from(before).unwrap()) {
                // Then it is not due by any clock but that of the node that accepted it.
                None if message.due_at == message.created_at => Duration::ZERO,
                None => since_start(message.due_at),
                Some(before) => match story.attempts.get(before) {
                    Some((_, Next::Retry { due_at })) => since_start(*due_at),
                    other => {
                        let what = format!("{}: attempt {} after {other:?}", request.id, request.retried);
                        return broken(what, &[request.id]);
                    }
                },
            };
            if request.from < due {
                let what = format!(
                    "{}: attempt {} at {:?}, due at {due:?}",
                    request.id, request.retried, request.from
                );
                return broken(what, &[request.id]);
            }
            if let Some(end) = ended_at(story)
                && request.from > end
            {
                let what =
                    format!("{} was attempted at {:?}, after its end at {end:?}", request.id, request.from);
                return broken(what, &[request.id]);
            }
        }
        Ok(())
    }

    /// Whether a node's registration ended within a time: what it held was others' then.
    fn lost_its_leases(&self, node: usize, from: Duration, to: Duration) -> bool {
        self.run.ended.iter().any(|(ended, at)| *ended == node && *at >= from && *at <= to)
    }

    fn nothing_is_sent_twice_without_reason(&self) -> Result<(), Broken> {
        for requests in self.by_message.values() {
            for (index, first) in requests.iter().enumerate() {
                for second in &requests[index + 1..] {
                    let twice = first.retried == second.retried || second.from < first.to;
                    if twice && !self.lost_its_leases(first.life.node, first.from, second.from) {
                        let what = format!(
                            "{}: requests {} and {} are of one attempt or overlap, and {} had not lost its leases",
                            first.id, first.number, second.number, first.life
                        );
                        return broken(what, &[first.id]);
                    }
                }
            }
        }
        Ok(())
    }

    fn cancelled_messages_are_not_attempted(&self) -> Result<(), Broken> {
        for cancel in &self.cancels {
            if cancel.answer == Some(Cancellation::NotFound) {
                continue;
            }
            for id in cancel.ids {
                let Some(story) = self.stories.get(id) else { continue };
                // One of many may have ended before.
                let single = cancel.answer.is_some();
                let end = story.attempts.last().map(|(_, next)| next);
                let goes_wrong = match cancel.answer {
                    Some(Cancellation::Cancelled) => story.cancelled_at.is_none(),
                    Some(_) => matches!(end, Some(Next::Failed { .. })),
                    None => false,
                };
                if single && goes_wrong {
                    return broken(
                        format!("{id} was cancelled, {:?}, and ended with {end:?}", cancel.answer),
                        &[id],
                    );
                }
                for request in self.by_message.get(id).into_iter().flatten() {
                    let here = request.life.node == cancel.life.node;
                    let until = if here || cancel.answer == Some(Cancellation::Cancelled) {
                        cancel.answered
                    } else if self.is_troubled(request.life.node, cancel.asked, request.from) {
                        continue;
                    } else {
                        cancel.answered + UNTOLD
                    };
                    if request.from > until {
                        let what = format!(
                            "{id} was attempted at {:?} by {}, though {} had answered a cancel at {:?}: {:?}",
                            request.from, request.life, cancel.life, cancel.answered, cancel.answer
                        );
                        return broken(what, &[id]);
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether a node could not ask the store for a while within that time.
    fn is_troubled(&self, node: usize, from: Duration, to: Duration) -> bool {
        self.troubles
            .iter()
            .any(|(its, began, ended)| *its == node && *began <= to && *ended + ms(3_000) >= from)
    }

    /// When a message and all callbacks that hold its place had ended.
    fn place_ended(&self, story: &Story) -> Duration {
        let published: BTreeSet<&MessageId> = self.publishes.iter().flat_map(|publish| publish.ids).collect();
        let own = ended_at(story).unwrap_or(Duration::MAX);
        let callbacks =
            self.run.stories.iter().filter(|one| {
                one.message.source_id.as_ref() == Some(id(story)) && !published.contains(id(one))
            });
        callbacks.map(|one| self.place_ended(one)).fold(own, Duration::max)
    }

    fn queues_keep_order_and_parallelism(&self) -> Result<(), Broken> {
        for (number, parallelism) in self.run.plan.parallelism.iter().enumerate() {
            let name = queue_name(number);
            let first = |id: &MessageId| self.by_message.get(id).map(|requests| requests[0].from);
            let members = self.run.stories.iter().filter(|story| story.message.queue.as_ref() == Some(&name));
            let mut held: Vec<(Duration, Duration, &MessageId)> = members
                .filter_map(|story| Some((first(id(story))?, self.place_ended(story), id(story))))
                .collect();
            held.sort();
            for (index, (from, _, id)) in held.iter().enumerate() {
                let at_once = held[..index].iter().filter(|(_, to, _)| to > from);
                let others: Vec<&MessageId> = at_once.map(|(.., id)| *id).collect();
                if others.len() >= usize::try_from(*parallelism).unwrap() {
                    let about: Vec<&MessageId> = others.iter().copied().chain([*id]).collect();
                    let what = format!(
                        "{id} of {name} started at {from:?} beside {others:?}, at parallelism {parallelism}"
                    );
                    return broken(what, &about);
                }
            }
            if *parallelism == 1 {
                self.keeps_order(&name, &first)?;
            }
        }
        Ok(())
    }

    fn keeps_order(&self, queue: &str, first: &dyn Fn(&MessageId) -> Option<Duration>) -> Result<(), Broken> {
        let mut members: Vec<(Duration, Duration, Duration, &MessageId)> = Vec::new();
        for publish in &self.publishes {
            for (index, id) in publish.ids.iter().enumerate() {
                let Some(story) = self.stories.get(id) else { continue };
                let message = &story.message;
                if message.queue.as_deref() != Some(queue) || message.due_at > message.created_at {
                    continue;
                }
                let Some(from) = first(id) else { continue };
                let answer =
                    publish.answered.filter(|(_, answers)| answers.get(index) == Some(&Accepted::Stored));
                let answered = answer.map_or(Duration::MAX, |(at, _)| at);
                members.push((publish.asked, answered, from, id));
            }
        }
        for (_, answered, from, id) in &members {
            for (asked, _, later, other) in &members {
                if answered < asked && later < from {
                    let what = format!(
                        "{other} of {queue} went at {later:?} before {id}, which was accepted before, at {from:?}"
                    );
                    return broken(what, &[id, other]);
                }
            }
        }
        Ok(())
    }

    fn keys_keep_their_limits(&self) -> Result<(), Broken> {
        let mut keys: BTreeMap<String, Vec<Request<'a>>> = BTreeMap::new();
        for request in &self.requests {
            if let Some(flow) = Path::of(&self.stories[request.id].message).and_then(|path| path.flow) {
                keys.entry(flow.to_string()).or_default().push(*request);
            }
        }
        for (key, requests) in keys {
            let limits = self.stories[requests[0].id].message.options.flow_control.clone().unwrap();
            for (index, request) in requests.iter().enumerate() {
                let open = requests[..index].iter().filter(|other| {
                    other.to > request.from
                        && !self.lost_its_leases(other.life.node, other.from, request.from)
                });
                let others: Vec<&MessageId> = open.map(|other| other.id).collect();
                if limits.parallelism.is_some_and(|most| others.len() >= usize::try_from(most).unwrap()) {
                    let about: Vec<&MessageId> = others.iter().copied().chain([request.id]).collect();
                    let what =
                        format!("{} of {key} started at {:?} beside {others:?}", request.id, request.from);
                    return broken(what, &about);
                }
                let Some(rate) = limits.rate else { continue };
                let Some(before) = index.checked_sub(usize::try_from(rate).unwrap()) else { continue };
                let period = Duration::from_secs(u64::from(limits.period_s));
                if request.from < requests[before].from + period {
                    let about: Vec<&MessageId> = requests[before..=index].iter().map(|one| one.id).collect();
                    let what = format!(
                        "more than {rate} of {key} started within {period:?} before {:?}",
                        request.from
                    );
                    return broken(what, &about);
                }
            }
        }
        Ok(())
    }

    fn schedules_fire_once(&self) -> Result<(), Broken> {
        let mut fired: BTreeMap<(&str, i64), &MessageId> = BTreeMap::new();
        for story in &self.run.stories {
            let Some(schedule) = story.message.schedule_id.as_deref() else { continue };
            if story.message.source_id.is_some() || self.is_published(id(story)) {
                continue;
            }
            let minute = story.message.created_at.as_millis().div_euclid(60_000);
            if let Some(other) = fired.insert((schedule, minute), id(story)) {
                let what = format!("{schedule} fired twice for one occurrence: {other} and {}", id(story));
                return broken(what, &[other, id(story)]);
            }
        }
        Ok(())
    }

    /// Where all has been well for a while, messages that only their destination limits start when they are due.
    fn nothing_is_late(&self) -> Result<(), Broken> {
        if self.run.plan.is_tight() {
            return Ok(());
        }
        for requests in self.by_message.values() {
            let story = self.stories[requests[0].id];
            if Path::of(&story.message).is_some() {
                continue;
            }
            let accepted = since_start(story.message.created_at);
            for request in requests {
                let due = match request.retried.checked_sub(1).map(|before| usize::try_from(before).unwrap())
                {
                    None => story.message.due_at,
                    Some(before) => match story.attempts[before].1 {
                        Next::Retry { due_at } => due_at,
                        _ => continue,
                    },
                };
                let due = since_start(due);
                let from = accepted.saturating_sub(WELL);
                let well =
                    self.troubles.iter().all(|(_, began, ended)| *ended < from || *began > request.from);
                if well && request.from > due + LATE {
                    let what = format!(
                        "{}: attempt {} at {:?}, due at {due:?}",
                        request.id, request.retried, request.from
                    );
                    return broken(what, &[request.id]);
                }
            }
        }
        Ok(())
    }

    fn is_published(&self, id: &MessageId) -> bool {
        self.publishes.iter().any(|publish| publish.ids.contains(id))
    }
}
