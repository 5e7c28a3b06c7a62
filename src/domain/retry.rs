//! When the next attempt is made: as the response asks, else by the message's expression, else by back-off.

use std::time::Duration;

use super::duration;
use super::message::{Headers, Options};
use super::retry_delay::Expression;
use super::time::Timestamp;

/// The longest delay before a retry, whoever asks for it.
pub const MAX_DELAY: Duration = Duration::from_hours(24);

/// Headers of rate-limited APIs that say when to come back; less binding than `Retry-After`.
const RESETS: [&str; 3] = ["X-RateLimit-Reset", "X-RateLimit-Reset-Requests", "X-RateLimit-Reset-Tokens"];

/// The delay before a retry, `retry` being 1 for the first: `e^(2.5 · retry)` whole seconds, at most a day.
pub fn back_off(retry: u32) -> Duration {
    let seconds = (2.5 * f64::from(retry)).exp().min(MAX_DELAY.as_secs_f64());
    Duration::from_secs_f64(seconds.floor())
}

/// The delay that a failed attempt's response asks for, at most a day; `None` when it has no usable wish.
///
/// `Retry-After` goes before the `X-RateLimit-Reset` family, of which the longest delay counts. A wish beyond a day is
/// not usable: many APIs put a Unix time there.
pub fn asked_by(headers: &Headers, now: Timestamp) -> Option<Duration> {
    let wishes = |wanted: &'static str| {
        headers
            .texts()
            .filter(move |(name, _)| name.eq_ignore_ascii_case(wanted))
            .filter_map(move |(_, value)| read_wish(value.trim(), now))
    };
    wishes("Retry-After").next().or_else(|| RESETS.into_iter().flat_map(wishes).max())
}

/// The delay between a failed attempt and the next one.
///
/// `headers` are the response's, if there was one; `retried` counts the attempts before the failed one.
pub fn delay(options: &Options, headers: Option<&Headers>, retried: u32, now: Timestamp) -> Duration {
    let by_expression = || Expression::parse(options.retry_delay.as_deref()?).ok()?.delay(retried);
    headers
        .and_then(|headers| asked_by(headers, now))
        .or_else(by_expression)
        .unwrap_or_else(|| back_off(retried.saturating_add(1)))
}

/// Reads seconds, a Go duration or an HTTP date.
fn read_wish(value: &str, now: Timestamp) -> Option<Duration> {
    let until_date = || {
        let date = httpdate::parse_http_date(value).ok()?;
        let since_epoch = date.duration_since(std::time::UNIX_EPOCH).ok()?;
        Some(Timestamp::from_millis(0).after(since_epoch).since(now))
    };
    let delay = duration::parse_go(value).ok().or_else(until_date)?;
    (delay <= MAX_DELAY).then_some(delay)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // Wed, 21 Oct 2026 07:28:00 GMT.
    const NOW: Timestamp = Timestamp::from_millis(1_792_567_680_000);

    fn headers(fields: &[(&str, &str)]) -> Headers {
        let mut headers = Headers::new();
        for (name, value) in fields {
            headers.append(name, *value);
        }
        headers
    }

    #[test]
    fn back_off_grows_to_a_day() {
        for (retry, seconds) in
            [(1, 12), (2, 148), (3, 1808), (4, 22_026), (5, 86_400), (6, 86_400), (u32::MAX, 86_400)]
        {
            assert_eq!(back_off(retry), Duration::from_secs(seconds), "{retry}");
        }
    }

    #[track_caller]
    fn check(fields: &[(&str, &str)], expected_ms: impl Into<Option<u64>>) {
        let expected = expected_ms.into().map(Duration::from_millis);
        assert_eq!(asked_by(&headers(fields), NOW), expected, "{fields:?}");
    }

    #[test]
    fn retry_headers() {
        check(&[], None);
        check(&[("Retry-After", "0")], 0);
        check(&[("retry-after", " 120 ")], 120_000);
        check(&[("Retry-After", "1.5")], 1_500);
        check(&[("Retry-After", "86400")], 86_400_000);
        check(&[("Retry-After", "86401")], None);
        check(&[("Retry-After", "-1")], None);
        check(&[("Retry-After", "soon")], None);
        check(&[("Retry-After", "")], None);
        check(&[("Retry-After", "Wed, 21 Oct 2026 07:29:30 GMT")], 90_000);
        check(&[("Retry-After", "Wed, 21 Oct 2020 07:29:30 GMT")], 0);
        check(&[("Retry-After", "Fri, 23 Oct 2026 07:29:30 GMT")], None);
        check(&[("X-RateLimit-Reset", "6m5s")], 365_000);
        check(&[("X-RateLimit-Reset", "1792567690")], None);
        check(
            &[("X-RateLimit-Reset-Requests", "250ms"), ("X-RateLimit-Reset-Tokens", "1h2m3.5s")],
            3_723_500,
        );
        check(&[("X-RateLimit-Reset", "1h"), ("Retry-After", "5")], 5_000);
        check(&[("X-RateLimit-Reset", "1h"), ("Retry-After", "x")], 3_600_000);
        check(&[("Retry-After", "x"), ("Retry-After", "7")], 7_000);
    }

    #[test]
    fn response_then_expression_then_back_off() {
        let with =
            |expression: &str| Options { retry_delay: Some(expression.to_owned()), ..Options::default() };
        let asking = headers(&[("Retry-After", "7")]);
        let silent = headers(&[("Retry-After", "never")]);
        let seconds = Duration::from_secs;
        assert_eq!(delay(&with("1000 * retried"), Some(&asking), 3, NOW), seconds(7));
        assert_eq!(delay(&with("1000 * retried"), Some(&silent), 3, NOW), seconds(3));
        assert_eq!(delay(&with("1000 * retried"), None, 0, NOW), seconds(0));
        assert_eq!(delay(&with("0 / retried"), None, 0, NOW), seconds(12));
        assert_eq!(delay(&with("not one"), None, 1, NOW), seconds(148));
        assert_eq!(delay(&Options::default(), None, 0, NOW), seconds(12));
        assert_eq!(delay(&Options::default(), None, u32::MAX, NOW), MAX_DELAY);
    }

    proptest! {
        #[test]
        fn wishes_never_panic_or_exceed_a_day(value in "\\PC{0,40}|[0-9.a-z]{0,20}", ms: i64) {
            let delay = asked_by(&headers(&[("Retry-After", &value)]), Timestamp::from_millis(ms));
            prop_assert!(delay.is_none_or(|delay| delay <= MAX_DELAY));
        }
    }
}
