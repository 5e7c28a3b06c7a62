//! Publishing: a destination and what is asked for make a [`Draft`], drafts and bodies make [`Messages`], which are stored
//! together.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::memory::Share;
use super::{OperationError, Operations, Result};
use crate::domain::deduplication::{Deduplication, content_key, id_key};
use crate::domain::destination::{Destination, DestinationError};
use crate::domain::message::Message;
use crate::domain::outcome::Ids as _;
use crate::domain::publish::Publish;
use crate::domain::run::submission::{Request, Submission};
use crate::domain::template::{Target, Template};
use crate::domain::time::Timestamp;
use crate::domain::url_group::UrlGroup;
use crate::engine::ingest::NewMessage;
use crate::store::{self, Accepted};

/// Messages that one request may make: as many are stored within a second or two, while others wait.
pub const MAX_MESSAGES: usize = 50_000;

/// Bytes that the messages of a request may take in memory beyond the size of its body. In memory a header or a label is
/// much larger than its text, so that short ones make a large message of a small body.
const UNCHARGED: usize = 1 << 20;

/// The URL groups that one request has asked for: however often it does, it sees the same.
#[derive(Default)]
pub struct Groups(BTreeMap<String, UrlGroup>);

/// A publish that is checked; only its body is missing.
pub struct Draft {
    recipients: Recipients,
    publish: Publish,
}

enum Recipients {
    One(Recipient),
    /// One for each endpoint; never empty.
    Group(Vec<Recipient>),
}

struct Recipient {
    target: Target,
    /// The origin, which limits deliveries.
    lane: Arc<str>,
}

/// How many messages a draft has become.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// One, by itself.
    One,
    /// This many, for a URL group's endpoints.
    Group(usize),
}

/// The messages of one request, which are stored together.
pub struct Messages {
    created_at: Timestamp,
    caller_ip: Option<String>,
    new: Vec<NewMessage>,
    /// Bytes of their bodies, and of all else that a group multiplies.
    bytes: usize,
    /// Bytes that they take in memory.
    memory: usize,
    /// How many of those the request's share of the memory and this one have room for.
    covered: usize,
    share: Option<Share>,
    /// The ids of the runs that messages belong to, by the messages' places.
    run_ids: BTreeMap<usize, String>,
}

impl Messages {
    /// When they are accepted.
    pub const fn created_at(&self) -> Timestamp {
        self.created_at
    }

    /// Where they go.
    pub fn urls(&self) -> impl Iterator<Item = &str> {
        self.new.iter().map(|new| new.message.url.as_str())
    }
}

impl Operations {
    /// Checks where something is to go, and everything else that is asked for beyond its form.
    pub async fn draft(
        &self,
        destination: Destination,
        mut publish: Publish,
        groups: &mut Groups,
    ) -> Result<Draft> {
        let recipients = match destination {
            Destination::Url(url) => Recipients::One(self.recipient(Target::url(url))?),
            Destination::Group(name) => {
                let group = self.find_group(name, groups).await?;
                group.add_headers(&mut publish.headers);
                publish.size += group.headers.size();
                let recipients = group.targets().map(|target| self.recipient(target));
                Recipients::Group(recipients.collect::<Result<_, _>>()?)
            }
            Destination::Api(name) => {
                publish.options.api = Some(name);
                Recipients::One(self.recipient(Target::url(self.llm_url()?))?)
            }
        };
        self.check_callbacks(&publish.options)?;
        if let Some(queue) = &publish.queue {
            self.check_queue(queue).await?;
        }
        Ok(Draft { recipients, publish })
    }

    /// The group of that name, as it is now. In a task of its own, since a caller that hangs up must not stop a step of the
    /// database half-way.
    pub(super) async fn find_group<'g>(&self, name: String, groups: &'g mut Groups) -> Result<&'g UrlGroup> {
        let Groups(groups) = groups;
        if !groups.contains_key(&name) {
            let (store, wanted) = (Arc::clone(self.engine.store()), name.clone());
            let group = tokio::spawn(async move { store.url_group(&wanted).await });
            let group = group.await.map_err(OperationError::TaskFailed)??;
            let group = group.ok_or_else(|| DestinationError::UnknownGroup(name.clone()))?;
            groups.insert(name.clone(), group);
        }
        Ok(&groups[&name])
    }

    fn recipient(&self, target: Target) -> Result<Recipient> {
        let origin = self.check_destination(&target.url)?;
        Ok(Recipient { target, lane: origin.lane() })
    }

    /// No messages yet, of a request with that many bytes that is accepted now.
    pub fn messages(&self, caller_ip: Option<String>, request: usize) -> Messages {
        Messages {
            created_at: self.now(),
            caller_ip,
            new: Vec::with_capacity(1),
            bytes: 0,
            memory: 0,
            covered: request.saturating_add(UNCHARGED),
            share: None,
            run_ids: BTreeMap::new(),
        }
    }

    /// Adds what a draft and its body come to, unless that is too much for one step of the store.
    pub async fn add(&self, messages: &mut Messages, mut draft: Draft, body: Bytes) -> Result<Shape> {
        match draft.publish.submission.take() {
            Some(submission) => self.add_submission(messages, draft, &submission, body).await,
            None => self.add_plain(messages, draft, body),
        }
    }

    fn add_plain(&self, messages: &mut Messages, draft: Draft, body: Bytes) -> Result<Shape> {
        let Draft { recipients, mut publish } = draft;
        let (count, urls, bytes) = match &recipients {
            Recipients::One(recipient) => (1, recipient.target.url.len(), body.len()),
            Recipients::Group(recipients) => {
                let urls: usize = recipients.iter().map(|recipient| recipient.target.url.len()).sum();
                (recipients.len(), urls, urls + recipients.len() * (body.len() + publish.size))
            }
        };
        if messages.new.len() + count > MAX_MESSAGES {
            return Err(OperationError::invalid(format!(
                "one request may make at most {MAX_MESSAGES} messages"
            )));
        }
        self.count_bytes(messages, bytes)?;
        let due_at = publish.due.of(messages.created_at);
        let deduplication = publish.deduplication.take();
        let template = publish.into_template(body, messages.caller_ip.clone());
        messages.memory += template.body.len() + urls + count * template.size();
        self.cover(messages)?;
        let new = |recipient, template| {
            let key = deduplication.as_ref().map(|by| key(by, &recipient, &template));
            self.new_message(recipient, template, messages.created_at, due_at, key)
        };
        Ok(match recipients {
            Recipients::One(recipient) => {
                messages.new.push(new(recipient, template));
                Shape::One
            }
            Recipients::Group(recipients) => {
                messages.new.extend(recipients.into_iter().map(|recipient| new(recipient, template.clone())));
                Shape::Group(count)
            }
        })
    }

    /// Counts what messages hold.
    fn count_bytes(&self, messages: &mut Messages, bytes: usize) -> Result<()> {
        messages.bytes += bytes;
        let limit = self.settings.max_batch;
        if messages.bytes > limit {
            return Err(OperationError::TooLarge { what: "what its messages hold together", limit });
        }
        Ok(())
    }

    /// Adds what a draft and its body mean to a run.
    async fn add_submission(
        &self,
        messages: &mut Messages,
        draft: Draft,
        submission: &Submission,
        body: Bytes,
    ) -> Result<Shape> {
        let Draft { recipients: Recipients::One(recipient), publish } = draft else {
            return Err(OperationError::invalid("a message of a workflow goes to a URL, not to a URL group"));
        };
        if publish.queue.is_some() {
            return Err(OperationError::invalid("a message of a workflow can't join a queue"));
        }
        if messages.new.len() == MAX_MESSAGES {
            return Err(OperationError::invalid(format!(
                "one request may make at most {MAX_MESSAGES} messages"
            )));
        }
        self.count_bytes(messages, body.len())?;
        let template = publish.size + recipient.target.url.len();
        messages.memory += 2 * body.len() + template;
        self.cover(messages)?;
        let now = messages.created_at;
        let request = Request {
            id: self.engine.ids().message(now),
            now,
            due_at: publish.due.of(now).max(now),
            url: recipient.target.url,
            method: publish.method,
            headers: publish.headers,
            body,
            max_retries: publish.retries,
            labels: publish.labels,
            caller_ip: messages.caller_ip.clone(),
            options: publish.options,
        };
        let (message, on_run) = self.submit(submission, request).await?;
        let lane = recipient.lane;
        messages.new.push(NewMessage {
            message: Arc::new(message),
            lane,
            deduplication: None,
            on_run: Some(on_run),
        });
        messages.run_ids.insert(messages.new.len() - 1, submission.run_id.clone());
        Ok(Shape::One)
    }

    /// Takes a further share of the memory, if messages need it.
    fn cover(&self, messages: &mut Messages) -> Result<()> {
        let missing = messages.memory.saturating_sub(messages.covered);
        if missing == 0 {
            return Ok(());
        }
        // Some more, so that few of many messages ask.
        let more = missing.max(UNCHARGED);
        let limit = self.memory.size();
        if messages.covered + more > limit {
            return Err(OperationError::TooLarge { what: "what its messages take in memory", limit });
        }
        let share = self.memory.share_now(more)?;
        match &mut messages.share {
            Some(have) => have.merge(share),
            none => *none = Some(share),
        }
        messages.covered += more;
        Ok(())
    }

    fn new_message(
        &self,
        recipient: Recipient,
        template: Template,
        created_at: Timestamp,
        due_at: Timestamp,
        key: Option<String>,
    ) -> NewMessage {
        let id = self.engine.ids().message(created_at);
        let expires_at = created_at.after(self.settings.deduplication_window);
        NewMessage {
            message: Arc::new(template.into_message(id, recipient.target, created_at, due_at)),
            lane: recipient.lane,
            deduplication: key.map(|key| store::Deduplication { key, expires_at }),
            on_run: None,
        }
    }

    /// Stores messages, all or none, if the day's quota allows: each with what became of it.
    pub async fn publish(&self, messages: Messages) -> Result<Vec<(Arc<Message>, Accepted)>> {
        let sent: Vec<_> = messages.new.iter().map(|new| Arc::clone(&new.message)).collect();
        let of_runs: Vec<(usize, NewMessage)> =
            messages.run_ids.keys().map(|index| (*index, messages.new[*index].clone())).collect();
        let mut accepted = match &self.daily_quota {
            None => self.engine.ingest().publish(messages.new).await?,
            Some(quota) => {
                let (count, now) = (messages.new.len() as u64, self.now());
                quota.take(self.store(), count, now).await?;
                let accepted = self.engine.ingest().publish(messages.new).await?;
                // Repeats make no message. When the store fails, what became of the messages is unknown, and they count.
                let repeats = accepted.iter().filter(|accepted| matches!(accepted, Accepted::Duplicate(_)));
                quota.give_back(repeats.count() as u64, now).await;
                accepted
            }
        };
        self.follow_runs(&messages.run_ids, of_runs, &mut accepted).await?;
        drop(messages.share);
        Ok(sent.into_iter().zip(accepted).collect())
    }
}

/// The deduplication key of a message. Each endpoint of a group is told apart, so that one that joins later gets the
/// message.
fn key(by: &Deduplication, Recipient { target, .. }: &Recipient, template: &Template) -> String {
    match by {
        Deduplication::Id(id) => id_key(id, target.url_group.is_some().then_some(&*target.url)),
        Deduplication::Content => {
            content_key(&target.url, template.method, &template.headers, &template.body)
        }
    }
}
