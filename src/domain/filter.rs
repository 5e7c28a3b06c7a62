//! Which messages: the conditions that cancelling many, dead letters and the log share.

use std::net::Ipv6Addr;

use super::destination::{Origin, host_and_port, origin_and_path};
use super::message::Message;

/// Conditions on messages. A message must satisfy each field that has values, and for that one of them is enough.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MessageFilter {
    /// Whole destinations, as published.
    pub urls: Vec<String>,
    pub hosts: Vec<Host>,
    /// Paths of destinations, with their leading slash, without the query.
    pub paths: Vec<String>,
    /// Whole labels; a message may have several.
    pub labels: Vec<String>,
    pub url_groups: Vec<String>,
    pub queues: Vec<String>,
    pub schedule_ids: Vec<String>,
    pub flow_keys: Vec<String>,
    pub caller_ips: Vec<String>,
}

impl MessageFilter {
    /// Whether there is no condition, so that every message matches.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a message satisfies all conditions.
    pub fn matches(&self, message: &Message) -> bool {
        let has = |wanted: &[String], value: Option<&str>| {
            wanted.is_empty() || value.is_some_and(|value| wanted.iter().any(|wanted| wanted == value))
        };
        let flow_key = message.options.flow_control.as_ref().map(|flow| flow.key.as_str());
        has(&self.urls, Some(&message.url))
            && has(&self.url_groups, message.url_group.as_deref())
            && has(&self.queues, message.queue.as_deref())
            && has(&self.schedule_ids, message.schedule_id.as_deref())
            && has(&self.flow_keys, flow_key)
            && has(&self.caller_ips, message.caller_ip.as_deref())
            && self.matches_parts(&message.url, message.labels.iter().map(String::as_str))
    }

    /// Whether `hosts` and `paths`, which are parts of a destination, and `labels`, of which a message has several, match.
    /// The other conditions are on values that messages have as they are.
    pub fn matches_parts<'a>(&self, url: &str, mut labels: impl Iterator<Item = &'a str>) -> bool {
        let labelled =
            self.labels.is_empty() || labels.any(|label| self.labels.iter().any(|wanted| wanted == label));
        labelled && self.matches_destination(url)
    }

    fn matches_destination(&self, url: &str) -> bool {
        if self.hosts.is_empty() && self.paths.is_empty() {
            return true;
        }
        let Ok((origin, path)) = origin_and_path(url) else { return false };
        (self.hosts.is_empty() || self.hosts.iter().any(|host| host.is_of(&origin)))
            && (self.paths.is_empty() || self.paths.iter().any(|wanted| wanted == path))
    }
}

/// A destination's host, in any case, and perhaps its port. Without one, all ports match; a URL that has none has its
/// scheme's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Host {
    name: String,
    port: Option<u16>,
}

impl Host {
    /// Reads `host` or `host:port`; an IPv6 address may be without brackets when no port follows. `None`: it is neither.
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse::<Ipv6Addr>() {
            return Some(Self { name: address.to_string(), port: None });
        }
        host_and_port(text).ok().map(|(name, port)| Self { name, port })
    }

    fn is_of(&self, origin: &Origin) -> bool {
        self.name == origin.host && self.port.is_none_or(|port| port == origin.port)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::domain::id::MessageId;
    use crate::domain::message::{FlowControl, Headers, Method, Options};
    use crate::domain::template::{Target, Template};
    use crate::domain::time::Timestamp;

    fn message() -> Message {
        let flow_control =
            Some(FlowControl { key: "k/1".to_owned(), parallelism: Some(1), rate: None, period_s: 1 });
        let mut template = Template::new(
            Method::Post,
            Headers::new(),
            Bytes::new(),
            3,
            vec!["one".to_owned(), "two words".to_owned()],
            Options { flow_control, ..Options::default() },
        );
        template.caller_ip = Some("192.0.2.7".to_owned());
        template.queue = Some("q".to_owned());
        template.schedule_id = Some("s".to_owned());
        let target = Target {
            url: "https://u:p@E.com/a/b?x=/c".to_owned(),
            url_group: Some("g".to_owned()),
            endpoint: None,
        };
        let now = Timestamp::from_millis(0);
        template.message(MessageId::new("msg_1"), target, now, now)
    }

    fn texts(values: &[&str]) -> Vec<String> {
        values.iter().map(|value| (*value).to_owned()).collect()
    }

    #[test]
    fn one_value_of_each_field_must_match() {
        type Field = fn(&mut MessageFilter) -> &mut Vec<String>;
        let fields: [(Field, &str); 8] = [
            (|filter| &mut filter.urls, "https://u:p@E.com/a/b?x=/c"),
            (|filter| &mut filter.paths, "/a/b"),
            (|filter| &mut filter.labels, "two words"),
            (|filter| &mut filter.url_groups, "g"),
            (|filter| &mut filter.queues, "q"),
            (|filter| &mut filter.schedule_ids, "s"),
            (|filter| &mut filter.flow_keys, "k/1"),
            (|filter| &mut filter.caller_ips, "192.0.2.7"),
        ];
        let message = message();
        let mut all = MessageFilter::default();
        assert!(all.is_empty() && all.matches(&message));
        for (field, value) in fields {
            let mut filter = MessageFilter::default();
            *field(&mut filter) = texts(&["x", value]);
            assert!(filter.matches(&message), "{filter:?}");
            *field(&mut filter) = texts(&["x", &value[..value.len() - 1], &format!("{value}x")]);
            assert!(!filter.is_empty() && !filter.matches(&message), "{filter:?}");
            *field(&mut all) = texts(&[value]);
            let mut one_wrong = all.clone();
            *field(&mut one_wrong) = texts(&["x"]);
            assert!(all.matches(&message) && !one_wrong.matches(&message), "{one_wrong:?}");
        }
    }

    #[track_caller]
    fn check_host(host: &str, url: &str, expected: bool) {
        let filter =
            MessageFilter { hosts: vec![Host::parse(host).expect("a host")], ..MessageFilter::default() };
        assert_eq!(filter.matches_parts(url, std::iter::empty()), expected, "{host} of {url}");
    }

    #[test]
    fn hosts() {
        check_host("e.com", "https://e.com", true);
        check_host("E.COM", "http://u@e.Com:8080/x", true);
        check_host("e.com:8080", "http://e.com:8080/x", true);
        check_host("e.com:8080", "http://e.com/", false);
        check_host("e.com:443", "https://e.com/", true);
        check_host("e.com", "https://www.e.com/", false);
        check_host("e.com", "https://x.com/e.com?e.com@e.com", false);
        check_host("::1", "http://[0:0::1]:9/", true);
        for host in ["m\u{fc}nchen.de", "M\u{dc}nchen.DE:80", "m%C3%BCnchen.de", "xn--mnchen-3ya.de"] {
            for url in ["http://m\u{fc}nchen.de/", "http://m%c3%bcnchen.de", "http://XN--mnchen-3ya.de?x"] {
                check_host(host, url, true);
            }
            check_host(host, "http://munchen.de", false);
        }
        check_host("[::1]:9", "http://[::1]:9/", true);
        check_host("[::1]:9", "http://[::1]/", false);
        for wrong in ["", "e.com/", "https://e.com", "e.com:", "e.com:0", "e.com:x", "a b", "[::1"] {
            assert_eq!(Host::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn paths() {
        for (path, url, expected) in [
            ("/", "https://e.com", true),
            ("/", "https://e.com?a=/b", true),
            ("/a", "https://e.com/a#/b", true),
            ("/a", "https://e.com/a/", false),
            ("/a,b", "https://e.com/a,b?c", true),
            ("a", "https://e.com/a", false),
        ] {
            let filter = MessageFilter { paths: texts(&[path]), ..MessageFilter::default() };
            assert_eq!(filter.matches_parts(url, std::iter::empty()), expected, "{path} of {url}");
        }
    }
}
