//! Carries out a plan: nodes on one store, clients that ask them, and what goes wrong meanwhile.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use homing::chance::Chance;
use homing::clock::{Clock, pause, pause_until};
use homing::domain::cron::Cron;
use homing::domain::destination::validate_url;
use homing::domain::filter::MessageFilter;
use homing::domain::gate::{FlowChange, flow_gate, queue_gate};
use homing::domain::id::{MessageId, ScheduleId};
use homing::domain::message::{CallbackSpec, FlowControl, Headers, Message, Method, Options};
use homing::domain::outcome::Ids as _;
use homing::domain::template::{Target, Template};
use homing::domain::time::Timestamp;
use homing::engine::ingest::NewMessage;
use homing::engine::keys::{Keys, fresh, fresh_pair};
use homing::engine::{self, Engine};
use homing::failure::Failure;
use homing::store::model::{Model, Processes, Story};
use homing::store::schedules::{Schedule, Schedules as _};
use homing::store::{
    Accept, Accepted, DeadLetterFilter, Deduplication, Missing, Order, Queues as _, Result, Retention, Store,
    UnfinishedFilter,
};
use homing::tasks::Tasks;
use tokio::time::Instant;

use crate::destinations::Scripted;
use crate::dice::Dice;
use crate::history::{Event, History, Life, What};
use crate::link::{Line, Storm};
use crate::node::{OfProcess, Process};
use crate::plan::{Fault, HEAL, KEYS, LAST, LEAST, Op, Plan, QUEUES, SCHEDULES, SCHEDULES_END, Spec, ms};

/// The store's time when a run begins.
pub(crate) const START: Timestamp = Timestamp::from_millis(1_790_000_000_000);

/// The end of a run.
pub(crate) struct Outcome {
    pub(crate) plan: Plan,
    pub(crate) events: Vec<Event>,
    pub(crate) stories: Vec<Story>,
    /// When registrations of nodes ended, by the nodes' numbers.
    pub(crate) ended: Vec<(usize, Duration)>,
    /// Room and tasks that nodes had not given back, in words.
    pub(crate) leaks: Vec<String>,
    pub(crate) lasted: Duration,
}

/// Makes a run in a runtime of its own, whose time is not the world's.
pub(crate) fn run(seed: u64) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(async { World::new(seed).run().await })
}

struct Node {
    name: String,
    clock: Clock,
    storm: Arc<Mutex<Option<Storm>>>,
    running: Mutex<Option<Running>>,
    /// How long it stays down when it ends.
    down: Mutex<Duration>,
}

#[derive(Clone)]
struct Running {
    process: Arc<Process>,
    engine: Arc<Engine>,
    failure: Failure,
}

struct World {
    plan: Plan,
    dice: Dice,
    history: History,
    model: Model,
    nodes: Vec<Node>,
    /// Messages that clients know to be stored, each with its label.
    known: Mutex<Vec<(MessageId, u64)>>,
    generations: Mutex<i64>,
}

impl World {
    fn new(seed: u64) -> Arc<Self> {
        let plan = Plan::new(seed);
        // Not the plan's numbers.
        let dice = Dice::new(!seed);
        let store_clock = Clock::simulated(START, Duration::from_secs(1000));
        let node = |index: usize| Node {
            name: format!("node-{index}"),
            clock: match plan.processes {
                Processes::One => store_clock.clone(),
                Processes::Several => {
                    let wall = START.after(ms(dice.below(600_000))).before(ms(300_000));
                    Clock::simulated(wall, ms(dice.below(10_000_000)))
                }
            },
            storm: Arc::default(),
            running: Mutex::default(),
            down: Mutex::default(),
        };
        let nodes = (0..plan.nodes).map(node).collect();
        let model = Model::with_clock(plan.processes, move || store_clock.now());
        Arc::new(Self {
            plan,
            dice,
            history: History::new(),
            model,
            nodes,
            known: Mutex::default(),
            generations: Mutex::new(0),
        })
    }

    async fn run(self: Arc<Self>) -> Outcome {
        let start = Instant::now();
        for (queue, parallelism) in self.plan.parallelism.iter().enumerate() {
            let (name, now) = (queue_name(queue), self.model.time());
            self.model.upsert_queue(&name, Some(*parallelism), None, None, now).await.unwrap();
        }
        for index in 0..self.nodes.len() {
            tokio::spawn(Arc::clone(&self).keep_running(index));
        }
        for (at, fault) in self.plan.faults.clone() {
            let world = Arc::clone(&self);
            tokio::spawn(async move {
                pause_until(start + at).await;
                world.fault(fault).await;
            });
        }
        for (number, (at, node, op)) in self.plan.ops.clone().into_iter().enumerate() {
            let world = Arc::clone(&self);
            tokio::spawn(async move {
                pause_until(start + at).await;
                world.ask(number, node, op).await;
            });
        }
        pause_until(start + HEAL).await;
        self.heal().await;
        pause_until(start + SCHEDULES_END).await;
        for schedule in 0..SCHEDULES {
            self.model.delete_schedule(&schedule_id(schedule)).await.unwrap();
        }
        pause_until(start + LEAST).await;
        while self.model.has_unfinished() && start.elapsed() < LAST {
            pause(ms(1_000)).await;
        }
        pause(ms(2_000)).await;
        self.outcome(start.elapsed())
    }

    fn outcome(&self, lasted: Duration) -> Outcome {
        let mut leaks = Vec::new();
        for node in &self.nodes {
            match &*node.running.lock().unwrap() {
                None => leaks.push(format!("{} does not run", node.name)),
                Some(running) => {
                    if running.failure.is_set() {
                        leaks.push(format!("a task of {} has failed", running.process.life));
                    }
                    let held = running.engine.deliveries();
                    if held > 0 {
                        leaks.push(format!("{} has room for {held} deliveries taken", running.process.life));
                    }
                }
            }
        }
        let number = |name: &str| self.nodes.iter().position(|node| node.name == name).unwrap();
        let ended = self.model.registrations_ended().into_iter();
        Outcome {
            plan: self.plan.clone(),
            events: self.history.events(),
            stories: self.model.stories(),
            ended: ended.map(|(name, at)| (number(&name), at.since(START))).collect(),
            leaks,
            lasted,
        }
    }

    /// Starts a node whenever it is down.
    async fn keep_running(self: Arc<Self>, index: usize) {
        let node = &self.nodes[index];
        for number in 1.. {
            let life = Life { node: index, start: number };
            let process = Process::new(life, self.history.clone());
            match self.start(node, &process).await {
                Some(Ok((engine, failure))) => {
                    self.history.note(What::Started(life));
                    *node.running.lock().unwrap() =
                        Some(Running { process: Arc::clone(&process), engine, failure });
                    process.ended.notified().await;
                    *node.running.lock().unwrap() = None;
                }
                // The store is away.
                Some(Err(_)) => process.end(),
                None => {}
            }
            let down = std::mem::take(&mut *node.down.lock().unwrap());
            pause(down.max(ms(500))).await;
        }
    }

    async fn start(&self, node: &Node, process: &Arc<Process>) -> Option<Result<(Arc<Engine>, Failure)>> {
        let line = Line {
            life: process.life,
            latency: self.plan.latency,
            storm: Arc::clone(&node.storm),
            dice: self.dice.split(),
            history: self.history.clone(),
        };
        let store: Arc<dyn Store> = Arc::new(self.model.connect(Arc::new(line)));
        let failure = Failure::default();
        let chance = Chance::seeded(self.dice.number());
        let scripted = Scripted { life: process.life, history: self.history.clone() };
        let world = engine::World {
            clock: node.clock.clone(),
            chance: chance.clone(),
            destinations: Arc::new(scripted),
            tasks: Tasks::on(Arc::new(OfProcess(Arc::clone(process))), failure.clone()),
            observer: None,
        };
        let settings = engine::Settings {
            node_name: node.name.clone(),
            concurrency: self.plan.concurrency,
            concurrency_per_origin: self.plan.concurrency.div_ceil(2),
            prefetch: self.plan.prefetch,
            prefetch_bytes: 1 << 24,
            writers: 1,
            max_timeout: Duration::from_secs(20),
            max_response: 1 << 10,
            lazy_log_bytes: 1 << 10,
            llm: None,
            retention: Retention { log: Duration::from_hours(24), dead_letters: Duration::from_hours(24) },
        };
        let now = node.clock.now();
        let started = process.run(async move {
            let keys = store.signing_keys(&fresh_pair(&chance), now).await?;
            Engine::start(settings, store, Keys::new(keys.pair), world).await
        });
        let started = started.await?;
        Some(started.map(|engine| (Arc::new(engine), failure)))
    }

    fn running(&self, index: usize) -> Option<Running> {
        self.nodes[index].running.lock().unwrap().clone()
    }

    async fn fault(self: Arc<Self>, fault: Fault) {
        match fault {
            Fault::Crash { node, polls, down } => {
                let Some(Running { process, .. }) = self.running(node) else { return };
                *self.nodes[node].down.lock().unwrap() = down;
                process.crash_after(polls);
                pause(ms(4_000)).await;
                process.crash();
            }
            Fault::Suspend { node, time } => {
                let Some(Running { process, .. }) = self.running(node) else { return };
                process.suspend();
                pause(time).await;
                process.resume();
            }
            Fault::Restart { node, grace } => {
                let Some(Running { process, engine, .. }) = self.running(node) else { return };
                self.history.note(What::Stopping(process.life));
                let stop = async move {
                    engine.drain().await;
                    engine.stop(grace).await;
                };
                if process.run(stop).await.is_some() {
                    self.history.note(What::Stopped(process.life));
                    process.end();
                }
            }
            Fault::Storm { nodes, storm, time } => {
                for &node in &nodes {
                    self.history.note(What::Storm { node, text: format!("{storm:?}") });
                    *self.nodes[node].storm.lock().unwrap() = Some(storm);
                }
                pause(time).await;
                for &node in &nodes {
                    self.calm(node);
                }
            }
        }
    }

    fn calm(&self, node: usize) {
        if self.nodes[node].storm.lock().unwrap().take().is_some() {
            self.history.note(What::Calm { node });
        }
    }

    /// Ends all faults, and all that users have paused.
    async fn heal(&self) {
        for (index, node) in self.nodes.iter().enumerate() {
            self.calm(index);
            *node.down.lock().unwrap() = Duration::ZERO;
            if let Some(running) = self.running(index) {
                running.process.resume();
            }
        }
        for queue in 0..QUEUES {
            self.model.pause_queue(&queue_name(queue), false, self.model.time()).await.unwrap();
        }
        for key in 0..KEYS {
            let (name, now) = (key_name(key), self.model.time());
            self.model.change_flow_key(&name, &FlowChange::Resume, now).await.unwrap();
        }
        for index in 0..self.nodes.len() {
            if let Some(running) = self.running(index) {
                running.engine.gates_changed();
            }
        }
    }

    /// Carries out what a client asks one of the nodes for.
    async fn ask(self: Arc<Self>, number: usize, node: usize, op: Op) {
        let nodes = self.nodes.len();
        let Some(running) = (0..nodes).find_map(|next| self.running((node + next) % nodes)) else { return };
        let Running { process, engine, .. } = running;
        let life = process.life;
        match op {
            Op::Publish(specs) => {
                let (world, labels) = (Arc::clone(&self), specs.iter().map(|spec| spec.label).collect());
                self.publish(
                    number,
                    labels,
                    process.run(async move {
                        let now = engine.now();
                        let new: Vec<NewMessage> =
                            specs.iter().map(|spec| world.message(spec, now, &engine)).collect();
                        let ids: Vec<MessageId> = new.iter().map(|new| new.message.id.clone()).collect();
                        world.history.note(What::Publishing { op: number, life, ids: ids.clone() });
                        engine.ingest().publish(new).await.map(|answers| (ids, answers))
                    }),
                )
                .await;
            }
            Op::RetryDeadLetters => {
                let world = Arc::clone(&self);
                self.publish(
                    number,
                    Vec::new(),
                    process.run(async move { world.retry(number, life, &engine).await }),
                )
                .await;
            }
            Op::Cancel { back } => {
                let Some(id) = self.back(back, 1).pop() else { return };
                self.history.note(What::Cancelling { op: number, life, ids: vec![id.clone()] });
                let answer = process.run(async move { engine.cancel(&id).await }).await;
                let answer = answer.and_then(Result::ok);
                self.history.note(What::Cancelled { op: number, answer });
            }
            Op::CancelEach { back, count } => {
                let ids = self.back(back, count);
                self.history.note(What::Cancelling { op: number, life, ids: ids.clone() });
                let count = process.run(async move { engine.cancel_each(&ids, 1000).await }).await;
                self.history.note(What::CancelledMany { op: number, count: count.and_then(Result::ok) });
            }
            Op::CancelLabel(label) => {
                let known = self.known.lock().unwrap().clone();
                let ids = known.into_iter().filter(|(_, its)| *its == label).map(|(id, _)| id).collect();
                self.history.note(What::Cancelling { op: number, life, ids });
                let matching = MessageFilter { labels: vec![label_name(label)], ..MessageFilter::default() };
                let filter = UnfinishedFilter { matching, ..UnfinishedFilter::default() };
                let count = process.run(async move { engine.cancel_matching(&filter, 1000).await }).await;
                self.history.note(What::CancelledMany { op: number, count: count.and_then(Result::ok) });
            }
            change => self.change(number, process, engine, change).await,
        }
    }

    /// Has one of the nodes change something other than messages.
    async fn change(self: Arc<Self>, number: usize, process: Arc<Process>, engine: Arc<Engine>, op: Op) {
        let life = process.life;
        let asked = |text: String| self.history.note(What::Asked { op: number, life, text });
        let answered = |text: String| self.history.note(What::Answered { op: number, text });
        match op {
            Op::SetQueue { queue, parallelism, paused } => {
                asked(format!("queue {queue}: parallelism {parallelism:?}, paused {paused:?}"));
                let answer = process.run(async move {
                    let name = queue_name(queue);
                    engine.store().upsert_queue(&name, parallelism, paused, None, engine.now()).await?;
                    engine.gate_changed(queue_gate(&name));
                    Ok(())
                });
                answered(in_words(answer.await));
            }
            Op::PauseKey { key, paused } => {
                asked(format!("key {key}: paused {paused}"));
                let answer = process.run(async move {
                    let change = if paused { FlowChange::Pause } else { FlowChange::Resume };
                    engine.store().change_flow_key(&key_name(key), &change, engine.now()).await?;
                    engine.gate_changed(flow_gate(&key_name(key)));
                    engine.gates_changed();
                    Ok(())
                });
                answered(in_words(answer.await));
            }
            Op::PutSchedule(schedule, spec) => {
                asked(format!("schedule {schedule} is made"));
                let world = Arc::clone(&self);
                let answer = process.run(async move {
                    let schedule = world.schedule(schedule, &spec, engine.now());
                    engine.store().put_schedule(&schedule, None).await?;
                    engine.schedule_changed();
                    Ok(())
                });
                answered(in_words(answer.await));
            }
            Op::PauseSchedule(schedule) => {
                asked(format!("schedule {schedule} is paused"));
                let id = schedule_id(schedule);
                let answer = process.run(async move { engine.store().pause_schedule(&id).await.map(drop) });
                answered(in_words(answer.await));
            }
            Op::ResumeSchedule(schedule) => {
                asked(format!("schedule {schedule} is resumed"));
                let id = schedule_id(schedule);
                let answer = process.run(async move {
                    if let Some(schedule) = engine.store().schedule(&id).await? {
                        let next_at = every_minute().next_after(engine.now()).unwrap();
                        engine.store().resume_schedule(&id, schedule.generation, next_at).await?;
                        engine.schedule_changed();
                    }
                    Ok(())
                });
                answered(in_words(answer.await));
            }
            Op::RotateKeys => {
                asked("rotate the signing keys".to_owned());
                let answer = process.run(async move {
                    let fresh = fresh(engine.chance());
                    let rotation = engine.store().rotate_signing_keys(&fresh, engine.now());
                    engine.keys().follow(rotation).await?;
                    engine.store().tell_others().await
                });
                answered(in_words(answer.await));
            }
            _ => unreachable!("it is about messages"),
        }
    }

    /// Waits for the answer to a publish, and keeps in mind what it says.
    async fn publish(
        &self,
        op: usize,
        labels: Vec<u64>,
        answer: impl Future<Output = Option<Result<(Vec<MessageId>, Vec<Accepted>)>>>,
    ) {
        let answer = answer.await.and_then(Result::ok);
        if let Some((ids, answers)) = &answer {
            let labels = labels.into_iter().map(Some).chain(std::iter::repeat(None));
            let stored = ids.iter().zip(answers).zip(labels);
            let stored = stored.filter(|((_, answer), _)| **answer == Accepted::Stored);
            let stored = stored.map(|((id, _), label)| (id.clone(), label.unwrap_or(u64::MAX)));
            self.known.lock().unwrap().extend(stored);
        }
        self.history.note(What::Published { op, answers: answer.map(|(_, answers)| answers) });
    }

    /// Replaces all dead letters by new messages.
    async fn retry(&self, op: usize, life: Life, engine: &Engine) -> Result<(Vec<MessageId>, Vec<Accepted>)> {
        let filter = DeadLetterFilter::default();
        let letters = engine.store().dead_letters(&filter, Order::EarliestFirst, None, 100, 1 << 30).await?;
        let now = engine.now();
        let replacement = |letter: homing::store::DeadLetter| {
            let message =
                Message { id: engine.ids().message(now), created_at: now, due_at: now, ..letter.message };
            (letter.id, accept(message))
        };
        let replacements: Vec<_> = letters.items.into_iter().map(replacement).collect();
        let ids = replacements.iter().map(|(_, accept)| accept.message.id.clone()).collect::<Vec<_>>();
        self.history.note(What::Publishing { op, life, ids });
        let replaced = engine.store().retry_dead_letters(&replacements, Missing::Skip).await?;
        let there = replacements.into_iter().zip(replaced).filter(|(_, replaced)| *replaced);
        let messages: Vec<Arc<Message>> = there.map(|((_, accept), _)| accept.message).collect();
        for message in &messages {
            engine.note_waiting(message);
        }
        Ok(messages.iter().map(|message| (message.id.clone(), Accepted::Stored)).unzip())
    }

    /// The messages that were published last, but for the last `back` of them.
    fn back(&self, back: usize, count: usize) -> Vec<MessageId> {
        let known = self.known.lock().unwrap();
        known.iter().rev().skip(back).take(count).map(|(id, _)| id.clone()).collect()
    }

    fn message(&self, spec: &Spec, now: Timestamp, engine: &Engine) -> NewMessage {
        let target = Target::url(spec.script.url());
        let message =
            self.template(spec).into_message(engine.ids().message(now), target, now, now.after(spec.delay));
        let Accept { message, lane, .. } = accept(message);
        let deduplication = spec.deduplication.map(|key| Deduplication {
            key: format!("d{key}"),
            expires_at: now.after(Duration::from_mins(1)),
        });
        NewMessage { message, lane, deduplication, on_run: None }
    }

    fn template(&self, spec: &Spec) -> Template {
        let callback = |script: &Option<crate::plan::Script>, kind: &str| {
            script.map(|script| {
                let url = format!("{}?{kind}", script.url());
                let options = Options { retry_delay: Some(RETRY_DELAY.to_owned()), ..Options::default() };
                Box::new(CallbackSpec { url, method: Method::Post, options, ..CallbackSpec::default() })
            })
        };
        let flow_control = spec.key.map(|number| {
            let key = self.plan.keys[number];
            FlowControl {
                key: key_name(number),
                parallelism: key.parallelism,
                rate: key.rate,
                period_s: key.period_s,
            }
        });
        let options = Options {
            timeout: Some(spec.timeout),
            retry_delay: Some(RETRY_DELAY.to_owned()),
            callback: callback(&spec.callback, "callback"),
            failure_callback: callback(&spec.failure_callback, "failure"),
            flow_control,
            ..Options::default()
        };
        let (labels, body) = (vec![label_name(spec.label)], Bytes::from_static(b"hello"));
        let mut template = Template::new(Method::Post, Headers::new(), body, spec.retries, labels, options);
        template.queue = spec.queue.map(queue_name);
        template
    }

    fn schedule(&self, number: usize, spec: &Spec, now: Timestamp) -> Schedule {
        let mut generations = self.generations.lock().unwrap();
        *generations += 1;
        let id = schedule_id(number);
        let mut template = self.template(spec);
        template.schedule_id = Some(id.to_string());
        Schedule {
            id,
            generation: *generations,
            cron: EVERY_MINUTE.to_owned(),
            destination: spec.script.url(),
            template,
            delay: (!spec.delay.is_zero()).then_some(spec.delay),
            created_at: now,
            paused: false,
            next_at: every_minute().next_after(now).unwrap(),
            last_firing: None,
        }
    }
}

const RETRY_DELAY: &str = "500 * (1 + retried)";
const EVERY_MINUTE: &str = "* * * * *";

fn every_minute() -> Cron {
    Cron::parse(EVERY_MINUTE).unwrap()
}

fn accept(message: Message) -> Accept {
    let lane = Arc::from(validate_url(&message.url).unwrap().to_string());
    Accept { message: Arc::new(message), lane, lease: None, deduplication: None, on_run: None, request: 0 }
}

fn in_words(answer: Option<Result<()>>) -> String {
    match answer {
        Some(Ok(())) => "done".to_owned(),
        Some(Err(error)) => error.to_string(),
        None => "none".to_owned(),
    }
}

pub(crate) fn queue_name(number: usize) -> String {
    format!("queue-{number}")
}

pub(crate) fn key_name(number: usize) -> String {
    format!("key-{number}")
}

fn label_name(number: u64) -> String {
    format!("label-{number}")
}

fn schedule_id(number: usize) -> ScheduleId {
    ScheduleId::new(format!("schedule-{number}"))
}
