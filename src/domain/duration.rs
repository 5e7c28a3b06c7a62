//! Durations as the wire writes them.
//!
//! Publishers write `1d10h30m`, and destinations, in `Retry-After` and its kin, durations as Go prints them. Both are
//! pairs of a number and a unit; only the units differ.

use std::time::Duration;

use super::excerpt::Excerpt;

/// The longest duration: as many milliseconds as a JSON integer carries exactly, some 285 000 years.
const MAX_NANOS: u128 = (1 << 53) * 1_000_000;

const SECOND: u128 = 1_000_000_000;

/// Units of publishers' durations, in nanoseconds.
const UNITS: &[(&str, u128)] =
    &[("s", SECOND), ("m", 60 * SECOND), ("h", 3_600 * SECOND), ("d", 86_400 * SECOND)];

/// Units of Go's durations. Both the micro sign and the Greek letter are in use.
const GO_UNITS: &[(&str, u128)] = &[
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", SECOND),
    ("m", 60 * SECOND),
    ("h", 3_600 * SECOND),
];

/// Why a duration was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DurationError {
    /// An empty text.
    #[error("an empty duration; {ACCEPTED}")]
    Empty,
    /// A sign in front.
    #[error("a negative duration; {ACCEPTED}")]
    Negative,
    /// No digits where a number should begin; the text from there on.
    #[error("no number at {:?}; {ACCEPTED}", Excerpt(.0))]
    NotANumber(String),
    /// A number without unit, after or before other pairs.
    #[error("no unit after the last number; {ACCEPTED}")]
    NoUnit,
    /// Letters that are no unit.
    #[error("unknown unit {:?}; {ACCEPTED}", Excerpt(.0))]
    UnknownUnit(String),
    /// More than 2^53 milliseconds.
    #[error("a duration that is too long")]
    TooLong,
}

const ACCEPTED: &str =
    "expected numbers with the units s, m, h, d, such as 50s or 1d10h30m, or a number of seconds";

/// Reads a publisher's duration: `<number><unit>` pairs written together, units `s m h d`, decimals allowed, or a bare
/// number of seconds. Parts of a nanosecond are cut off.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    parse_with(text, UNITS)
}

/// Reads a destination's duration: as [`parse`] does, with Go's units `h m s ms us ns`.
pub fn parse_go(text: &str) -> Result<Duration, DurationError> {
    parse_with(text, GO_UNITS)
}

fn parse_with(text: &str, units: &[(&str, u128)]) -> Result<Duration, DurationError> {
    if text.is_empty() {
        return Err(DurationError::Empty);
    }
    if text.starts_with('-') {
        return Err(DurationError::Negative);
    }
    let mut nanos = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let is_number = |c: char| c.is_ascii_digit() || c == '.';
        let (number, after) = rest.split_at(rest.find(|c| !is_number(c)).unwrap_or(rest.len()));
        let (unit, next) = after.split_at(after.find(is_number).unwrap_or(after.len()));
        let scale = match units.iter().find(|(name, _)| *name == unit) {
            Some((_, scale)) => *scale,
            None if number.is_empty() => return Err(DurationError::NotANumber(rest.to_owned())),
            None if !unit.is_empty() => return Err(DurationError::UnknownUnit(unit.to_owned())),
            None if number.len() == text.len() => SECOND,
            None => return Err(DurationError::NoUnit),
        };
        let part = read_number(number, scale).map_err(|error| match error {
            DurationError::NotANumber(_) => DurationError::NotANumber(rest.to_owned()),
            other => other,
        })?;
        nanos += part;
        if nanos > MAX_NANOS {
            return Err(DurationError::TooLong);
        }
        rest = next;
    }
    let seconds = u64::try_from(nanos / SECOND).map_err(|_| DurationError::TooLong)?;
    let part = u32::try_from(nanos % SECOND).map_err(|_| DurationError::TooLong)?;
    Ok(Duration::new(seconds, part))
}

/// A decimal number times a unit, in nanoseconds and exact but for what is cut off at their end.
fn read_number(text: &str, scale: u128) -> Result<u128, DurationError> {
    // 17 digits of any unit fit into 128 bits; further decimals are below a nanosecond, or nearly so.
    const DIGITS: usize = 17;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
        return Err(DurationError::NotANumber(text.to_owned()));
    }
    let whole = whole.trim_start_matches('0');
    if whole.len() > DIGITS {
        return Err(DurationError::TooLong);
    }
    let value = |digits: &str| digits.bytes().fold(0, |value, digit| value * 10 + u128::from(digit - b'0'));
    let fraction = &fraction[..fraction.len().min(DIGITS)];
    let divisor = fraction.bytes().fold(1, |power: u128, _| power * 10);
    Ok(value(whole) * scale + value(fraction) * scale / divisor)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected_ms: u64) {
        assert_eq!(parse(text), Ok(Duration::from_millis(expected_ms)), "{text}");
    }

    #[track_caller]
    fn check_error(text: &str, expected: &str) {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{text}: {error}");
    }

    #[test]
    fn durations() {
        check("50s", 50_000);
        check("1d10h30m", 124_200_000);
        check("1h30m3s", 5_403_000);
        check("1.5s", 1_500);
        check("0.1h", 360_000);
        check(".5s", 500);
        check("1.s", 1_000);
        check("0", 0);
        check("0s", 0);
        check("15", 15_000);
        check("2.25", 2_250);
        check("3s1m", 63_000);
        check("00000000000000000000001s", 1_000);
        check("0.00000000000000000000001s", 0);
        check("9007199254740s", 9_007_199_254_740_000);
    }

    #[test]
    fn refused() {
        check_error("", "an empty duration; expected numbers with the units s, m, h, d");
        check_error("-5s", "a negative duration");
        check_error("s", "no number at \"s\"");
        check_error("1m.s", "no number at \".s\"");
        check_error("1.2.3s", "no number at \"1.2.3s\"");
        check_error("1ms", "unknown unit \"ms\"");
        check_error("1H", "unknown unit \"H\"");
        check_error("1m 3s", "unknown unit \"m \"");
        check_error(" 1s", "no number at \" 1s\"");
        check_error("1m3", "no unit after the last number");
        check_error("999999999999999999s", "a duration that is too long");
        check_error("99999999999999999d", "a duration that is too long");
        check_error("9007199254741s", "a duration that is too long");
    }

    #[test]
    fn go_durations() {
        for (text, expected_us) in [
            ("6m5s", 365_000_000),
            ("1h2m3.5s", 3_723_500_000),
            ("250ms", 250_000),
            ("1.5us", 1),
            ("2\u{b5}s3\u{3bc}s", 5),
            ("7000ns", 7),
        ] {
            let micros = parse_go(text).unwrap().as_nanos() / 1_000;
            assert_eq!(micros, expected_us, "{text}");
        }
        assert_eq!(parse_go("1d"), Err(DurationError::UnknownUnit("d".to_owned())));
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,30}|[0-9.smhdnu-]{0,40}") {
            drop(parse(&text));
            drop(parse_go(&text));
        }

        #[test]
        fn a_sum_is_the_sum_of_its_parts(d in 0_u64..100, h in 0_u64..1000, m in 0_u64..1000, s in 0_u64..100_000) {
            let expected = Duration::from_secs(d * 86_400 + h * 3_600 + m * 60 + s);
            prop_assert_eq!(parse(&format!("{d}d{h}h{m}m{s}s")), Ok(expected));
        }
    }
}
