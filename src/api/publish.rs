//! `POST /v2/publish/{destination}` and `POST /v2/enqueue/{queue}/{destination}`, and what they share with the items of
//! a batch: a destination and headers make a [`Draft`], a draft and a body make messages.

use std::sync::Arc;

use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use http::request::Parts;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;

use super::answers::Share;
use super::error::ApiError;
use super::headers::{self, Deduplication, Due, Kind, Publish, content_key, id_key};
use super::routes::Call;
use super::url_groups::Groups;
use super::{Api, Peer, answers, caller};
use crate::domain::destination::{self, Destination, Origin, validate_url};
use crate::domain::message::{CallbackSpec, Message, Options};
use crate::domain::outcome::Ids as _;
use crate::domain::template::{Target, Template};
use crate::domain::time::Timestamp;
use crate::engine::ids::FreshIds;
use crate::engine::ingest::NewMessage;
use crate::store::{self, Accepted};

/// Messages that one request may make: as many are stored within a second or two, while others wait.
pub(super) const MAX_MESSAGES: usize = 50_000;

/// What is to be published, checked; only its body is missing.
pub(super) struct Draft {
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
    /// What deliveries there are limited by.
    lane: Arc<str>,
}

/// The messages of one request, which are stored together.
pub(super) struct Messages {
    created_at: Timestamp,
    caller_ip: Option<String>,
    new: Vec<NewMessage>,
    /// Bytes of their bodies, and of all else that a group multiplies.
    bytes: usize,
    /// Bytes that they take in memory.
    memory: usize,
    /// How many of those the request's share of the memory for bodies and this one have room for.
    covered: usize,
    share: Option<OwnedSemaphorePermit>,
}

/// Bytes that the messages of a request may take in memory beyond the size of its body. In memory a header or a label is
/// much larger than its text, so that short ones make a large message of a small body.
const UNCHARGED: usize = 1 << 20;

impl Messages {
    pub(super) fn created_at(&self) -> Timestamp {
        self.created_at
    }
}

/// Bytes of the answer for one message beside its URL.
const ANSWER: usize = 96;

/// How the messages of a draft are answered.
#[derive(Clone, Copy)]
pub(super) enum Shape {
    /// One, by itself.
    One,
    /// So many, as an array.
    Group(usize),
}

/// The answer for one message.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Published<'a> {
    message_id: &'a str,
    /// Not of a repeat, unless in a group: the first message may have gone elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    deduplicated: bool,
}

impl<'a> Published<'a> {
    pub(super) fn new((message, accepted): &'a (Arc<Message>, Accepted)) -> Self {
        let (id, deduplicated) = match accepted {
            Accepted::Stored => (&message.id, false),
            Accepted::Duplicate(first) => (first, true),
        };
        let url = (!deduplicated || message.url_group.is_some()).then_some(message.url.as_str());
        Self { message_id: id.as_str(), url, deduplicated }
    }
}

impl Api {
    pub(super) async fn publish(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let parsed = destination::parse(&call.rest)?;
        let publish = self.read_headers(Kind::Publish, &call, &parsed.params)?;
        if publish.cron.is_some() {
            return self.create_schedule(call).await;
        }
        self.publish_to(parsed.destination, publish, call).await
    }

    pub(super) async fn enqueue(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let queue = headers::read_name(&call.name)
            .map_err(|problem| ApiError::bad_request(format!("invalid queue in the path: {problem}")))?;
        let parsed = destination::parse(&call.rest)?;
        let publish = self.read_headers(Kind::Enqueue, &call, &parsed.params)?;
        self.publish_to(parsed.destination, Publish { queue: Some(queue), ..publish }, call).await
    }

    /// Reads what the headers of a request say, and the parameters that stand in for headers.
    pub(super) fn read_headers(
        &self,
        kind: Kind,
        call: &Call<'_>,
        params: &[(String, Vec<u8>)],
    ) -> Result<Publish, ApiError> {
        let fields = call.parts.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        Ok(headers::parse(kind, fields, params, &self.settings.headers, self.engine.now())?)
    }

    async fn publish_to(
        &self,
        destination: Destination,
        publish: Publish,
        call: Call<'_>,
    ) -> Result<Response, ApiError> {
        let draft = self.draft(destination, publish, &mut Groups::new()).await?;
        let received = self.read_body(call.upload, self.settings.max_message, "the message").await?;
        let mut messages = self.messages(call.parts, received.body.len());
        let shape = self.add(&mut messages, draft, received.body.clone())?;
        let (size, share) = self.share_for(&messages).await?;
        let stored = self.store(messages).await?;
        let published: Vec<_> = stored.iter().map(Published::new).collect();
        let repeated = published.iter().all(|answer| answer.deduplicated);
        let status = if repeated { StatusCode::ACCEPTED } else { StatusCode::OK };
        match shape {
            Shape::One => answers::json(status, &published.first(), size, share),
            Shape::Group(_) => answers::json(status, &published, size, share),
        }
    }

    /// How large the answer about these messages becomes, and a share of the memory for it. Before they are stored:
    /// afterwards there must be an answer.
    pub(super) async fn share_for(&self, messages: &Messages) -> Result<(usize, Share), ApiError> {
        let size = messages.new.iter().map(|new| ANSWER + new.message.url.len()).sum();
        Ok((size, self.receipts.share(size).await?))
    }

    /// Checks where something is to go, and its headers beyond their form.
    pub(super) async fn draft(
        &self,
        destination: Destination,
        mut publish: Publish,
        groups: &mut Groups,
    ) -> Result<Draft, ApiError> {
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

    /// Where `api/llm` goes.
    pub(super) fn llm_url(&self) -> Result<String, ApiError> {
        self.settings.llm_url.clone().ok_or_else(|| {
            ApiError::bad_request(
                "api/llm is not available: no language model is configured; llm_url sets one",
            )
        })
    }

    fn recipient(&self, target: Target) -> Result<Recipient, ApiError> {
        let origin = self.check_destination(&target.url)?;
        Ok(Recipient { target, lane: Arc::from(origin.to_string()) })
    }

    /// Checks the literal addresses of a destination and its callbacks; names are checked when they are connected to.
    pub(super) fn check_destinations(&self, url: &str, options: &Options) -> Result<Origin, ApiError> {
        let origin = self.check_destination(url)?;
        self.check_callbacks(options)?;
        Ok(origin)
    }

    pub(super) fn check_destination(&self, url: &str) -> Result<Origin, ApiError> {
        let origin = validate_url(url)?;
        self.policy
            .check_literal(&origin.host)
            .map_err(|refusal| ApiError::bad_request(format!("invalid destination url: {refusal}")))?;
        Ok(origin)
    }

    fn check_callbacks(&self, options: &Options) -> Result<(), ApiError> {
        let callbacks = [&options.callback, &options.failure_callback];
        callbacks.into_iter().flatten().try_for_each(|spec| self.check_callback(spec))
    }

    pub(super) fn check_callback(&self, spec: &CallbackSpec) -> Result<(), ApiError> {
        let origin = validate_url(&spec.url)?;
        self.policy
            .check_literal(&origin.host)
            .map_err(|refusal| ApiError::bad_request(format!("invalid callback url: {refusal}")))?;
        self.check_callbacks(&spec.options)
    }

    /// No messages yet, of this request with a body of that many bytes and accepted now.
    pub(super) fn messages(&self, parts: &Parts, body: usize) -> Messages {
        Messages {
            created_at: self.engine.now(),
            caller_ip: self.caller_ip(parts),
            new: Vec::with_capacity(1),
            bytes: 0,
            memory: 0,
            covered: body.saturating_add(UNCHARGED),
            share: None,
        }
    }

    /// The publisher's address.
    pub(super) fn caller_ip(&self, parts: &Parts) -> Option<String> {
        let peer = parts.extensions.get::<Peer>()?;
        Some(caller::address(peer.0, &parts.headers, &self.settings.trusted_proxies).to_string())
    }

    /// Adds what a draft and its body come to, unless that is too much for one step of the store.
    pub(super) fn add(&self, messages: &mut Messages, draft: Draft, body: Bytes) -> Result<Shape, ApiError> {
        let Draft { recipients, publish } = draft;
        let (count, urls, bytes) = match &recipients {
            Recipients::One(recipient) => (1, recipient.target.url.len(), body.len()),
            Recipients::Group(recipients) => {
                let urls: usize = recipients.iter().map(|recipient| recipient.target.url.len()).sum();
                (recipients.len(), urls, urls + recipients.len() * (body.len() + publish.size))
            }
        };
        if messages.new.len() + count > MAX_MESSAGES {
            let text = format!("one request may make at most {MAX_MESSAGES} messages");
            return Err(ApiError::bad_request(text));
        }
        messages.bytes += bytes;
        if messages.bytes > self.settings.max_batch {
            return Err(ApiError::too_large("what its messages hold together", self.settings.max_batch));
        }
        let due_at = match publish.due {
            Due::Now => messages.created_at,
            Due::After(delay) => messages.created_at.after(delay),
            Due::At(time) => time.min(Timestamp::MAX),
        };
        let mut template = Template::new(
            publish.method,
            publish.headers,
            body,
            publish.retries,
            publish.labels,
            publish.options,
        );
        template.caller_ip.clone_from(&messages.caller_ip);
        template.queue = publish.queue;
        messages.memory += template.body.len() + urls + count * template.size();
        self.cover(messages)?;
        let new = |recipient, template| {
            let key = publish.deduplication.as_ref().map(|by| key(by, &recipient, &template));
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

    /// Takes a further share of the memory for bodies, if messages need it. It isn't waited for: the request holds a share
    /// already, and so does whoever might give one back.
    fn cover(&self, messages: &mut Messages) -> Result<(), ApiError> {
        let missing = messages.memory.saturating_sub(messages.covered);
        if missing == 0 {
            return Ok(());
        }
        // Some more, so that few of many messages ask.
        let more = missing.max(UNCHARGED);
        let limit = self.settings.max_body_memory;
        if messages.covered + more > limit {
            return Err(ApiError::too_large("what its messages take in memory", limit));
        }
        let share = self.body_share_now(more)?;
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
        let id = FreshIds.message(created_at);
        let expires_at = created_at.after(self.settings.deduplication_window);
        NewMessage {
            message: Arc::new(template.into_message(id, recipient.target, created_at, due_at)),
            lane: recipient.lane,
            deduplication: key.map(|key| store::Deduplication { key, expires_at }),
        }
    }

    /// Stores messages, all or none: each with what became of it.
    pub(super) async fn store(&self, messages: Messages) -> Result<Vec<(Arc<Message>, Accepted)>, ApiError> {
        let sent: Vec<_> = messages.new.iter().map(|new| Arc::clone(&new.message)).collect();
        let accepted = self.accept(messages.new).await?;
        drop(messages.share);
        Ok(sent.into_iter().zip(accepted).collect())
    }
}

/// What a repeat is recognised by. Each endpoint of a group is told apart, so that one that joins later gets the message.
fn key(by: &Deduplication, Recipient { target, .. }: &Recipient, template: &Template) -> String {
    match by {
        Deduplication::Id(id) => id_key(id, target.url_group.is_some().then_some(&*target.url)),
        Deduplication::Content => {
            content_key(&target.url, template.method, &template.headers, &template.body)
        }
    }
}
