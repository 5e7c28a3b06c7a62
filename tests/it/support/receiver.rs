//! A destination: records what arrives and answers as it is told.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::wait::{SOON, pause};

/// Something that a test holds back and lets go.
#[derive(Clone)]
pub(crate) struct Gate(Arc<watch::Sender<bool>>);

impl Gate {
    /// A closed gate.
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    pub(crate) fn open(&self) {
        self.0.send_replace(true);
    }

    async fn passed(&self) {
        self.0.subscribe().wait_for(|open| *open).await.expect("the sender lives as long as the gate");
    }
}

/// How a request is answered.
#[derive(Clone)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, Vec<u8>)>,
    body: Bytes,
    gate: Option<Gate>,
    delay: Duration,
    ending: Ending,
}

/// How the answer ends.
#[derive(Clone, Copy)]
enum Ending {
    /// As it should.
    Complete,
    /// The connection is closed instead of an answer.
    Hangup,
    /// The body is begun, and then nothing more comes.
    Stall,
    /// The body comes byte by byte, with this pause between.
    Drip(Duration),
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        let (headers, body) = (Vec::new(), Bytes::new());
        Self { status, headers, body, gate: None, delay: Duration::ZERO, ending: Ending::Complete }
    }

    pub(crate) fn ok() -> Self {
        Self::status(200)
    }

    /// Closes the connection without an answer.
    pub(crate) fn hangup() -> Self {
        Self { ending: Ending::Hangup, ..Self::ok() }
    }

    /// Adds a header; the value goes out as it is.
    pub(crate) fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Answers only when the gate has been opened.
    pub(crate) fn behind(mut self, gate: &Gate) -> Self {
        self.gate = Some(gate.clone());
        self
    }

    /// Takes that long to answer.
    pub(crate) fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Sends head and body, but never the body's end.
    pub(crate) fn stalling(mut self) -> Self {
        self.ending = Ending::Stall;
        self
    }

    /// Sends the body byte by byte.
    pub(crate) fn dripping(mut self, every: Duration) -> Self {
        self.ending = Ending::Drip(every);
        self
    }
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) method: String,
    /// The request target, undecoded.
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// When its body was complete.
    pub(crate) at: Instant,
}

impl Received {
    /// A header's value; the first, if there are several.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("a header value in ASCII"))
    }

    /// A header's only value, as its bytes.
    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        let values: Vec<_> = self.headers.get_all(name).iter().collect();
        assert_eq!(values.len(), 1, "{name}: {values:?}");
        values[0].as_bytes().to_vec()
    }

    /// All values of a header.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.headers.get_all(name).iter().map(|value| value.to_str().expect("ASCII")).collect()
    }

    #[track_caller]
    pub(crate) fn message_id(&self) -> &str {
        self.header("upstash-message-id").expect("every delivery carries its message's id")
    }

    pub(crate) fn retried(&self) -> u32 {
        let text = self.header("upstash-retried").expect("every delivery says how often it was tried");
        text.parse().expect("a number")
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }

    /// As JSON, for programs outside: header names in lower case, the body in base64.
    fn shown(&self) -> Value {
        let headers = self.headers.iter();
        let headers =
            headers.map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()));
        json!({
            "method": self.method,
            "target": self.target,
            "headers": headers.collect::<serde_json::Map<String, Value>>(),
            "body": base64::engine::general_purpose::STANDARD.encode(&self.body),
        })
    }

    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().expect("the first part")
    }
}

#[derive(Default)]
struct State {
    scripts: HashMap<String, VecDeque<Reply>>,
    /// Where programs outside of this process can read what has arrived.
    shown_on: Option<String>,
    requests: Vec<Received>,
    /// Which of them `next_request` has handed out.
    taken: Vec<bool>,
    /// Requests that have arrived and are not answered yet.
    open: usize,
    most_open: usize,
}

/// An HTTP/1.1 server on a free port. Its connections end when it is dropped.
pub(crate) struct Receiver {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    arrived: Arc<Notify>,
    accepting: AbortHandle,
}

impl Receiver {
    /// A receiver that answers 200 until it is told otherwise.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let state = Arc::<Mutex<State>>::default();
        let arrived = Arc::new(Notify::new());
        let task = tokio::spawn(accept(listener, Arc::clone(&state), Arc::clone(&arrived)));
        Self { address, state, arrived, accepting: task.abort_handle() }
    }

    /// The URL of a path, which goes into it as it is.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Answers to requests for that path, in order; the last one stands for all that follow.
    pub(crate) fn script(&self, path: &str, replies: impl IntoIterator<Item = Reply>) {
        let replies: VecDeque<Reply> = replies.into_iter().collect();
        assert!(!replies.is_empty(), "a script needs a reply");
        self.state.lock().unwrap().scripts.insert(path.to_owned(), replies);
    }

    /// Answers requests for that path with what has arrived so far, as JSON; they are not recorded.
    pub(crate) fn show_requests_on(&self, path: &str) {
        self.state.lock().unwrap().shown_on = Some(path.to_owned());
    }

    /// The next request that no earlier call has returned, in the order of arrival.
    pub(crate) async fn next_request(&self) -> Received {
        self.next_where("a request arrives", |_| true).await
    }

    /// The next one for that path.
    pub(crate) async fn next_on(&self, path: &str) -> Received {
        self.next_where(&format!("a request for {path} arrives"), |request| request.path() == path).await
    }

    async fn next_where(&self, what: &str, matches: impl Fn(&Received) -> bool) -> Received {
        let search = async {
            loop {
                let notified = self.arrived.notified();
                if let Some(request) = self.take(&matches) {
                    return request;
                }
                notified.await;
            }
        };
        let found = tokio::time::timeout(SOON, search).await;
        found.unwrap_or_else(|_| panic!("not within {SOON:?}: {what}; there were {:?}", self.summary()))
    }

    fn take(&self, matches: impl Fn(&Received) -> bool) -> Option<Received> {
        let mut state = self.state.lock().unwrap();
        let index = (0..state.requests.len()).find(|&i| !state.taken[i] && matches(&state.requests[i]))?;
        state.taken[index] = true;
        Some(state.requests[index].clone())
    }

    /// Everything that has arrived.
    pub(crate) fn requests(&self) -> Vec<Received> {
        self.state.lock().unwrap().requests.clone()
    }

    /// What has arrived for a path.
    pub(crate) fn requests_on(&self, path: &str) -> Vec<Received> {
        self.requests().into_iter().filter(|request| request.path() == path).collect()
    }

    /// How often each message has arrived.
    pub(crate) fn counts(&self) -> HashMap<String, usize> {
        let mut counts = HashMap::new();
        for request in self.requests() {
            *counts.entry(request.message_id().to_owned()).or_default() += 1;
        }
        counts
    }

    /// Requests that wait for their answer now.
    pub(crate) fn open(&self) -> usize {
        self.state.lock().unwrap().open
    }

    /// The most that ever waited at once.
    pub(crate) fn most_open(&self) -> usize {
        self.state.lock().unwrap().most_open
    }

    fn summary(&self) -> Vec<String> {
        self.requests().iter().map(|request| format!("{} {}", request.method, request.target)).collect()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>, arrived: Arc<Notify>) {
    // Dropped with this task, and the connections with it.
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.expect("accepting a connection");
        let (state, arrived) = (Arc::clone(&state), Arc::clone(&arrived));
        connections.spawn(async move {
            let service =
                service_fn(move |request| answer(Arc::clone(&state), Arc::clone(&arrived), request));
            // An error here is a connection that was closed, by a killed server or by a script.
            drop(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await,
            );
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Counts an open request for as long as it lives.
struct Open(Arc<Mutex<State>>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.lock().unwrap().open -= 1;
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the script hangs up")]
struct Hangup;

async fn answer(
    state: Arc<Mutex<State>>,
    arrived: Arc<Notify>,
    request: Request<Incoming>,
) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, Hangup> {
    let (head, body) = request.into_parts();
    // A request that breaks off never arrived.
    let body = body.collect().await.map_err(|_| Hangup)?.to_bytes();
    if state.lock().unwrap().shown_on.as_deref() == Some(head.uri.path()) {
        let requests: Vec<Value> = state.lock().unwrap().requests.iter().map(Received::shown).collect();
        return Ok(Response::new(Full::from(Value::from(requests).to_string()).boxed_unsync()));
    }
    let received = Received {
        method: head.method.as_str().to_owned(),
        target: head.uri.to_string(),
        headers: head.headers,
        body,
        at: Instant::now(),
    };
    let reply = {
        let mut state = state.lock().unwrap();
        let reply = match state.scripts.get_mut(received.path()) {
            Some(script) if script.len() > 1 => script.pop_front(),
            Some(script) => script.front().cloned(),
            None => None,
        };
        state.requests.push(received);
        state.taken.push(false);
        state.open += 1;
        state.most_open = state.most_open.max(state.open);
        reply.unwrap_or_else(Reply::ok)
    };
    let _open = Open(state);
    arrived.notify_waiters();

    if let Some(gate) = &reply.gate {
        gate.passed().await;
    }
    if !reply.delay.is_zero() {
        pause(reply.delay).await;
    }
    let body = match reply.ending {
        Ending::Hangup => return Err(Hangup),
        Ending::Complete => Full::new(reply.body).boxed_unsync(),
        Ending::Stall => {
            let begun = futures_util::stream::iter([Ok(Frame::data(reply.body))]);
            StreamBody::new(begun.chain(futures_util::stream::pending())).boxed_unsync()
        }
        Ending::Drip(every) => {
            let bytes: Vec<u8> = reply.body.to_vec();
            let drops = futures_util::stream::iter(bytes).then(move |byte| async move {
                pause(every).await;
                Ok(Frame::data(Bytes::from(vec![byte])))
            });
            StreamBody::new(drops).boxed_unsync()
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(reply.status).expect("a status");
    for (name, value) in &reply.headers {
        let name = http::HeaderName::from_bytes(name.as_bytes()).expect("a header name");
        response.headers_mut().append(name, HeaderValue::from_bytes(value).expect("a header value"));
    }
    Ok(response)
}
