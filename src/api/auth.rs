//! Who is calling: bearer tokens and the query's token.

use http::HeaderMap;
use http::header::AUTHORIZATION;
use percent_encoding::percent_decode_str;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::error::ApiError;
use super::routes::Access;

/// The permission that a token gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    ReadWrite,
    ReadOnly,
}

/// The known tokens, as their hashes.
#[derive(Clone, Default)]
pub struct Tokens(Vec<([u8; 32], Role)>);

impl Tokens {
    /// Adds a token by its SHA-256.
    pub fn add(&mut self, sha256: [u8; 32], role: Role) {
        self.0.push((sha256, role));
    }

    /// The role of a token, compared in constant time; `None`: unknown.
    fn role(&self, token: &str) -> Option<Role> {
        let hash = sha256(token);
        let mut found = None;
        for (known, role) in &self.0 {
            if bool::from(known.ct_eq(&hash)) {
                found = Some(*role);
            }
        }
        found
    }

    /// Checks that the caller may do what the route needs.
    pub fn check(&self, access: Access, headers: &HeaderMap, query: Option<&str>) -> Result<(), ApiError> {
        if access == Access::Public {
            return Ok(());
        }
        let token = match (bearer(headers), query.and_then(query_token)) {
            // Senders of webhooks may have an Authorization of their own, which is for the destination.
            (Ok(Some(token)), _) | (Ok(None) | Err(_), Some(token)) => token,
            (Err(error), None) => return Err(error),
            (Ok(None), None) => {
                return Err(ApiError::unauthorized(
                    "no token: send `Authorization: Bearer <token>` or the query parameter qstash_token",
                ));
            }
        };
        match (self.role(&token), access) {
            (None, _) => Err(ApiError::unauthorized("invalid token")),
            (Some(Role::ReadOnly), Access::Full | Access::Publish) => Err(ApiError::new(
                http::StatusCode::FORBIDDEN,
                "this token is read-only: it may not change anything, nor read the signing keys",
            )),
            (Some(_), _) => Ok(()),
        }
    }
}

/// The SHA-256 that a token is known by.
pub fn sha256(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

fn bearer(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(AUTHORIZATION) else { return Ok(None) };
    let malformed = || ApiError::unauthorized("the Authorization header must be `Bearer <token>`");
    let (scheme, token) = value.to_str().map_err(|_| malformed())?.split_once(' ').ok_or_else(malformed)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(malformed());
    }
    Ok(Some(token.trim().to_owned()))
}

/// The token in a query. A `+` stands for itself: tokens are base64, and nobody puts spaces into them.
fn query_token(query: &str) -> Option<String> {
    query.split('&').find_map(|part| {
        let (name, value) = part.split_once('=')?;
        let name = percent_decode_str(name).decode_utf8_lossy();
        name.eq_ignore_ascii_case("qstash_token")
            .then(|| percent_decode_str(value).decode_utf8_lossy().into_owned())
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn tokens() -> Tokens {
        let mut tokens = Tokens::default();
        tokens.add(sha256("full+/="), Role::ReadWrite);
        tokens.add(sha256("reader"), Role::ReadOnly);
        tokens
    }

    #[track_caller]
    fn check(access: Access, header: Option<&str>, query: Option<&str>, expected: Option<u16>) {
        let mut headers = HeaderMap::new();
        if let Some(header) = header {
            headers.insert(AUTHORIZATION, HeaderValue::from_str(header).unwrap());
        }
        let result = tokens().check(access, &headers, query);
        let status = result.err().map(|error| error.into_response().status().as_u16());
        assert_eq!(status, expected, "{access:?} {header:?} {query:?}");
    }

    #[test]
    fn tokens_are_checked() {
        check(Access::Public, None, None, None);
        check(Access::Read, None, None, Some(401));
        check(Access::Full, Some("Bearer full+/="), None, None);
        check(Access::Full, Some("bearer full+/="), None, None);
        check(Access::Full, Some("Basic full+/="), None, Some(401));
        check(Access::Full, Some("full+/="), None, Some(401));
        check(Access::Full, Some("Bearer wrong"), None, Some(401));
        check(Access::Read, Some("Bearer reader"), None, None);
        check(Access::Full, Some("Bearer reader"), None, Some(403));
        check(Access::Full, None, Some("a=1&qstash_token=full%2B%2F%3D"), None);
        check(Access::Full, None, Some("qstash_token=full+/="), None);
        check(Access::Full, None, Some("QSTASH%5Ftoken=full+/="), None);
        // The header wins, even over a valid token in the query.
        check(Access::Full, Some("Bearer wrong"), Some("qstash_token=full+/="), Some(401));
        // But not one of another scheme.
        check(Access::Full, Some("Basic dTpw"), Some("qstash_token=full+/="), None);
        check(Access::Full, Some("Basic dTpw"), Some("qstash_token=wrong"), Some(401));
    }
}
