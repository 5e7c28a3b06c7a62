//! The body of a message: a sequence number and a time at fixed places, so that writing and finding them costs nothing.
//!
//! `{"seq":"0000000042","ts":"0000012345678901","pad":"xxx…"}`; the time is in microseconds of the monotonic clock,
//! which all processes of a machine share.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

const SEQ: usize = 8;
const SEQ_DIGITS: usize = 10;
const TS: usize = 26;
const TS_DIGITS: usize = 16;
/// What has to be there of a body to read it; as base64 it ends with a whole group.
const READ: usize = TS + TS_DIGITS;

/// Bytes of the shortest body.
pub(crate) const SHORTEST: usize = 53;

/// A body of that many bytes, or the shortest.
pub(crate) fn body(bytes: usize) -> String {
    let pad = "x".repeat(bytes.saturating_sub(SHORTEST));
    format!(r#"{{"seq":"{:0SEQ_DIGITS$}","ts":"{:0TS_DIGITS$}","pad":"{pad}"}}"#, 0, 0)
}

/// Where a body's numbers stand in a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Slots {
    seq: usize,
    ts: usize,
}

impl Slots {
    /// Those of every body in a text, as it is or with escaped quotes.
    pub(crate) fn find_all(text: &str) -> Vec<Self> {
        let numbers = |name: &str| -> Vec<usize> {
            let names = text.match_indices(name);
            names.filter_map(|(at, _)| Some(at + text[at..].find('0')?)).collect()
        };
        numbers("{\"seq").into_iter().chain(numbers("{\\\"seq")).zip(numbers("\"ts")).map(Self::new).collect()
    }

    const fn new((seq, ts): (usize, usize)) -> Self {
        Self { seq, ts }
    }

    pub(crate) fn write(self, request: &mut [u8], seq: u64, ts: u64) {
        write_digits(&mut request[self.seq..self.seq + SEQ_DIGITS], seq);
        write_digits(&mut request[self.ts..self.ts + TS_DIGITS], ts);
    }
}

/// Part of a queue's or a key's name that is each message's own; its digits change.
pub(crate) const OWN: &str = "own-0000000000";

/// Where the digits of own names stand in a request.
pub(crate) fn own_names(text: &str) -> Vec<usize> {
    text.match_indices(OWN).map(|(at, _)| at + OWN.len() - SEQ_DIGITS).collect()
}

pub(crate) fn write_own_name(request: &mut [u8], at: usize, number: u64) {
    write_digits(&mut request[at..at + SEQ_DIGITS], number);
}

fn write_digits(place: &mut [u8], mut number: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
    }
}

/// The numbers of a body, or of the one that a callback's body tells about.
pub(crate) fn read(body: &[u8]) -> Option<(u64, u64)> {
    if let Some(numbers) = read_plain(body) {
        return Some(numbers);
    }
    let key = br#""sourceBody":""#;
    let at = body.windows(key.len()).position(|window| window == key)? + key.len();
    let mut source = [0; READ];
    STANDARD.decode_slice(body.get(at..at + READ / 3 * 4)?, &mut source).ok()?;
    read_plain(&source)
}

fn read_plain(body: &[u8]) -> Option<(u64, u64)> {
    if !body.starts_with(br#"{"seq":""#) {
        return None;
    }
    Some((digits(body.get(SEQ..SEQ + SEQ_DIGITS)?)?, digits(body.get(TS..READ)?)?))
}

fn digits(text: &[u8]) -> Option<u64> {
    text.iter()
        .try_fold(0, |number, digit| digit.is_ascii_digit().then(|| number * 10 + u64::from(digit - b'0')))
}
