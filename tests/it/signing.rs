//! Signatures as receivers check them, and the keys.

use std::collections::HashSet;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{CURRENT_KEY, NEXT_KEY, Received, Receiver, Test};

engines! {
    every_claim_is_as_receivers_need_it,
    the_subject_is_the_url_as_published,
    the_body_claim_is_of_the_bytes_delivered,
    callbacks_are_signed_for_their_own_url,
    the_keys_are_the_configured_ones,
    rotating_moves_the_next_key_up,
    rotated_keys_survive_a_crash,
}

/// The claims, if the signature is of this key and the token is valid now.
fn claims(request: &Received, key: &str) -> Result<Value, jsonwebtoken::errors::Error> {
    let token = request.header("upstash-signature").expect("a signature");
    let mut validation = Validation::new(Algorithm::HS256);
    validation.leeway = 0;
    validation.validate_nbf = true;
    validation.validate_aud = false;
    validation.set_issuer(&["Upstash"]);
    validation.set_required_spec_claims(&["exp", "nbf", "iss", "sub"]);
    decode::<Value>(token, &DecodingKey::from_secret(key.as_bytes()), &validation).map(|token| token.claims)
}

fn body_claim(body: &[u8]) -> String {
    URL_SAFE.encode(Sha256::digest(body))
}

fn now_s() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_secs()).expect("a while to go")
}

async fn every_claim_is_as_receivers_need_it(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let mut ids = HashSet::new();
    for _ in 0..3 {
        let before = now_s();
        server.publish(&receiver.url("/hook?x=1"), &[], r#"{"hello":"world"}"#).await;
        let request = receiver.next_request().await;
        let header =
            decode_header(request.header("upstash-signature").expect("signed")).expect("a JWT header");
        assert_eq!((header.alg, header.typ.as_deref()), (Algorithm::HS256, Some("JWT")));
        let claims = claims(&request, CURRENT_KEY).expect("a valid token");
        assert_eq!(claims["iss"], "Upstash");
        assert_eq!(claims["sub"], receiver.url("/hook?x=1"));
        assert_eq!(claims["body"], "k6I5cakU5erL8KjSUVTNownDwccvu5kU1Hxg88toFYg=");
        assert!(claims.get("aud").is_none_or(|aud| aud == ""), "{claims}");
        let (iat, exp, nbf) = (claims["iat"].as_i64(), claims["exp"].as_i64(), claims["nbf"].as_i64());
        let (iat, exp, nbf) = (iat.expect("iat"), exp.expect("exp"), nbf.expect("nbf"));
        let after = now_s();
        assert!(iat <= after && iat >= before - 10, "iat {iat} is not between {before} and {after}");
        assert!((before + 299..=after + 301).contains(&exp), "exp {exp} at {after}");
        assert!(nbf <= iat, "{claims}");
        let jti = claims["jti"].as_str().expect("jti is a text");
        assert!(jti.starts_with("jwt_") && ids.insert(jti.to_owned()), "{jti} is not new");
        let wrong = self::claims(&request, NEXT_KEY);
        assert!(wrong.is_err(), "signed with the current key only");
    }
}

async fn the_subject_is_the_url_as_published(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    for rest in ["", "/a/../b//c?u=https://z.com/?a=1", "/?upstash-retries=0", "/%41?x=%2f"] {
        let id = server.publish(&receiver.url(rest), &[], "x").await;
        let claims = claims(&receiver.next_request().await, CURRENT_KEY).expect("a valid token");
        assert_eq!(claims["sub"], receiver.url(&rest.replace("?upstash-retries=0", "")));
        assert_eq!(claims["sub"], server.message(&id).await["url"]);
    }
}

async fn the_body_claim_is_of_the_bytes_delivered(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let every_byte: Vec<u8> = (0..=255).collect();
    for (method, body) in
        [("POST", &every_byte[..]), ("GET", b"also here"), ("DELETE", b"and here"), ("POST", b"")]
    {
        server.publish(&receiver.url("/"), &[("Upstash-Method", method)], body).await;
        let request = receiver.next_request().await;
        let claims = claims(&request, CURRENT_KEY).expect("a valid token");
        assert_eq!(claims["body"], body_claim(&request.body), "{method}");
        assert_eq!(request.body, body);
    }
    assert_eq!(body_claim(b""), "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU=");
}

async fn callbacks_are_signed_for_their_own_url(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let callback = receiver.url("/callback?a=b");
    server.publish(&receiver.url("/work"), &[("Upstash-Callback", &callback)], "x").await;
    let request = receiver.next_on("/callback").await;
    let claims = claims(&request, CURRENT_KEY).expect("a valid token");
    assert_eq!((&claims["sub"], &claims["body"]), (&json!(callback), &json!(body_claim(&request.body))));
}

async fn the_keys_are_the_configured_ones(t: Test) {
    let server = t.server().await;
    assert_eq!(server.get_json("/v2/keys").await, json!({"current": CURRENT_KEY, "next": NEXT_KEY}));
}

async fn rotating_moves_the_next_key_up(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    // The second path is the one that the Go SDK calls.
    let mut expected = NEXT_KEY.to_owned();
    for target in ["/v2/keys/rotate", "/v2/rotate"] {
        let rotated = server.call("POST", target).send().await.json(200);
        let next = rotated["next"].as_str().expect("a key");
        assert_eq!(rotated["current"], expected);
        assert!(next.starts_with("sig_") && next.len() >= 32 && next != expected, "{next}");
        assert_eq!(server.get_json("/v2/keys").await, rotated);

        server.publish(&receiver.url("/"), &[], target).await;
        let request = receiver.next_request().await;
        claims(&request, &expected).expect("signed with the new current key");
        assert!(claims(&request, CURRENT_KEY).is_err(), "no longer with the old one");
        next.clone_into(&mut expected);
    }
}

async fn rotated_keys_survive_a_crash(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let rotated = server.call("POST", "/v2/keys/rotate").send().await.json(200);
    server.kill9();
    server.restart().await;
    assert_eq!(server.get_json("/v2/keys").await, rotated);
    server.publish(&receiver.url("/"), &[], "x").await;
    claims(&receiver.next_request().await, NEXT_KEY).expect("signed with the new current key");
}
