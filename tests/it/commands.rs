//! The commands besides `serve`, and what a user with a wrong configuration sees.

use std::process::{Command, Output};

use serde_json::json;

use crate::support::{Call, Test};

engines! {
    migrating_first_and_serving_later_is_the_same,
    a_server_makes_its_schema,
    a_healthcheck_tells_by_its_exit_code,
    a_wrong_setting_is_named,
    development_mode_has_the_known_credentials,
    development_mode_stays_on_loopback,
    developments_keys_do_not_outlive_development,
}

/// Development's user 1, public by design.
const DEV_TOKEN: &str = "eyJVc2VySUQiOiJkZWZhdWx0VXNlciIsIlBhc3N3b3JkIjoiZGVmYXVsdFBhc3N3b3JkIn0=";
const DEV_CURRENT: &str = "sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r";
const DEV_NEXT: &str = "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs";

fn run(arguments: &[&str], settings: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_homing"));
    command.env_clear().envs(settings.iter().copied()).args(arguments);
    command.output().unwrap()
}

#[track_caller]
fn refused(output: &Output, says: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{text}");
    for part in says {
        assert!(text.contains(part), "{part} in: {text}");
    }
}

async fn migrating_first_and_serving_later_is_the_same(t: Test) {
    t.without_schema().await;
    let url = t.database_url();
    for _ in 0..2 {
        let output = run(&["migrate"], &[("HOMING_DATABASE_URL", &url)]);
        assert!(output.status.success(), "{output:?}");
    }
    let server = t.server().await;
    assert_eq!(server.get_json("/v2/events").await, json!({"events": []}));
}

async fn a_server_makes_its_schema(t: Test) {
    t.without_schema().await;
    let server = t.server().await;
    assert_eq!(server.get_json("/v2/events").await, json!({"events": []}));
}

async fn a_healthcheck_tells_by_its_exit_code(t: Test) {
    let server = t.server().await;
    let listen = server.last_address();
    let alive = run(&["healthcheck"], &[("HOMING_LISTEN", &listen)]);
    assert_eq!(alive.status.code(), Some(0), "{alive:?}");
    server.kill9();
    let dead = run(&["healthcheck"], &[("HOMING_LISTEN", &listen)]);
    assert_eq!(dead.status.code(), Some(1), "{dead:?}");
}

async fn a_wrong_setting_is_named(t: Test) {
    let url = t.database_url();
    let with = |name, value| run(&[], &[("HOMING_DATABASE_URL", &*url), (name, value)]);
    refused(&with("HOMING_CONCURENCY", "3"), &["HOMING_CONCURENCY", "HOMING_CONCURRENCY"]);
    refused(&with("HOMING_MAX_DELAY", "soon"), &["max_delay", "HOMING_MAX_DELAY", "soon"]);
    refused(&with("HOMING_CURRENT_SIGNING_KEY", "sig_x"), &["next_signing_key"]);
}

async fn development_mode_has_the_known_credentials(t: Test) {
    let server = t
        .server_with(&[
            ("HOMING_DEV", "true"),
            ("HOMING_TOKEN", ""),
            ("HOMING_CURRENT_SIGNING_KEY", ""),
            ("HOMING_NEXT_SIGNING_KEY", ""),
        ])
        .await;
    let call = Call::new(server.last_address().parse().unwrap(), "GET", "/v2/keys");
    let answer = call.header("Authorization", format!("Bearer {DEV_TOKEN}")).send().await;
    assert_eq!(answer.json(200), json!({"current": DEV_CURRENT, "next": DEV_NEXT}));
}

async fn development_mode_stays_on_loopback(t: Test) {
    let url = t.database_url();
    let settings = [("HOMING_DATABASE_URL", &*url), ("HOMING_LISTEN", "0.0.0.0:0"), ("HOMING_DEV", "true")];
    refused(&run(&[], &settings), &["dev"]);
}

async fn developments_keys_do_not_outlive_development(t: Test) {
    let own_keys = [("HOMING_CURRENT_SIGNING_KEY", ""), ("HOMING_NEXT_SIGNING_KEY", "")];
    let dev = t.server_with(&[own_keys[0], own_keys[1], ("HOMING_DEV", "true"), ("HOMING_TOKEN", "")]).await;
    dev.terminate().await;
    let server = t.server_with(&own_keys).await;
    let keys = server.get_json("/v2/keys").await;
    for known in [DEV_CURRENT, DEV_NEXT] {
        assert_ne!(keys["current"], known);
        assert_ne!(keys["next"], known);
    }
}
