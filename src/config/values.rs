//! The types of settings that need more than a number or a string: each reads what a person writes, and prints it back.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Reads an address to listen on, with an error that shows how one looks.
pub(super) fn listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        de::Error::custom("allowed: an IP address and a port, like 127.0.0.1:8080, 0.0.0.0:8080 or [::]:8080")
    })
}

/// Reads an absolute http(s) URL without user, query and fragment, and drops its final slash.
pub(super) fn base_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    let fits = text.parse().is_ok_and(|uri: http::Uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
            && uri.query().is_none()
    });
    // `Uri` would drop a fragment.
    if fits && !text.contains(['#', '@']) {
        Ok(text.trim_end_matches('/').to_owned())
    } else {
        Err(de::Error::custom("allowed: http:// or https://, a host, and maybe a port and a path"))
    }
}

/// Reads the name of a server.
pub(super) fn node_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if (1..=200).contains(&text.len()) && !text.contains(char::is_control) {
        Ok(text)
    } else {
        Err(de::Error::custom("allowed: 1 to 200 printable characters"))
    }
}

/// A duration as settings write it: `30s`, `10m`, `2h`, `7d`, `1h30m`, `250ms`; a bare number is seconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeSpan(Duration);

impl TimeSpan {
    /// The units, longest first, in milliseconds.
    const UNITS: [(&'static str, u64); 5] =
        [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

    /// A time span of that duration.
    pub const fn new(duration: Duration) -> Self {
        Self(duration)
    }

    /// The duration.
    pub const fn get(self) -> Duration {
        self.0
    }

    /// True if it is at least `min` and at most `max` seconds.
    pub(super) fn is_within(self, min: u64, max: u64) -> bool {
        (Duration::from_secs(min)..=Duration::from_secs(max)).contains(&self.0)
    }

    /// True if it is at least `min` and at most `max` milliseconds.
    pub(super) fn is_within_ms(self, min: u64, max: u64) -> bool {
        (Duration::from_millis(min)..=Duration::from_millis(max)).contains(&self.0)
    }
}

impl FromStr for TimeSpan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is not a duration; write it like 250ms, 30s, 10m, 2h, 7d or 1h30m");
        let mut rest = text.trim();
        if let Ok(seconds) = rest.parse() {
            return Ok(Self(Duration::from_secs(seconds)));
        }
        let mut total = Duration::ZERO;
        while !rest.is_empty() {
            let (number, after) = split_number(rest).ok_or_else(bad)?;
            let unit_len = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
            let (unit, after) = after.split_at(unit_len);
            let (_, unit_ms) = Self::UNITS.iter().find(|(name, _)| *name == unit.trim()).ok_or_else(bad)?;
            let part = number.checked_mul(*unit_ms).map(Duration::from_millis).ok_or_else(bad)?;
            total = total.checked_add(part).ok_or_else(bad)?;
            rest = after;
        }
        if text.trim().is_empty() { Err(bad()) } else { Ok(Self(total)) }
    }
}

impl fmt::Display for TimeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ms = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if ms == 0 {
            return f.write_str("0s");
        }
        for (unit, unit_ms) in Self::UNITS {
            if ms >= unit_ms {
                write!(f, "{}{unit}", ms / unit_ms)?;
                ms %= unit_ms;
            }
        }
        Ok(())
    }
}

/// A number of bytes as settings write it: `512KiB`, `10MiB`, `1GB`; a bare number is bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(usize);

impl ByteSize {
    /// The units that sizes are printed in, largest first.
    const BINARY: [(&'static str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    const DECIMAL: [(&'static str, u64); 4] =
        [("GB", 1_000_000_000), ("MB", 1_000_000), ("KB", 1000), ("B", 1)];

    /// That many bytes.
    pub const fn new(bytes: usize) -> Self {
        Self(bytes)
    }

    /// The number of bytes.
    pub const fn get(self) -> usize {
        self.0
    }

    /// True if it is at least `min` and at most `max` bytes.
    pub(super) fn is_within(self, min: u64, max: u64) -> bool {
        (min..=max).contains(&(self.0 as u64))
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is not a size; write it like 512KiB, 10MiB, 1GB or 1000");
        let (number, unit) = split_number(text.trim()).ok_or_else(bad)?;
        let unit = if unit.trim().is_empty() { "B" } else { unit.trim() };
        let (_, factor) = Self::BINARY
            .iter()
            .chain(&Self::DECIMAL)
            .find(|(name, _)| name.eq_ignore_ascii_case(unit))
            .ok_or_else(bad)?;
        let bytes =
            number.checked_mul(*factor).and_then(|bytes| usize::try_from(bytes).ok()).ok_or_else(bad)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as u64;
        match Self::BINARY.iter().find(|(_, size)| bytes > 0 && bytes.is_multiple_of(*size)) {
            Some((unit, size)) => write!(f, "{}{unit}", bytes / size),
            None => write!(f, "{bytes}B"),
        }
    }
}

/// The leading digits of a text as a number, and what follows them.
fn split_number(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(digits);
    Some((number.parse().ok()?, rest))
}

/// Both types read a string or a bare number, and print as a string.
macro_rules! human_number {
    ($type:ty, $expecting:literal, $from_number:expr) => {
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl de::Visitor<'_> for Visitor {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }

                    fn visit_u64<E: de::Error>(self, number: u64) -> Result<$type, E> {
                        let from_number: fn(u64) -> Option<$type> = $from_number;
                        from_number(number)
                            .ok_or_else(|| E::invalid_value(de::Unexpected::Unsigned(number), &self))
                    }

                    fn visit_i64<E: de::Error>(self, number: i64) -> Result<$type, E> {
                        let unsigned = u64::try_from(number)
                            .map_err(|_| E::invalid_value(de::Unexpected::Signed(number), &self))?;
                        self.visit_u64(unsigned)
                    }
                }
                deserializer.deserialize_any(Visitor)
            }
        }
    };
}

human_number!(TimeSpan, "a duration like \"30s\", \"10m\", \"2h\" or \"7d\"", |seconds| Some(TimeSpan(
    Duration::from_secs(seconds)
)));
human_number!(ByteSize, "a size like \"512KiB\", \"10MiB\" or \"1GB\"", |bytes| usize::try_from(bytes)
    .ok()
    .map(ByteSize));

/// What stands in a secret's place wherever settings are shown.
pub(super) const HIDDEN: &str = "<hidden>";

/// A token or key. It is never printed: not by `Debug`, not by [`Loaded::effective_toml`](super::Loaded).
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// A secret of that text, which isn't checked.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for comparing, hashing and signing.
    pub fn expose(&self) -> &str {
        &self.0
    }

    fn shown(&self) -> &'static str {
        if self.0.is_empty() { "" } else { HIDDEN }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.shown())
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.shown())
    }
}

impl<'de> Deserialize<'de> for Secret {
    /// Accepts what fits in an `Authorization` header. The error never holds the text.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(de::Error::custom("allowed: 1 or more printable ASCII characters without spaces"));
        }
        Ok(Self(text))
    }
}

/// Where the data is: a SQLite file or a Postgres database.
#[derive(Clone, PartialEq, Eq)]
pub enum DatabaseUrl {
    /// The file's path, taken literally (no percent-decoding, no parameters).
    Sqlite(PathBuf),
    /// The whole URL, password included.
    Postgres(String),
}

impl FromStr for DatabaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const ALLOWED: &str = "allowed: sqlite://PATH or postgres://USER:PASSWORD@HOST/DATABASE";
        if let Some(path) = text.strip_prefix("sqlite://") {
            if path.contains('?') {
                return Err("allowed: sqlite://PATH without parameters".to_owned());
            }
            return if path.is_empty() { Err(ALLOWED.to_owned()) } else { Ok(Self::Sqlite(path.into())) };
        }
        let rest = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://"));
        match rest {
            Some(rest) if !rest.is_empty() => {
                check_postgres_parameters(rest)?;
                Ok(Self::Postgres(text.to_owned()))
            }
            _ => Err(ALLOWED.to_owned()),
        }
    }
}

/// Parameters of a Postgres URL that the driver knows, `options[NAME]` beside them.
const POSTGRES_PARAMETERS: [&str; 18] = [
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
];

/// Refuses a parameter that the driver doesn't know: it would log its value, and a misspelt one would have no effect.
fn check_postgres_parameters(url: &str) -> Result<(), String> {
    let Some((_, query)) = url.split('#').next().unwrap_or_default().split_once('?') else { return Ok(()) };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let name = pair.split('=').next().unwrap_or_default();
        let decoded = percent_decode_str(name).decode_utf8_lossy();
        let of_options = decoded.strip_prefix("options[").is_some_and(|rest| rest.ends_with(']'));
        if of_options || POSTGRES_PARAMETERS.contains(&&*decoded) {
            continue;
        }
        // Behind a password with an unencoded `?` it may be a part of that.
        let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
        let shown = if is_name && !query.contains('@') { name } else { HIDDEN };
        let known = POSTGRES_PARAMETERS.join(", ");
        return Err(format!("allowed: the parameters {known} and options[NAME], but not `{shown}`"));
    }
    Ok(())
}

impl fmt::Display for DatabaseUrl {
    /// The URL with everything hidden that may be a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite://{}", path.display()),
            Self::Postgres(url) => f.write_str(&hide_password(url)),
        }
    }
}

/// Hides a Postgres URL's password, in the authority as well as in the parameters. A password that should have been
/// percent-encoded makes a URL ambiguous; this hides too much then, rather than too little.
fn hide_password(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (user, rest) = match rest.rsplit_once('@') {
        Some((user, rest)) => match user.find([':', '/', '?']) {
            Some(end) => (format!("{}:{HIDDEN}@", &user[..end]), rest),
            None => (format!("{user}@"), rest),
        },
        None => (String::new(), rest),
    };
    let Some((host, parameters)) = rest.split_once(['?', '&']) else {
        return format!("{scheme}://{user}{rest}");
    };
    // Not a list of names to hide but one of names to show: what it doesn't know may hold a key.
    let shown = ["host", "hostaddr", "port", "dbname", "user", "sslmode", "application_name", "options"];
    let parameters: Vec<String> = parameters
        .split('&')
        .map(|pair| match pair.split_once('=') {
            Some((name, _)) if !shown.contains(&name) => format!("{name}={HIDDEN}"),
            Some(_) => pair.to_owned(),
            None => HIDDEN.to_owned(),
        })
        .collect();
    format!("{scheme}://{user}{host}?{}", parameters.join("&"))
}

/// Hides in a text with a URL in it what may be a secret: user and password, query and fragment. Without a scheme it is
/// whatever stands before an `@`.
pub(super) fn hide_url_secrets(text: &str) -> String {
    // To the last one, since a password may hold others.
    let end = text.rfind('@').unwrap_or(0);
    let scheme = text[..end].find("://").map(|at| at + "://".len());
    let start = scheme.or_else(|| text[..end].find(['`', '"']).map(|at| at + 1)).unwrap_or(0);
    let text = match end {
        0 => text.to_owned(),
        end => format!("{}{HIDDEN}{}", &text[..start], &text[end..]),
    };
    let is_end = |c: char| c.is_whitespace() || matches!(c, '`' | '"');
    let query = text.find(['?', '#']).map(|at| at + 1);
    match query.map(|from| (from, text[from..].find(is_end).unwrap_or(text.len() - from))) {
        Some((from, length)) if length > 0 => format!("{}{HIDDEN}{}", &text[..from], &text[from + length..]),
        _ => text,
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for DatabaseUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DatabaseUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// What is logged at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Someone should act.
    Error,
    /// Something is off but handled.
    Warn,
    /// Starts, stops, changes by users.
    Info,
    /// Each request and attempt.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The level's name as tracing's filters spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A line for people.
    Text,
    /// A JSON object for machines.
    Json,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations() {
        #[track_caller]
        fn check(text: &str, expected_ms: Option<u64>) {
            let parsed = text.parse::<TimeSpan>().ok().map(TimeSpan::get);
            assert_eq!(parsed, expected_ms.map(Duration::from_millis), "{text}");
        }
        check("30s", Some(30_000));
        check("10m", Some(600_000));
        check("2h", Some(7_200_000));
        check("7d", Some(604_800_000));
        check("1h30m", Some(5_400_000));
        check("1h 30m", Some(5_400_000));
        check("250ms", Some(250));
        check("45", Some(45_000));
        check("0", Some(0));
        check(" 5 s ", Some(5000));
        for bad in [
            "",
            " ",
            "s",
            "5x",
            "5w",
            "-5s",
            "1.5h",
            "5s3",
            "5S",
            "99999999999999999999s",
            "9999999999999999d",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn sizes() {
        #[track_caller]
        fn check(text: &str, expected: Option<usize>) {
            assert_eq!(text.parse::<ByteSize>().ok().map(ByteSize::get), expected, "{text}");
        }
        check("10MiB", Some(10 << 20));
        check("512KiB", Some(512 << 10));
        check("1GB", Some(1_000_000_000));
        check("1 gib", Some(1 << 30));
        check("5kb", Some(5000));
        check("17", Some(17));
        check("17B", Some(17));
        for bad in ["", "MiB", "1.5MiB", "-1", "5M", "99999999999GiB", "5MiB3"] {
            check(bad, None);
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(number: u64, bytes: usize) {
            let span = TimeSpan::new(Duration::from_millis(number));
            prop_assert_eq!(span.to_string().parse(), Ok(span));
            let size = ByteSize::new(bytes);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }

        #[test]
        fn no_text_panics(text: String) {
            drop(text.parse::<TimeSpan>());
            drop(text.parse::<ByteSize>());
            drop(text.parse::<DatabaseUrl>());
        }

        #[test]
        fn a_database_password_is_never_shown(password in "[a-z@:/?&=]{0,8}SECRET[a-z@:/?&=]{0,8}") {
            let shown = match format!("postgres://user:{password}@host/db").parse::<DatabaseUrl>() {
                Ok(url) => format!("{url} {url:?}"),
                Err(error) => error,
            };
            prop_assert!(!shown.contains("SECRET"), "{}", shown);
        }
    }

    #[test]
    fn database_urls() {
        #[track_caller]
        fn check(text: &str, shown: Option<&str>) {
            let parsed = text.parse::<DatabaseUrl>().ok().map(|url| url.to_string());
            assert_eq!(parsed.as_deref(), shown, "{text}");
        }
        check("sqlite://data/homing.db", Some("sqlite://data/homing.db"));
        check("sqlite:///data/homing.db", Some("sqlite:///data/homing.db"));
        check("postgres://db/homing", Some("postgres://db/homing"));
        check("postgres://me@db/homing", Some("postgres://me@db/homing"));
        check("postgresql://me:pw@db:5432/homing", Some("postgresql://me:<hidden>@db:5432/homing"));
        check(
            "postgres:///homing?host=/run&password=pw&sslmode=require",
            Some("postgres:///homing?host=/run&password=<hidden>&sslmode=require"),
        );
        check(
            "postgres://db/homing?options[search_path]=x&statement-cache-capacity=5",
            Some("postgres://db/homing?options[search_path]=<hidden>&statement-cache-capacity=<hidden>"),
        );
        for bad in
            ["", "sqlite://", "sqlite:x.db", "sqlite://x.db?mode=ro", "postgres://", "mysql://x", "data/x.db"]
        {
            check(bad, None);
        }
    }

    #[test]
    fn unknown_parameters_of_a_database_are_refused_without_their_values() {
        for (parameters, shown) in [
            ("sslpassword=SECRET", "`sslpassword`"),
            ("sslmode=require&Password=SECRET", "`Password`"),
            ("pass%77ord2=SECRET", "`<hidden>`"),
            ("SECRET@host/db", "`<hidden>`"),
            ("x=1@host/SECRET", "`<hidden>`"),
        ] {
            let error = format!("postgres://u:p@db/homing?{parameters}").parse::<DatabaseUrl>().unwrap_err();
            assert!(error.starts_with("allowed: the parameters host, ") && error.ends_with(shown), "{error}");
            assert!(!error.contains("SECRET"), "{error}");
        }
    }

    #[test]
    fn secrets_in_urls_are_hidden() {
        #[track_caller]
        fn check(text: &str, expected: &str) {
            assert_eq!(hide_url_secrets(text), expected, "{text}");
        }
        check("http://h/x can't be used", "http://h/x can't be used");
        check("http://u:p@h/x can't be used", "http://<hidden>@h/x can't be used");
        check("http://u:p@?/#@h/x", "http://<hidden>@h/x");
        check("\"https://u@h/?key=p\" is bad", "\"https://<hidden>@h/?<hidden>\" is bad");
        check("`https://h#p`: bad", "`https://h#<hidden>`: bad");
        check("u:p@h: bad", "<hidden>@h: bad");
        check("`u:p@h`: bad?", "`<hidden>@h`: bad?");
        check("\"u:p@h\" is bad; allowed: http://", "\"<hidden>@h\" is bad; allowed: http://");
        check("h?key=p is bad", "h?<hidden> is bad");
        check("`ten` is not a size", "`ten` is not a size");
    }
}
