//! A [`Publish`], as it is asked for apart from the destination and the body; and [`Overrides`] for a message that failed
//! and is published again.

use std::time::Duration;

use bytes::Bytes;

use super::deduplication::Deduplication;
use super::message::{CallbackSpec, FlowControl, Headers, Message, Method, Options, Redact};
use super::run::submission::Submission;
use super::template::Template;
use super::time::Timestamp;

/// When a message is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Due {
    /// At once.
    #[default]
    Now,
    /// Some time after it is accepted; for a schedule, after each occurrence. Never zero.
    After(Duration),
    /// At that time, which lay in the future when it was read.
    At(Timestamp),
}

impl Due {
    /// When a message that is accepted at `created_at` is due; not before that.
    pub fn of(self, created_at: Timestamp) -> Timestamp {
        match self {
            Self::Now => created_at,
            Self::After(delay) => created_at.after(delay),
            Self::At(time) => time.clamp(created_at, Timestamp::MAX),
        }
    }
}

/// A publish that was asked for: everything but the destination and the body.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Publish {
    /// The method of the delivery.
    pub method: Method,
    /// The delivery's headers: `Content-Type`, if any, and the forwarded ones.
    pub headers: Headers,
    /// Attempts after the first.
    pub retries: u32,
    /// When it is due.
    pub due: Due,
    /// Labels in order; not empty, no commas.
    pub labels: Vec<String>,
    /// How it is delivered.
    pub options: Options,
    /// How a repeat of it is recognised; `None`: not at all. Always `None` for schedules.
    pub deduplication: Option<Deduplication>,
    /// The queue to join.
    pub queue: Option<String>,
    /// The schedule to create or replace.
    pub schedule_id: Option<String>,
    /// The schedule's cron expression, unread; set where a schedule is to be made.
    pub cron: Option<String>,
    /// What it means for a workflow run; never of schedules.
    pub submission: Option<Submission>,
    /// Bytes of what says all this: each message to a URL group counts them.
    pub size: usize,
}

impl Publish {
    /// The template of its messages, with their body.
    pub fn into_template(self, body: Bytes, caller_ip: Option<String>) -> Template {
        let Self { method, headers, retries, labels, options, queue, .. } = self;
        Template { caller_ip, queue, ..Template::new(method, headers, body, retries, labels, options) }
    }
}

/// Changes that a retry makes to a message; what is not set stays.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Overrides {
    /// When the new message is due, whatever the old one was.
    pub due: Due,
    pub method: Option<Method>,
    pub retries: Option<u32>,
    pub labels: Option<Vec<String>>,
    pub queue: Option<String>,
    /// Take the place of headers with the same names.
    pub headers: Headers,
    pub options: OptionOverrides,
}

/// Changes that a retry makes to the options of a message or of a callback; what is not set stays.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OptionOverrides {
    /// Zero: the server's maximum.
    pub timeout: Option<Duration>,
    pub retry_delay: Option<String>,
    pub callback: Option<Box<CallbackOverrides>>,
    pub failure_callback: Option<Box<CallbackOverrides>>,
    /// Hidden in addition: more may be hidden than was, never less.
    pub redact: Redact,
    pub flow_control: Option<FlowControl>,
}

/// Changes that a retry makes to a callback; what is not set stays. Without a URL it changes only a callback that is there.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CallbackOverrides {
    pub url: Option<String>,
    pub method: Option<Method>,
    pub retries: Option<u32>,
    /// Zero: none.
    pub delay: Option<Duration>,
    pub labels: Option<Vec<String>>,
    /// Take the place of headers with the same names.
    pub headers: Headers,
    pub options: OptionOverrides,
}

impl Overrides {
    /// Makes a message one that is accepted at `now`, and changes what is set.
    pub fn apply(self, message: &mut Message, now: Timestamp) {
        message.created_at = now;
        message.due_at = self.due.of(now);
        set(&mut message.method, self.method);
        set(&mut message.max_retries, self.retries);
        set(&mut message.labels, self.labels);
        message.queue = self.queue.or(message.queue.take());
        replace(&mut message.headers, self.headers);
        self.options.apply(&mut message.options);
    }

    /// The callbacks that a message gets by this, whatever it had.
    pub fn callbacks(&self) -> [Option<Box<CallbackSpec>>; 2] {
        let mut options = Options::default();
        self.options.clone().apply(&mut options);
        [options.callback, options.failure_callback]
    }
}

impl OptionOverrides {
    /// Changes what is set.
    pub fn apply(self, options: &mut Options) {
        if let Some(timeout) = self.timeout {
            options.timeout = Some(timeout).filter(|timeout| !timeout.is_zero());
        }
        options.retry_delay = self.retry_delay.or(options.retry_delay.take());
        options.redact.add(&self.redact);
        options.flow_control = self.flow_control.or(options.flow_control.take());
        CallbackOverrides::apply(self.callback, &mut options.callback);
        CallbackOverrides::apply(self.failure_callback, &mut options.failure_callback);
    }
}

impl CallbackOverrides {
    /// Changes a callback, or makes one where there is none.
    fn apply(overrides: Option<Box<Self>>, callback: &mut Option<Box<CallbackSpec>>) {
        let Some(overrides) = overrides else { return };
        if callback.is_none() && overrides.url.is_none() {
            return;
        }
        let spec = callback.get_or_insert_default();
        set(&mut spec.url, overrides.url);
        set(&mut spec.method, overrides.method);
        spec.retries = overrides.retries.or(spec.retries);
        if let Some(delay) = overrides.delay {
            spec.delay = Some(delay).filter(|delay| !delay.is_zero());
        }
        set(&mut spec.labels, overrides.labels);
        replace(&mut spec.headers, overrides.headers);
        overrides.options.apply(&mut spec.options);
    }
}

fn set<T>(old: &mut T, new: Option<T>) {
    if let Some(new) = new {
        *old = new;
    }
}

/// Puts headers in the place of those with the same names.
fn replace(headers: &mut Headers, new: Headers) {
    for (name, _) in new.iter() {
        headers.remove(name);
    }
    headers.0.extend(new.0);
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::domain::id::MessageId;

    const NOW: Timestamp = Timestamp::from_millis(1_760_000_000_000);

    fn flow_control(key: &str) -> FlowControl {
        FlowControl { key: key.to_owned(), parallelism: Some(1), rate: None, period_s: 1 }
    }

    fn headers(fields: &[(&str, &str)]) -> Headers {
        Headers(fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect())
    }

    fn message() -> Message {
        let callback = CallbackSpec {
            url: "https://cb.example".to_owned(),
            method: Method::Put,
            headers: headers(&[("A", "1")]),
            delay: Some(Duration::from_secs(5)),
            options: Options { flow_control: Some(flow_control("c")), ..Options::default() },
            ..CallbackSpec::default()
        };
        let long_ago = Timestamp::from_millis(1_000_000_000_000);
        Message {
            headers: headers(&[("A", "1"), ("B", "2"), ("A", "3")]),
            labels: vec!["l".to_owned()],
            queue: Some("q".to_owned()),
            max_retries: 7,
            options: Options {
                timeout: Some(Duration::from_secs(9)),
                retry_delay: Some("1000".to_owned()),
                callback: Some(Box::new(callback)),
                redact: Redact { body: true, ..Redact::default() },
                flow_control: Some(flow_control("k")),
                ..Options::default()
            },
            ..Message::plain(MessageId::new("msg_1"), long_ago, "https://e.com", Bytes::new())
        }
    }

    #[track_caller]
    fn check(overrides: Overrides, change: impl FnOnce(&mut Message)) {
        let (mut found, mut expected) = (message(), message());
        (expected.created_at, expected.due_at) = (NOW, NOW);
        change(&mut expected);
        overrides.apply(&mut found, NOW);
        assert_eq!(found, expected);
    }

    fn with_options(options: OptionOverrides) -> Overrides {
        Overrides { options, ..Overrides::default() }
    }

    #[test]
    fn nothing_is_changed_but_what_is_set() {
        check(Overrides::default(), |_| ());
        let plain = Overrides {
            due: Due::After(Duration::from_secs(5)),
            method: Some(Method::Get),
            retries: Some(0),
            labels: Some(Vec::new()),
            queue: Some("other".to_owned()),
            headers: headers(&[("A", "4"), ("C", "5")]),
            ..Overrides::default()
        };
        check(plain, |message| {
            message.due_at = NOW.after(Duration::from_secs(5));
            (message.method, message.max_retries) = (Method::Get, 0);
            (message.labels, message.queue) = (Vec::new(), Some("other".to_owned()));
            message.headers = headers(&[("B", "2"), ("A", "4"), ("C", "5")]);
        });
        let options = OptionOverrides {
            timeout: Some(Duration::ZERO),
            retry_delay: Some("1".to_owned()),
            redact: Redact { headers: vec!["A".to_owned()], ..Redact::default() },
            flow_control: Some(flow_control("other")),
            ..OptionOverrides::default()
        };
        check(with_options(options), |message| {
            message.options.timeout = None;
            message.options.retry_delay = Some("1".to_owned());
            message.options.redact.headers = vec!["A".to_owned()];
            message.options.flow_control = Some(flow_control("other"));
        });
    }

    #[test]
    fn what_has_passed_is_due_at_once() {
        let due = Due::At(NOW.before(Duration::from_secs(1)));
        check(Overrides { due, ..Overrides::default() }, |_| ());
    }

    #[test]
    fn a_callback_is_changed_where_there_is_one() {
        let both = |url: Option<&str>| {
            let overrides = CallbackOverrides {
                url: url.map(str::to_owned),
                delay: Some(Duration::ZERO),
                retries: Some(1),
                options: OptionOverrides {
                    flow_control: Some(flow_control("d")),
                    ..OptionOverrides::default()
                },
                ..CallbackOverrides::default()
            };
            let callback = Some(Box::new(overrides));
            with_options(OptionOverrides {
                callback: callback.clone(),
                failure_callback: callback,
                ..OptionOverrides::default()
            })
        };
        let change = |spec: &mut CallbackSpec| {
            (spec.delay, spec.retries) = (None, Some(1));
            spec.options.flow_control = Some(flow_control("d"));
        };
        check(both(None), |message| change(message.options.callback.as_mut().expect("a callback")));
        let url = "https://other.example";
        check(both(Some(url)), |message| {
            let callback = message.options.callback.as_mut().expect("a callback");
            change(callback);
            callback.url = url.to_owned();
            let failure_callback = message.options.failure_callback.get_or_insert_default();
            change(failure_callback);
            failure_callback.url = url.to_owned();
        });
        assert_eq!(both(None).callbacks(), [None, None]);
        assert!(
            both(Some(url))
                .callbacks()
                .iter()
                .all(|callback| callback.as_ref().is_some_and(|spec| spec.url == url))
        );
    }
}
