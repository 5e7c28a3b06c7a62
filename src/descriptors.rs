//! File descriptors: how many the process may have open, and who may have how many of them.
//!
//! Connections of strangers must not take those that deliveries and the database need: whoever can't get one fails. So the
//! soft limit is raised to the hard one at the start, and where that isn't enough for what the settings allow, these are
//! lowered.

use std::fs;

use rustix::process::{Resource, Rlimit, setrlimit};

use crate::config::{Config, ConfigError, DatabaseUrl};
use crate::engine::hot_connections;
use crate::listener::lobby;

/// Standard streams, timers, signals, the listening socket, look-ups of names, files that are read, and some to spare.
const OWN: u64 = 64;
/// SQLite's writer, its readers and helpers, with up to three files each.
const SQLITE: u64 = 36;
/// Postgres connections beside those that the settings count.
const POSTGRES: u64 = 6;
/// For so many attempts one connection more than each has: a second one that is dialled beside the first, or unused ones
/// in the pool, which are closed where descriptors get short.
const SPARE: u64 = 16;
/// A server needs as many for its clients and its attempts.
const LEAST: u64 = 32;

/// How many of what there may be.
#[derive(PartialEq, Eq, Debug)]
struct Allowance {
    connections: usize,
    concurrency: usize,
}

/// Raises the limit on open files as far as it goes, and lowers the settings to what it allows. Fails if it is too low for a
/// server of any size.
pub(crate) fn prepare(mut config: Config) -> Result<Config, ConfigError> {
    let Some(limit) = raised() else {
        tracing::warn!("the limit on open files is not known; it should allow {}", needed(&config));
        return Ok(config);
    };
    let Some(allowance) = allowance(&config, limit) else {
        return Err(ConfigError::OpenFiles { limit, least: base(&config) + LEAST });
    };
    let far_off =
        allowance.connections < config.max_connections / 2 || allowance.concurrency < config.concurrency / 2;
    if far_off {
        tracing::warn!(
            limit,
            needed = needed(&config),
            max_connections = allowance.connections,
            concurrency = allowance.concurrency,
            "the limit on open files is too low for max_connections = {} and concurrency = {}, which are lowered; raise it \
             (LimitNOFILE= of systemd, ulimits.nofile of Docker Compose, --ulimit nofile=, ulimit -n) or lower them",
            config.max_connections,
            config.concurrency,
        );
    } else if (allowance.connections, allowance.concurrency) != (config.max_connections, config.concurrency) {
        tracing::info!(
            limit,
            max_connections = allowance.connections,
            concurrency = allowance.concurrency,
            "the limit on open files allows somewhat less than the settings do"
        );
    }
    config.max_connections = allowance.connections;
    config.concurrency = allowance.concurrency;
    config.concurrency_per_origin = config.concurrency_per_origin.min(allowance.concurrency);
    Ok(config)
}

/// What the server and its database need.
fn base(config: &Config) -> u64 {
    let database = match config.database_url {
        DatabaseUrl::Sqlite(_) => SQLITE,
        DatabaseUrl::Postgres(_) => {
            u64::from(config.postgres_connections) + hot_connections(config.writers) as u64 + POSTGRES
        }
    };
    OWN + database
}

/// What all that the settings allow needs.
fn needed(config: &Config) -> u64 {
    base(config) + clients(config.max_connections) + attempts(config.concurrency)
}

/// What so many attempts at once need.
fn attempts(concurrency: usize) -> u64 {
    let concurrency = concurrency as u64;
    concurrency + concurrency.div_ceil(SPARE)
}

/// What so many connections need, with the lobby.
fn clients(connections: usize) -> u64 {
    (connections + lobby(connections)) as u64
}

/// What may be open within that limit: attempts get up to half of what there is, clients the rest. `None` if there is next
/// to nothing.
fn allowance(config: &Config, limit: u64) -> Option<Allowance> {
    let left = limit.checked_sub(base(config)).filter(|left| *left >= LEAST)?;
    if limit >= needed(config) {
        return Some(Allowance { connections: config.max_connections, concurrency: config.concurrency });
    }
    let spared = left.saturating_sub(clients(config.max_connections));
    let most = spared.max(left / 2) * SPARE / (SPARE + 1);
    let concurrency = config.concurrency.min(usize::try_from(most).unwrap_or(usize::MAX));
    let left = usize::try_from(left - attempts(concurrency)).unwrap_or(usize::MAX);
    // The most that fit in together with their lobby.
    let connections = left.saturating_sub(128).max((left / 5 * 4).min(left.saturating_sub(8)));
    Some(Allowance { connections: connections.min(config.max_connections), concurrency })
}

/// The limit after it was raised; `None` if it can't be seen.
fn raised() -> Option<u64> {
    // Not getrlimit(2): a filter of system calls may forbid its kind.
    let (soft, hard) = read(&fs::read_to_string("/proc/self/limits").ok()?)?;
    if soft == hard {
        return Some(soft);
    }
    let limit = Rlimit { current: Some(hard), maximum: Some(hard) };
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => Some(hard),
        Err(error) => {
            tracing::warn!(%error, soft, hard, "the limit on open files can't be raised");
            Some(soft)
        }
    }
}

/// Soft and hard limit, from the text of /proc/self/limits.
fn read(limits: &str) -> Option<(u64, u64)> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let mut values = line.split_whitespace().map(|text| match text {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    });
    Some((values.next()??, values.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max processes             127444               127444               processes \n\
                    Max open files            1024                 524288               files     \n";
        assert_eq!(read(text), Some((1024, 524_288)));
        assert_eq!(
            read("Max open files            unlimited            unlimited            files"),
            Some((u64::MAX, u64::MAX))
        );
        assert_eq!(read("nothing"), None);
        let own = read(&fs::read_to_string("/proc/self/limits").unwrap()).unwrap();
        assert!(own.0 <= own.1, "{own:?}");
    }

    #[test]
    fn settings_are_lowered_to_what_the_limit_allows() {
        #[track_caller]
        fn check(limit: u64, expected: Option<(usize, usize)>) {
            let config = Config::default();
            let allowance = allowance(&config, limit);
            assert_eq!(allowance.as_ref().map(|a| (a.connections, a.concurrency)), expected, "{limit}");
            if let Some(a) = allowance {
                let used = base(&config) + clients(a.connections) + attempts(a.concurrency);
                assert!(used <= limit, "{used} of {limit}");
            }
        }
        check(1_000_000, Some((10_000, 8192)));
        check(18_932, Some((10_000, 8192)));
        check(18_931, Some((9999, 8192)));
        check(11_252, Some((5448, 5248)));
        check(4096, Some((1870, 1880)));
        check(1024, Some((368, 434)));
        check(256, Some((60, 73)));
        check(132, Some((8, 15)));
        check(131, None);
    }
}
