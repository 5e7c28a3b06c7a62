//! `Upstash-Signature`.
use jsonwebtoken::EncodingKey;

/// A key that is ready to sign.
#[derive(Clone)]
pub struct SigningKey(EncodingKey);

impl SigningKey {
    /// A key from its text, `sig_` included.
    pub fn new(text: &str) -> Self {
        Self(EncodingKey::from_secret(text.as_bytes()))
    }
}

/// The token for one request.
pub fn sign(_key: &SigningKey, _url: &str, _body_sha256: &[u8; 32], _now_s: i64, _jti: &str) -> String {
    todo!()
}

/// SHA-256 of a body.
pub fn body_sha256(_body: &[u8]) -> [u8; 32] {
    todo!()
}

/// A new signing key's text.
pub fn generate_key(_random: [u8; 21]) -> String {
    todo!()
}

/// A new token's id.
pub fn generate_jti(_random: [u8; 21]) -> String {
    todo!()
}
