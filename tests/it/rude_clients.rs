//! Clients that don't read, don't finish or only keep connections open: what they hold, others get soon.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use crate::support::wait::pause;
use crate::support::{Call, Engine, READ_ONLY_TOKEN, Receiver, Server, TOKEN, Test, eventually, within};

engines! {
    unread_answers_give_back_their_memory,
    without_memory_for_answers_small_ones_go_on,
    slow_readers_get_all_of_a_page,
    lists_of_large_messages_have_pages,
    a_batch_is_answered_whoever_reads,
    stalled_uploads_give_back_their_memory,
    strangers_leave_descriptors_for_deliveries,
}

/// By then another client must be served.
const SERVED: Duration = Duration::from_secs(30);
/// Connections that have places on a server with [`FEW`].
const PLACES: usize = 4;
/// Connections that may wait for one there.
const LOBBY: usize = 8;
/// Nobody leaves in time because of the limits on single connections.
const FEW: [(&str, &str); 2] = [("HOMING_MAX_CONNECTIONS", "4"), ("HOMING_IDLE_TIMEOUT", "1h")];

/// How a client behaves.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Silent,
    /// A part of the preface of HTTP/2.
    PartOfPreface,
    PartOfHead,
    PartOfBody,
    IdleAfterRequest,
    /// It acknowledges whatever has to be.
    IdleHttp2,
    PrefaceOnlyHttp2,
    UnreadHttp1,
    UnreadHttp2,
}

macro_rules! full_houses {
    ($($name:ident: $kind:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            Test::run(Engine::Sqlite, async |t| full_house(&t, Kind::$kind).await).await;
        }
    )*};
}

full_houses! {
    a_house_full_of_silent_clients: Silent,
    a_house_full_of_parts_of_a_preface: PartOfPreface,
    a_house_full_of_parts_of_heads: PartOfHead,
    a_house_full_of_parts_of_bodies: PartOfBody,
    a_house_full_of_idle_clients: IdleAfterRequest,
    a_house_full_of_idle_http2_clients: IdleHttp2,
    a_house_full_of_http2_prefaces: PrefaceOnlyHttp2,
    a_house_full_of_unread_answers: UnreadHttp1,
    a_house_full_of_unread_http2_answers: UnreadHttp2,
}

/// With all places taken by such clients, health checks are answered at once and others soon; with the lobby full of them
/// as well, all soon.
async fn full_house(t: &Test, kind: Kind) {
    let server = t.server_with(&[&FEW[..], &[("HOMING_STALL_TIMEOUT", "2s")]].concat()).await;
    let mut rude = Vec::new();
    for _ in 0..PLACES {
        rude.push(Rude::connect(&server, kind).await);
    }
    for path in ["/healthz", "/readyz"] {
        let answer = Call::new(server.address(), "GET", path).send().await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    }
    let answer = tokio::time::timeout(SERVED, server.get("/v2/queues")).await.expect("an answer in time");
    assert_eq!(answer.status, 200, "{}", answer.text());
    // And now all that can be taken, again and again.
    for _ in 0..PLACES + LOBBY {
        rude.push(Rude::connect(&server, kind).await);
    }
    let answer = tokio::time::timeout(SERVED, server.get("/v2/queues")).await.expect("an answer in time");
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// A rude client, while it is kept.
enum Rude {
    Http1(TcpStream),
    Http2(SendRequest<Bytes>, JoinHandle<()>, Vec<h2::client::ResponseFuture>),
}

impl Rude {
    /// A client that has begun to behave so.
    async fn connect(server: &Server, kind: Kind) -> Self {
        let address = server.address();
        let text = match kind {
            Kind::Silent => String::new(),
            Kind::PartOfPreface => "PRI".to_owned(),
            Kind::PartOfHead => "GET /healthz HTTP/1.1\r\nHost: x\r\nX-".to_owned(),
            Kind::PartOfBody => format!(
                "POST /v2/publish/http://127.0.0.1:9/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\
                 Content-Length: 100\r\n\r\nx"
            ),
            Kind::IdleAfterRequest => "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
            Kind::PrefaceOnlyHttp2 => "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_owned(),
            // More than the buffers of both ends hold.
            Kind::UnreadHttp1 => "GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(200),
            Kind::IdleHttp2 => return http2(address, 65_535).await,
            Kind::UnreadHttp2 => {
                let mut client = http2(address, 0).await;
                for _ in 0..20 {
                    client.ask("/openapi.json", "").await;
                }
                return client;
            }
        };
        let mut stream = narrow(address).await;
        stream.write_all(text.as_bytes()).await.unwrap();
        if let Kind::IdleAfterRequest = kind {
            stream.read_exact(&mut [0; 100]).await.unwrap();
        }
        Self::Http1(stream)
    }

    /// Sends a request on HTTP/2 and doesn't look at the answer.
    async fn ask(&mut self, path: &str, token: &str) {
        let Self::Http2(sender, _, answers) = self else { unreachable!() };
        let request =
            Request::get(format!("http://x{path}")).header("Authorization", format!("Bearer {token}"));
        let mut ready = sender.clone().ready().await.unwrap();
        answers.push(ready.send_request(request.body(()).unwrap(), true).unwrap().0);
    }

    /// Waits until the server has closed the connection.
    async fn closed(self) {
        match self {
            Self::Http2(_sender, connection, _answers) => {
                tokio::time::timeout(SERVED, connection).await.expect("it is closed in time").unwrap();
            }
            // Reading would tell that it is no longer rude.
            Self::Http1(stream) => {
                within(SERVED, "the connection is reset", async || stream.try_write(b"G").err()).await;
            }
        }
    }
}

/// A connection with a small buffer for what comes.
async fn narrow(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(2048).unwrap();
    socket.connect(address).await.unwrap()
}

/// An HTTP/2 client that takes so much of each answer before it is asked.
async fn http2(address: SocketAddr, window: u32) -> Rude {
    let stream = TcpStream::connect(address).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(window);
    let (sender, connection) = builder.handshake::<_, Bytes>(stream).await.unwrap();
    let task = tokio::spawn(async move { drop(connection.await) });
    Rude::Http2(sender, task, Vec::new())
}

/// A delayed message with a body of that size; the target that shows it.
async fn large_message(server: &Server, size: usize) -> String {
    let delay = [("Upstash-Delay", "1h")];
    let id = server.publish("http://127.0.0.1:9/", &delay, vec![b'x'; size]).await;
    format!("/v2/messages/{id}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_http2_connections_are_closed() {
    Test::run(Engine::Sqlite, async |t| {
        let server = t.server_with(&[("HOMING_IDLE_TIMEOUT", "1s")]).await;
        let idle = http2(server.address(), 65_535).await;
        let mut used = http2(server.address(), 65_535).await;
        used.ask("/healthz", "").await;
        idle.closed().await;
        used.closed().await;
        // Nor does it help to acknowledge nothing.
        let mut deaf = narrow(server.address()).await;
        deaf.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        let mut all = Vec::new();
        tokio::time::timeout(SERVED, deaf.read_to_end(&mut all))
            .await
            .expect("it is closed in time")
            .unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_with_unread_answers_are_closed() {
    Test::run(Engine::Sqlite, async |t| {
        let server = t.server_with(&[("HOMING_STALL_TIMEOUT", "1s")]).await;
        for kind in [Kind::UnreadHttp1, Kind::UnreadHttp2] {
            Rude::connect(&server, kind).await.closed().await;
        }
    })
    .await;
}

/// Only the stream whose answer isn't read ends at once; others of its connection get their answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unread_stream_doesnt_take_others_with_it() {
    Test::run(Engine::Sqlite, async |t| {
        let server = t.server_with(&[("HOMING_STALL_TIMEOUT", "2s")]).await;
        let mut client = http2(server.address(), 1000).await;
        client.ask("/openapi.json", "").await;
        let Rude::Http2(sender, connection, mut answers) = client else { unreachable!() };
        let unread = answers.pop().unwrap().await.unwrap().into_body();
        let request = || Request::get("http://x/openapi.json").body(()).unwrap();
        let read = sender.clone().ready().await.unwrap().send_request(request(), true).unwrap().0;
        let mut body = read.await.unwrap().into_body();
        let mut length = 0;
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            length += data.len();
            body.flow_control().release_capacity(data.len()).unwrap();
        }
        assert!(length > 100_000, "{length}");
        let mut unread = unread;
        let end = async {
            loop {
                if let Some(Err(error)) = unread.data().await {
                    return error;
                }
            }
        };
        let error = tokio::time::timeout(SERVED, end).await.expect("the stream ends in time");
        assert!(error.is_reset(), "{error}");
        tokio::time::timeout(SERVED, connection).await.expect("the connection ends in time").unwrap();
    })
    .await;
}

/// A connection that has to leave for an answer that isn't read stays until the others are read, however slowly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_beside_an_unread_stream_get_all_of_theirs() {
    Test::run(Engine::Sqlite, async |t| {
        let server = t.server_with(&[("HOMING_STALL_TIMEOUT", "1s")]).await;
        let target = large_message(&server, 600_000).await;
        let mut client = http2(server.address(), 16_384).await;
        client.ask(&target, TOKEN).await;
        client.ask(&target, TOKEN).await;
        let Rude::Http2(_sender, _connection, answers) = &mut client else { unreachable!() };
        let mut body = answers.pop().unwrap().await.unwrap().into_body();
        let _unread = answers.pop().unwrap().await.unwrap();
        let mut length = 0;
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            length += data.len();
            pause(Duration::from_millis(120)).await;
            body.flow_control().release_capacity(data.len()).unwrap();
        }
        assert!(length > 600_000, "{length}");
    })
    .await;
}

async fn unread_answers_give_back_their_memory(t: Test) {
    let settings = [("HOMING_MAX_INFLIGHT_RESPONSE_BYTES", "1MiB"), ("HOMING_STALL_TIMEOUT", "2s")];
    let server = t.server_with(&settings).await;
    let target = large_message(&server, 900_000).await;
    // One byte is enough to get all of it into the buffers of the connection.
    for window in [0, 1] {
        let mut rude = http2(server.address(), window).await;
        rude.ask(&target, READ_ONLY_TOKEN).await;
        let Rude::Http2(_sender, _connection, answers) = &mut rude else { unreachable!() };
        let answer = answers.pop().unwrap().await.unwrap();
        assert_eq!(answer.status(), 200);
        // It waits until the other one is given up.
        assert_eq!(server.get(&target).await.status, 200, "window {window}");
    }
    let mut rude = narrow(server.address()).await;
    let request =
        format!("GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {READ_ONLY_TOKEN}\r\n\r\n");
    rude.write_all(request.repeat(20).as_bytes()).await.unwrap();
    rude.read_exact(&mut [0; 12]).await.unwrap();
    assert_eq!(server.get(&target).await.status, 200);
    Rude::Http1(rude).closed().await;
}

async fn without_memory_for_answers_small_ones_go_on(t: Test) {
    let settings = [("HOMING_MAX_INFLIGHT_RESPONSE_BYTES", "1MiB"), ("HOMING_STALL_TIMEOUT", "1h")];
    let server = t.server_with(&settings).await;
    let target = large_message(&server, 900_000).await;
    let mut rude = http2(server.address(), 0).await;
    rude.ask(&target, READ_ONLY_TOKEN).await;
    let Rude::Http2(_sender, _connection, answers) = &mut rude else { unreachable!() };
    let unread = answers.pop().unwrap().await.unwrap();
    assert_eq!(unread.status(), 200);
    let refused = server.get(&target).await;
    assert_eq!(refused.error(503), "too many large answers are being read at once");
    assert_eq!(refused.header("retry-after"), Some("1"));
    let small = large_message(&server, 100).await;
    for target in [small.as_str(), "/healthz", "/openapi.json", "/v2/queues"] {
        assert_eq!(server.get(target).await.status, 200, "{target}");
    }
    drop((unread, rude));
    eventually("the memory is given back", async || (server.get(&target).await.status == 200).then_some(()))
        .await;
}

async fn slow_readers_get_all_of_a_page(t: Test) {
    let server = t.server_with(&[("HOMING_STALL_TIMEOUT", "1s")]).await;
    let target = large_message(&server, 600_000).await;
    let mut client = http2(server.address(), 32_768).await;
    client.ask(&target, TOKEN).await;
    let Rude::Http2(_sender, _connection, answers) = &mut client else { unreachable!() };
    let mut body = answers.pop().unwrap().await.unwrap().into_body();
    let mut length = 0;
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        length += data.len();
        // Several times the limit for all of it together.
        pause(Duration::from_millis(80)).await;
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    assert!(length > 600_000, "{length}");
}

async fn lists_of_large_messages_have_pages(t: Test) {
    let (server, receiver) = (t.server().await, Receiver::start().await);
    receiver.script("/", [crate::support::Reply::status(500)]);
    let mut ids = Vec::new();
    for _ in 0..6 {
        let headers = [("Upstash-Retries", "0")];
        ids.push(server.publish(&receiver.url("/"), &headers, vec![b'x'; 1_500_000]).await);
    }
    for id in &ids {
        server.dead_letter(id).await;
    }
    let first = server.get_json("/v2/dlq?count=6").await;
    let count = first["messages"].as_array().unwrap().len();
    assert!((1..6).contains(&count) && first["cursor"].is_string(), "{count} messages in a page");
    let all = server.list("/v2/dlq?count=6", "messages").await;
    let mut listed: Vec<_> = all.iter().map(|letter| letter["messageId"].as_str().unwrap()).collect();
    listed.sort_unstable();
    ids.sort_unstable();
    assert_eq!(listed, ids);
    for list in ["events", "logs"] {
        let entries = server.list(&format!("/v2/{list}?state=FAILED"), "events").await;
        assert_eq!(entries.len(), 6, "{list}");
    }
}

/// Whoever only reads, and fills the memory for what is read, stops no batch.
async fn a_batch_is_answered_whoever_reads(t: Test) {
    let settings = [("HOMING_MAX_INFLIGHT_RESPONSE_BYTES", "1MiB"), ("HOMING_STALL_TIMEOUT", "1h")];
    let server = t.server_with(&settings).await;
    let target = large_message(&server, 1_000_000).await;
    let mut rude = http2(server.address(), 0).await;
    rude.ask(&target, READ_ONLY_TOKEN).await;
    let Rude::Http2(_sender, _connection, answers) = &mut rude else { unreachable!() };
    let unread = answers.pop().unwrap().await.unwrap();
    assert_eq!(unread.status(), 200);
    let item = serde_json::json!({
        "destination": "http://127.0.0.1:9/", "headers": {"Upstash-Delay": "1h", "Upstash-Label": "batch"}, "body": "x",
    });
    let batch = serde_json::Value::from(vec![item; 2000]).to_string();
    server.get(&target).await.error(503);
    let answer = server.call("POST", "/v2/batch").body(&batch).send().await;
    assert_eq!(answer.json(200).as_array().unwrap().len(), 2000);
    drop((unread, rude));
}

async fn stalled_uploads_give_back_their_memory(t: Test) {
    let settings = [
        ("HOMING_MAX_MESSAGE_SIZE", "1MiB"),
        ("HOMING_MAX_BATCH_SIZE", "1MiB"),
        ("HOMING_MAX_INFLIGHT_REQUEST_BYTES", "1MiB"),
        ("HOMING_STALL_TIMEOUT", "2s"),
        ("HOMING_BODY_TIMEOUT", "1h"),
    ];
    let server = t.server_with(&settings).await;
    let head = |framing: &str| {
        format!(
            "POST /v2/publish/http://127.0.0.1:9/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\
             Upstash-Delay: 1h\r\n{framing}\r\n\r\n"
        )
    };
    let part = "x".repeat(70_000);
    let stalled = [
        head("Content-Length: 1000000"),
        head("Content-Length: 1000000") + &part,
        head("Transfer-Encoding: chunked") + "fffff\r\n" + &part,
    ];
    for text in stalled {
        let mut rude = TcpStream::connect(server.address()).await.unwrap();
        rude.write_all(text.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(SERVED, rude.read_to_end(&mut answer))
            .await
            .expect("it is closed in time")
            .unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(answer.contains(r#"{"error":"the request body did not arrive in time"}"#), "{answer}");
    }
    // One on HTTP/2 whose body never comes.
    let Rude::Http2(sender, ..) = http2(server.address(), 65_535).await else { unreachable!() };
    let request = Request::post("http://x/v2/publish/http://127.0.0.1:9/")
        .header("Authorization", format!("Bearer {TOKEN}"))
        .header("Content-Length", "1000000");
    let mut ready = sender.clone().ready().await.unwrap();
    let (answer, _upload) = ready.send_request(request.body(()).unwrap(), false).unwrap();
    let publish = server.publish("http://127.0.0.1:9/", &[("Upstash-Delay", "1h")], vec![b'x'; 1_000_000]);
    let answer = tokio::time::timeout(SERVED, answer).await.expect("an answer in time").unwrap();
    assert_eq!(answer.status(), 408);
    publish.await;
    // One that is slow but goes on arrives.
    let mut slow = TcpStream::connect(server.address()).await.unwrap();
    slow.write_all(head("Content-Length: 200000\r\nConnection: close").as_bytes()).await.unwrap();
    for _ in 0..10 {
        slow.write_all(&vec![b'x'; 20_000]).await.unwrap();
        pause(Duration::from_millis(300)).await;
    }
    let mut answer = String::new();
    slow.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

/// A preface that comes in parts, and a request that begins like one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn protocols_are_told_apart_by_whatever_pieces_come() {
    Test::run(Engine::Sqlite, async |t| {
        let server = t.server().await;
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0" {
            stream.write_all(&[*byte]).await.unwrap();
            pause(Duration::from_millis(1)).await;
        }
        // Its SETTINGS frame.
        let mut frame = [0; 9];
        stream.read_exact(&mut frame).await.unwrap();
        assert_eq!((frame[3], &frame[5..]), (4, &[0; 4][..]), "{frame:?}");
        for parts in [["P", "OST /v2/keys/rotat"], ["PRI * HTTP/2.0\r\n", "\r\nXX"], ["G", "ET /healthz"]] {
            let mut stream = TcpStream::connect(server.address()).await.unwrap();
            stream.set_nodelay(true).unwrap();
            for part in parts {
                stream.write_all(part.as_bytes()).await.unwrap();
                pause(Duration::from_millis(20)).await;
            }
            stream.write_all(b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            let expected = match parts[0] {
                "P" => "HTTP/1.1 401 ",
                "G" => "HTTP/1.1 200 ",
                _ => "HTTP/1.1 400 ",
            };
            assert!(answer.starts_with(expected), "{parts:?}: {answer}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn framing_that_proxies_may_read_differently_is_refused() {
    Test::run(Engine::Sqlite, async |t| {
        let server = t.server().await;
        let cases = [
            ("", "", 400),
            ("Host: x\r\nHost: x\r\n", "", 400),
            ("Host: x\r\nHost: y\r\n", "", 400),
            ("Host: x\r\nTransfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n", 400),
            ("Host: x\r\nTransfer-Encoding: identity, chunked\r\n", "0\r\n\r\n", 400),
            ("Host: x\r\nTransfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n", 400),
            ("Host: x\r\nTransfer-Encoding: gzip\r\n", "", 400),
            ("Host: x\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n", 200),
            // The former counts, and the connection is closed.
            ("Host: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n", "0\r\n\r\n", 200),
            ("Host: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n", 200),
            ("Host: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n", "xxx", 400),
        ];
        for (headers, body, expected) in cases {
            let mut stream = TcpStream::connect(server.address()).await.unwrap();
            let close = if expected == 200 && !headers.contains("Content-Length") {
                "Connection: close\r\n"
            } else {
                ""
            };
            let request = format!("GET /healthz HTTP/1.1\r\n{headers}{close}\r\n{body}");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            let read = tokio::time::timeout(SERVED, stream.read_to_string(&mut answer)).await;
            read.expect("the connection is closed").unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{headers:?}: {answer}");
            assert_eq!(answer.contains(r#"{"error":""#), expected == 400, "{headers:?}: {answer}");
        }
    })
    .await;
}

async fn strangers_leave_descriptors_for_deliveries(t: Test) {
    let server = t.unstarted_server(&[("HOMING_IDLE_TIMEOUT", "1h")]);
    server.limit_open_files(128, 300);
    server.start().await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.pid().as_raw_pid())).unwrap();
    let limit = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(limit.split_whitespace().nth(3), Some("300"), "raised to the hard limit: {limit}");
    let log = server.log().text();
    assert!(log.contains("the limit on open files is too low for max_connections = 10000"), "{log}");
    let mut strangers = Vec::new();
    for _ in 0..400 {
        strangers.push(TcpStream::connect(server.address()).await.unwrap());
    }
    let receiver = Receiver::start().await;
    let id = server.publish(&receiver.url("/"), &[("Upstash-Retries", "0")], "x").await;
    assert_eq!(server.ended(&id).await, "CREATED ACTIVE DELIVERED");
    drop(strangers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_that_is_too_low_is_refused() {
    Test::run(Engine::Sqlite, async |t| {
        let server = t.unstarted_server(&[]);
        server.limit_open_files(100, 100);
        server.spawn();
        assert_eq!(server.exited(SERVED).await.code(), Some(78));
        let text = server.log().text();
        assert!(text.contains("the limit on open files is 100"), "{text}");
    })
    .await;
}
