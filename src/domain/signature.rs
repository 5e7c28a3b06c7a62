//! `Upstash-Signature`: a JWT over the destination URL and the body's hash, made anew for every attempt.
//!
//! The token is assembled here, since its header never changes; only the MAC is left to the JWT library.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use serde::Serialize;
use sha2::{Digest, Sha256};

/// `{"alg":"HS256","typ":"JWT"}` and the dot behind it.
const HEADER: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.";

/// How long receivers accept a token; protocol, not a setting.
const LIFETIME_S: i64 = 300;

/// Base58 digits of keys and token ids.
const DIGITS: usize = 28;

/// A signing key that is ready to use. Its text, `sig_` included, is the secret.
#[derive(Clone)]
pub struct SigningKey(EncodingKey);

impl SigningKey {
    /// Takes a key's whole text.
    pub fn new(text: &str) -> Self {
        Self(EncodingKey::from_secret(text.as_bytes()))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(hidden)")
    }
}

/// The claims, in the alphabetical order of upstream's tokens.
#[derive(Serialize)]
struct Claims<'a> {
    aud: &'a str,
    body: &'a str,
    exp: i64,
    iat: i64,
    iss: &'a str,
    jti: &'a str,
    nbf: i64,
    sub: &'a str,
}

/// The token for one request, valid for 300 seconds from `now_s`.
///
/// `url` is the destination exactly as stored; `now_s` must not be ahead of real time, or Python receivers refuse it.
#[expect(clippy::missing_panics_doc, reason = "lengths are fixed and HMAC takes any secret")]
pub fn sign(key: &SigningKey, url: &str, body_sha256: &[u8; 32], now_s: i64, jti: &str) -> String {
    let mut hash = [0; 44];
    URL_SAFE.encode_slice(body_sha256, &mut hash).expect("32 bytes are 44 base64 digits");
    let claims = Claims {
        aud: "",
        body: std::str::from_utf8(&hash).expect("base64 is ASCII"),
        exp: now_s + LIFETIME_S,
        iat: now_s,
        iss: "Upstash",
        jti,
        nbf: 0,
        sub: url,
    };
    let mut json = Vec::with_capacity(192 + jti.len() + url.len());
    serde_json::to_writer(&mut json, &claims).expect("strings and integers serialise");
    let mut token = String::with_capacity(HEADER.len() + json.len().div_ceil(3) * 4 + 44);
    token.push_str(HEADER);
    URL_SAFE_NO_PAD.encode_string(&json, &mut token);
    let mac = crypto::sign(token.as_bytes(), &key.0, Algorithm::HS256).expect("HMAC takes any secret");
    token.push('.');
    token.push_str(&mac);
    token
}

/// SHA-256 of a body, which every attempt's token carries; taken once, at acceptance.
pub fn body_sha256(body: &[u8]) -> [u8; 32] {
    Sha256::digest(body).into()
}

/// A new signing key's text: `sig_` and 28 base58 characters, from 168 random bits.
pub fn generate_key(random: [u8; 21]) -> String {
    base58("sig_", random)
}

/// A new token's id: `jwt_` and 28 base58 characters, from 168 random bits.
pub fn generate_jti(random: [u8; 21]) -> String {
    base58("jwt_", random)
}

/// The last 28 base58 digits of a number that has up to 29; what is lost are four of its 168 bits.
fn base58(prefix: &str, random: [u8; 21]) -> String {
    let mut digits = [0; 32];
    let len =
        bs58::encode(random).onto(digits.as_mut_slice()).expect("21 bytes are at most 29 base58 digits");
    let last = std::str::from_utf8(&digits[len.saturating_sub(DIGITS)..len]).expect("base58 is ASCII");
    // 1 is base58's zero.
    format!("{prefix}{last:1>DIGITS$}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_answer() {
        let key = SigningKey::new("sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r");
        let token = sign(
            &key,
            "https://example.com/hook?x=1",
            &body_sha256(br#"{"hello":"world"}"#),
            1_760_000_000,
            "jwt_4h1bVtRp7Yk2mN8sQwZx3cDf5gJa",
        );
        assert_eq!(
            token,
            concat!(
                "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.",
                "eyJhdWQiOiIiLCJib2R5IjoiazZJNWNha1U1ZXJMOEtqU1VWVE5vd25Ed2NjdnU1a1UxSHhnODh0b0ZZZz0iLCJleHAiOjE3NjAw",
                "MDAzMDAsImlhdCI6MTc2MDAwMDAwMCwiaXNzIjoiVXBzdGFzaCIsImp0aSI6Imp3dF80aDFiVnRScDdZazJtTjhzUXdaeDNjRGY1",
                "Z0phIiwibmJmIjowLCJzdWIiOiJodHRwczovL2V4YW1wbGUuY29tL2hvb2s_eD0xIn0.",
                "U9nJBepxzSp6H_DbphvCI75qc-yOgcA-qOF5U4GouKo",
            )
        );
    }

    #[test]
    fn a_key_does_not_show_itself() {
        assert_eq!(format!("{:?}", SigningKey::new("sig_secret")), "SigningKey(hidden)");
    }

    #[test]
    fn the_empty_body_has_its_well_known_hash() {
        assert_eq!(URL_SAFE.encode(body_sha256(b"")), "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU=");
    }

    proptest! {
        #[test]
        fn generated_texts_have_one_form(random: [u8; 21]) {
            for (text, prefix) in [(generate_key(random), "sig_"), (generate_jti(random), "jwt_")] {
                prop_assert_eq!(text.len(), 32);
                let digits = text.strip_prefix(prefix).unwrap();
                let is_base58 = |c: char| c.is_ascii_alphanumeric() && !"0OIl".contains(c);
                prop_assert!(digits.chars().all(is_base58), "{}", text);
            }
        }

        #[test]
        fn tokens_verify_with_their_key_only(url in "https://\\PC{0,40}", body: Vec<u8>, now_s in 1_i64..1 << 40) {
            let token = sign(&SigningKey::new("sig_a"), &url, &body_sha256(&body), now_s, "jwt_1");
            let (message, mac) = token.rsplit_once('.').unwrap();
            let verifies = |secret: &str| {
                let key = jsonwebtoken::DecodingKey::from_secret(secret.as_bytes());
                crypto::verify(mac, message.as_bytes(), &key, Algorithm::HS256).unwrap()
            };
            prop_assert!(verifies("sig_a"));
            prop_assert!(!verifies("sig_b"));
            let claims = URL_SAFE_NO_PAD.decode(message.split_once('.').unwrap().1).unwrap();
            let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
            prop_assert_eq!(&claims["sub"], url.as_str());
            prop_assert_eq!(&claims["exp"], now_s + 300);
        }
    }

    #[test]
    fn short_numbers_are_padded() {
        assert_eq!(generate_key([0; 21]), format!("sig_{}", "1".repeat(28)));
        let mut one = [0; 21];
        one[20] = 1;
        assert_eq!(generate_key(one), format!("sig_{}2", "1".repeat(27)));
    }
}
