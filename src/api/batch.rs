//! `POST /v2/batch`: many publishes and enqueues in one request, stored all or none.
//!
//! Every item is checked before any is stored; the error for a bad one names its index, counted from 0.

use std::borrow::Cow;
use std::fmt;

use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::answers::Share;
use super::error::{ApiError, json_problem};
use super::headers::{self, Kind, MAX_FIELDS};
use super::publish::Published;
use super::routes::Call;
use super::{Api, answers};
use crate::domain::destination;
use crate::domain::excerpt::Excerpt;
use crate::domain::id::Name;
use crate::domain::publish::Publish;
use crate::operations::OperationError;
use crate::operations::publish::{Groups, MAX_MESSAGES, Messages, Shape};

/// Items that are checked before other tasks have their turn.
const AT_A_TIME: usize = 256;

/// The header in which an SDK names itself, once for all items.
const SDK: &str = "upstash-telemetry-sdk";

/// The answer for one item.
#[derive(Serialize)]
#[serde(untagged)]
enum Answer<'a> {
    One(Option<Published<'a>>),
    Group(Vec<Published<'a>>),
    Refused { error: String },
}

/// The answer to a batch of which something was refused: an answer for each message, with the status of the first error.
fn refused(
    answers: Vec<Result<Published<'_>, OperationError>>,
    size: usize,
    share: Share,
) -> Result<Response, ApiError> {
    let mut status = StatusCode::PRECONDITION_FAILED;
    let mut answers: Vec<Answer<'_>> = answers
        .into_iter()
        .rev()
        .map(|answer| match answer {
            Ok(published) => Answer::One(Some(published)),
            Err(error) => {
                let error = ApiError::from(error);
                status = error.status();
                Answer::Refused { error: error.text().to_owned() }
            }
        })
        .collect();
    answers.reverse();
    answers::json(status, &answers, size, share)
}

fn is_of_workflow(item: &Item<'_>) -> bool {
    item.headers.0.iter().any(|(name, _)| headers::is_of_workflow(name))
}

impl Api {
    pub(super) async fn batch(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let mut received = self.read_body(call.upload, self.settings.max_batch, "the batch").await?;
        let body = std::mem::take(&mut received.body);
        let items = items(&body)?;
        let mut messages = self.operations.messages(self.caller_ip(call.parts), body.len());
        let mut shapes = Vec::with_capacity(items.len());
        let mut groups = Groups::default();
        let sdk = call.parts.headers.get(SDK).map(HeaderValue::as_bytes);
        for (index, item) in items.into_iter().enumerate() {
            let item =
                read_item(item).map_err(|error| error.of(format_args!("invalid batch: item {index}")))?;
            let of_workflow = is_of_workflow(&item);
            let added = self.add_item(&mut messages, item, &mut groups, sdk).await;
            let added = added.map_err(|error| error.of(format_args!("item {index}")));
            shapes.push(if of_workflow { added.map_err(ApiError::of_workflow)? } else { added? });
            if index % AT_A_TIME == AT_A_TIME - 1 {
                tokio::task::yield_now().await;
            }
        }
        // The messages have taken its place, and its share of the memory.
        drop(body);
        let (size, share) = self.share_for(&messages).await?;
        let stored = self.operations.publish(messages).await?;
        let answers: Vec<_> = stored.iter().map(Published::new).collect();
        if answers.iter().any(Result::is_err) {
            return refused(answers, size, share);
        }
        let mut answers = answers.into_iter().flatten();
        let answers = shapes.into_iter().map(|shape| match shape {
            Shape::One => Answer::One(answers.next()),
            Shape::Group(count) => Answer::Group(answers.by_ref().take(count).collect()),
        });
        answers::json(StatusCode::OK, &answers.collect::<Vec<_>>(), size, share)
    }

    /// Reads what an item's headers say; `sdk` is what the request says of the SDK.
    pub(super) fn read_item(
        &self,
        item: &Item<'_>,
        messages: &Messages,
        sdk: Option<&[u8]>,
    ) -> Result<Publish, ApiError> {
        let fields = item.headers.0.iter().map(|(name, value)| (&**name, value.as_bytes()));
        let fields = sdk.map(|sdk| (SDK, sdk)).into_iter().chain(fields);
        let limits = &self.settings.headers;
        Ok(headers::parse(Kind::BatchItem, fields, &[], limits, messages.created_at())?)
    }

    async fn add_item(
        &self,
        messages: &mut Messages,
        item: Item<'_>,
        groups: &mut Groups,
        sdk: Option<&[u8]>,
    ) -> Result<Shape, ApiError> {
        let destination = destination::parse_literal(&item.destination)?;
        let mut publish = self.read_item(&item, messages, sdk)?;
        if !item.queue.is_empty() {
            let name = Name::read(&item.queue)
                .map_err(|problem| ApiError::bad_request(format!("invalid queue: {problem}")))?;
            publish.queue = Some(name.into_string());
        }
        let draft = self.operations.draft(destination, publish, groups).await?;
        if item.body.len() > self.settings.max_message {
            return Err(ApiError::too_large("the message", self.settings.max_message));
        }
        // A copy, if it isn't one already: a body that shared the request's memory would keep all of that in use.
        Ok(self.operations.add(messages, draft, Bytes::from(item.body.into_owned())).await?)
    }
}

/// The items of a batch.
pub(super) fn items(body: &[u8]) -> Result<Vec<&RawValue>, ApiError> {
    let Items(items) = serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("invalid batch: {}", json_problem(&error))))?;
    Ok(items)
}

/// Reads an item.
pub(super) fn read_item(item: &RawValue) -> Result<Item<'_>, ApiError> {
    serde_json::from_str(item.get()).map_err(|error| ApiError::bad_request(json_problem(&error)))
}

/// A batch's items as JSON. They are read one by one: in memory an item is much larger than its text.
struct Items<'a>(Vec<&'a RawValue>);

/// An item, borrowed from its text as far as that can be; what is absent or null is empty.
#[derive(Default)]
pub(super) struct Item<'a> {
    pub(super) destination: Cow<'a, str>,
    headers: Fields<'a>,
    pub(super) body: Cow<'a, str>,
    queue: Cow<'a, str>,
}

impl Item<'_> {
    /// The last value of a header.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut fields = self.headers.0.iter().rev();
        fields.find(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| &**value)
    }
}

/// Header fields as a JSON object: each value a string or an array of strings. Null is no field.
#[derive(Default)]
pub(super) struct Fields<'a>(pub(super) Vec<(Cow<'a, str>, Cow<'a, str>)>);

#[derive(Default, Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Items<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Array;
        impl<'de> Visitor<'de> for Array {
            type Value = Items<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of messages")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Items<'de>, A::Error> {
                let mut items = Vec::new();
                let named =
                    |index: usize, error: A::Error| A::Error::custom(format_args!("item {index}: {error}"));
                while let Some(item) = array.next_element().map_err(|error| named(items.len(), error))? {
                    if items.len() == MAX_MESSAGES {
                        return Err(A::Error::custom(format_args!("more than {MAX_MESSAGES} items")));
                    }
                    items.push(item);
                }
                Ok(Items(items))
            }
        }
        deserializer.deserialize_seq(Array)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Item<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Item<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a destination")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Item<'de>, A::Error> {
                let mut item = Item::default();
                while let Some(Text(name)) = object.next_key()? {
                    match &*name {
                        "destination" => item.destination = read_text(&name, &mut object)?,
                        "headers" => item.headers = read(&name, &mut object)?,
                        "body" => item.body = read_text(&name, &mut object)?,
                        "queue" => item.queue = read_text(&name, &mut object)?,
                        _ => drop(object.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(item)
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// Reads a member's value; null is the default. The error names the member.
fn read<'de, A: MapAccess<'de>, T: Deserialize<'de> + Default>(
    name: &str,
    object: &mut A,
) -> Result<T, A::Error> {
    let value = object.next_value::<Option<T>>();
    let value = value.map_err(|error| A::Error::custom(format_args!("{name}: {error}")))?;
    Ok(value.unwrap_or_default())
}

fn read_text<'de, A: MapAccess<'de>>(name: &str, object: &mut A) -> Result<Cow<'de, str>, A::Error> {
    read(name, object).map(|Text(text)| text)
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of header names and values")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some(Text(name)) = object.next_key()? {
                    object.next_value_seed(Values { name, fields: &mut fields })?;
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// Reads the values of one header into the fields.
struct Values<'f, 'a> {
    name: Cow<'a, str>,
    fields: &'f mut Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

impl<'a> Values<'_, 'a> {
    fn push<E: Error>(&mut self, value: Cow<'a, str>) -> Result<(), E> {
        if self.fields.len() == MAX_FIELDS {
            return Err(E::custom(format_args!("more than {MAX_FIELDS} headers")));
        }
        self.fields.push((self.name.clone(), value));
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Values<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let name = self.name.clone();
        let read = deserializer.deserialize_any(self);
        read.map_err(|error| D::Error::custom(format_args!("{}: {error}", Excerpt(&name))))
    }
}

impl<'de> Visitor<'de> for Values<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or an array of strings")
    }

    fn visit_borrowed_str<E: Error>(mut self, value: &'de str) -> Result<(), E> {
        self.push(Cow::Borrowed(value))
    }

    fn visit_str<E: Error>(mut self, value: &str) -> Result<(), E> {
        self.push(Cow::Owned(value.to_owned()))
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut values: A) -> Result<(), A::Error> {
        while let Some(Text(value)) = values.next_element()? {
            self.push(value)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_error(json: &str, expected: &str) {
        let error = serde_json::from_str::<Items<'_>>(json).map(|Items(items)| items.len()).unwrap_err();
        assert!(error.to_string().starts_with(expected), "{json}: {error}");
    }

    #[track_caller]
    fn check_item_error(json: &str, expected: &str) {
        let Err(error) = serde_json::from_str::<Item<'_>>(json) else { panic!("{json} is no item") };
        assert!(error.to_string().starts_with(expected), "{json}: {error}");
    }

    #[test]
    fn items_of_all_clients() {
        let json = r#"[
            {"destination":"https://a.example","headers":{"upstash-method":"POST","a":["1","2"],"b":null},"body":"{\"x\":1}"},
            {"destination":"group","queue":"","headers":null,"body":""},
            {"destination":"https://b.example","queue":null,"body":null,"callback":{"any":[1]}},
            {"queue":"q"}
        ]"#;
        let Items(items) = serde_json::from_str(json).unwrap();
        let items: Vec<Item<'_>> =
            items.into_iter().map(|item| serde_json::from_str(item.get()).unwrap()).collect();
        let shown: Vec<_> = items
            .iter()
            .map(|item| (&*item.destination, &*item.body, &*item.queue, item.headers.0.len()))
            .collect();
        let expected = [
            ("https://a.example", "{\"x\":1}", "", 3),
            ("group", "", "", 0),
            ("https://b.example", "", "", 0),
            ("", "", "q", 0),
        ];
        assert_eq!(shown, expected);
        let fields: Vec<_> = items[0].headers.0.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(fields, [("upstash-method", "POST"), ("a", "1"), ("a", "2")]);
        assert!(matches!(items[0].destination, Cow::Borrowed(_)), "nothing is copied that need not be");
        assert!(matches!(items[0].headers.0[1].1, Cow::Borrowed(_)));
    }

    #[test]
    fn errors_say_where() {
        check_error("{}", "invalid type: map, expected an array of messages");
        check_error("", "EOF while parsing");
        check_error("[{},", "item 1: EOF while parsing");
        check_error("[{}] x", "trailing characters");
        check_item_error("3", "invalid type: integer `3`, expected an object with a destination");
        check_item_error("null", "invalid type: null, expected an object");
        check_item_error(r#"{"body":{}}"#, "body: invalid type: map, expected a");
        check_item_error(r#"{"queue":1}"#, "queue: invalid type: integer `1`, expected a");
        check_item_error(
            r#"{"headers":[]}"#,
            "headers: invalid type: sequence, expected an object of header",
        );
        check_item_error(
            r#"{"headers":{"X-A":1}}"#,
            "headers: X-A: invalid type: integer `1`, expected a string or an array of strings",
        );
        check_item_error(r#"{"headers":{"X-A":[1]}}"#, "headers: X-A: invalid type: integer `1`");
        let many = format!(r#"{{"headers":{{"a":[{}""]}}}}"#, r#""","#.repeat(256));
        check_item_error(&many, "headers: a: more than 256 headers");
        let many = format!("[{}{{}}]", "{},".repeat(MAX_MESSAGES));
        check_error(&many, "more than 50000 items");
    }
}
