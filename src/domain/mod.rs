//! What a message is and what may happen to it.
//!
//! Nothing here does I/O, awaits, reads a clock or knows SQL or HTTP servers, so every rule is tested with a table.
//! [`message`] has the words; [`outcome`] turns what an attempt came to into the message's next state, with [`retry`]
//! for when to try again and [`callback`] for whom to tell.

pub mod callback;
pub mod cron;
pub mod deduplication;
pub mod destination;
pub mod duration;
pub mod excerpt;
pub mod filter;
pub mod gate;
pub mod id;
pub mod message;
pub mod outcome;
pub mod publish;
pub mod redact;
pub mod retry;
pub mod retry_delay;
pub mod run;
pub mod signature;
pub mod template;
pub mod time;
pub mod url_group;
