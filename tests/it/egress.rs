//! Where messages may not go.

use serde_json::json;

use crate::support::{Receiver, Server, Test};

engines! {
    metadata_addresses_are_refused,
    odd_spellings_lead_nowhere_else,
    callbacks_are_held_to_the_same_rules,
    public_only_refuses_loopback,
    names_are_checked_when_they_are_dialled,
}

/// The status and error text of a publish.
async fn refused(server: &Server, url: &str, headers: &[(&str, &str)]) -> String {
    let answer = server.call("POST", &format!("/v2/publish/{url}")).headers(headers).send().await;
    assert_eq!(answer.status, 400, "{url}: {}", answer.text());
    answer.error(400)
}

async fn metadata_addresses_are_refused(t: Test) {
    let server = t.server().await;
    for url in [
        "http://169.254.169.254/latest/meta-data/",
        "http://169.254.0.1/",
        "http://[fe80::1]/",
        "http://[fd00:ec2::254]/",
        "http://[::ffff:169.254.169.254]/",
        "http://0.0.0.0/",
        "http://[::]/",
        "http://224.0.0.1/",
        "http://255.255.255.255/",
        "http://100.100.100.200/",
    ] {
        let text = refused(&server, url, &[]).await;
        assert!(text.starts_with("invalid destination url"), "{url}: {text}");
    }
    assert_eq!(server.get_json("/v2/events").await, json!({"events": []}));
}

/// Other ways to write the metadata address: refused at once, or when they are dialled, but never sent.
async fn odd_spellings_lead_nowhere_else(t: Test) {
    let server = t.server().await;
    for url in [
        "http://2852039166/",
        "http://0xa9fea9fe/",
        "http://0251.0376.0251.0376/",
        "http://169.254.43518/",
        "http://169.254.169.254./",
        "http://[::ffff:a9fe:a9fe]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://user@169.254.169.254/",
    ] {
        let call = server.call("POST", &format!("/v2/publish/{url}")).header("Upstash-Retries", "0");
        let answer = call.header("Upstash-Timeout", "5s").send().await;
        if answer.status == 400 {
            answer.error(400);
            continue;
        }
        let json = answer.json(200);
        let letter = server.dead_letter(json["messageId"].as_str().expect("an id")).await;
        assert_eq!(letter["responseStatus"], 0, "{url}");
    }
}

async fn callbacks_are_held_to_the_same_rules(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    for name in ["Upstash-Callback", "Upstash-Failure-Callback"] {
        refused(&server, &receiver.url("/"), &[(name, "http://169.254.169.254/")]).await;
    }
    assert_eq!(server.get_json("/v2/events").await, json!({"events": []}));
    assert_eq!(receiver.requests().len(), 0);
}

async fn public_only_refuses_loopback(t: Test) {
    let server = t.server_with(&[("HOMING_EGRESS", "public")]).await;
    let receiver = Receiver::start().await;
    let text = refused(&server, &receiver.url("/"), &[]).await;
    let expected = "invalid destination url: endpoint resolves to a loopback address: 127.0.0.1";
    assert!(text.starts_with(expected), "{text}");
    for url in
        ["http://[::1]/", "http://127.1.2.3/", "http://10.0.0.1/", "http://192.168.1.1/", "http://[fd00::1]/"]
    {
        refused(&server, url, &[]).await;
    }
    assert_eq!(server.get_json("/v2/events").await, json!({"events": []}));
    assert_eq!(receiver.requests().len(), 0);
}

async fn names_are_checked_when_they_are_dialled(t: Test) {
    let server = t.server_with(&[("HOMING_EGRESS", "public")]).await;
    let receiver = Receiver::start().await;
    let url = format!("http://localhost:{}/", receiver.port());
    let answer =
        server.call("POST", &format!("/v2/publish/{url}")).header("Upstash-Retries", "0").send().await;
    if answer.status == 200 {
        let json = answer.json(200);
        let id = json["messageId"].as_str().expect("an id");
        assert_eq!(server.ended(id).await, "CREATED ACTIVE ERROR FAILED");
        let events = server.events(id).await;
        let error = events.last().expect("entries")["error"].as_str().expect("a text").to_owned();
        assert!(
            error.contains("HOMING_EGRESS") || error.contains("egress"),
            "it says which setting: {error}"
        );
    } else {
        answer.error(400);
    }
    assert_eq!(receiver.requests().len(), 0, "nothing was sent");
}
