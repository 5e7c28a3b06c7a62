use proptest::prelude::*;

use super::*;
use crate::domain::id::MessageId;
use crate::domain::message::{CallbackSpec, FlowControl, Message, Method, Redact};
use crate::domain::run::Features;
use crate::domain::run::submission::{Action, Submission};

const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_500);

fn limits() -> Limits {
    Limits {
        default_retries: 3,
        max_retries: None,
        max_delay: None,
        max_flow_control_key: 512,
        max_flow_control_period: Duration::from_hours(7 * 24),
    }
}

fn headers(fields: &[(&str, &str)]) -> Headers {
    let mut headers = Headers::new();
    for (name, value) in fields {
        headers.append(name, *value);
    }
    headers
}

fn read(kind: Kind, fields: &[(&str, &str)]) -> Result<Publish, HeaderError> {
    let fields = fields.iter().map(|(name, value)| (*name, value.as_bytes()));
    parse(kind, fields, &[], &limits(), NOW).map(|publish| Publish { size: 0, ..publish })
}

/// What no headers at all come to.
fn nothing() -> Publish {
    Publish {
        method: Method::Post,
        headers: Headers::new(),
        retries: 3,
        due: Due::Now,
        labels: Vec::new(),
        options: Options::default(),
        deduplication: None,
        queue: None,
        schedule_id: None,
        cron: None,
        submission: None,
        size: 0,
    }
}

#[track_caller]
fn check(fields: &[(&str, &str)], change: impl FnOnce(&mut Publish)) {
    let mut expected = nothing();
    change(&mut expected);
    assert_eq!(read(Kind::Publish, fields), Ok(expected), "{fields:?}");
}

#[track_caller]
fn check_error(fields: &[(&str, &str)], expected: &str) {
    let error = read(Kind::Publish, fields).unwrap_err();
    assert!(error.to_string().starts_with(expected), "{fields:?}: {error}");
    assert!(!error.is_quota());
}

#[test]
fn stray_headers_mean_nothing() {
    check(&[], |_| ());
    check(
        &[
            ("Upstash-Telemetry-Sdk", "upstash-qstash-js@2.12.0"),
            ("User-Agent", "node"),
            ("Host", "localhost"),
            ("Authorization", "Bearer x"),
            ("Upstash-Unknown", "1"),
            ("Upstash-Callbacks", "x"),
            ("Upstash-Callback-Retries", "x"),
            ("Upstash-Feature-Set", "x"),
        ],
        |_| (),
    );
}

#[test]
fn submissions() {
    let features = |list: &str| Features::parse(list);
    let of = |action, features| Submission {
        run_id: "wfr_7".to_owned(),
        url: Some("https://e.com/flow".to_owned()),
        action,
        features,
        created_at: None,
    };
    let usual = [("Upstash-Workflow-RunId", "wfr_7"), ("Upstash-Workflow-Url", "https://e.com/flow")];
    let submitted = |more: &[(&str, &str)], expected: Submission| {
        check(&[&usual[..], more].concat(), |p| p.submission = Some(expected));
    };
    submitted(&[], of(Action::Step, Features::default()));
    submitted(&[("upstash-workflow-init", "false")], of(Action::Step, Features::default()));
    submitted(&[("Upstash-Workflow-CallType", "step")], of(Action::Step, Features::default()));
    submitted(&[("Upstash-Workflow-CallType", "TOCALLBACK")], of(Action::Call, Features::default()));
    submitted(&[("Upstash-Workflow-Init", "true")], of(Action::Begin, Features::default()));
    let invoke = [("Upstash-Workflow-Init", "true"), ("Upstash-Workflow-Invoke", "true")];
    submitted(&invoke, of(Action::Invoke, Features::default()));
    let by_sdk = [("Upstash-Workflow-Init", "true"), ("Upstash-Workflow-Trigger-By-Sdk", "true")];
    submitted(&by_sdk, of(Action::BeginBySdk, Features::default()));
    // Names in either spelling are one; the last one counts.
    submitted(&[("Upstash-Workflow-Runid", "wfr_7")], of(Action::Step, Features::default()));
    // An SDK that can't fetch the log says that it can.
    let lazy = ("Upstash-Feature-Set", "LazyFetch, WF_TriggerOnConfig, Unknown");
    submitted(&[lazy], of(Action::Step, features("WF_TriggerOnConfig")));
    let typescript = ("Upstash-Telemetry-Sdk", "upstash-qstash-js@2.12.0, @upstash/workflow@1.3.3");
    submitted(&[lazy, typescript], of(Action::Step, features("LazyFetch,WF_TriggerOnConfig")));
    for (text, created_at) in
        [("1760000000123", Some(1_760_000_000_123)), ("0", None), ("NaN", None), ("", None)]
    {
        let expected = Submission { created_at, ..of(Action::Step, Features::default()) };
        submitted(&[("Upstash-Workflow-CreatedAt", text)], expected);
    }
    // A schedule's message belongs to no run.
    let schedule = read(Kind::Schedule, &usual).unwrap();
    assert_eq!(schedule.submission, None);
}

#[test]
fn plain_options() {
    check(&[("upstash-method", "put")], |p| p.method = Method::Put);
    check(&[("Upstash-Delay", "1m30s")], |p| p.due = Due::After(Duration::from_secs(90)));
    check(&[("Upstash-Delay", "0s")], |_| ());
    check(&[("Upstash-Not-Before", "1700000001"), ("Upstash-Delay", "1d")], |p| {
        p.due = Due::At(Timestamp::from_millis(1_700_000_001_000));
    });
    check(&[("Upstash-Not-Before", "1700000000")], |_| ());
    check(&[("UPSTASH-RETRIES", "0")], |p| p.retries = 0);
    check(&[("Upstash-Retries", "5"), ("upstash-retries", " 7 ")], |p| p.retries = 7);
    check(&[("Upstash-Retries", "5"), ("Upstash-Retries", "")], |p| p.retries = 5);
    check(&[("Upstash-Retry-Delay", "1000 * (1 + retried)")], |p| {
        p.options.retry_delay = Some("1000 * (1 + retried)".to_owned());
    });
    check(&[("Upstash-Timeout", "30")], |p| p.options.timeout = Some(Duration::from_secs(30)));
    check(&[("Upstash-Timeout", "0")], |_| ());
    check(&[("Upstash-Label", " a ,, b,")], |p| p.labels = vec!["a".to_owned(), "b".to_owned()]);
    check(&[("Upstash-Queue-Name", "q-1")], |p| p.queue = Some("q-1".to_owned()));
    check(&[("Upstash-Cron", "* * * * *"), ("Upstash-Schedule-Id", "s.1")], |p| {
        p.cron = Some("* * * * *".to_owned());
        p.schedule_id = Some("s.1".to_owned());
    });
    check(&[("Upstash-Redact-Fields", "body, header[authorization]")], |p| {
        p.options.redact =
            Redact { body: true, all_headers: false, headers: vec!["Authorization".to_owned()] };
    });
}

#[test]
fn deduplication() {
    let id = || Some(Deduplication::Id("a b/\u{e9}".to_owned()));
    check(&[("Upstash-Deduplication-Id", "a b/\u{e9}")], |p| p.deduplication = id());
    check(&[("Upstash-Content-Based-Deduplication", "True")], |p| {
        p.deduplication = Some(Deduplication::Content);
    });
    check(&[("Upstash-Content-Based-Deduplication", "False")], |_| ());
    check(
        &[("Upstash-Content-Based-Deduplication", "true"), ("Upstash-Deduplication-Id", "a b/\u{e9}")],
        |p| {
            p.deduplication = id();
        },
    );
}

#[test]
fn flow_control() {
    let flow = |parallelism, rate, period_s| {
        move |p: &mut Publish| {
            p.options.flow_control =
                Some(FlowControl { key: "k/1 :".to_owned(), parallelism, rate, period_s });
        }
    };
    let with = |value| [("Upstash-Flow-Control-Key", "k/1 :"), ("Upstash-Flow-Control-Value", value)];
    check(&with("parallelism=3, rate=5, period=1m"), flow(Some(3), Some(5), 60));
    check(&with("Rate = 10"), flow(None, Some(10), 1));
    check(&with("parallelism=1,period=1.5"), flow(Some(1), None, 2));
    check(&with("rate=1,period=1h30m3s"), flow(None, Some(1), 5403));
    check(&with("rate=1,period=7d"), flow(None, Some(1), 604_800));
    let name = "invalid header Upstash-Flow-Control-Value: ";
    check_error(&with("rate=0"), &format!("{name}rate \"0\" is not an integer from 1"));
    check_error(&with("parallelism=x"), &format!("{name}parallelism \"x\" is not an integer from 1"));
    check_error(&with("rate=1,period=0"), &format!("{name}period \"0\" is not from 1 second to 604800"));
    check_error(&with("rate=1,period=8d"), &format!("{name}period \"8d\" is not from 1 second"));
    check_error(&with("rate=1,period=1w"), &format!("{name}period: unknown unit \"w\""));
    check_error(&with("rate=1,burst=2"), &format!("{name}unknown key \"burst\"; allowed are parallelism"));
    check_error(&with("period=1s"), &format!("{name}at least one of parallelism and rate"));
    check_error(&with("rate=1")[..1], "invalid header Upstash-Flow-Control-Key: it requires");
    check_error(&with("rate=1")[1..], &format!("{name}it requires Upstash-Flow-Control-Key"));
}

#[test]
fn delivery_headers() {
    check(&[("content-type", "text/plain")], |p| p.headers = headers(&[("Content-Type", "text/plain")]));
    check(&[("Content-Type", "text/plain"), ("Upstash-Forward-Content-Type", "text/html")], |p| {
        p.headers = headers(&[("Content-Type", "text/html")]);
    });
    check(
        &[
            ("upstash-forward-x-api-key", "1"),
            ("Upstash-Forward-Upstash-Forward-X", "2"),
            ("Upstash-Forward-Upstash-X", "3"),
            ("Upstash-Forward-X-Api-Key", "4"),
            ("Upstash-Forward-Empty", ""),
            ("Upstash-Forward-Authorization", "Bearer mine"),
            ("Upstash-Forward-User-Agent", "me"),
        ],
        |p| {
            p.headers = headers(&[
                ("X-Api-Key", "1"),
                ("Upstash-Forward-X", "2"),
                ("Upstash-X", "3"),
                ("X-Api-Key", "4"),
                ("Empty", ""),
                ("Authorization", "Bearer mine"),
                ("User-Agent", "me"),
            ]);
        },
    );
    check(
        &[
            ("Upstash-Forward-Host", "x"),
            ("Upstash-Forward-Content-Length", "x"),
            ("Upstash-Forward-TE", "x"),
            ("Upstash-Forward-Proxy-Anything", "x"),
            ("Upstash-Forward-Upstash-Signature", "x"),
            ("Upstash-Forward-Upstash-Message-Id", "x"),
        ],
        |_| (),
    );
}

#[test]
fn all_headers_are_forwarded_on_request() {
    let request = [
        ("Upstash-Header-Forward", "True"),
        ("Host", "localhost"),
        ("Authorization", "bearer token"),
        ("Content-Length", "3"),
        ("Connection", "keep-alive, X-Hop"),
        ("X-Hop", "1"),
        ("Expect", "100-continue"),
        ("Content-Type", "text/plain"),
        ("User-Agent", "GitHub-Hookshot"),
        ("X-Hub-Signature", "sha1=1"),
        ("X-Other", "plain"),
        ("Upstash-Forward-X-Other", "explicit"),
        ("Upstash-Retries", "1"),
    ];
    check(&request, |p| {
        p.retries = 1;
        p.headers = headers(&[
            ("Content-Type", "text/plain"),
            ("User-Agent", "GitHub-Hookshot"),
            ("X-Hub-Signature", "sha1=1"),
            ("X-Other", "explicit"),
        ]);
    });
    check(&[("Upstash-Header-Forward", "true"), ("Authorization", "Basic dTpw")], |p| {
        p.headers = headers(&[("Authorization", "Basic dTpw")]);
    });
    let in_batch = read(Kind::BatchItem, &request).unwrap();
    assert_eq!(in_batch.headers, headers(&[("Content-Type", "text/plain"), ("X-Other", "explicit")]));
}

fn callback(change: impl FnOnce(&mut CallbackSpec)) -> Box<CallbackSpec> {
    let mut spec = CallbackSpec { url: "https://e.com/cb".to_owned(), ..CallbackSpec::default() };
    change(&mut spec);
    Box::new(spec)
}

#[test]
fn callbacks() {
    check(&[("Upstash-Callback", "https://e.com/cb")], |p| p.options.callback = Some(callback(|_| ())));
    check(&[("Upstash-Failure-Callback", "https://e.com/cb")], |p| {
        p.options.failure_callback = Some(callback(|_| ()));
    });
    check(
        &[
            ("Upstash-Failure-Callback-Method", "GET"),
            ("upstash-callback-retries", "0"),
            ("Upstash-Callback", "https://e.com/cb"),
            ("Upstash-Callback-Delay", "1m"),
            ("Upstash-Callback-Timeout", "2s"),
            ("Upstash-Callback-Retry-Delay", "5"),
            ("Upstash-Callback-Label", "a,b"),
            ("Upstash-Callback-Flow-Control-Key", "k"),
            ("Upstash-Callback-Flow-Control-Value", "rate=1"),
            ("Upstash-Callback-Forward-X-Api-Key", "1"),
            ("Upstash-Callback-Forward-Empty", ""),
            ("Upstash-Callback-Schedule-Id", "ignored"),
            ("Upstash-Callback-Telemetry-Sdk", "ignored"),
            ("Upstash-Callback-My-KEY", "2"),
            ("Upstash-Callback-Content-Type", "text/plain"),
            ("Upstash-Failure-Callback", "http://f.com"),
        ],
        |p| {
            let each = callback(|spec| {
                spec.retries = Some(0);
                spec.delay = Some(Duration::from_mins(1));
                spec.labels = vec!["a".to_owned(), "b".to_owned()];
                spec.headers = headers(&[
                    ("X-Api-Key", "1"),
                    ("Empty", ""),
                    ("My-Key", "2"),
                    ("Content-Type", "text/plain"),
                ]);
                spec.options = Options {
                    timeout: Some(Duration::from_secs(2)),
                    retry_delay: Some("5".to_owned()),
                    flow_control: Some(FlowControl {
                        key: "k".to_owned(),
                        parallelism: None,
                        rate: Some(1),
                        period_s: 1,
                    }),
                    ..Options::default()
                };
            });
            let failure = callback(|spec| {
                spec.url = "http://f.com".to_owned();
                spec.method = Method::Get;
            });
            p.options.callback = Some(each);
            p.options.failure_callback = Some(failure);
        },
    );
}

#[test]
fn callbacks_of_callbacks_go_one_level_deep() {
    check(
        &[
            ("Upstash-Callback", "https://e.com/cb"),
            ("Upstash-Callback-Failure-Callback", "https://e.com/cb"),
            ("Upstash-Callback-Failure-Callback-Retries", "1"),
            ("Upstash-Callback-Failure-Callback-Callback", "https://e.com/cb"),
            ("Upstash-Callback-Failure-Callback-Callback-Retries", "x"),
        ],
        |p| {
            let nested = callback(|spec| spec.retries = Some(1));
            p.options.callback = Some(callback(|spec| spec.options.failure_callback = Some(nested)));
        },
    );
}

#[test]
fn malformed() {
    check_error(
        &[("Upstash-Method", "HEAD")],
        "invalid header Upstash-Method: unknown method \"HEAD\"; allowed",
    );
    check_error(&[("Upstash-Delay", "-1s")], "invalid header Upstash-Delay: a negative duration; expected");
    check_error(&[("upstash-delay", "1x")], "invalid header upstash-delay: unknown unit \"x\"");
    for value in ["-1", "+1", "1.0", "x", "2147483648", "1 2"] {
        check_error(
            &[("Upstash-Retries", value)],
            &format!("invalid header Upstash-Retries: {value:?} is not an integer from 0"),
        );
    }
    for value in ["1.5.1", ".", "-1", "+1", "1e9", "5s", "tomorrow", "NaN"] {
        check_error(
            &[("Upstash-Not-Before", value)],
            &format!("invalid header Upstash-Not-Before: {value:?} is not a Unix time in seconds"),
        );
    }
    check_error(
        &[("Upstash-Retry-Delay", "1 +")],
        "invalid header Upstash-Retry-Delay: unexpected end, expected",
    );
    check_error(&[("Upstash-Timeout", "1ms")], "invalid header Upstash-Timeout: unknown unit \"ms\"");
    check_error(
        &[("Upstash-Callback", "e.com")],
        "invalid header Upstash-Callback: invalid destination url: endpoint has invalid scheme",
    );
    check_error(
        &[("Upstash-Failure-Callback", "https://")],
        "invalid header Upstash-Failure-Callback: invalid destination url: it has no host",
    );
    check_error(
        &[("Upstash-Callback", "https://e.com"), ("Upstash-Callback-Retries", "x")],
        "invalid header Upstash-Callback-Retries: ",
    );
    check_error(
        &[("Upstash-Redact-Fields", "url")],
        "invalid header Upstash-Redact-Fields: unknown field \"url\"",
    );
    check_error(&[("Upstash-Queue-Name", "a/b")], "invalid header Upstash-Queue-Name: \"a/b\" is not a name");
    check_error(
        &[("Upstash-Schedule-Id", "a b")],
        "invalid header Upstash-Schedule-Id: \"a b\" is not a name",
    );
    check_error(
        &[("Upstash-Header-Forward", "1")],
        "invalid header Upstash-Header-Forward: \"1\" is neither",
    );
    check_error(
        &[("Upstash-Content-Based-Deduplication", "yes")],
        "invalid header Upstash-Content-Based-Dedup",
    );
    check_error(&[("Upstash-Forward-", "x")], "invalid header Upstash-Forward-: \"\" is not a header name");
    check_error(
        &[("Upstash-Forward-a b", "x")],
        "invalid header Upstash-Forward-a b: \"a b\" is not a header name",
    );
    check_error(&[("X-Any", "a\rb")], "invalid header X-Any: it contains the control character 0x0d");
    check_error(
        &[("Upstash-Forward-X", "\u{7f}")],
        "invalid header Upstash-Forward-X: it contains the control",
    );
    check_error(
        &[("Upstash-Workflow-RunId", "wfr_1"), ("Upstash-Workflow-CallType", "x")],
        "invalid header Upstash-Workflow-CallType: \"x\" is unknown",
    );
    check_error(&[("X", "1"); 257], "more than 256 headers");
    check_error(&[("X", &"1".repeat(128 << 10))], "headers of more than 131072 bytes together");
}

/// Milliseconds in the place of seconds, above all.
#[test]
fn nothing_is_due_after_the_year_9999() {
    for value in ["1796081837163", "253402300800", "9223372036854775807", "1e400", "99999999999999999999999"]
    {
        let text = if value.contains('e') { "" } else { ": it would be after the year 9999" };
        check_error(
            &[("Upstash-Not-Before", value)],
            &format!("invalid header Upstash-Not-Before: {value:?} is not a Unix time in seconds{text}"),
        );
    }
    let urls =
        [("Upstash-Callback", "https://e.com"), ("Upstash-Callback-Failure-Callback", "https://e.com")];
    for name in ["Upstash-Delay", "Upstash-Callback-Delay", "Upstash-Callback-Failure-Callback-Delay"] {
        for value in ["99999999d", "1796081837163", "251702300800", "99999999999999999999d"] {
            let fields = [urls[0], urls[1], (name, value)];
            for kind in [Kind::Publish, Kind::Enqueue, Kind::BatchItem, Kind::Schedule] {
                let error = read(kind, &fields).unwrap_err();
                let expected = format!("invalid header {name}: {value:?} ends after the year 9999; ");
                assert!(error.to_string().starts_with(&expected), "{error}");
                assert!(error.to_string().contains("Unix time in seconds") && !error.is_quota());
            }
        }
    }
    check(&[("Upstash-Not-Before", "253402300799")], |p| {
        p.due = Due::At(Timestamp::from_millis(253_402_300_799_000));
    });
    check(&[("Upstash-Not-Before", "1796081837.163")], |p| {
        p.due = Due::At(Timestamp::from_millis(1_796_081_837_163));
    });
    check(&[("Upstash-Delay", "251702300799")], |p| p.due = Due::After(Duration::from_secs(251_702_300_799)));
    let params = [("upstash-not-before".to_owned(), "1796081837163".into())];
    let error = parse(Kind::Publish, [], &params, &limits(), NOW).unwrap_err();
    assert!(error.to_string().contains("is not a Unix time in seconds"), "{error}");
}

#[test]
fn callbacks_take_what_destinations_take() {
    for (value, url) in
        [("http://\u{fc}.de/\u{fc} x", "http://\u{fc}.de/%C3%BC%20x"), ("http:/e.com", "http://e.com")]
    {
        check(&[("Upstash-Callback", value)], |p| {
            p.options.callback = Some(callback(|spec| spec.url = url.to_owned()));
        });
    }
    let latin1 = [("Upstash-Callback", &b"http://e.com/\xfc"[..])];
    let publish = parse(Kind::Publish, latin1, &[], &limits(), NOW).unwrap();
    assert_eq!(publish.options.callback.expect("a callback").url, "http://e.com/%C3%BC");
}

#[test]
fn names_that_paths_cannot_hold_are_refused() {
    for name in [".", ".."] {
        for header in ["Upstash-Queue-Name", "Upstash-Schedule-Id"] {
            check_error(&[(header, name)], &format!("invalid header {header}: {name:?} can't be a name: "));
        }
        check_error(
            &[("Upstash-Flow-Control-Key", name), ("Upstash-Flow-Control-Value", "rate=1")],
            "invalid header Upstash-Flow-Control-Key: clients and proxies resolve it as a step of a path",
        );
    }
    check(&[("Upstash-Queue-Name", "...")], |p| p.queue = Some("...".to_owned()));
}

#[test]
fn errors_repeat_200_characters() {
    let long = "\u{fc}".repeat(1000);
    for name in [
        "Upstash-Method",
        "Upstash-Delay",
        "Upstash-Not-Before",
        "Upstash-Retries",
        "Upstash-Retry-Delay",
        "Upstash-Timeout",
        "Upstash-Callback-Retries",
        "Upstash-Redact-Fields",
        "Upstash-Queue-Name",
        "Upstash-Schedule-Id",
        "Upstash-Header-Forward",
        "Upstash-Content-Based-Deduplication",
        &format!("Upstash-Forward-{long}"),
        &format!("Upstash-Callback-Forward-{long}"),
    ] {
        let ascii = "1".repeat(1000);
        for value in [&long, &ascii] {
            let fields = [("Upstash-Callback", "https://e.com"), (name, value)];
            let Err(error) = read(Kind::Publish, &fields) else { continue };
            let text = error.to_string();
            assert!(text.chars().count() < 700 && !text.contains(&long[..402]), "{text}");
        }
    }
    for value in ["rate=X", "X=1", "rate=1,period=X", "rate=1,period=1X"] {
        let value = value.replace('X', &long);
        let fields = [("Upstash-Flow-Control-Key", "k"), ("Upstash-Flow-Control-Value", &value)];
        let text = read(Kind::Publish, &fields).unwrap_err().to_string();
        assert!(text.contains(&long[..400]) && !text.contains(&long[..402]), "{text}");
    }
}

#[test]
fn quotas() {
    let limits = Limits { max_retries: Some(5), max_delay: Some(Duration::from_hours(7 * 24)), ..limits() };
    let read = |name, value: &'static str| {
        parse(
            Kind::Publish,
            [("Upstash-Callback", "https://e.com".as_bytes()), (name, value.as_bytes())],
            &[],
            &limits,
            NOW,
        )
    };
    for (name, value) in [
        ("Upstash-Delay", "8d"),
        ("Upstash-Not-Before", "1700604801"),
        ("Upstash-Not-Before", "253402300799"),
        ("Upstash-Callback-Delay", "8d"),
    ] {
        let error = read(name, value).unwrap_err();
        assert_eq!(error.to_string(), "quota maxDelay exceeded, current limit: 604800");
        assert!(error.is_quota());
    }
    for name in ["Upstash-Retries", "Upstash-Callback-Retries"] {
        let error = read(name, "6").unwrap_err();
        assert_eq!(error.to_string(), "quota maxRetries exceeded, current limit: 5");
        assert!(error.is_quota());
        assert!(read(name, "5").is_ok());
    }
    assert!(read("Upstash-Delay", "7d").is_ok());
}

#[test]
fn parameters_stand_in_for_headers() {
    let params: Vec<_> = [
        ("upstash-retries", "1"),
        ("upstash-delay", "10s"),
        ("upstash-forward-x", "1"),
        ("upstash-forward-y", "2"),
        ("qstash_token", "secret"),
    ]
    .map(|(name, value)| (name.to_owned(), value.into()))
    .into();
    let given = [("Upstash-Retries", "2".as_bytes()), ("Upstash-Forward-X", b""), ("Upstash-Delay", b"")];
    let publish = parse(Kind::Publish, given, &params, &limits(), NOW).unwrap();
    assert_eq!(publish.retries, 2);
    assert_eq!(publish.due, Due::After(Duration::from_secs(10)));
    assert_eq!(publish.headers, headers(&[("X", ""), ("Y", "2")]));
}

#[test]
fn parameters_configure_callbacks_too() {
    let params: Vec<_> = [
        ("upstash-callback", "https://e.com/cb"),
        ("upstash-callback-retries", "1"),
        ("upstash-callback-forward-x", "1"),
        ("upstash-callback-my-key", "2"),
        ("upstash-failure-callback", "http://f.com"),
        ("upstash-telemetry-sdk", "x"),
        ("upstash-retries", "4"),
        ("upstash-retries", "5"),
        ("upstash-forward-a", "1"),
        ("upstash-forward-a", "2"),
        ("upstash-header-forward", "TRUE"),
    ]
    .map(|(name, value)| (name.to_owned(), value.into()))
    .into();
    let given = [("Upstash-Callback-Retries", "2".as_bytes()), ("X-Own", b"3")];
    let publish = parse(Kind::Publish, given, &params, &limits(), NOW).unwrap();
    let each = callback(|spec| {
        spec.retries = Some(2);
        spec.headers = headers(&[("X", "1"), ("My-Key", "2")]);
    });
    assert_eq!(publish.options.callback, Some(each));
    assert_eq!(publish.options.failure_callback, Some(callback(|spec| spec.url = "http://f.com".to_owned())));
    assert_eq!(publish.retries, 5);
    assert_eq!(publish.headers, headers(&[("X-Own", "3"), ("A", "1"), ("A", "2")]));
}

#[test]
fn plain_headers_stand_for_themselves() {
    let read = |fields: &[(&'static str, &'static str)]| {
        parse_plain(fields.iter().map(|(name, value)| (*name, value.as_bytes())))
    };
    assert_eq!(
        read(&[("x-a", " 1 "), ("X-A", "2"), ("Host", "x"), ("connection", "x"), ("upstash-x", "3")]),
        Ok(headers(&[("X-A", "1"), ("X-A", "2"), ("Upstash-X", "3")]))
    );
    assert!(read(&[("a b", "1")]).unwrap_err().to_string().starts_with("invalid header a b: "));
    assert!(read(&[("A", "1\r\nB: 2")]).unwrap_err().to_string().contains("control character"));
}

#[test]
fn some_headers_belong_to_some_requests() {
    let fields = [
        ("Upstash-Not-Before", "1800000000"),
        ("Upstash-Delay", "1s"),
        ("Upstash-Deduplication-Id", "d"),
        ("Upstash-Queue-Name", "q"),
        ("Upstash-Cron", "@daily"),
        ("Upstash-Schedule-Id", "s"),
    ];
    let schedule = read(Kind::Schedule, &fields).unwrap();
    assert_eq!(schedule.due, Due::After(Duration::from_secs(1)));
    assert_eq!(schedule.deduplication, None);
    assert_eq!((schedule.queue.as_deref(), schedule.cron.as_deref()), (Some("q"), Some("@daily")));
    assert_eq!(schedule.schedule_id.as_deref(), Some("s"));
    let item = read(Kind::BatchItem, &fields).unwrap();
    assert_eq!((item.queue.as_deref(), item.cron, item.schedule_id), (Some("q"), None, None));
    let enqueued = read(Kind::Enqueue, &fields).unwrap();
    assert_eq!((enqueued.queue, enqueued.cron), (None, None));
}

#[test]
fn forwarded_values_are_bytes() {
    let read = |name: &'static str, value: &'static [u8]| {
        let given =
            [("Upstash-Callback", &b"http://c.com"[..]), ("Upstash-Header-Forward", b"true"), (name, value)];
        let publish = parse(Kind::Publish, given, &[], &limits(), NOW).unwrap();
        let of_callback = publish.options.callback.unwrap().headers;
        let mut values = publish.headers.iter().chain(of_callback.iter());
        let (_, found) = values.next().expect("one is forwarded");
        assert_eq!(values.next(), None);
        found.to_owned()
    };
    for value in [&b"caf\xc3\xa9"[..], b"caf\xe9", b"\xe9 \xc3\xa9", b"a\tb", b"\x80\xff"] {
        for name in [
            "Upstash-Forward-X",
            "Upstash-Callback-Forward-X",
            "Upstash-Callback-My-Key",
            "Content-Type",
            "X-Own",
        ] {
            assert_eq!(read(name, value), value, "{name}");
        }
        let param = [("upstash-forward-x".to_owned(), value.to_vec())];
        let publish = parse(Kind::Publish, [], &param, &limits(), NOW).unwrap();
        assert_eq!(publish.headers.iter().next(), Some(("X", value)));
    }
    assert_eq!(read("X-Own", b" \t\xa0x \t"), b"\xa0x");
}

#[test]
fn options_are_utf8_or_latin1() {
    for value in [&b"caf\xc3\xa9"[..], b"caf\xe9"] {
        let given = [("Upstash-Label", value), ("Upstash-Deduplication-Id", value)];
        let publish = parse(Kind::Publish, given, &[], &limits(), NOW).unwrap();
        assert_eq!(publish.labels, ["caf\u{e9}"]);
        assert_eq!(publish.deduplication, Some(Deduplication::Id("caf\u{e9}".to_owned())));
    }
}

proptest! {
    #[test]
    fn never_panics_and_delivers_nothing_of_ours(
        fields in proptest::collection::vec(
            (
                "(upstash-)?((failure-)?callback-){0,3}(forward-)?(upstash-)?[a-zA-Z-]{0,12}|\\PC{0,20}",
                "(https://e.com)?[0-9smhd=,. true]{0,10}|\\PC{0,10}",
            ),
            0..8,
        ),
    ) {
        let given = fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        if let Ok(publish) = parse(Kind::BatchItem, given, &[], &limits(), NOW) {
            for (name, value) in publish.headers.iter() {
                prop_assert!(http::HeaderName::from_bytes(name.as_bytes()).is_ok());
                prop_assert!(http::HeaderValue::from_bytes(value).is_ok());
                prop_assert!(!is_never_forwarded(name));
            }
        }
    }
}

/// The message with the overrides of a retry.
fn overridden(old: &Message, fields: &[(&str, &str)], params: &[(&str, &str)]) -> Message {
    let params: Vec<(String, Vec<u8>)> =
        params.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
    let fields = fields.iter().map(|(name, value)| (*name, value.as_bytes()));
    let overrides = parse_overrides(fields, &params, &limits(), NOW).expect("valid headers");
    let mut message = old.clone();
    overrides.apply(&mut message, NOW);
    message
}

fn limits_of(key: &str, parallelism: Option<u32>, rate: Option<u32>, period_s: u32) -> FlowControl {
    FlowControl { key: key.to_owned(), parallelism, rate, period_s }
}

#[test]
fn a_retry_overrides_what_it_names() {
    let callback = CallbackSpec {
        url: "https://cb.example".to_owned(),
        options: Options { flow_control: Some(limits_of("c", Some(1), None, 1)), ..Options::default() },
        ..CallbackSpec::default()
    };
    let long_ago = Timestamp::from_millis(1_000_000_000_000);
    let plain = Message::plain(MessageId::new("msg_1"), long_ago, "https://e.com", bytes::Bytes::new());
    let old = Message {
        method: Method::Put,
        max_retries: 7,
        labels: vec!["l".to_owned()],
        queue: Some("q".to_owned()),
        options: Options {
            flow_control: Some(limits_of("k", None, Some(5), 60)),
            callback: Some(Box::new(callback)),
            retry_delay: Some("1000".to_owned()),
            ..Options::default()
        },
        ..plain
    };
    let same = Message { created_at: NOW, due_at: NOW, ..old.clone() };
    assert_eq!(overridden(&old, &[("content-type", "text/plain")], &[]), same);
    assert_eq!(overridden(&old, &[("Upstash-Retries", " "), ("Upstash-Label", "")], &[]), same);

    let new = overridden(
        &old,
        &[
            ("Upstash-Queue-Name", "other"),
            ("Upstash-Flow-Control-Key", "k2"),
            ("Upstash-Flow-Control-Value", "parallelism=2"),
            ("Upstash-Callback-Flow-Control-Key", "c2"),
            ("Content-Type", "text/plain"),
            ("Upstash-Forward-Content-Type", "text/html"),
        ],
        &[
            ("upstash-callback-flow-control-value", "rate=3, period=1m"),
            ("upstash-delay", "5s"),
            ("upstash-retries", "0"),
        ],
    );
    assert_eq!(new.queue.as_deref(), Some("other"));
    assert_eq!(new.options.flow_control, Some(limits_of("k2", Some(2), None, 1)));
    let callback = new.options.callback.expect("it stays");
    assert_eq!(callback.url, "https://cb.example");
    assert_eq!(callback.options.flow_control, Some(limits_of("c2", None, Some(3), 60)));
    assert_eq!((new.max_retries, new.method, new.labels), (0, Method::Put, vec!["l".to_owned()]));
    assert_eq!(new.due_at.since(new.created_at).as_secs(), 5);
    assert_eq!(new.options.retry_delay.as_deref(), Some("1000"));
    assert_eq!(new.headers, headers(&[("Content-Type", "text/html")]));
}

#[test]
fn a_retry_says_nothing_wrong_about_callbacks() {
    let fields = [("Upstash-Callback-Retries", &b"x"[..])];
    let error = parse_overrides(fields, &[], &limits(), NOW).unwrap_err();
    assert!(error.to_string().starts_with("invalid header Upstash-Callback-Retries"), "{error}");
}
