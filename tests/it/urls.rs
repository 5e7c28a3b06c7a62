//! URLs as people write them: hosts and paths with letters beyond ASCII, raw, percent-encoded, in headers and in JSON.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::support::http::Answer;
use crate::support::{Received, Receiver, Reply, Server, Test};

engines! {
    a_host_beyond_ascii_goes_out_in_its_ascii_form,
    a_name_beyond_ascii_is_looked_up_in_its_ascii_form,
    an_address_in_other_digits_is_that_address,
    the_egress_lists_know_both_forms,
    what_a_request_line_cannot_carry_is_encoded_on_every_path,
    filters_find_what_is_written_beyond_ascii,
    what_is_no_url_is_refused_on_every_path,
}

/// The URL that a delivery was signed for.
fn subject(request: &Received) -> String {
    let token = request.header("upstash-signature").expect("a signature");
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).expect("claims")).expect("base64");
    let claims: Value = serde_json::from_slice(&claims).expect("JSON");
    claims["sub"].as_str().expect("a subject").to_owned()
}

/// Percent-encodes everything, as `encodeURIComponent` does and more.
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |text, byte| text + &format!("%{byte:02X}"))
}

/// Percent-encodes what is beyond ASCII, and blanks, as `fetch` does.
fn as_fetch_does(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_ascii() && c != ' ' { c.to_string() } else { encoded(&c.to_string()) })
        .collect()
}

async fn send(server: &Server, method: &str, target: &str, body: Value) -> Answer {
    server.call(method, target).body(body.to_string()).send().await
}

/// Every way that a destination comes in; each makes one message.
const WAYS: [&str; 8] =
    ["publish", "encoded", "enqueue", "batch", "group", "schedule", "callback", "failure callback"];

/// The answer to a request that makes a message to that URL. `t` runs a schedule at once.
async fn bring(t: &Test, server: &Server, way: &str, url: &str, receiver: &Receiver) -> Answer {
    let publish = async |words: &str, destination: &str| {
        server.call("POST", &format!("/v2/{words}/{destination}")).body("x").send().await
    };
    match way {
        "publish" => publish("publish", &url.replace(' ', "%20")).await,
        // A URL in percent-encoding is decoded once, all of it.
        "encoded" => publish("publish", &format!("http{}", encoded(&url["http".len()..]))).await,
        "enqueue" => publish("enqueue/q", &as_fetch_does(url)).await,
        "batch" => send(server, "POST", "/v2/batch", json!([{"destination": url, "body": "x"}])).await,
        "group" => {
            let endpoints = json!({"endpoints": [{"url": url, "name": "n"}]});
            let answer = send(server, "POST", "/v2/topics/g/endpoints", endpoints).await;
            if answer.status == 200 { publish("publish", "g").await } else { answer }
        }
        "schedule" => {
            let call = server.call("POST", &format!("/v2/schedules/{}", as_fetch_does(url)));
            let headers = |id| [("Upstash-Cron", "0 0 1 1 *"), ("Upstash-Schedule-Id", id)];
            let answer = call.headers(&headers("s")).body("x").send().await;
            if answer.status == 200 {
                t.execute("UPDATE schedules SET next_at = 300000 WHERE id = 's'").await;
                // Another one lets the server look for what is due.
                let call = server.call("POST", &format!("/v2/schedules/{}", receiver.url("/other")));
                call.headers(&headers("other")).send().await.json(200);
            }
            answer
        }
        "callback" | "failure callback" => {
            let name = if way == "callback" { "Upstash-Callback" } else { "Upstash-Failure-Callback" };
            receiver.script("/first", [Reply::status(if way == "callback" { 200 } else { 489 })]);
            let call = server.call("POST", &format!("/v2/publish/{}", receiver.url("/first")));
            call.header(name, url).header("Upstash-Retries", "0").body("x").send().await
        }
        other => panic!("{other}"),
    }
}

/// The request that came of it.
async fn delivered(receiver: &Receiver, way: &str) -> Received {
    let mut request = receiver.next_request().await;
    if way.contains("callback") {
        assert_eq!(request.target, "/first");
        request = receiver.next_request().await;
    }
    request
}

async fn a_host_beyond_ascii_goes_out_in_its_ascii_form(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let port = receiver.port();
    // By UTS 46 these are `localhost`, which resolves everywhere.
    for host in ["\u{ff4c}ocalhost", "%EF%BD%8Cocalho%C5%BFt"] {
        for way in WAYS {
            let url = format!("http://{host}:{port}/x");
            let answer = bring(&t, &server, way, &url, &receiver).await;
            assert_eq!(answer.status, 200, "{way}: {}", answer.text());
            let request = delivered(&receiver, way).await;
            assert_eq!(request.target, "/x", "{way}");
            assert_eq!(request.header("host"), Some(format!("localhost:{port}").as_str()), "{way}");
            let message = server.message(request.message_id()).await;
            let as_received = match way {
                "enqueue" | "schedule" => as_fetch_does(&url),
                _ => url,
            };
            assert_eq!(
                (&message["url"], subject(&request)),
                (&json!(as_received), as_received.clone()),
                "{way}"
            );
            if way == "schedule" {
                assert_eq!(server.get_json("/v2/schedules/s").await["destination"], as_received);
            }
        }
    }
}

async fn a_name_beyond_ascii_is_looked_up_in_its_ascii_form(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    for host in ["l\u{fc}calhost.invalid", "l%C3%BCcalhost.invalid"] {
        let url = format!("http://{host}/x");
        let callback = receiver.url("/failed");
        let headers = [("Upstash-Retries", "0"), ("Upstash-Failure-Callback", callback.as_str())];
        let id = server.publish(&url, &headers, "x").await;
        let letter = server.dead_letter(&id).await;
        assert_eq!(letter["url"], url);
        let error = server.events(&id).await.pop().expect("entries")["error"].to_string();
        assert!(error.contains("lookup xn--lcalhost-65a.invalid"), "{error}");
        assert_eq!(receiver.next_on("/failed").await.json()["url"], url);
        // Its retry takes it again.
        let target = format!("/v2/dlq/retry/{}", letter["dlqId"].as_str().expect("an id"));
        let again = server.call("POST", &target).send().await.json(201);
        let again = server.dead_letter(again["messageId"].as_str().expect("an id")).await;
        assert_eq!((&again["url"], &again["failureCallback"]), (&json!(url), &json!(callback)));
        receiver.next_on("/failed").await;
    }
}

async fn an_address_in_other_digits_is_that_address(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let spellings = [
        "\u{ff11}\u{ff12}\u{ff17}.0.0.1",
        "127\u{3002}0.0\u{ff0e}1",
        "%EF%BC%91%EF%BC%92%EF%BC%97.1",
        "\u{ff10}x7f.1",
    ];
    for host in spellings {
        for way in WAYS {
            let url = format!("http://{host}:{}/x", receiver.port());
            let answer = bring(&t, &server, way, &url, &receiver).await;
            assert_eq!(answer.status, 200, "{way} {host}: {}", answer.text());
            assert_eq!(delivered(&receiver, way).await.target, "/x");
        }
    }
    let metadata =
        ["\u{2460}69.254.169.254", "169\u{3002}254.169.254", "%EF%BC%91%EF%BC%96%EF%BC%99.254.169.254"];
    for host in metadata {
        for way in WAYS {
            let answer = bring(&t, &server, way, &format!("http://{host}/"), &receiver).await;
            let error = answer.error(400);
            assert!(error.contains("(rule cloud-metadata)"), "{way} {host}: {error}");
        }
    }
    // What hides an address in escapes of ASCII is no host.
    for way in WAYS {
        let answer = bring(&t, &server, way, "http://%31%32%37.0.0.1/", &receiver).await;
        let error = answer.error(400);
        assert!(error.contains("only letters beyond ASCII can be percent-encoded"), "{way}: {error}");
    }

    server.terminate().await;
    let strict = t.server_with(&[("HOMING_EGRESS", "public")]).await;
    for host in spellings {
        for way in &WAYS[..6] {
            let url = format!("http://{host}:{}/x", receiver.port());
            let error = bring(&t, &strict, way, &url, &receiver).await.error(400);
            assert!(error.contains("loopback"), "{way} {host}: {error}");
        }
    }
    assert_eq!(receiver.requests().len(), spellings.len() * (WAYS.len() + 2));
}

async fn the_egress_lists_know_both_forms(t: Test) {
    let receiver = Receiver::start().await;
    for entry in ["m\u{fc}nchen.example", "xn--mnchen-3ya.example", "*.EXAMPLE"] {
        let server = t.server_with(&[("HOMING_EGRESS_DENY", entry)]).await;
        for host in ["M\u{dc}NCHEN.example", "m%C3%BCnchen.example", "XN--mnchen-3ya.example"] {
            for way in WAYS {
                let error = bring(&t, &server, way, &format!("http://{host}/"), &receiver).await.error(400);
                assert!(error.contains(&format!("denied by `{entry}`")), "{way} {host}: {error}");
            }
        }
        server.terminate().await;
    }
    // An allowed name may lead to any address.
    let settings = [("HOMING_EGRESS", "public"), ("HOMING_EGRESS_ALLOW", "\u{ff4c}ocalhost")];
    let server = t.server_with(&settings).await;
    server.publish(&format!("http://\u{24db}ocalhost:{}/x", receiver.port()), &[], "x").await;
    receiver.next_on("/x").await;
}

async fn what_a_request_line_cannot_carry_is_encoded_on_every_path(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    let rest = "/gr\u{fc}\u{df}e/\u{1f980} a?x=\u{fc} y&z=%2F";
    let sent = "/gr%C3%BC%C3%9Fe/%F0%9F%A6%80%20a?x=%C3%BC%20y&z=%2F";
    for way in WAYS {
        let answer = bring(&t, &server, way, &receiver.url(rest), &receiver).await;
        assert_eq!(answer.status, 200, "{way}: {}", answer.text());
        let request = delivered(&receiver, way).await;
        assert_eq!((request.target.as_str(), subject(&request)), (sent, receiver.url(sent)), "{way}");
        assert_eq!(server.message(request.message_id()).await["url"], receiver.url(sent), "{way}");
    }
    assert_eq!(server.get_json("/v2/topics/g").await["endpoints"][0]["url"], receiver.url(sent));
    assert_eq!(server.get_json("/v2/schedules/s").await["destination"], receiver.url(sent));
    // An endpoint is found by its URL as it was given, and is gone.
    let endpoints = json!({"endpoints": [{"url": receiver.url(rest)}]});
    assert_eq!(send(&server, "DELETE", "/v2/topics/g/endpoints", endpoints).await.status, 200);
    server.get("/v2/topics/g").await.error(404);

    // What JavaScript puts into a header is Latin-1.
    let call = server.call("POST", &format!("/v2/publish/{}", receiver.url("/first")));
    let callback = [receiver.url("/gr").as_bytes(), b"\xfcn"].concat();
    call.header("Upstash-Callback", callback).send().await.json(200);
    receiver.script("/first", [Reply::ok()]);
    receiver.next_on("/gr%C3%BCn").await;

    // Other characters that people write and HTTP can't carry; blanks around a URL are none of it.
    for (rest, sent) in
        [("/a<b>`c`?\"d\"", "/a%3Cb%3E%60c%60?%22d%22"), ("/{a}|b\\^?{c}", "/{a}|b\\^?{c}"), ("/ ", "/")]
    {
        let items = json!([{"destination": format!(" {}", receiver.url(rest))}]);
        let answer = send(&server, "POST", "/v2/batch", items).await.json(200);
        assert_eq!(answer[0]["url"], receiver.url(sent));
        receiver.next_on(sent.split('?').next().unwrap()).await;
    }
}

async fn filters_find_what_is_written_beyond_ascii(t: Test) {
    let server = t.server().await;
    let url = "http://m\u{fc}nchen.example/gr\u{fc}n?x";
    let delay = json!({"Upstash-Delay": "1d"});
    let batch = json!([{"destination": url, "headers": delay}]);
    let raw = send(&server, "POST", "/v2/batch", batch).await.json(200)[0]["messageId"].clone();
    let headers = [("Upstash-Delay", "1d")];
    let fetched = json!(server.publish(&as_fetch_does(url), &headers, "x").await);
    server.publish("http://munchen.example/grun", &headers, "x").await;
    for (name, value) in [
        ("host", "m\u{fc}nchen.example"),
        ("host", "M\u{dc}NCHEN.example:80"),
        ("host", "xn--mnchen-3ya.example"),
        ("path", "/gr\u{fc}n"),
        ("path", "/gr%C3%BCn"),
        ("url", url),
        ("url", &as_fetch_does(url)),
    ] {
        let events = server.list(&format!("/v2/events?{name}={}", encoded(value)), "events").await;
        let ids: Vec<&Value> = events.iter().map(|event| &event["messageId"]).collect();
        assert!(
            ids.len() == 2 && ids.contains(&&raw) && ids.contains(&&fetched),
            "{name}={value}: {events:?}"
        );
    }
    let cancelled = send(&server, "DELETE", "/v2/messages", json!({"url": url})).await.json(200);
    assert_eq!(cancelled, json!({"cancelled": 2}));
}

async fn what_is_no_url_is_refused_on_every_path(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    for (url, text) in [
        ("http://\u{fc}..example/", "a label is empty"),
        ("http://e\u{ff0f}x.example/", "not a domain name by UTS 46"),
        ("http://e\u{ff20}x.example/", "not a domain name by UTS 46"),
        ("http://%FC.example/", "its escapes are not UTF-8"),
        ("http://a\u{fc}!.example/", "it has characters that no host name has"),
    ] {
        for way in WAYS {
            let error = bring(&t, &server, way, url, &receiver).await.error(400);
            assert!(error.contains(text), "{way} {url}: {error}");
        }
    }
    for way in ["publish", "encoded", "batch", "group", "callback", "failure callback"] {
        let error = bring(&t, &server, way, "http://e.example/\u{85}", &receiver).await.error(400);
        assert!(error.contains("control character"), "{way}: {error}");
    }
    let long = format!("http://{}.example/", "\u{fc}".repeat(60));
    let error = bring(&t, &server, "batch", &long, &receiver).await.error(400);
    assert!(error.contains("more than 63 bytes"), "{error}");
    assert_eq!(server.get_json("/v2/events").await, json!({"events": []}));
}
