//! How a repeated publish is recognised.
use super::message::{Headers, Method};

/// What makes two publishes the same.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Deduplication {
    /// The publisher's own id.
    Id(String),
    /// Destination, method, headers and body.
    Content,
}

/// The key for a publisher's id; `endpoint` is the endpoint's URL when published to a URL group.
pub fn id_key(_id: &str, _endpoint: Option<&str>) -> String {
    todo!()
}

/// The key for a message's content.
pub fn content_key(_url: &str, _method: Method, _headers: &Headers, _body: &[u8]) -> String {
    todo!()
}
