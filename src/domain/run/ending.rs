//! Messages that a run's own events make: a third party's answer for the endpoint, a failure for whoever is told of it, and
//! a child's result for the run that has invoked it.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use super::super::callback::notice;
use super::super::id::{DeadLetterId, InstanceId, MessageId};
use super::super::message::{CallbackSpec, Headers, Message, Method, Options};
use super::super::outcome::Attempt;
use super::super::signature::body_sha256;
use super::super::time::Timestamp;
use super::headers::forwarded;
use super::step::{self, Step};
use super::{CallType, Kind, NewEntry, Part, Run, RunState};

/// A run's end, with all that follows from it: stored in one step, and only while the run is live.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ending {
    pub instance: InstanceId,
    /// A final state.
    pub state: RunState,
    pub at: Timestamp,
    /// What its function has returned, as JSON text.
    pub result: Option<Bytes>,
    pub dead_letter: Option<DeadLetterId>,
    /// Sent although the run has ended.
    pub failure_callback: Option<Arc<Message>>,
    /// The entry for the run that has invoked this one, and the message that delivers it; if that run has ended, the entry
    /// alone is kept, for the log.
    pub parent: Option<(Arc<Message>, NewEntry)>,
}

/// A run that ends, and the run that has invoked it, if any.
#[derive(Clone, Copy, Debug)]
pub struct Family<'a> {
    pub run: &'a Run,
    pub parent: Option<&'a Run>,
}

impl Family<'_> {
    /// The run's end without a failure callback. `id` is for the message to the parent.
    pub fn end(&self, state: RunState, result: Option<Bytes>, id: MessageId, at: Timestamp) -> Ending {
        let parent = self.told(state, result.as_ref(), id, at);
        let instance = self.run.instance.clone();
        Ending { instance, state, at, result, dead_letter: None, failure_callback: None, parent }
    }

    /// What the parent is told.
    fn told(
        &self,
        state: RunState,
        result: Option<&Bytes>,
        id: MessageId,
        at: Timestamp,
    ) -> Option<(Arc<Message>, NewEntry)> {
        let (invoker, parent) = (self.run.invoker.as_ref()?, self.parent?);
        let mut out = json!({
            "workflowRunId": self.run.id,
            "isFailed": state == RunState::Failed,
            "isCanceled": state == RunState::Cancelled,
        });
        if let (Some(result), Value::Object(out)) = (result, &mut out) {
            out.insert("body".to_owned(), String::from_utf8_lossy(result).into());
        }
        let step = Step::parse(invoker.step.as_bytes()).ok()?;
        let body = Bytes::from(step.with(&[("out", out.to_string().into())]));
        let entry = NewEntry {
            call_type: CallType::Step,
            key: Some(step::invoke_key(invoker.step_id)),
            body: body.clone(),
        };
        let headers = forwarded(&invoker.headers);
        let message = step_message(parent, id, at, &invoker.url, headers, body.len());
        Some((Arc::new(message), entry))
    }
}

/// A message that delivers a run's log, with the configuration of the run's trigger. `entry` is how many bytes its entry
/// has.
pub fn step_message(
    run: &Run,
    id: MessageId,
    now: Timestamp,
    url: &str,
    headers: Headers,
    entry: usize,
) -> Message {
    let part =
        Part { instance: run.instance.clone(), kind: Kind::Step, log_size: super::log::entry_size(entry) };
    let options = &run.trigger.options;
    Message {
        headers,
        max_retries: run.trigger.max_retries,
        run: Some(part),
        options: Options {
            retry_delay: options.retry_delay.clone(),
            flow_control: options.flow_control.clone(),
            redact: options.redact.clone(),
            ..Options::default()
        },
        ..Message::plain(id, now, url, Bytes::new())
    }
}

/// The message that brings a third party's final answer to the run's endpoint, and its entry.
pub fn call_result(
    run: &Run,
    call: &Message,
    attempt: &Attempt,
    spec: &CallbackSpec,
    id: MessageId,
    max_body: usize,
) -> (Message, NewEntry) {
    let now = attempt.ended_at;
    let body = notice(call, attempt, None, Some(run), &call.body, max_body);
    let mut headers = forwarded(&spec.headers);
    // With it the SDKs take the answer for a log.
    headers.remove("Upstash-Workflow-Sdk-Version");
    let step_id = headers.get("Upstash-Workflow-StepId");
    let entry = NewEntry {
        call_type: CallType::FromCallback,
        key: step_id.map(|step_id| step::call_result_key(&step_id)),
        body: body.clone(),
    };
    let mut message = step_message(run, id, now, &spec.url, headers, 0);
    if !run.trigger.features.trigger_on_config {
        message.max_retries = spec.retries.unwrap_or(call.max_retries);
        message.options = Options { failure_callback: None, callback: None, ..spec.options.clone() };
    }
    message.options.redact.add_of_source(&call.options.redact);
    message.method = Method::Post;
    message.body_sha256 = body_sha256(&body);
    message.body = body;
    message.source_id = Some(call.id.clone());
    message.run = Some(Part { instance: run.instance.clone(), kind: Kind::CallResult, log_size: 0 });
    (message, entry)
}

/// A run's failure: the message that has failed for good, and how.
#[derive(Clone, Copy, Debug)]
pub struct Failure<'a> {
    pub run: &'a Run,
    /// The run's entry 0.
    pub payload: &'a [u8],
    pub failed: &'a Message,
    pub attempt: &'a Attempt,
    pub dead_letter: &'a DeadLetterId,
}

impl Failure<'_> {
    /// The message that tells of it, with `max_body` bytes of the answer.
    pub fn callback(&self, spec: &CallbackSpec, id: MessageId, max_body: usize) -> Message {
        let Self { run, payload, failed, attempt, dead_letter } = *self;
        let now = attempt.ended_at;
        let body = notice(failed, attempt, Some(dead_letter), Some(run), payload, max_body);
        let mut options = Options { failure_callback: None, callback: None, ..spec.options.clone() };
        for hidden in [&failed.options.redact, &run.trigger.options.redact] {
            options.redact.add_of_source(hidden);
        }
        Message {
            due_at: now.after(spec.delay.unwrap_or_default()),
            headers: forwarded(&spec.headers),
            max_retries: spec.retries.unwrap_or(failed.max_retries),
            source_id: Some(failed.id.clone()),
            run: Some(Part { instance: run.instance.clone(), kind: Kind::FailureCallback, log_size: 0 }),
            options,
            ..Message::plain(id, now, &spec.url, body)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::super::id::InstanceId;
    use super::super::super::message::FlowControl;
    use super::super::super::outcome::{
        Context, Effect, FailureClass, Finish, Ids, InRun, Next, Outcome, Response, decide,
    };
    use super::super::{Features, Invoker, NewRun, Told, Trigger, waiting};
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_760_000_000_000);

    struct Counter(u32);

    impl Ids for Counter {
        fn message(&mut self, _: Timestamp) -> MessageId {
            self.0 += 1;
            MessageId::new(format!("msg_{}", self.0))
        }

        fn dead_letter(&mut self, now: Timestamp) -> DeadLetterId {
            DeadLetterId::generate(now, 0)
        }
    }

    fn headers(fields: &[(&str, &str)]) -> Headers {
        let mut headers = Headers::new();
        for (name, value) in fields {
            headers.append(name, *value);
        }
        headers
    }

    fn spec(url: &str) -> CallbackSpec {
        CallbackSpec { url: url.to_owned(), retries: Some(2), ..CallbackSpec::default() }
    }

    fn run(id: &str, invoker: Option<Invoker>) -> Run {
        let new = NewRun {
            id: format!("wfr_{id}"),
            url: "https://shop.example/flow".to_owned(),
            labels: vec!["order".to_owned()],
            caller_ip: None,
            trigger: Trigger {
                headers: headers(&[("X-Tenant", "acme")]),
                max_retries: 5,
                options: Options {
                    retry_delay: Some("1000".to_owned()),
                    failure_callback: Some(Box::new(spec("https://shop.example/failed"))),
                    flow_control: Some(FlowControl {
                        key: "shop".to_owned(),
                        parallelism: Some(2),
                        rate: None,
                        period_s: 1,
                    }),
                    ..Options::default()
                },
                features: Features { detect_trigger: true, trigger_on_config: true, ..Features::default() },
            },
            invoker,
            payload: Bytes::new(),
        };
        Run::begun(InstanceId::new(format!("msg_{id}")), NOW, new)
    }

    fn invoked() -> Run {
        let invoker = Invoker {
            instance: InstanceId::new("msg_parent"),
            run_id: "wfr_parent".to_owned(),
            created_at: NOW,
            url: "https://shop.example/all".to_owned(),
            step_id: 4,
            step: r#"{"stepId":4,"stepName":"ship","stepType":"Invoke","concurrent":1}"#.to_owned(),
            headers: headers(&[("Upstash-Workflow-Sdk-Version", "1")]),
        };
        run("child", Some(invoker))
    }

    fn of(run: &Run, id: &str, kind: Kind) -> Message {
        let part = Part { instance: run.instance.clone(), kind, log_size: 0 };
        Message {
            run: Some(part),
            ..Message::plain(
                MessageId::new(id),
                NOW,
                "https://shop.example/flow",
                Bytes::from_static(b"sent"),
            )
        }
    }

    fn answer(status: u16, fields: &[(&str, &str)], body: &'static str) -> Outcome {
        let body = Bytes::from_static(body.as_bytes());
        Outcome::Response(Response { status, headers: headers(fields), body })
    }

    fn ends(run: &Run, parent: Option<&Run>, message: &Message, outcome: Outcome) -> Finish {
        let attempt = Attempt { retried: 0, started_at: NOW, ended_at: NOW, outcome };
        let run = InRun { family: Family { run, parent }, payload: b"paid" };
        let mut context =
            Context { cancel_requested: false, max_body: 100, ids: &mut Counter(0), run: Some(run) };
        decide(message, attempt, &mut context)
    }

    fn json(body: &[u8]) -> Value {
        serde_json::from_slice(body).unwrap()
    }

    #[test]
    fn a_step_that_is_delivered_changes_nothing() {
        let run = run("a", None);
        let finish = ends(&run, None, &of(&run, "msg_b", Kind::Step), answer(200, &[], ""));
        assert_eq!((finish.next, finish.effects), (Next::Delivered, Vec::new()));
    }

    #[test]
    fn a_first_delivery_that_no_endpoint_takes_fails_the_run() {
        let run = run("a", None);
        let first = of(&run, "msg_a", Kind::Step);
        let version = [("Upstash-Workflow-Sdk-Version", "1")];
        assert_eq!(ends(&run, None, &first, answer(200, &version, "")).next, Next::Delivered);
        let finish = ends(&run, None, &Message { max_retries: 5, ..first.clone() }, answer(200, &[], ""));
        assert!(matches!(finish.next, Next::Failed { dead_letter: Some(_) }), "{:?}", finish.next);
        assert!(finish.error.unwrap().starts_with("detected a non-workflow destination"));
        assert!(matches!(&finish.effects[..], [Effect::End(ending)] if ending.state == RunState::Failed));
        // Without that ability, or by a failure, nothing is detected.
        let finish = ends(&run, None, &Message { max_retries: 5, ..first }, answer(500, &[], ""));
        assert!(matches!(finish.next, Next::Retry { .. }));
    }

    #[test]
    fn a_final_failure_ends_the_run_and_is_told() {
        let run = run("a", None);
        let finish = ends(&run, None, &of(&run, "msg_b", Kind::Step), answer(500, &[], "kaput"));
        let [Effect::End(ending)] = &finish.effects[..] else { panic!("{:?}", finish.effects) };
        let Next::Failed { dead_letter } = &finish.next else { panic!("{:?}", finish.next) };
        assert_eq!((&ending.instance, &ending.dead_letter), (&run.instance, dead_letter));
        assert_eq!(ending.parent, None);
        let told = ending.failure_callback.as_ref().unwrap();
        assert_eq!((told.url.as_str(), told.max_retries), ("https://shop.example/failed", 2));
        assert_eq!(told.run.as_ref().unwrap().kind, Kind::FailureCallback);
        let body = json(&told.body);
        // The payload of the run, and not what was sent.
        assert_eq!(body["sourceBody"], "cGFpZA==");
        assert_eq!((&body["body"], &body["status"]), (&json!("a2FwdXQ="), &json!(500)));
        assert_eq!((&body["workflowRunId"], &body["sourceMessageId"]), (&json!("wfr_a"), &json!("msg_b")));
        // Its own failure is no dead letter.
        let finish = ends(&run, None, told, answer(500, &[], ""));
        assert_eq!(finish.next, Next::Retry { due_at: NOW.after(Duration::from_secs(12)) });
        let last = Message { max_retries: 0, ..Message::clone(told) };
        let finish = ends(&run, None, &last, answer(500, &[], ""));
        assert_eq!(finish.next, Next::Failed { dead_letter: None });
        let of_told = |answer| {
            let (instance, message) = (run.instance.clone(), told.id.clone());
            vec![Effect::Told { instance, message, answer }]
        };
        assert_eq!(finish.effects, of_told(Told::Failed));
        assert_eq!(ends(&run, None, told, answer(200, &[], "")).effects, of_told(Told::Done));
        let nobody = answer(200, &[("upstash-workflow-failure-callback-notfound", "true")], "");
        assert_eq!(ends(&run, None, told, nobody).effects, of_told(Told::Nobody));
    }

    #[test]
    fn a_call_is_answered_once_whatever_came_of_it() {
        let run = run("a", None);
        let mut callback = spec("https://shop.example/flow");
        callback.headers = headers(&[
            ("Upstash-Workflow-Callback", "true"),
            ("Upstash-Workflow-StepId", "3"),
            ("Upstash-Workflow-Sdk-Version", "1"),
        ]);
        let options = Options { callback: Some(Box::new(callback)), ..Options::default() };
        let call = Message { max_retries: 1, options, ..of(&run, "msg_c", Kind::Call) };
        let retried = ends(&run, None, &call, answer(500, &[], ""));
        assert_eq!((retried.effects.len(), matches!(retried.next, Next::Retry { .. })), (0, true));
        let last = Message { max_retries: 0, ..call };
        let unreached = Outcome::NoResponse { class: FailureClass::Connect, error: "refused".to_owned() };
        for (outcome, next, status, body) in [
            (answer(200, &[], "rate"), Next::Delivered, 200, "cmF0ZQ=="),
            (answer(500, &[], "no"), Next::Failed { dead_letter: None }, 500, "bm8="),
            (unreached, Next::Failed { dead_letter: None }, 0, "cmVmdXNlZA=="),
        ] {
            let finish = ends(&run, None, &last, outcome);
            assert_eq!(finish.next, next);
            let [Effect::Append(message, entry)] = &finish.effects[..] else {
                panic!("{:?}", finish.effects)
            };
            assert_eq!((entry.call_type, entry.key.as_deref()), (CallType::FromCallback, Some("result:3")));
            assert_eq!((&message.body, message.max_retries), (&entry.body, 5));
            assert_eq!(message.options.flow_control, run.trigger.options.flow_control);
            assert_eq!(message.headers.get("Upstash-Workflow-Sdk-Version"), None);
            let told = json(&message.body);
            assert_eq!((&told["status"], &told["body"]), (&json!(status), &json!(body)));
        }
    }

    #[test]
    fn the_parent_is_told_how_its_child_has_ended() {
        let (parent, child) = (run("parent", None), invoked());
        let family = Family { run: &child, parent: Some(&parent) };
        for (state, result, failed, cancelled) in [
            (RunState::Success, Some(r#"{"tracking":"T1"}"#), false, false),
            (RunState::Success, None, false, false),
            (RunState::Failed, None, true, false),
            (RunState::Cancelled, None, false, true),
        ] {
            let result = result.map(|text| Bytes::from_static(text.as_bytes()));
            let ending = family.end(state, result.clone(), MessageId::new("msg_told"), NOW);
            let (message, entry) = ending.parent.unwrap();
            assert_eq!(entry.key.as_deref(), Some("invoke:4"));
            assert_eq!(message.url, "https://shop.example/all");
            assert_eq!(message.run.as_ref().unwrap().instance, parent.instance);
            assert_eq!(message.max_retries, 5);
            let step = json(&entry.body);
            assert_eq!((&step["stepId"], &step["stepName"]), (&json!(4), &json!("ship")));
            let out = json(step["out"].as_str().unwrap().as_bytes());
            let flags = (&out["isFailed"], &out["isCanceled"]);
            assert_eq!(flags, (&json!(failed), &json!(cancelled)));
            let text = result.map(|text| String::from_utf8(text.to_vec()).unwrap());
            assert_eq!(out.get("body").and_then(Value::as_str), text.as_deref());
        }
        assert_eq!(
            Family { run: &parent, parent: None }
                .end(RunState::Success, None, MessageId::new("x"), NOW)
                .parent,
            None
        );
    }

    #[test]
    fn a_timer_ends_its_wait() {
        let run = run("a", None);
        let wanted =
            br#"{"url":"https://shop.example/flow","timeout":"90s","timeoutUrl":"https://shop.example/late",
            "timeoutHeaders":{"Upstash-Forward-X-A":["1"],"Upstash-Workflow-RunId":["wfr_a"]},
            "step":{"stepId":5,"stepType":"Wait","stepName":"paid?","concurrent":1}}"#;
        let wanted = waiting::Wanted::parse(wanted).unwrap();
        let timer = MessageId::new("msg_timer");
        let (waiter, timer) =
            wanted.begin(&run, "paid".to_owned(), &headers(&[("X-B", "2")]), timer, NOW).unwrap();
        assert_eq!((waiter.key.as_str(), waiter.deadline), ("wait:5", NOW.after(Duration::from_secs(90))));
        assert_eq!(timer.due_at, waiter.deadline);
        let finish = ends(&run, None, &timer, answer(204, &[], ""));
        let [Effect::TimeOut(message, entry)] = &finish.effects[..] else { panic!("{:?}", finish.effects) };
        assert_eq!(
            (entry.key.as_deref(), message.url.as_str()),
            (Some("wait:5"), "https://shop.example/late")
        );
        assert_eq!(message.headers, headers(&[("X-A", "1")]));
        let step = json(&entry.body);
        assert_eq!((&step["waitTimeout"], &step["waitEventId"]), (&json!(true), &json!("paid")));
        assert_eq!((step.get("out"), &step["timeout"]), (None, &json!("90s")));
        let (message, entry) = waiting::arrived(&run, &waiter, b"{}", MessageId::new("msg_event"), NOW);
        assert_eq!(
            (message.url.as_str(), entry.key.as_deref()),
            ("https://shop.example/flow", Some("wait:5"))
        );
        let step = json(&entry.body);
        assert_eq!((&step["out"], step.get("waitTimeout")), (&json!("e30="), None));
    }
}
