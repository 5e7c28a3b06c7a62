//! What has become of workflow runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Operations, Result};
use crate::domain::filter::MessageFilter;
use crate::domain::id::MessageId;
use crate::domain::message::Headers;
use crate::domain::outcome::LOGGED_BODY;
use crate::domain::run::story::{AttemptResult, Child, Line, Parts, RunMessage, Story, View, cut, tell};
use crate::domain::run::waiting::Waiter;
use crate::domain::run::{Kind, Run};
use crate::store::runs::{RunFilter, RunKey, RunPlace};
use crate::store::{LogCursor, LogEntry, LogFilter, Order};

/// Bytes of a run's entries or messages that are read at once.
const READ: usize = 4 << 20;
/// Bytes of the stories of one page; then those that follow are left for the next page.
const PAGE_BYTES: usize = 16 << 20;
/// Runs that are read at once while those are looked for whose URLs fit.
const STEP: usize = 250;
/// How long is searched for one page.
const TIME: Duration = Duration::from_secs(1);

/// Which runs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WhichRuns {
    pub filter: RunFilter,
    /// Conditions on their URLs alone: hosts and paths.
    pub urls: MessageFilter,
    /// Runs of these messages; empty: any.
    pub messages: Vec<MessageId>,
}

/// A run, and everything that is told of it.
#[derive(Clone, PartialEq, Debug)]
pub struct ToldRun {
    pub run: Run,
    lines: Vec<Line>,
    messages: Vec<RunMessage>,
    waiters: Vec<Waiter>,
    children: Vec<Child>,
    view: View,
}

impl ToldRun {
    /// Its story.
    pub fn story(&self) -> Story<'_> {
        let Self { run, lines, messages, waiters, children, view } = self;
        tell(&Parts { run, lines, messages, waiters, children, view })
    }

    /// How its texts are shown.
    pub const fn view(&self) -> &View {
        &self.view
    }

    fn size(&self) -> usize {
        let messages = self.messages.iter().map(message_size).sum::<usize>();
        let children = self.children.iter().map(|child| 1024 + child.payload.len()).sum::<usize>();
        1024 + self.lines.iter().map(Line::size).sum::<usize>() + messages + children
    }
}

/// A page of runs with their stories.
#[derive(Clone, PartialEq, Debug)]
pub struct StoryPage {
    /// The latest first.
    pub runs: Vec<ToldRun>,
    /// The next page begins there; `None`: this is the last one.
    pub next: Option<RunPlace>,
}

impl Operations {
    /// The next runs that match, with their stories: at most `count`, and as many as fit. Texts are cut to `max_text` bytes.
    pub async fn told_runs(
        &self,
        mut which: WhichRuns,
        mut after: Option<RunPlace>,
        count: usize,
        max_text: usize,
    ) -> Result<StoryPage> {
        let mut page = StoryPage { runs: Vec::new(), next: None };
        if !which.messages.is_empty() {
            for id in &which.messages {
                let part = self.store().message(id).await?.and_then(|message| message.run);
                which.filter.instances.extend(part.map(|part| part.instance));
            }
            if which.filter.instances.is_empty() {
                return Ok(page);
            }
        }
        let started = Instant::now();
        let step = if which.urls.is_empty() { count } else { STEP };
        let mut bytes = 0;
        loop {
            let found = self.store().runs(&which.filter, after.as_ref(), step).await?;
            for run in found.items {
                let place = (run.created_at, run.instance.clone());
                if which.urls.matches_parts(&run.url, std::iter::empty()) {
                    if page.runs.len() == count || bytes >= PAGE_BYTES {
                        page.next = after;
                        return Ok(page);
                    }
                    let told = self.told_run(run, max_text).await?;
                    bytes += told.size();
                    page.runs.push(told);
                }
                after = Some(place);
            }
            let is_full = page.runs.len() == count || started.elapsed() >= TIME;
            after = found.next;
            if after.is_none() || is_full {
                page.next = after;
                return Ok(page);
            }
        }
    }

    /// A run's messages with what has become of them, but without bodies that nobody has to know any more, and with so many
    /// bytes of the answers to them.
    pub(super) async fn run_messages(&self, run: &Run, mut answers: usize) -> Result<Vec<RunMessage>> {
        let mut messages: Vec<RunMessage> = Vec::new();
        loop {
            let after = messages.last().map(|sent| &sent.message.id);
            let more = self.store().run_messages(&run.instance, after, READ).await?;
            if more.is_empty() {
                return Ok(messages);
            }
            messages.extend(more.into_iter().map(|sent| told_of(sent, &mut answers)));
        }
    }

    async fn told_run(&self, run: Run, max_text: usize) -> Result<ToldRun> {
        let max_text = max_text.min(LOGGED_BODY);
        let store = self.store();
        let messages = self.run_messages(&run, PAGE_BYTES / 2).await?;
        let mut view = View::new(&run, &messages, max_text);
        let (mut lines, mut size) = (Vec::new(), messages.iter().map(message_size).sum::<usize>());
        loop {
            let from = u32::try_from(lines.len()).unwrap_or(u32::MAX);
            let entries = store.run_entries(&run.instance, from, READ).await?;
            if entries.is_empty() {
                break;
            }
            for entry in &entries {
                if size > PAGE_BYTES {
                    // Everything that happened is told, if not in all its words.
                    view.max_text = 0;
                }
                let line = Line::of(entry, &view);
                size += line.size();
                lines.push(line);
            }
        }
        let mut children = Vec::new();
        for child in store.children(&run.instance).await? {
            let payload = store.run_entries(&child.instance, 0, 1).await?.into_iter().next();
            let payload = payload.map(|entry| entry.body).unwrap_or_default();
            // Hidden ones are told by their hash, which needs the whole.
            let is_hidden = child.trigger.options.redact.body || view.redact.body;
            let max_text = if size > PAGE_BYTES { 0 } else { view.max_text };
            let payload = if is_hidden { payload } else { cut(&payload, max_text).into_bytes().into() };
            size += payload.len();
            children.push(Child { run: child, payload });
        }
        let waiters = store.run_waiters(&run.instance).await?;
        Ok(ToldRun { run, lines, messages, waiters, children, view })
    }
}

/// The message as far as stories tell of it: the body where that says which step it is of, and answers to attempts that have
/// failed or that told of a failure, as long as there is room for them.
fn told_of(mut sent: RunMessage, room: &mut usize) -> RunMessage {
    let kind = sent.kind();
    if kind != Some(Kind::Timeout) {
        sent.message.body = bytes::Bytes::new();
    }
    for attempt in &mut sent.attempts {
        let is_told = attempt.result != AttemptResult::Delivered || kind == Some(Kind::FailureCallback);
        if !is_told {
            attempt.response = None;
        }
        let Some(answer) = &mut attempt.response else { continue };
        let size = answer.body.len() + answer.headers.size();
        if size > *room {
            (answer.body, answer.headers) = (bytes::Bytes::new(), Headers::new());
        } else {
            *room -= size;
        }
    }
    sent
}

fn message_size(sent: &RunMessage) -> usize {
    let answers = sent.attempts.iter().filter_map(|attempt| attempt.response.as_ref());
    sent.message.size() + answers.map(|answer| answer.body.len() + answer.headers.size()).sum::<usize>()
}

/// An entry of the log of runs' messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunEvent {
    pub entry: LogEntry,
    pub run: Arc<Run>,
}

/// A page of the log of runs' messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventPage {
    pub items: Vec<RunEvent>,
    /// The next page begins there; `None`: this is the last one.
    pub next: Option<LogCursor>,
}

impl Operations {
    /// The next entries of the log of runs' messages: at most `count`, of runs that match. Perhaps none, though more may
    /// follow: a page looks for a bounded time.
    pub async fn run_events(
        &self,
        filter: &LogFilter,
        runs: &RunFilter,
        mut cursor: Option<LogCursor>,
        count: usize,
        max_bytes: usize,
    ) -> Result<EventPage> {
        let started = Instant::now();
        let mut items = Vec::new();
        loop {
            let (left, order) = (count - items.len(), Order::LatestFirst);
            let page = self.store().log(filter, order, cursor.as_ref(), left, max_bytes).await?;
            for entry in page.items {
                let Some(part) = &entry.message.run else { continue };
                let run = self.store().run(&RunKey::Instance(part.instance.clone())).await?;
                items.extend(
                    run.filter(|run| runs.matches(run)).map(|run| RunEvent { entry, run: Arc::new(run) }),
                );
            }
            cursor = page.next;
            if cursor.is_none() || !items.is_empty() || started.elapsed() >= TIME {
                return Ok(EventPage { items, next: cursor });
            }
        }
    }
}
