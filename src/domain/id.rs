//! Identifiers: newtypes, so that one kind cannot be passed for another.
//!
//! Generated ids hold a version 7 UUID (RFC 9562, 5.7) in base58, so that text order is the order of their making and
//! none of the characters needs escaping in a path, a query or a comma list.

use std::fmt;

use uuid::Uuid;

use super::excerpt::Excerpt;
use super::time::Timestamp;

/// Names are keys of indexes, and databases limit those; far above what anybody types.
const MAX_NAME: usize = 256;

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name(String);

        impl $name {
            /// Takes any text: ids are opaque where they come in.
            pub fn new(text: impl Into<String>) -> Self {
                Self(text.into())
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id!(
    /// A message's id: `msg_` and base58.
    MessageId
);
text_id!(
    /// A schedule's id: `scd_` and base58, or the name that its owner gave it.
    ScheduleId
);
text_id!(
    /// A dead letter's id: `<unix ms>-<sequence>`.
    DeadLetterId
);

text_id!(
    /// The id of one execution of a workflow: that of the message that began it. A run id, which users choose, may be used
    /// again after its run has ended.
    InstanceId
);

impl InstanceId {
    /// The id of the instance that a message begins.
    pub fn begun_by(message: &MessageId) -> Self {
        Self(message.0.clone())
    }
}

impl MessageId {
    /// An id made at `now`, from 74 random bits.
    pub fn generate(now: Timestamp, random: [u8; 10]) -> Self {
        Self(base58("msg_", uuid_v7(now, random)))
    }

    /// The least id that a message accepted at `time` can have: a bound for ranges. In the year 2254 ids become longer,
    /// and no bound lies beyond.
    pub fn earliest_at(time: Timestamp) -> Self {
        const LAST_MS: u128 = 58_u128.pow(21) >> 80;
        let ms = u128::try_from(time.as_millis()).unwrap_or(0).min(LAST_MS);
        Self(base58("msg_", Uuid::from_u128(ms << 80)))
    }
}

impl ScheduleId {
    /// An id made at `now`, from 74 random bits.
    pub fn generate(now: Timestamp, random: [u8; 10]) -> Self {
        Self(base58("scd_", uuid_v7(now, random)))
    }
}

impl DeadLetterId {
    /// An id for an entry made at `now`; `sequence` tells entries of one millisecond apart.
    pub fn generate(now: Timestamp, sequence: u32) -> Self {
        Self(format!("{}-{sequence}", now.as_millis()))
    }
}

/// The name of a queue, a URL group or a schedule that may have to be made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Name(String);

impl Name {
    /// Reads a name; the error says what is allowed.
    pub fn read(text: &str) -> Result<Self, String> {
        if is_path_step(text) {
            return Err(format!(
                "{text:?} can't be a name: clients and proxies resolve it as a step of a path"
            ));
        }
        if is_name(text) {
            return Ok(Self(text.to_owned()));
        }
        let text = Excerpt(text);
        Err(format!("{text:?} is not a name; letters, digits, -, _ and . are allowed, at most {MAX_NAME}"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn into_string(self) -> String {
        self.0
    }
}

/// Whether a text may name a queue, a URL group or a schedule: letters, digits, `-`, `_`, `.`, at most 256 of them.
pub fn is_name(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// Whether a text is `.` or `..`. Neither names anything new: clients and proxies resolve them as steps of a path, so
/// what has such a name can't be asked for.
pub fn is_path_step(text: &str) -> bool {
    matches!(text, "." | "..")
}

fn uuid_v7(now: Timestamp, random: [u8; 10]) -> Uuid {
    let ms = u64::try_from(now.as_millis()).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(ms, &random).into_uuid()
}

fn base58(prefix: &str, uuid: Uuid) -> String {
    let mut text = String::with_capacity(prefix.len() + 22);
    text.push_str(prefix);
    let mut digits = [0_u8; 22];
    let len = bs58::encode(uuid.as_bytes())
        .onto(digits.as_mut_slice())
        .expect("16 bytes are at most 22 base58 digits");
    text.push_str(std::str::from_utf8(&digits[..len]).expect("base58 is ASCII"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_ids_sort_by_time_and_have_one_length() {
        let mut last = String::new();
        for ms in [1_700_000_000_000, 1_700_000_000_001, 1_900_000_000_000, 4_000_000_000_000] {
            for random in [[0; 10], [0xff; 10]] {
                let id = MessageId::generate(Timestamp::from_millis(ms), random);
                assert_eq!(id.as_str().len(), 25, "{id}");
                assert!(id.as_str() > last.as_str(), "{id} after {last}");
                last = id.as_str().to_owned();
            }
        }
    }

    #[test]
    fn ids_of_a_time_lie_between_the_bounds_of_that_time_and_the_next() {
        let time = |ms| Timestamp::from_millis(ms);
        for random in [[0; 10], [0xff; 10]] {
            let id = MessageId::generate(time(1_764_000_000_000), random);
            assert!(MessageId::earliest_at(time(1_764_000_000_000)) <= id);
            assert!(id < MessageId::earliest_at(time(1_764_000_000_001)));
        }
        let now = MessageId::earliest_at(time(1_764_000_000_000));
        for past in [i64::MIN, -1, 0, 1, 1_000_000_000, 1_100_000_000_000] {
            assert!(MessageId::earliest_at(time(past)) < now, "{past}");
        }
        for future in [1_764_000_000_001, 9_999_999_999_999, 1 << 48, 1 << 53, i64::MAX] {
            assert!(MessageId::earliest_at(time(future)) > now, "{future}");
        }
    }

    #[test]
    fn message_ids_need_no_escaping() {
        let id = MessageId::generate(Timestamp::from_millis(1_700_000_000_000), [0x5a; 10]);
        assert!(id.as_str().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
    }

    #[test]
    fn generated_schedule_ids_are_names() {
        let id = ScheduleId::generate(Timestamp::from_millis(1_700_000_000_000), [0x5a; 10]);
        assert!(id.as_str().starts_with("scd_") && is_name(id.as_str()), "{id}");
    }
}
