//! How a repeated publish is recognised: by a key that the store keeps unique for a while.
//!
//! Keys are hashes, so that they have one length whatever the publisher wrote, and are prefixed by their kind, so that
//! an id never equals a content.

use sha2::{Digest, Sha256};

use super::message::{Headers, Method};
use super::redact::push_hex;

/// What makes two publishes the same.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Deduplication {
    /// The publisher's own id; any text.
    Id(String),
    /// Destination, method, headers and body.
    Content,
}

/// The key for a publisher's id, which covers all destinations.
///
/// Publishing to a URL group, each endpoint is told apart by its URL: one that joins later still gets the message.
pub fn id_key(id: &str, endpoint_url: Option<&str>) -> String {
    let mut hash = Sha256::new();
    update(&mut hash, id.as_bytes());
    if let Some(url) = endpoint_url {
        update(&mut hash, url.as_bytes());
    }
    key("id:", hash)
}

/// The key for a message's content; the order of headers does not matter.
pub fn content_key(url: &str, method: Method, headers: &Headers, body: &[u8]) -> String {
    let mut fields: Vec<_> = headers.iter().collect();
    // Stable: repeated names keep the order of their values, which is part of what they say.
    fields.sort_by_key(|(name, _)| *name);
    let mut hash = Sha256::new();
    update(&mut hash, url.as_bytes());
    update(&mut hash, method.as_str().as_bytes());
    update(&mut hash, body);
    for (name, value) in fields {
        update(&mut hash, name.as_bytes());
        update(&mut hash, value);
    }
    key("content:", hash)
}

/// Hashes a part with its length in front, so that parts cannot run into each other.
fn update(hash: &mut Sha256, part: &[u8]) {
    hash.update((part.len() as u64).to_be_bytes());
    hash.update(part);
}

fn key(prefix: &str, hash: Sha256) -> String {
    let mut key = String::with_capacity(prefix.len() + 64);
    key.push_str(prefix);
    push_hex(&mut key, &hash.finalize());
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&str, &str)]) -> Headers {
        let mut headers = Headers::new();
        for (name, value) in fields {
            headers.append(name, *value);
        }
        headers
    }

    #[test]
    fn ids_differ_from_contents_and_between_endpoints() {
        let keys = [
            id_key("a", None),
            id_key("b", None),
            id_key("a", Some("https://e.com")),
            id_key("a", Some("https://f.com")),
            content_key("a", Method::Post, &Headers::new(), b""),
        ];
        for (index, key) in keys.iter().enumerate() {
            assert!(!keys[..index].contains(key));
        }
        assert_eq!(id_key("a", None), id_key("a", None));
    }

    #[test]
    fn contents_differ_in_every_part_but_not_in_the_order_of_names() {
        let fields = [("B", "1"), ("A", "2"), ("A", "3")];
        let base = content_key("https://e.com", Method::Post, &headers(&fields), b"x");
        let reordered = headers(&[("A", "2"), ("A", "3"), ("B", "1")]);
        assert_eq!(content_key("https://e.com", Method::Post, &reordered, b"x"), base);
        for other in [
            content_key("https://e.com/", Method::Post, &headers(&fields), b"x"),
            content_key("https://e.com", Method::Put, &headers(&fields), b"x"),
            content_key("https://e.com", Method::Post, &headers(&fields[..2]), b"x"),
            content_key("https://e.com", Method::Post, &headers(&[("A", "3"), ("A", "2"), ("B", "1")]), b"x"),
            content_key("https://e.com", Method::Post, &headers(&fields), b""),
        ] {
            assert_ne!(other, base);
        }
    }
}
