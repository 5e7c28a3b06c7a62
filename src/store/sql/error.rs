//! The drivers' errors as the store's: whether trying again may help, and what is wrong with the database, in words.

use sqlx::migrate::MigrateError;

use crate::store::StoreError;

impl StoreError {
    /// The trouble with the database, in words; `None` where the trouble is the statement's own, or a passing conflict.
    pub(crate) fn trouble(&self) -> Option<&'static str> {
        match self {
            Self::Deadline(_) => Some(SLOW),
            Self::Closed => Some("the task that writes has ended"),
            Self::Unavailable(source) | Self::Refused(source) => match source.downcast_ref()? {
                sqlx::Error::Database(error) => error.code().and_then(|code| trouble_by_code(&code)),
                sqlx::Error::PoolTimedOut => Some("it can't be reached, or all connections to it are busy"),
                sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) => {
                    Some("it can't be reached")
                }
                sqlx::Error::WorkerCrashed => Some("its connection's thread has failed"),
                _ => None,
            },
            _ => None,
        }
    }
}

const SLOW: &str = "it does not answer in time";

/// The trouble with the database that a code of PostgreSQL (appendix A) or SQLite tells of.
fn trouble_by_code(code: &str) -> Option<&'static str> {
    if code.len() == 5 && code.is_ascii() {
        return match (code, &code[..2]) {
            ("53100", _) => Some("its disk is full"),
            ("53300", _) => Some("it has no connection to give"),
            ("25006", _) => Some("it takes no writes"),
            ("55P03", _) => Some("somebody else has locked it"),
            ("57014", _) => Some(SLOW),
            ("42501" | "42P01", _) | (_, "28" | "3D" | "3F") => Some("its tables can't be used"),
            (_, "08") => Some("it can't be reached"),
            (_, "53") => Some("it has not enough of what it needs"),
            (_, "57") => Some("it is starting or stopping"),
            (_, "58") => Some("its disk fails"),
            (_, "XX") => Some("it is damaged, or has failed"),
            _ => None,
        };
    }
    match code.parse::<i32>().ok()? & 0xff {
        5 | 6 => Some("another program has locked it"),
        7 => Some("there is not enough memory"),
        8 => Some("its file takes no writes"),
        10 => Some("its disk fails"),
        11 | 26 => Some("its file is damaged"),
        13 => Some("its disk is full"),
        14 => Some("its file can't be opened"),
        _ => None,
    }
}

impl From<MigrateError> for StoreError {
    fn from(error: MigrateError) -> Self {
        Self::Migrate(error.into())
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(database) => match database.code().as_deref() {
                // Serialization failures, deadlocks, shutdown, too many connections, timeouts, read-only after a
                // failover, disk full (PostgreSQL, appendix A); SQLITE_BUSY, _LOCKED, _NOMEM, _READONLY, _IOERR, _FULL,
                // _CANTOPEN and their extensions.
                Some(code) if is_transient_code(code) => Self::Unavailable(error.into()),
                _ => Self::Refused(error.into()),
            },
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => Self::Unavailable(error.into()),
            // A value that can't be encoded, decoded or found now can't be the next time.
            _ => Self::Refused(error.into()),
        }
    }
}

fn is_transient_code(code: &str) -> bool {
    if code.len() == 5 && code.is_ascii() {
        return matches!(&code[..2], "08" | "40" | "53" | "57" | "58") || code == "25006" || code == "55P03";
    }
    code.parse::<i32>().is_ok_and(|code| matches!(code & 0xff, 5..=8 | 10 | 13 | 14))
}
