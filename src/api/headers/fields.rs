//! Collects header fields and sorts them into the families that configure one message each.
//!
//! `Upstash-Callback-<X>` means for the callback what `Upstash-<X>` means for the message, so a message's configuration
//! is a small tree. What the fields say is read in [`super::config`].

use std::borrow::Cow;

use super::HeaderError;
use crate::domain::excerpt::Excerpt;
use crate::domain::message::{header_text, is_token_byte};

/// Header fields that one message may have; far beyond what receivers accept.
pub const MAX_FIELDS: usize = 256;

/// Bytes of their names and values; as many as the head of a request can have.
const MAX_BYTES: usize = 128 << 10;

/// A field with its value, blanks around it removed (RFC 9110, 5.5).
#[derive(Debug)]
pub(super) struct Field<'a> {
    /// The name as sent, for error texts and forwarding.
    pub(super) written: &'a str,
    /// The name in lower case.
    pub(super) name: Cow<'a, str>,
    /// The value as sent, for forwarding.
    pub(super) bytes: &'a [u8],
    /// The value as text, for what is read here.
    pub(super) value: Cow<'a, str>,
}

/// How deep callbacks are configured: those of the message, and those of its callbacks.
const MAX_DEPTH: u32 = 2;

/// The fields that configure one message or callback, and in turn its callbacks.
#[derive(Default, Debug)]
pub(super) struct Family<'a> {
    /// For callbacks: the field with the URL.
    pub(super) url: Option<&'a Field<'a>>,
    /// Fields by what follows the family's prefix, lower case.
    pub(super) config: Vec<(&'a str, &'a Field<'a>)>,
    pub(super) callback: Option<Box<Self>>,
    pub(super) failure_callback: Option<Box<Self>>,
}

/// Reads names and values; query parameters stand in for headers that are absent.
///
/// Fields that are empty are dropped, except those to be forwarded, where empty is a value.
pub(super) fn collect<'a>(
    headers: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    params: &'a [(String, Vec<u8>)],
) -> Result<Vec<Field<'a>>, HeaderError> {
    let mut fields = Vec::new();
    for (written, value) in headers {
        push(&mut fields, written, value)?;
    }
    let from_headers = fields.len();
    for (written, value) in params.iter().filter(|(name, _)| name.starts_with("upstash-")) {
        if !fields[..from_headers].iter().any(|field| field.name == *written) {
            push(&mut fields, written, value)?;
        }
    }
    if size(&fields) > MAX_BYTES {
        return Err(HeaderError::TooLarge { limit: MAX_BYTES });
    }
    Ok(fields)
}

/// Bytes of names and values.
pub(super) fn size(fields: &[Field<'_>]) -> usize {
    fields.iter().map(|field| field.written.len() + field.bytes.len()).sum()
}

fn push<'a>(fields: &mut Vec<Field<'a>>, written: &'a str, value: &'a [u8]) -> Result<(), HeaderError> {
    if let Some(byte) = value.iter().find(|byte| byte.is_ascii_control() && **byte != b'\t') {
        let problem =
            format!("it contains the control character 0x{byte:02x}; of those, only tab is allowed");
        return Err(HeaderError::Invalid { header: written.to_owned(), problem });
    }
    if fields.len() == MAX_FIELDS {
        return Err(HeaderError::TooMany { limit: MAX_FIELDS });
    }
    let is_lower = !written.bytes().any(|byte| byte.is_ascii_uppercase());
    let name = if is_lower { Cow::Borrowed(written) } else { written.to_ascii_lowercase().into() };
    // Of what this would trim only blanks are left.
    let bytes = value.trim_ascii();
    if !bytes.is_empty() || name.starts_with("upstash-") && name.contains("forward-") {
        fields.push(Field { written, name, bytes, value: header_text(bytes) });
    }
    Ok(())
}

impl<'a> Family<'a> {
    /// Sorts the `Upstash-*` fields among `fields`.
    pub(super) fn sort(fields: &'a [Field<'a>]) -> Self {
        let mut family = Self::default();
        for field in fields {
            if let Some(rest) = field.name.strip_prefix("upstash-") {
                family.insert(rest, field, 0);
            }
        }
        family
    }

    fn insert(&mut self, rest: &'a str, field: &'a Field<'a>, depth: u32) {
        // `failure-callback` first: it ends in the other's name.
        let (slot, rest_of_callback) = if let Some(rest) = rest.strip_prefix("failure-callback") {
            (&mut self.failure_callback, rest)
        } else if let Some(rest) = rest.strip_prefix("callback") {
            (&mut self.callback, rest)
        } else {
            self.config.push((rest, field));
            return;
        };
        if depth == MAX_DEPTH {
            return;
        }
        if rest_of_callback.is_empty() {
            slot.get_or_insert_default().url = Some(field);
        } else if let Some(rest) = rest_of_callback.strip_prefix('-') {
            slot.get_or_insert_default().insert(rest, field, depth + 1);
        } else {
            // Another word, such as `Upstash-Callbacks`.
            self.config.push((rest, field));
        }
    }

    /// Drops callbacks, and callbacks of these, that have no URL.
    pub(super) fn drop_callbacks_without_url(&mut self) {
        for callback in [&mut self.callback, &mut self.failure_callback] {
            *callback = callback.take().filter(|family| family.url.is_some());
            if let Some(family) = callback {
                family.drop_callbacks_without_url();
            }
        }
    }

    /// The last field of that name.
    pub(super) fn get(&self, name: &str) -> Option<&'a Field<'a>> {
        self.config.iter().rev().find(|(have, _)| *have == name).map(|(_, field)| *field)
    }
}

/// Whether a header is left out even when the user asks to forward it.
///
/// Headers that belong to the connection or frame the body are, and those in which the server itself speaks.
pub(super) fn is_never_forwarded(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.starts_with("proxy-")
        || matches!(
            name.as_str(),
            "host"
                | "content-length"
                | "transfer-encoding"
                | "connection"
                | "keep-alive"
                | "upgrade"
                | "te"
                | "trailer"
                | "expect"
                | "upstash-message-id"
                | "upstash-retried"
                | "upstash-signature"
                | "upstash-schedule-id"
                | "upstash-topic-name"
                | "upstash-endpoint-name"
                | "upstash-caller-ip"
        )
}

/// Checks that a forwarded name can stand in a request.
pub(super) fn check_name(name: &str, field: &Field<'_>) -> Result<(), HeaderError> {
    if !name.is_empty() && name.bytes().all(is_token_byte) {
        return Ok(());
    }
    let name = Excerpt(name);
    let problem = format!("{name:?} is not a header name; letters, digits and !#$%&'*+-.^_`|~ are allowed");
    Err(HeaderError::Invalid { header: field.written.to_owned(), problem })
}
