//! Destinations that do what the path of a URL says.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use homing::clock::pause;
use homing::domain::id::MessageId;
use homing::domain::message::Headers;
use homing::domain::outcome::{FailureClass, Response};
use homing::egress::Destinations;
use homing::egress::client::{Failure, Outgoing, Received, SendError};

use crate::history::{Answer, History, Life, What};
use crate::plan::{Failing, Script};

impl Script {
    pub(crate) fn url(&self) -> String {
        let failing = match self.failing {
            Failing::Status(status) => format!("{status}"),
            Failing::Refuse => "refuse".to_owned(),
            Failing::Hang => "hang".to_owned(),
            Failing::Final => "final".to_owned(),
        };
        format!("http://h{}.test/{}/{}/{failing}", self.host, self.latency.as_millis(), self.fails)
    }

    fn read(path: &str) -> Self {
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        let failing = match parts[2] {
            "refuse" => Failing::Refuse,
            "hang" => Failing::Hang,
            "final" => Failing::Final,
            status => Failing::Status(status.parse().unwrap()),
        };
        Self {
            host: 0,
            latency: Duration::from_millis(parts[0].parse().unwrap()),
            fails: parts[1].parse().unwrap(),
            failing,
        }
    }
}

/// All destinations, as one start of a node sees them.
pub(crate) struct Scripted {
    pub(crate) life: Life,
    pub(crate) history: History,
}

/// A request that is out.
struct Request<'a> {
    number: usize,
    answer: Answer,
    history: &'a History,
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        self.history.note(What::Ended { request: self.number, answer: self.answer });
    }
}

#[async_trait]
impl Destinations for Scripted {
    async fn send(&self, outgoing: Outgoing) -> Result<Received, SendError> {
        let header = |name: &str| outgoing.headers[name].to_str().unwrap();
        let id = MessageId::new(header("upstash-message-id"));
        let retried: u32 = header("upstash-retried").parse().unwrap();
        let script = Script::read(outgoing.uri.path());
        let number = self.history.arrived(self.life, id, retried);
        let mut request = Request { number, answer: Answer::Dropped, history: &self.history };
        pause(script.latency).await;
        let (status, headers) = if retried >= script.fails {
            (200, Headers::new())
        } else {
            match script.failing {
                Failing::Status(status) => (status, Headers::new()),
                Failing::Final => {
                    let mut headers = Headers::new();
                    headers.append("Upstash-NonRetryable-Error", "true");
                    (489, headers)
                }
                Failing::Hang => return std::future::pending().await,
                Failing::Refuse => {
                    request.answer = Answer::Refused;
                    let (class, error) = (FailureClass::Connect, "connection refused".to_owned());
                    return Err(SendError::Failed(Failure { class, error }));
                }
            }
        };
        request.answer = Answer::Status(status);
        let response = Response { status, headers, body: Bytes::from_static(b"body") };
        Ok(Received { response, memory: None, perhaps_cut: false })
    }
}
