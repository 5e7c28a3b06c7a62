//! Answers that are odd, broken, endless or too large, and connections that end at a bad moment.

use serde_json::{Value, json};

use crate::support::raw::{Bytes, CLOSED_WITHIN, RawReceiver, Then};
use crate::support::{Receiver, Reply, Server, Test, base64_text, within};

engines! {
    lines_that_are_no_header_are_dropped,
    a_length_that_is_open_is_malformed,
    some_informational_answers_are_skipped,
    endless_informational_answers_end_the_connection,
    switching_protocols_is_a_failure,
    headers_have_a_limit,
    a_body_without_a_length_ends_with_its_connection,
    a_success_that_breaks_off_is_a_failure_that_names_it,
    a_failure_that_breaks_off_keeps_its_status,
    a_connection_that_was_closed_costs_no_attempt,
    what_met_a_reset_is_not_sent_again,
    what_was_read_without_an_answer_is_not_sent_again,
    a_connection_is_used_again_after_each_kind_of_body,
}

const ONCE: [(&str, &str); 1] = [("Upstash-Retries", "0")];

/// Publishes without retries and waits for the end; the error text, if it failed.
async fn outcome(server: &Server, url: &str) -> Result<(), String> {
    let id = server.publish(url, &ONCE, "x").await;
    if server.ended(&id).await == "CREATED ACTIVE DELIVERED" {
        return Ok(());
    }
    let events = server.events(&id).await;
    Err(events.last().unwrap()["error"].as_str().unwrap().to_owned())
}

/// A 500 with one more header, and what the dead letter shows of the headers.
async fn headers_of(server: &Server, lines: &'static [u8]) -> Value {
    let receiver = RawReceiver::start(move |_, _| {
        let head = [b"HTTP/1.1 500 Oops\r\n", lines, b"Content-Length: 2\r\n\r\nok"].concat();
        Bytes::new(head, Then::Keep)
    })
    .await;
    let id = server.publish(&receiver.url("/"), &ONCE, "x").await;
    let mut letter = server.dead_letter(&id).await;
    assert_eq!((&letter["responseStatus"], &letter["responseBody"]), (&json!(500), &json!("ok")));
    letter["responseHeader"].take()
}

async fn lines_that_are_no_header_are_dropped(t: Test) {
    let server = t.server().await;
    let kept = headers_of(
        &server,
        b"A: b;\r\n c *\r\nD:\r\n\te\r\nF : g\r\nX Y: z\r\nPHP Warning: Unable to load: x\r\ngarbage without colon\r\n\
          bare\r\n: novalue\r\n\"X-A\": b\r\nX-\xc3\x9cber: b\r\nX-D: a=\x7f1\r\nX-E: \x1b[31m\r\nX-N: \0\r\nI: j\n",
    )
    .await;
    let expected = json!({
        "A": ["b; c *"], "D": ["e"], "F": ["g"], "I": ["j"], "Content-Length": ["2"],
    });
    assert_eq!(kept, expected);
    assert_eq!(headers_of(&server, b" first\r\nA: b\r\n").await["A"], json!(["b"]));
}

async fn a_length_that_is_open_is_malformed(t: Test) {
    let server = t.server().await;
    for lines in [
        "Content-Length: 2\r\nContent-Length: 3\r\n",
        "Content-Length: two\r\n",
        "Content-Length: 2\x7f\r\n",
        "Transfer-Encoding: \x0bchunked\r\nContent-Length: 2\r\n",
    ] {
        let receiver = RawReceiver::start(move |_, _| {
            Bytes::new(format!("HTTP/1.1 200 OK\r\n{lines}\r\nok"), Then::Keep)
        })
        .await;
        let error = outcome(&server, &receiver.url("/")).await.unwrap_err();
        assert!(error.starts_with("malformed response: "), "{lines:?}: {error}");
        assert_eq!(receiver.count("/"), 1);
    }
}

async fn some_informational_answers_are_skipped(t: Test) {
    let server = t.server().await;
    let hint = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let receiver = RawReceiver::start(move |target, _| {
        let count = target[1..].parse().unwrap();
        Bytes::new(format!("{}HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", hint.repeat(count)), Then::Keep)
    })
    .await;
    for count in ["/0", "/1", "/16"] {
        assert_eq!(outcome(&server, &receiver.url(count)).await, Ok(()), "{count}");
    }
    let error = outcome(&server, &receiver.url("/17")).await.unwrap_err();
    assert!(error.contains("informational (1xx)"), "{error}");
}

async fn endless_informational_answers_end_the_connection(t: Test) {
    let server = t.server().await;
    let receiver = RawReceiver::start(|_, _| Bytes::new("HTTP/1.1 100 Continue\r\n\r\n", Then::Repeat)).await;
    let error = outcome(&server, &receiver.url("/")).await.unwrap_err();
    assert!(error.contains("more than 16"), "{error}");
    within(CLOSED_WITHIN, "the connection is closed", async || (receiver.ended() == [0]).then_some(())).await;
}

async fn switching_protocols_is_a_failure(t: Test) {
    let server = t.server().await;
    let receiver = RawReceiver::start(|_, _| {
        Bytes::new("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nnoise", Then::Keep)
    })
    .await;
    let id = server.publish(&receiver.url("/"), &ONCE, "x").await;
    assert_eq!(server.dead_letter(&id).await["responseStatus"], 101);
    within(CLOSED_WITHIN, "the connection is closed", async || (receiver.ended() == [0]).then_some(())).await;
}

async fn headers_have_a_limit(t: Test) {
    let server = t.server().await;
    let receiver = RawReceiver::start(|target, _| {
        let (size, count): (usize, usize) = match target {
            "/one" => (380_000, 1),
            "/many" => (300, 1000),
            "/large" => (500_000, 1),
            _ => (10, 20_000),
        };
        let fields = format!("A: {}\r\n", "x".repeat(size)).repeat(count);
        Bytes::new(format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 0\r\n\r\n"), Then::Keep)
    })
    .await;
    for path in ["/one", "/many"] {
        assert_eq!(outcome(&server, &receiver.url(path)).await, Ok(()), "{path}");
    }
    for path in ["/large", "/count"] {
        let error = outcome(&server, &receiver.url(path)).await.unwrap_err();
        assert_eq!(error, "the response's headers are too large: more than 384 KiB", "{path}");
    }
}

async fn a_body_without_a_length_ends_with_its_connection(t: Test) {
    let server = t.server().await;
    let receiver =
        RawReceiver::start(|_, _| Bytes::new("HTTP/1.0 500 Oops\r\n\r\nall of it", Then::Close)).await;
    let id = server.publish(&receiver.url("/"), &ONCE, "x").await;
    let letter = server.dead_letter(&id).await;
    assert_eq!((&letter["responseStatus"], &letter["responseBody"]), (&json!(500), &json!("all of it")));
    assert!(!server.log().text().contains("perhaps cut off"));
}

async fn a_success_that_breaks_off_is_a_failure_that_names_it(t: Test) {
    let server = t.server().await;
    for rest in ["Content-Length: 9\r\n\r\nbegun", "Transfer-Encoding: chunked\r\n\r\n9\r\nbegun"] {
        let receiver = RawReceiver::start(move |_, _| {
            Bytes::new(format!("HTTP/1.1 201 Created\r\n{rest}"), Then::Close)
        })
        .await;
        let error = outcome(&server, &receiver.url("/")).await.unwrap_err();
        assert!(error.starts_with("the response (status 201) broke off"), "{error}");
        assert_eq!(receiver.count("/"), 1);
    }
}

async fn a_failure_that_breaks_off_keeps_its_status(t: Test) {
    let server = t.server().await;
    let receiver = RawReceiver::start(|_, before| match before {
        0 => Bytes::new("HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nContent-Length: 9\r\n\r\nbegun", Then::Close),
        _ => Bytes::ok(),
    })
    .await;
    // An hour, if the response did not say otherwise.
    let headers = [("Upstash-Retries", "1"), ("Upstash-Retry-Delay", "3600000")];
    let id = server.publish(&receiver.url("/"), &headers, "x").await;
    assert_eq!(server.ended(&id).await, "CREATED ACTIVE ERROR RETRY ACTIVE DELIVERED");
    let events = server.events(&id).await;
    let error = events.iter().find(|event| event["state"] == "ERROR").unwrap();
    assert_eq!(
        (&error["responseStatus"], base64_text(&error["responseBody"])),
        (&json!(503), b"begun".to_vec())
    );
}

async fn a_connection_that_was_closed_costs_no_attempt(t: Test) {
    let server = t.server().await;
    let receiver =
        RawReceiver::start(|_, _| Bytes::new("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Then::Close))
            .await;
    for method in ["POST", "GET", "PUT"] {
        let headers = [("Upstash-Retries", "0"), ("Upstash-Method", method)];
        let id = server.publish(&receiver.url("/"), &headers, "x").await;
        assert_eq!(server.ended(&id).await, "CREATED ACTIVE DELIVERED", "{method}");
    }
    assert_eq!(receiver.arrivals().len(), 3);
}

/// Whoever closes a connection with something unread on it may have read the rest.
async fn what_met_a_reset_is_not_sent_again(t: Test) {
    let server = t.server().await;
    let receiver = RawReceiver::start(|target, _| match target {
        "/first" => Bytes::new("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Then::CloseOnNext),
        _ => Bytes::ok(),
    })
    .await;
    assert_eq!(outcome(&server, &receiver.url("/first")).await, Ok(()));
    let error = outcome(&server, &receiver.url("/second")).await.unwrap_err();
    assert!(error.contains("reset"), "{error}");
    assert_eq!(receiver.count("/second"), 0);
}

async fn what_was_read_without_an_answer_is_not_sent_again(t: Test) {
    let server = t.server().await;
    let receiver = Receiver::start().await;
    receiver.script("/hangup", [Reply::hangup()]);
    assert_eq!(outcome(&server, &receiver.url("/first")).await, Ok(()));
    let error = outcome(&server, &receiver.url("/hangup")).await.unwrap_err();
    assert!(error.contains("the destination closed the connection"), "{error}");
    assert_eq!(receiver.requests_on("/hangup").len(), 1);
}

async fn a_connection_is_used_again_after_each_kind_of_body(t: Test) {
    let server = t.server().await;
    let receiver = RawReceiver::start(|target, _| {
        let rest = match target {
            "/chunked" => "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: x\r\n\r\n",
            "/length" => "Content-Length: 5\r\n\r\nabcde",
            "/folded" => "A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
            _ => "Content-Length: 0\r\n\r\n",
        };
        Bytes::new(format!("HTTP/1.1 200 OK\r\n{rest}"), Then::Keep)
    })
    .await;
    for path in ["/chunked", "/length", "/folded", "/empty", "/chunked"] {
        assert_eq!(outcome(&server, &receiver.url(path)).await, Ok(()), "{path}");
    }
    let connections: Vec<_> = receiver.arrivals().iter().map(|arrival| arrival.connection).collect();
    assert_eq!(connections, [0; 5]);
}
