//! Stories as tables: what has happened in a run, and a word for each step.

use std::time::Duration;

use serde_json::json;

use super::super::super::id::InstanceId;
use super::super::super::message::{CallbackSpec, Options};
use super::super::super::outcome::Ids;
use super::super::super::publish::{Due, Overrides};
use super::super::again::{Again, From, Past};
use super::super::{Entry, Features, Invoker, NewRun, Part, RunEnd, Telling, Trigger, step};
use super::lines::Kind as LineKind;
use super::*;

const START: Timestamp = Timestamp::from_millis(1_760_000_000_000);

/// A run in the making: entries and messages get numbers, and times a second apart.
struct World {
    run: Run,
    entries: Vec<Entry>,
    messages: Vec<RunMessage>,
    waiters: Vec<Waiter>,
    children: Vec<Child>,
}

/// What has become of a message.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Delivered,
    /// It waits for its first attempt.
    Waits,
    /// It waits for another one.
    Retries,
    Failed,
    /// The run's end has dropped it.
    Dropped,
    /// Another run has delivered it.
    Elsewhere,
}

impl World {
    fn new() -> Self {
        let new = NewRun {
            id: "wfr_1".to_owned(),
            url: "https://e.com/flow".to_owned(),
            labels: vec!["l".to_owned()],
            caller_ip: None,
            trigger: Trigger {
                max_retries: 3,
                features: Features { trigger_on_config: true, ..Features::default() },
                ..Trigger::default()
            },
            invoker: None,
            payload: Bytes::new(),
        };
        let run = Run::begun(InstanceId::new("msg_00"), START, new);
        let mut world = Self {
            run,
            entries: Vec::new(),
            messages: Vec::new(),
            waiters: Vec::new(),
            children: Vec::new(),
        };
        world.entry(Fate::Delivered, CallType::Step, None, "{\"order\":7}", Kind::Step);
        world
    }

    fn now(&self) -> Timestamp {
        START.after(Duration::from_secs(self.messages.len() as u64 + 1))
    }

    fn send(&mut self, id: MessageId, kind: Kind, body: &str, fate: Fate) -> &mut RunMessage {
        let now = self.now();
        let part = Part { instance: self.run.instance.clone(), kind, log_size: 0 };
        let message = Message {
            run: Some(part),
            max_retries: 3,
            ..Message::plain(id, now, "https://e.com/flow", Bytes::copy_from_slice(body.as_bytes()))
        };
        let attempt = |result, status| RunAttempt {
            ended_at: now,
            result,
            error: (status != 200).then(|| format!("destination answered {status}")),
            response: Some(Response { status, headers: Headers::new(), body: Bytes::from_static(b"kaput") }),
        };
        let pending = Some(Pending { due_at: now, leased: false });
        let (pending, attempts) = match fate {
            Fate::Delivered => (None, vec![attempt(AttemptResult::Delivered, 200)]),
            Fate::Waits => (pending, Vec::new()),
            Fate::Retries => (pending, vec![attempt(AttemptResult::Retry, 500)]),
            Fate::Failed => {
                (None, vec![attempt(AttemptResult::Retry, 500), attempt(AttemptResult::Failed, 500)])
            }
            Fate::Dropped | Fate::Elsewhere => (None, Vec::new()),
        };
        self.messages.push(RunMessage { message, pending, attempts });
        self.messages.last_mut().expect("it was pushed")
    }

    fn entry(&mut self, fate: Fate, call_type: CallType, key: Option<String>, body: &str, kind: Kind) {
        let position = u32::try_from(self.entries.len()).unwrap();
        let message = MessageId::new(format!("msg_{position:02}"));
        let created_at = self.now();
        if fate == Fate::Elsewhere {
            // The time goes on.
            let other = self.messages[0].clone();
            self.messages.push(other);
        } else {
            let sent = if kind == Kind::Step { "" } else { body };
            self.send(message.clone(), kind, sent, fate);
        }
        let body = Bytes::copy_from_slice(body.as_bytes());
        self.entries.push(Entry { position, message, call_type, key, body, created_at });
    }

    fn step(mut self, fate: Fate, fields: &Value) -> Self {
        let text = fields.to_string();
        let key = Step::parse(text.as_bytes()).unwrap().key();
        self.entry(fate, CallType::Step, Some(key), &text, Kind::Step);
        self
    }

    fn ran(self, id: u64, concurrent: u64, fate: Fate) -> Self {
        let name = format!("s{id}");
        let fields =
            json!({"stepId": id, "stepName": name, "stepType": "Run", "out": "1", "concurrent": concurrent});
        self.step(fate, &fields)
    }

    fn plan(self, target: u64, concurrent: u64, fate: Fate) -> Self {
        let name = format!("s{target}");
        let fields = json!({
            "stepId": 0, "targetStep": target, "stepName": name, "stepType": "Run", "concurrent": concurrent,
        });
        self.step(fate, &fields)
    }

    /// A call of a third party, and its answer.
    fn call(mut self, id: u64, fate: Fate, answer: Option<Fate>) -> Self {
        self.entry(fate, CallType::ToCallback, Some(step::call_key(&id.to_string())), "asked", Kind::Call);
        let sent = &mut self.messages.last_mut().unwrap().message;
        let mut headers = Headers::new();
        headers.append("Upstash-Workflow-StepId", id.to_string());
        headers.append("Upstash-Workflow-StepName", format!("s{id}"));
        let spec = CallbackSpec { headers: headers.clone(), ..CallbackSpec::default() };
        sent.options = Options { callback: Some(Box::new(spec)), ..Options::default() };
        if let Some(fate) = answer {
            let notice = json!({
                "status": 201, "header": {"A": ["1"]}, "body": "b2s=", "url": "https://e.com/api",
                "method": "PUT", "sourceHeader": {}, "sourceBody": "YXNrZWQ=",
            });
            let key = step::call_result_key(&id.to_string());
            self.entry(fate, CallType::FromCallback, Some(key), &notice.to_string(), Kind::CallResult);
            self.messages.last_mut().unwrap().message.headers = headers;
        }
        self
    }

    /// A wait; with `ends`, its timer is still there.
    fn wait(mut self, id: u64, stands: bool) -> Self {
        let step = json!({"stepId": id, "stepName": format!("s{id}"), "stepType": "Wait", "concurrent": 1});
        let timer = MessageId::new(format!("msg_timer{id}"));
        let fate = if stands { Fate::Waits } else { Fate::Dropped };
        self.send(timer.clone(), Kind::Timeout, &step.to_string(), fate);
        if stands {
            self.waiters.push(Waiter {
                instance: self.run.instance.clone(),
                key: step::wait_key(id),
                event_id: "paid".to_owned(),
                step: step.to_string(),
                url: String::new(),
                headers: Headers::new(),
                timeout: "1d".to_owned(),
                deadline: START,
                timeout_url: String::new(),
                timeout_headers: "{}".to_owned(),
                timer,
            });
        }
        self
    }

    fn child(mut self, id: u64) -> Self {
        let step = json!({"stepId": id, "stepName": format!("s{id}"), "stepType": "Invoke", "concurrent": 1});
        let invoker = Invoker {
            instance: self.run.instance.clone(),
            run_id: self.run.id.clone(),
            created_at: START,
            url: String::new(),
            step_id: id,
            step: step.to_string(),
            headers: Headers::new(),
        };
        let run = Run {
            instance: InstanceId::new("msg_child"),
            id: "wfr_child".to_owned(),
            created_at: self.now(),
            invoker: Some(invoker),
            ..self.run.clone()
        };
        self.children.push(Child { run, payload: Bytes::from_static(b"7") });
        self
    }

    fn ended(mut self, state: RunState) -> Self {
        self.run.state = state;
        self.run.end = Some(RunEnd { at: START, result: None, dead_letter: None, telling: None });
        self
    }

    /// Its steps in words: `(` and `)` around those side by side, `next:` before those that are not known.
    fn words(&self) -> String {
        let view = View::new(&self.run, &self.messages, 100);
        let lines: Vec<Line> = self.entries.iter().map(|entry| Line::of(entry, &view)).collect();
        let parts = Parts {
            run: &self.run,
            lines: &lines,
            messages: &self.messages,
            waiters: &self.waiters,
            children: &self.children,
            view: &view,
        };
        let word = |step: &StepStory<'_>| {
            let detail = match &step.detail {
                Detail::None => String::new(),
                Detail::SleepFor(value) | Detail::SleepUntil(value) => format!(" for {value}"),
                Detail::Call(call) => {
                    let status = call.answer.as_ref().map(|answer| answer.status);
                    format!(
                        " {} -> {}",
                        call.body,
                        status.map_or("?".to_owned(), |status| status.to_string())
                    )
                }
                Detail::Wait { event_id, timed_out, .. } => format!(" {event_id} {timed_out:?}"),
                Detail::Invoke { child, payload } => format!(" {} {payload}", child.id),
            };
            format!("{} {:?}{detail}", step.name, step.state)
        };
        let groups = tell(&parts).groups;
        let words = groups.iter().map(|group| match group {
            Group::One(step) => word(step),
            Group::Parallel(steps) => {
                format!("({})", steps.iter().map(word).collect::<Vec<_>>().join(", "))
            }
            Group::Next(steps) => {
                let word = |step: &NextStep<'_>| format!("{:?} {}", step.state, step.errors.len());
                format!("next: {}", steps.iter().map(word).collect::<Vec<_>>().join(", "))
            }
        });
        words.collect::<Vec<_>>().join("; ")
    }

    fn again(&self, from: From, overrides: &Overrides) -> Again {
        let past = Past {
            run: &self.run,
            letter: &DeadLetterId::new("1-0"),
            entries: &self.entries,
            messages: &self.messages,
            invoked: &self
                .children
                .iter()
                .filter_map(|child| Some((child.run.invoker.as_ref()?.step_id, child.run.created_at)))
                .collect::<Vec<_>>(),
        };
        let now = START.after(Duration::from_secs(1000));
        past.again(from, overrides, &mut Counter(0), now).expect("there is a payload")
    }

    /// What a resumed run begins with: its entries, those that are delivered again with a mark.
    fn resumed(&self) -> String {
        let again = self.again(From::Failure, &Overrides::default());
        let entries = again.entries.iter().map(|entry| {
            let is_sent = again.messages.iter().any(|message| message.id == entry.message);
            let key = entry.key.as_deref().unwrap_or("payload");
            format!("{key}{}", if is_sent { "!" } else { "" })
        });
        entries.collect::<Vec<_>>().join(" ")
    }
}

struct Counter(u32);

impl Ids for Counter {
    fn message(&mut self, _: Timestamp) -> MessageId {
        self.0 += 1;
        MessageId::new(format!("msg_new{}", self.0))
    }

    fn dead_letter(&mut self, _: Timestamp) -> DeadLetterId {
        DeadLetterId::new("2-0")
    }
}

use Fate::{Delivered, Dropped, Elsewhere, Failed, Retries, Waits};

#[track_caller]
fn check(world: &World, expected: &str) {
    assert_eq!(world.words(), expected);
}

#[test]
fn a_sequence_and_what_comes_next() {
    let two = || World::new().ran(1, 1, Delivered);
    check(&two().ran(2, 1, Waits), "init Success; s1 Success; s2 Success; next: Progress 0");
    check(&two().ran(2, 1, Retries), "init Success; s1 Success; s2 Success; next: Retry 1");
    let failed = two().ran(2, 1, Failed).ended(RunState::Failed);
    check(&failed, "init Success; s1 Success; s2 Success; next: Failed 2");
    let cancelled = two().ran(2, 1, Dropped).ended(RunState::Cancelled);
    check(&cancelled, "init Success; s1 Success; s2 Success; next: Cancelled 0");
    // Its last delivery was answered after the run had been ended in it.
    check(&two().ran(2, 1, Retries).ended(RunState::Success), "init Success; s1 Success; s2 Success");
}

#[test]
fn a_known_step_is_not_the_next_one() {
    let lost = World::new().ran(1, 1, Retries).ran(2, 1, Delivered);
    check(&lost, "init Success; s1 Success; s2 Success");
}

#[test]
fn sleeps_last_until_they_are_delivered() {
    let sleep = |fate| {
        let fields =
            json!({"stepId": 1, "stepName": "z", "stepType": "SleepFor", "sleepFor": 90, "concurrent": 1});
        World::new().step(fate, &fields)
    };
    check(&sleep(Waits), "init Success; z Progress for 90");
    check(&sleep(Delivered), "init Success; z Success for 90");
    check(&sleep(Dropped).ended(RunState::Cancelled), "init Success; z Cancelled for 90; next: Cancelled 0");
}

#[test]
fn steps_side_by_side() {
    let plans = || World::new().plan(1, 2, Delivered).plan(2, 2, Retries);
    check(&plans(), "init Success; (s1 Progress, s2 Retry)");
    check(&plans().ran(1, 2, Delivered), "init Success; (s1 Success, s2 Retry)");
    // Its endpoint looks whether the group is complete.
    check(&plans().ran(1, 2, Waits), "init Success; (s1 Success, s2 Retry)");
    let both = plans().ran(1, 2, Delivered).ran(2, 2, Retries);
    check(&both, "init Success; (s1 Success, s2 Success); next: Retry 1");
    let twice = plans().ran(1, 2, Delivered).ran(2, 2, Delivered).plan(3, 2, Waits).plan(4, 2, Waits);
    check(&twice, "init Success; (s1 Success, s2 Success); (s3 Progress, s4 Progress)");
    let failed = World::new().plan(1, 2, Delivered).plan(2, 2, Failed).ended(RunState::Failed);
    check(&failed, "init Success; (s1 Cancelled, s2 Failed)");
}

#[test]
fn calls_of_third_parties() {
    check(&World::new().call(1, Waits, None), "init Success; s1 Progress asked -> ?");
    check(&World::new().call(1, Retries, None), "init Success; s1 Retry asked -> ?");
    check(&World::new().call(1, Delivered, Some(Waits)), "init Success; s1 Progress asked -> 201");
    let done = World::new().call(1, Delivered, Some(Delivered)).ran(1, 1, Delivered);
    check(&done, "init Success; s1 Success asked -> 201");
    let beside = World::new().plan(1, 2, Delivered).plan(2, 2, Waits).call(1, Waits, None);
    check(&beside, "init Success; (s1 Progress asked -> ?, s2 Progress)");
    // A run that was resumed has the entries of its calls, and not their messages.
    let resumed = World::new().call(1, Elsewhere, Some(Elsewhere)).ran(1, 1, Delivered);
    check(&resumed, "init Success; s1 Success asked -> 201");
}

#[test]
fn waits_and_invocations() {
    check(&World::new().wait(1, true), "init Success; s1 Progress paid None");
    let came = json!({
        "stepId": 1, "stepName": "s1", "stepType": "Wait", "waitEventId": "paid", "timeout": "1d", "out": "MQ==",
    });
    check(&World::new().wait(1, false).step(Delivered, &came), "init Success; s1 Success paid Some(false)");
    check(&World::new().child(1), "init Success; s1 Progress wfr_child 7");
    let told = json!({"stepId": 1, "stepName": "s1", "stepType": "Invoke", "out": "{}"});
    check(&World::new().child(1).step(Delivered, &told), "init Success; s1 Success wfr_child 7");
    let failed = World::new().plan(1, 2, Failed).plan(2, 2, Delivered).child(2).ended(RunState::Failed);
    check(&failed, "init Success; (s1 Failed, s2 Cancelled wfr_child 7)");
}

#[test]
fn what_is_hidden_is_told_by_its_hash() {
    let mut world = World::new().ran(1, 1, Delivered);
    world.run.trigger.options.redact.body = true;
    let view = View::new(&world.run, &world.messages, 3);
    let lines: Vec<Line> = world.entries.iter().map(|entry| Line::of(entry, &view)).collect();
    let out = |line: &Line| match &line.kind {
        LineKind::Payload(out) => out.clone(),
        LineKind::Step(fields) => fields.out.clone().unwrap_or_default(),
        _ => String::new(),
    };
    assert_eq!(lines.iter().map(out).collect::<Vec<_>>(), [marker(b"{\"order\":7}"), marker(b"1")]);
}

#[test]
fn texts_are_cut_at_characters() {
    for (text, max, expected) in [
        ("abc", 3, "abc"),
        ("abc", 2, "ab"),
        ("a\u{fc}b", 2, "a"),
        ("a\u{fc}b", 3, "a\u{fc}"),
        ("abc", 0, ""),
    ] {
        assert_eq!(cut(text.as_bytes(), max), expected, "{text} {max}");
    }
    assert_eq!(cut(b"\xff\xfe", 1), "\u{fffd}");
}

#[test]
fn the_failure_tells_its_cause_and_its_answer() {
    let mut world = World::new().ran(1, 1, Failed);
    world.send(MessageId::new("msg_told"), Kind::FailureCallback, "", Delivered).message.source_id =
        Some(MessageId::new("msg_01"));
    for (told, is_told) in [(Told::Done, true), (Told::Nobody, false)] {
        world.run.end = Some(RunEnd {
            at: START,
            result: None,
            dead_letter: None,
            telling: Some(Telling { message: MessageId::new("msg_told"), told: Some(told) }),
        });
        let view = View::new(&world.run, &world.messages, 100);
        let parts = Parts {
            run: &world.run,
            lines: &[],
            messages: &world.messages,
            waiters: &[],
            children: &[],
            view: &view,
        };
        let failure = tell(&parts).failure;
        assert_eq!(failure.is_some(), is_told, "{told:?}");
        if let Some(failure) = failure {
            assert_eq!(failure.cause.and_then(|cause| cause.response.as_ref()).unwrap().status, 500);
            assert!(failure.errors.is_empty());
        }
    }
}

#[track_caller]
fn check_resumed(world: &World, expected: &str) {
    assert_eq!(world.resumed(), expected);
}

#[test]
fn a_resumed_run_goes_on_where_the_old_one_was() {
    check_resumed(&World::new().ran(1, 1, Failed), "payload step:1:0!");
    // The plan that failed, the one that slept, and no plan whose result is there.
    let group =
        World::new().plan(1, 3, Delivered).plan(2, 3, Failed).plan(3, 3, Dropped).ran(1, 3, Delivered);
    check_resumed(&group, "payload step:0:1 step:0:2! step:0:3! step:1:0");
    let known = World::new().plan(1, 2, Dropped).plan(2, 2, Failed).ran(1, 2, Delivered);
    check_resumed(&known, "payload step:0:1 step:0:2! step:1:0");
    // A result whose delivery was dropped.
    let last = World::new().plan(1, 2, Delivered).plan(2, 2, Failed).ran(1, 2, Dropped);
    check_resumed(&last, "payload step:0:1 step:0:2! step:1:0!");
}

#[test]
fn a_resumed_run_asks_third_parties_again() {
    let alone = World::new().ran(1, 1, Delivered).call(2, Dropped, None);
    check_resumed(&alone, "payload step:1:0!");
    let answered = World::new().ran(1, 1, Delivered).call(2, Delivered, Some(Failed));
    check_resumed(&answered, "payload step:1:0!");
    let beside = World::new().plan(1, 2, Failed).plan(2, 2, Delivered).call(2, Dropped, None);
    check_resumed(&beside, "payload step:0:1! step:0:2!");
    let done = World::new().call(1, Delivered, Some(Delivered)).ran(1, 1, Failed);
    check_resumed(&done, "payload call:1 result:1 step:1:0!");
}

#[test]
fn a_resumed_run_waits_and_invokes_again() {
    let wait = World::new().plan(1, 2, Failed).plan(2, 2, Delivered).wait(2, false);
    check_resumed(&wait, "payload step:0:1! step:0:2!");
    let invoke = World::new().plan(1, 2, Failed).plan(2, 2, Delivered).child(2);
    check_resumed(&invoke, "payload step:0:1! step:0:2!");
    check_resumed(&World::new().ran(1, 1, Delivered).wait(2, false), "payload step:1:0!");
    // Nothing failed that is known of: it goes on from the last step.
    check_resumed(&World::new().ran(1, 1, Delivered), "payload step:1:0!");
    check_resumed(&World::new().ran(1, 1, Elsewhere), "payload step:1:0!");
}

#[test]
fn a_run_begins_again_with_what_is_said() {
    let world = World::new().ran(1, 1, Failed);
    let overrides = Overrides {
        retries: Some(9),
        labels: Some(vec!["other".to_owned()]),
        due: Due::After(Duration::from_secs(5)),
        ..Overrides::default()
    };
    let again = world.again(From::Beginning, &overrides);
    assert_eq!((again.entries.len(), again.messages.len()), (1, 1));
    let message = &again.messages[0];
    assert_eq!(message.id.as_str(), again.instance.as_str(), "the message that begins a run has its id");
    assert_eq!((message.id.clone(), message.max_retries), (again.entries[0].message.clone(), 9));
    assert_eq!(message.due_at, again.created_at.after(Duration::from_secs(5)));
    assert_eq!((again.new.id.as_str(), again.new.trigger.max_retries), ("wfr_new1", 9));
    assert_eq!((&again.new.labels[..], &again.new.invoker), (&["other".to_owned()][..], &None));
    let resumed = world.again(From::Failure, &Overrides::default());
    let log_sizes: Vec<usize> =
        resumed.messages.iter().filter_map(|message| Some(message.run.as_ref()?.log_size)).collect();
    assert_eq!(resumed.messages[0].id, resumed.entries[1].message);
    assert!(log_sizes[0] > 100, "the delivery shows both entries: {log_sizes:?}");
}
