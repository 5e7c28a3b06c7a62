//! `POST /v2/publish/{destination}` and `POST /v2/enqueue/{queue}/{destination}`.

use std::sync::Arc;

use axum::response::Response;
use http::StatusCode;
use serde::Serialize;

use super::answers::Share;
use super::error::ApiError;
use super::headers::{self, Kind};
use super::routes::Call;
use super::{Api, answers};
use crate::domain::destination::{self, Destination};
use crate::domain::id::Name;
use crate::domain::message::Message;
use crate::domain::publish::Publish;
use crate::operations::OperationError;
use crate::operations::publish::{Groups, Messages, Shape};
use crate::store::Accepted;

/// Bytes of the answer for one message beside its URL.
const ANSWER: usize = 96;

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
    /// The answer, or the error of a message that was refused.
    pub(super) fn new((message, accepted): &'a (Arc<Message>, Accepted)) -> Result<Self, OperationError> {
        let (id, deduplicated) = match accepted {
            Accepted::Stored => (&message.id, false),
            Accepted::Duplicate(first) => (first, true),
            Accepted::Refused(refusal) => return Err((*refusal).into()),
        };
        let url = (!deduplicated || message.url_group.is_some()).then_some(message.url.as_str());
        Ok(Self { message_id: id.as_str(), url, deduplicated })
    }
}

impl Api {
    pub(super) async fn publish(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let of_workflow = call.fields().any(|(name, _)| headers::is_of_workflow(name));
        let published = self.publish_any(call).await;
        if of_workflow { published.map_err(ApiError::of_workflow) } else { published }
    }

    async fn publish_any(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let parsed = destination::parse(&call.rest)?;
        let publish = self.read_headers(Kind::Publish, &call, &parsed.params)?;
        if publish.cron.is_some() {
            return self.schedule(parsed.destination, publish, call).await;
        }
        self.publish_to(parsed.destination, publish, call).await
    }

    pub(super) async fn enqueue(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let queue = Name::read(&call.name)
            .map_err(|problem| ApiError::bad_request(format!("invalid queue in the path: {problem}")))?;
        let parsed = destination::parse(&call.rest)?;
        let publish = self.read_headers(Kind::Enqueue, &call, &parsed.params)?;
        let publish = Publish { queue: Some(queue.into_string()), ..publish };
        self.publish_to(parsed.destination, publish, call).await
    }

    /// Reads what the headers of a request say, and the parameters that stand in for headers.
    pub(super) fn read_headers(
        &self,
        kind: Kind,
        call: &Call<'_>,
        params: &[(String, Vec<u8>)],
    ) -> Result<Publish, ApiError> {
        Ok(headers::parse(kind, call.fields(), params, &self.settings.headers, self.operations.now())?)
    }

    async fn publish_to(
        &self,
        destination: Destination,
        publish: Publish,
        call: Call<'_>,
    ) -> Result<Response, ApiError> {
        let draft = self.operations.draft(destination, publish, &mut Groups::default()).await?;
        // The body comes last: a request that is refused anyway takes no memory.
        let received = self.read_body(call.upload, self.settings.max_message, "the message").await?;
        let mut messages = self.operations.messages(self.caller_ip(call.parts), received.body.len());
        let shape = self.operations.add(&mut messages, draft, received.body.clone()).await?;
        let (size, share) = self.share_for(&messages).await?;
        let stored = self.operations.publish(messages).await?;
        let published: Vec<_> = stored.iter().map(Published::new).collect::<Result<_, _>>()?;
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
        let size = messages.urls().map(|url| ANSWER + url.len()).sum();
        Ok((size, self.receipts.share(size).await?))
    }
}
