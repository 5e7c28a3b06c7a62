//! Puts a story together: steps where they began, each with what came of it later.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::super::super::id::MessageId;
use super::super::super::time::Timestamp;
use super::super::step::Step;
use super::super::{CallType, Kind, RunState};
use super::lines::{Called, Fields, Kind as LineKind};
use super::{
    CallStory, Child, Detail, Group, Line, NextStep, Parts, Pending, RunMessage, StepState, StepStory,
};

/// The name of the step that a call, or its answer, is of.
fn call_name(sent: &RunMessage) -> Option<String> {
    let headers = match sent.kind()? {
        Kind::Call => &sent.message.options.callback.as_ref()?.headers,
        _ => &sent.message.headers,
    };
    Some(headers.get("Upstash-Workflow-StepName")?.into_owned())
}

pub(super) struct Teller<'a, 'p> {
    parts: &'p Parts<'a>,
    pub(super) groups: Vec<Group<'a>>,
    /// Steps that are known, by their numbers: group, and place in it.
    places: BTreeMap<u64, (usize, usize)>,
    /// Plans that the last group still lacks.
    room: u64,
}

impl<'a, 'p> Teller<'a, 'p> {
    pub(super) const fn new(parts: &'p Parts<'a>) -> Self {
        Self { parts, groups: Vec::new(), places: BTreeMap::new(), room: 0 }
    }

    fn message(&self, id: &MessageId) -> Option<&'a RunMessage> {
        self.parts.messages.iter().find(|sent| sent.message.id == *id)
    }

    pub(super) fn add(&mut self, line: &'a Line) {
        let step = match &line.kind {
            LineKind::Payload(out) => {
                let fields = Fields { name: "init".into(), step_type: "Initial".into(), ..Fields::default() };
                let out = Some(out.clone());
                StepStory {
                    id: None,
                    out,
                    state: StepState::Success,
                    headers: Some(&self.parts.run.trigger.headers),
                    ..self.step(line, &fields)
                }
            }
            LineKind::Step(fields) => {
                let mut step = self.step(line, fields);
                step.state = self.result_state(line);
                step
            }
            LineKind::Plan(target, fields) => {
                let mut step = self.step(line, fields);
                step.id = Some(*target);
                let sent = self.message(&line.message);
                step.state = sent.map_or(StepState::Progress, |sent| match sent.state(self.parts.run) {
                    StepState::Success if self.parts.run.state == RunState::Started => StepState::Progress,
                    StepState::Success => StepState::Cancelled,
                    state => state,
                });
                step.delivery = sent;
                step.errors = sent.map(RunMessage::errors).unwrap_or_default();
                self.plan(*target, fields.concurrent, step);
                return;
            }
            LineKind::Called(step_id, called) => return self.call(line, *step_id, called),
            LineKind::Unknown => return,
        };
        self.result(step);
    }

    fn step(&self, line: &'a Line, fields: &Fields) -> StepStory<'a> {
        StepStory {
            id: Some(fields.id),
            name: fields.name.clone(),
            kind: fields.step_type.clone(),
            call_type: line.call_type,
            message: Cow::Borrowed(&line.message),
            out: fields.out.clone(),
            concurrent: fields.concurrent,
            state: StepState::Progress,
            created_at: line.created_at,
            headers: None,
            detail: self.detail(fields),
            delivery: None,
            errors: Vec::new(),
        }
    }

    fn detail(&self, fields: &Fields) -> Detail<'a> {
        if let Some(value) = &fields.sleep_for {
            return Detail::SleepFor(value.clone());
        }
        if let Some(value) = &fields.sleep_until {
            return Detail::SleepUntil(value.clone());
        }
        let id = fields.target.unwrap_or(fields.id);
        if let Some((event_id, timeout)) = &fields.wait {
            let timer = self
                .parts
                .messages
                .iter()
                .find(|sent| sent.kind() == Some(Kind::Timeout) && sent.step_id() == Some(id));
            return Detail::Wait {
                event_id: event_id.clone(),
                timeout: timeout.clone(),
                deadline: timer.map(|timer| timer.message.due_at),
                timed_out: Some(fields.timed_out),
            };
        }
        match &fields.planned_call {
            Some((url, method, body)) => Detail::Call(CallStory {
                url: url.clone(),
                method: method.clone(),
                headers: fields.planned_headers.clone(),
                body: body.clone(),
                answer: None,
                redact: self.parts.view.of_step(id),
            }),
            None => Detail::None,
        }
    }

    /// How far a step is whose result is known: a sleep's is, before it is over.
    fn result_state(&self, line: &Line) -> StepState {
        let LineKind::Step(fields) = &line.kind else { return StepState::Success };
        let sleeps = fields.sleep_for.is_some() || fields.sleep_until.is_some();
        let Some(sent) = self.message(&line.message).filter(|sent| sleeps && sent.attempts.is_empty()) else {
            return StepState::Success;
        };
        match sent.pending {
            Some(Pending { leased: false, .. }) => StepState::Progress,
            Some(_) => StepState::Success,
            None if self.parts.run.state == RunState::Started => StepState::Success,
            None => StepState::Cancelled,
        }
    }

    fn at(&mut self, (group, place): (usize, usize)) -> Option<&mut StepStory<'a>> {
        match self.groups.get_mut(group)? {
            Group::One(step) => Some(step),
            Group::Parallel(steps) => steps.get_mut(place),
            Group::Next(_) => None,
        }
    }

    /// Adds a step with its result, in the place of what was known of it.
    fn result(&mut self, mut step: StepStory<'a>) {
        let place = step.id.and_then(|id| self.places.get(&id).copied());
        if let Some(place) = place
            && let Some(known) = self.at(place)
        {
            if matches!(step.detail, Detail::None) {
                step.detail = std::mem::take(&mut known.detail);
            }
            *known = step;
            return;
        }
        self.one(step);
    }

    fn one(&mut self, step: StepStory<'a>) {
        if let Some(id) = step.id {
            self.places.insert(id, (self.groups.len(), 0));
        }
        self.room = 0;
        self.groups.push(Group::One(Box::new(step)));
    }

    /// Adds a step that is planned: to the group that lacks some, or to a new one.
    fn plan(&mut self, target: u64, concurrent: u64, step: StepStory<'a>) {
        let last = self.groups.len().wrapping_sub(1);
        if let Some(Group::Parallel(steps)) = self.groups.last_mut()
            && self.room > 0
            && steps.first().is_some_and(|first| first.concurrent == concurrent)
        {
            self.places.insert(target, (last, steps.len()));
            self.room -= 1;
            steps.push(step);
            return;
        }
        self.places.insert(target, (self.groups.len(), 0));
        self.room = concurrent.saturating_sub(1);
        self.groups.push(Group::Parallel(vec![step]));
    }

    /// Adds what is known of a request to a third party.
    fn call(&mut self, line: &'a Line, step_id: Option<u64>, called: &Called) {
        let Some(id) = step_id else { return };
        let redact = self.parts.view.of_step(id);
        let sent = self.message(&line.message);
        let state = sent.map_or(StepState::Progress, |sent| match sent.state(self.parts.run) {
            // Its answer, or the step, is still to come.
            StepState::Success | StepState::Failed if self.parts.run.state == RunState::Started => {
                StepState::Progress
            }
            StepState::Success => StepState::Cancelled,
            state => state,
        });
        let place = if let Some(place) = self.places.get(&id) {
            *place
        } else {
            let name = sent.and_then(call_name).unwrap_or_default();
            let fields = Fields { id, name, step_type: "Call".into(), ..Fields::default() };
            let step = self.step(line, &fields);
            self.one(step);
            (self.groups.len() - 1, 0)
        };
        let Some(step) = self.at(place) else { return };
        if step.out.is_some() {
            return;
        }
        (step.state, step.call_type, step.message) = (state, line.call_type, Cow::Borrowed(&line.message));
        step.delivery = sent;
        step.errors = sent.map(RunMessage::errors).unwrap_or_default();
        let before = match std::mem::take(&mut step.detail) {
            Detail::Call(call) => Some(call),
            _ => None,
        };
        let mut call = before.unwrap_or_else(|| CallStory {
            url: called.url.clone().unwrap_or_default(),
            method: called.method.clone().unwrap_or_default(),
            headers: called.headers.clone().unwrap_or_default(),
            body: String::new(),
            answer: None,
            redact,
        });
        if line.call_type == CallType::ToCallback
            && let Some(sent) = sent
        {
            call.url.clone_from(&sent.message.url);
            sent.message.method.as_str().clone_into(&mut call.method);
            call.headers = sent.message.headers.clone();
        }
        if let Some(body) = &called.body {
            call.body.clone_from(body);
        }
        call.answer = called.answer.clone().or(call.answer);
        step.detail = Detail::Call(call);
    }

    /// Adds the waits that have not ended.
    pub(super) fn add_waits(&mut self) {
        for waiter in self.parts.waiters {
            let Ok(step) = Step::parse(waiter.step.as_bytes()) else { continue };
            let fields = Fields::of(&step, self.parts.view);
            let detail = Detail::Wait {
                event_id: waiter.event_id.clone(),
                timeout: waiter.timeout.clone(),
                deadline: Some(waiter.deadline),
                timed_out: None,
            };
            let timer = self.message(&waiter.timer);
            let created_at = timer.map_or(self.parts.run.created_at, |timer| timer.message.created_at);
            self.pending(&fields, waiter.timer.clone(), created_at, detail);
        }
    }

    /// Adds the runs that were invoked: beside their steps' results, or as steps that have none yet.
    pub(super) fn add_children(&mut self) {
        for Child { run, payload } in self.parts.children {
            let Some(invoker) = &run.invoker else { continue };
            let Ok(step) = Step::parse(invoker.step.as_bytes()) else { continue };
            let fields = Fields::of(&step, self.parts.view);
            let redact = &run.trigger.options.redact;
            let mut hidden = redact.clone();
            hidden.add(&self.parts.view.redact);
            let detail = Detail::Invoke { child: run, payload: self.parts.view.text(&hidden, payload) };
            let message = MessageId::new(run.instance.as_str());
            self.pending(&fields, message, run.created_at, detail);
        }
    }

    /// Adds a step that waits for something beside the endpoint; or what it has waited for.
    fn pending(&mut self, fields: &Fields, message: MessageId, created_at: Timestamp, detail: Detail<'a>) {
        if let Some(place) = self.places.get(&fields.id).copied()
            && let Some(step) = self.at(place)
        {
            if step.state != StepState::Success {
                step.message = Cow::Owned(message);
            }
            step.detail = detail;
            return;
        }
        let is_live = self.parts.run.state == RunState::Started;
        self.one(StepStory {
            id: Some(fields.id),
            name: fields.name.clone(),
            kind: fields.step_type.clone(),
            call_type: CallType::Step,
            message: Cow::Owned(message),
            out: None,
            concurrent: fields.concurrent,
            state: if is_live { StepState::Progress } else { StepState::Cancelled },
            created_at,
            headers: None,
            detail,
            delivery: None,
            errors: Vec::new(),
        });
    }

    /// Whether the group of a result has all results, so that another step follows.
    fn is_complete(&self, line: &Line) -> bool {
        let LineKind::Step(fields) = &line.kind else { return true };
        let group = self.places.get(&fields.id).and_then(|(group, _)| self.groups.get(*group));
        let Some(Group::Parallel(steps)) = group else { return true };
        steps.iter().all(|step| step.state == StepState::Success)
    }

    /// Whether a message delivers the payload and is not the first one that does.
    fn is_second(&self, sent: &RunMessage) -> bool {
        sent.kind() == Some(Kind::Step) && self.parts.lines.iter().all(|line| line.message != sent.message.id)
    }

    /// The deliveries after which the endpoint was to tell another step.
    pub(super) fn next(&self) -> Vec<NextStep<'a>> {
        let run = self.parts.run;
        if run.state == RunState::Success {
            return Vec::new();
        }
        let last = self.parts.lines.iter().rev().find(|line| !matches!(line.kind, LineKind::Unknown));
        let waits = self.groups.last().is_some_and(|group| match group {
            Group::One(step) => step.state == StepState::Progress || step.state == StepState::Retry,
            Group::Parallel(_) | Group::Next(_) => false,
        });
        let mut next = Vec::new();
        for line in self.parts.lines {
            let is_result = match &line.kind {
                LineKind::Payload(_) | LineKind::Step(_) => true,
                LineKind::Called(..) => line.call_type == CallType::FromCallback,
                LineKind::Plan(..) | LineKind::Unknown => false,
            };
            let mut delivery = self.message(&line.message).filter(|_| is_result);
            if matches!(line.kind, LineKind::Payload(_)) {
                // A run that was begun by plain HTTP delivers it twice.
                delivery = self.parts.messages.iter().rev().find(|sent| self.is_second(sent)).or(delivery);
            }
            let Some(delivery) = delivery else { continue };
            let errors = delivery.errors();
            let state = delivery.state(run);
            let is_last = last.is_some_and(|last| last.position == line.position) && !waits;
            let in_group = matches!(&line.kind, LineKind::Step(fields) if fields.concurrent > 1);
            let has_failed = matches!(state, StepState::Retry | StepState::Failed);
            let is_shown = if in_group { has_failed || is_last && self.is_complete(line) } else { is_last };
            let is_shown = is_shown || state == StepState::Failed;
            if state == StepState::Success || !is_shown {
                continue;
            }
            let name = errors.iter().rev().find_map(|attempt| {
                Some(attempt.response.as_ref()?.headers.get("Upstash-Error-Step-Name")?.into_owned())
            });
            next.push(NextStep { name, state, delivery, errors });
        }
        next
    }
}
