//! A client that sends exactly the bytes it is given: request targets are data here, and every HTTP library normalises
//! or refuses some of them. One connection per call.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// No call takes longer than this.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// A request to be sent.
#[derive(Clone)]
pub(crate) struct Call {
    address: SocketAddr,
    method: String,
    target: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    chunked: bool,
}

impl Call {
    pub(crate) fn new(address: SocketAddr, method: &str, target: &str) -> Self {
        let (method, target) = (method.to_owned(), target.to_owned());
        Self { address, method, target, headers: Vec::new(), body: Vec::new(), chunked: false }
    }

    /// Adds a header; the value goes out as it is, whatever its bytes.
    pub(crate) fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    pub(crate) fn headers(self, headers: &[(&str, &str)]) -> Self {
        headers.iter().fold(self, |call, (name, value)| call.header(name, value))
    }

    /// Takes back a header, for instance the token that [`super::Server::call`] puts in.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(have, _)| !have.eq_ignore_ascii_case(name));
        self
    }

    pub(crate) fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = body.as_ref().to_vec();
        self
    }

    /// Sends the body in chunks, without saying its length, as streaming clients do.
    pub(crate) fn chunked(mut self) -> Self {
        self.chunked = true;
        self
    }

    /// Sends it; an answer there must be.
    pub(crate) async fn send(self) -> Answer {
        let what = format!("{} {}", self.method, self.target);
        self.try_send().await.unwrap_or_else(|e| panic!("{what}: no answer: {e}"))
    }

    /// Sends it to a server that may be gone.
    pub(crate) async fn try_send(self) -> io::Result<Answer> {
        let what = format!("{} {}", self.method, self.target);
        tokio::time::timeout(CALL_LIMIT, self.exchange())
            .await
            .unwrap_or_else(|_| panic!("{what}: no answer within {CALL_LIMIT:?}"))
    }

    async fn exchange(self) -> io::Result<Answer> {
        let mut request = format!("{} {} HTTP/1.1\r\n", self.method, self.target).into_bytes();
        request.extend_from_slice(format!("Host: {}\r\nConnection: close\r\n", self.address).as_bytes());
        if self.chunked {
            request.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        } else {
            request.extend_from_slice(format!("Content-Length: {}\r\n", self.body.len()).as_bytes());
        }
        for (name, value) in &self.headers {
            request.extend_from_slice(name.as_bytes());
            request.extend_from_slice(b": ");
            request.extend_from_slice(value);
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"\r\n");
        if self.chunked {
            for chunk in self.body.chunks(7) {
                request.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                request.extend_from_slice(chunk);
                request.extend_from_slice(b"\r\n");
            }
            request.extend_from_slice(b"0\r\n\r\n");
        } else {
            request.extend_from_slice(&self.body);
        }

        let stream = TcpStream::connect(self.address).await?;
        let (mut reader, mut writer) = stream.into_split();
        let mut bytes = Vec::new();
        // The server may answer before it has read everything, so a failed write matters only without an answer.
        let (written, read) = tokio::join!(writer.write_all(&request), reader.read_to_end(&mut bytes));
        match Answer::parse(&bytes) {
            Some(answer) => Ok(answer),
            None => Err(written.err().or(read.err()).unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

/// A complete response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Reads a response from a closed connection; `None` when it is not complete.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&bytes[..end]);
        let rest = &bytes[end + 4..];
        let mut lines = head.split("\r\n");
        let status: u16 = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        if (100..200).contains(&status) {
            return Self::parse(rest);
        }
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        let mut answer = Self { status, headers, body: Vec::new() };
        answer.body = if answer.header("transfer-encoding").is_some() {
            dechunk(rest)?
        } else if let Some(length) = answer.header("content-length") {
            rest.get(..length.parse().ok()?)?.to_vec()
        } else {
            rest.to_vec()
        };
        Some(answer)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body of an answer with this status, as JSON.
    #[track_caller]
    pub(crate) fn json(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("application/json"), "{}", self.text());
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// The text of an error with this status, which must have the one form that all SDKs can read.
    #[track_caller]
    pub(crate) fn error(&self, status: u16) -> String {
        let json = self.json(status);
        let text = json["error"].as_str().unwrap_or_else(|| panic!("no `error` in {json}"));
        assert!(!text.is_empty(), "an empty `error`");
        text.to_owned()
    }
}

fn dechunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n")?;
        let size =
            usize::from_str_radix(std::str::from_utf8(&rest[..end]).ok()?.split(';').next()?, 16).ok()?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size + 2..)?;
    }
}
