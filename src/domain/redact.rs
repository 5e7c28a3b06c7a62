//! Which parts of a message the API hides, and what it shows instead.
use super::message::Redact;

/// An entry that `Upstash-Redact-Fields` does not know.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("unknown field {0:?}: allowed are body, header and header[Name]")]
pub struct RedactError(pub String);

/// Reads `body, header[Authorization]`.
pub fn parse(_text: &str) -> Result<Redact, RedactError> {
    todo!()
}

/// What is shown in place of a hidden value.
pub fn marker(_value: &[u8]) -> String {
    todo!()
}
