//! The delivered log: a JSON array of entries, as JavaScript's `JSON.stringify` would write it, since handlers behind a
//! body parser write it anew before they verify the signature.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::super::id::MessageId;
use super::Entry;

/// A run's log from its beginning, as far as it is known.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// The entries' JSON texts with commas between them.
    text: String,
    /// Where each entry's text ends, and the message that came with it.
    ends: Vec<(usize, MessageId)>,
    payload: Bytes,
}

impl Log {
    /// Appends the next entries; those that are there already are passed over.
    pub fn extend(&mut self, entries: impl IntoIterator<Item = Entry>) {
        for entry in entries {
            if entry.position as usize != self.ends.len() {
                continue;
            }
            if self.ends.is_empty() {
                self.payload = entry.body.clone();
            } else {
                self.text.push(',');
            }
            write_entry(&mut self.text, &entry);
            self.ends.push((self.text.len(), entry.message));
        }
    }

    /// How many entries are known.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether no entry is known.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes that it takes in memory, roughly.
    pub fn size(&self) -> usize {
        256 + self.text.len() + self.payload.len() + self.ends.len() * 80
    }

    /// Entry 0.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The body of the delivery that a message's entry causes: all entries up to its own; `None`: that is not known.
    pub fn up_to(&self, message: &MessageId) -> Option<Bytes> {
        let (end, _) = self.ends.iter().rev().find(|(_, id)| id == message)?;
        Some(self.cut(*end))
    }

    /// The body that shows all entries.
    pub fn whole(&self) -> Bytes {
        self.cut(self.text.len())
    }

    /// The body that shows the payload alone; `None`: that is not known.
    pub fn first(&self) -> Option<Bytes> {
        self.ends.first().map(|(end, _)| self.cut(*end))
    }

    fn cut(&self, end: usize) -> Bytes {
        let mut body = String::with_capacity(end + 2);
        body.push('[');
        body.push_str(&self.text[..end]);
        body.push(']');
        body.into()
    }
}

/// Writes an entry. Ids and words of the protocol need no escaping.
fn write_entry(text: &mut String, Entry { message, call_type, body, .. }: &Entry) {
    text.push_str("{\"messageId\":\"");
    text.push_str(message.as_str());
    text.push_str("\",\"body\":\"");
    STANDARD.encode_string(body, text);
    text.push_str("\",\"callType\":\"");
    text.push_str(call_type.as_str());
    text.push_str("\"}");
}

/// Bytes of an entry in the delivered log.
pub fn entry_size(body: usize) -> usize {
    body.div_ceil(3) * 4 + 80
}

#[cfg(test)]
mod tests {
    use super::super::super::time::Timestamp;
    use super::super::CallType;
    use super::*;

    fn entry(position: u32, id: &str, body: &'static str) -> Entry {
        Entry {
            position,
            message: MessageId::new(id),
            call_type: CallType::Step,
            key: None,
            body: Bytes::from_static(body.as_bytes()),
            created_at: Timestamp::default(),
        }
    }

    #[test]
    fn a_delivery_shows_the_log_up_to_its_own_entry() {
        let mut log = Log::default();
        log.extend([entry(0, "msg_a0", r#"{"order":7}"#), entry(1, "msg_a1", "")]);
        let first = r#"{"messageId":"msg_a0","body":"eyJvcmRlciI6N30=","callType":"step"}"#;
        let second = r#"{"messageId":"msg_a1","body":"","callType":"step"}"#;
        assert_eq!(log.up_to(&MessageId::new("msg_a0")).unwrap(), format!("[{first}]"));
        assert_eq!(log.up_to(&MessageId::new("msg_a1")).unwrap(), format!("[{first},{second}]"));
        assert_eq!(log.up_to(&MessageId::new("msg_a2")), None);
        // Read twice, and read beyond a gap.
        log.extend([entry(1, "msg_a1", ""), entry(3, "msg_a3", "")]);
        assert_eq!((log.len(), log.whole()), (2, Bytes::from(format!("[{first},{second}]"))));
        assert_eq!(log.payload(), &Bytes::from_static(br#"{"order":7}"#));
    }
}
