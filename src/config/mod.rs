//! Every setting, read once at the start and checked once.
//!
//! The struct is the only place where a setting is described: `config.example.toml`, the environment variables' names
//! and `homing config` are derived from it. After [`load`] nothing reads a file or a variable again, and what
//! [`load`] returned is consistent. How the layers meet is in `layers`, the types of the values in `values`.

mod layers;
mod print;
mod values;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use confique::{Config as _, Layer as _};
use ipnet::IpNet;
use serde::Serialize;

pub use self::layers::{ConfigError, Loaded, Origin, Sources, load};
pub use self::print::example_toml;
pub use self::values::{ByteSize, DatabaseUrl, LogFormat, LogLevel, Secret, TimeSpan};
use crate::egress::policy::{Mode, Policy, PolicyError};

/// The API token of development mode: user 1 of the official development server, public by design.
const DEV_TOKEN: &str = "eyJVc2VySUQiOiJkZWZhdWx0VXNlciIsIlBhc3N3b3JkIjoiZGVmYXVsdFBhc3N3b3JkIn0=";
/// The current signing key that belongs to [`DEV_TOKEN`].
pub(crate) const DEV_CURRENT_SIGNING_KEY: &str = "sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r";
/// The next signing key that belongs to [`DEV_TOKEN`].
pub(crate) const DEV_NEXT_SIGNING_KEY: &str = "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs";

/// Settings of Homing, each with its default.
///
/// Nothing here has to be set. Each setting is also the environment variable
/// HOMING_ and its name in capitals (HOMING_MAX_RETRIES); with _FILE added
/// (HOMING_TOKEN_FILE) the value is read from that file. A list in a variable
/// is separated by commas, and an empty variable counts as not set. A flag beats
/// a variable, a variable beats this file. `homing config` shows what is in effect.
///
/// Durations are written 30s, 10m, 2h, 7d or 1h30m; a bare number is seconds.
/// Sizes are written 512KiB, 10MiB, 1GB; a bare number is bytes.
#[derive(Debug, Clone, confique::Config, Serialize)]
#[expect(
    clippy::doc_markdown,
    reason = "the text is also the head of config.example.toml, where backticks are noise"
)]
pub struct Config {
    // Who we are and who may call.
    /// Address and port to listen on. 0.0.0.0:8080 is every IPv4 interface,
    /// `[::]:8080` every interface. Flag --listen.
    #[config(default = "127.0.0.1:8080", deserialize_with = values::listen)]
    pub listen: SocketAddr,

    /// What clients call this server when it is behind a proxy, such as
    /// `https://queue.example.com`. Not set: the address that is listened on.
    /// Flag --public-url.
    #[config(deserialize_with = values::base_url)]
    pub public_url: Option<String>,

    /// Addresses and networks of the proxies in front (10.0.0.5, 172.16.0.0/12), whose
    /// X-Forwarded-For (or, without one, Forwarded) is believed: it tells the publisher's
    /// address that messages carry. Anybody else's is ignored.
    #[config(default = [])]
    pub trusted_proxies: Vec<String>,

    /// Name of this server among those that share a database, at most 200
    /// characters. Not set: host name and port.
    #[config(deserialize_with = values::node_name)]
    pub node_name: Option<String>,

    /// The API token, for reading and writing. Not set: one is made at the first
    /// start, shown once and kept in the database. Flag --token, though arguments
    /// are visible to every user of the machine; prefer HOMING_TOKEN_FILE.
    pub token: Option<Secret>,

    /// Tokens that may read but not change anything. `token` may not be among them.
    #[config(default = [])]
    pub read_only_tokens: Vec<Secret>,

    /// The key that requests are signed with, and the one that will follow it.
    /// Set both or none. Not set: made at the first start and kept in the database.
    pub current_signing_key: Option<Secret>,

    /// See current_signing_key.
    pub next_signing_key: Option<Secret>,

    /// Development mode: the token and signing keys that the official development
    /// server uses, which everybody knows. Refused beside a `token`, and unless
    /// `listen` is a loopback address. Flag --dev.
    #[config(default = false)]
    pub dev: bool,

    /// Allows development mode on an address that others can reach. Flag --dev-force.
    #[config(default = false)]
    pub dev_force: bool,

    // Where the data is.
    /// Directory for the database file, unless database_url says otherwise.
    #[config(default = "data")]
    pub data_dir: PathBuf,

    /// sqlite://PATH (relative, or absolute as sqlite:///var/lib/homing.db) or
    /// postgres://USER:PASSWORD@HOST/DATABASE. The default is homing.db in data_dir.
    /// Flag --database-url.
    #[config(default = "sqlite://data/homing.db")]
    pub database_url: DatabaseUrl,

    /// Postgres connections for searches and the other calls beside the hot ones,
    /// half of them for each, and at least 1. 1 to 1000. SQLite ignores it.
    #[config(default = 10, validate((1..=1000).contains(postgres_connections), "allowed: 1 to 1000"))]
    pub postgres_connections: u32,

    /// Batches of accepted messages that are written to Postgres at once (up to four times
    /// as many while full ones wait or one takes more than 1 ms), and as many of finished
    /// ones. Few at a time make the largest batches, which is fastest. 1 to 64. SQLite has
    /// one writer.
    #[config(default = 1, validate((1..=64).contains(writers), "allowed: 1 to 64"))]
    pub writers: usize,

    /// How long a finished message and its attempts can be read. 1m to 3650d.
    #[config(default = "7d", validate(log_retention.is_within(60, 3650 * DAY), "allowed: 1m to 3650d"))]
    pub log_retention: TimeSpan,

    /// How long a dead letter is kept. 1m to 3650d.
    #[config(default = "30d", validate(dlq_retention.is_within(60, 3650 * DAY), "allowed: 1m to 3650d"))]
    pub dlq_retention: TimeSpan,

    // What is logged.
    /// error, warn, info, debug or trace. RUST_LOG, when set, wins. Flag --log-level.
    #[config(default = "info")]
    pub log_level: LogLevel,

    /// text or json.
    #[config(default = "text")]
    pub log_format: LogFormat,

    // Where messages may go.
    /// private: public addresses and private networks (loopback, RFC 1918,
    /// unique-local, carrier-grade NAT). public: public addresses only. Neither
    /// allows link-local, cloud metadata, multicast or reserved addresses. Flag --egress.
    #[config(default = "private")]
    pub egress: Mode,

    /// Addresses (10.1.2.3), networks (10.0.0.0/8) and host names (hooks.internal,
    /// *.internal) that are allowed whatever `egress` says. An allowed host name may
    /// resolve to any address. Letters beyond ASCII (münchen.example) mean the same as
    /// their xn-- form, here and in egress_deny.
    #[config(default = [])]
    pub egress_allow: Vec<String>,

    /// Addresses, networks and host names that are refused, even if egress_allow has
    /// them too.
    #[config(default = [])]
    pub egress_deny: Vec<String>,

    /// PEM file with certificates to trust beside the system's: of authorities, or of
    /// destinations themselves.
    pub extra_ca_file: Option<PathBuf>,

    /// Where messages to api/llm go: the base URL of a service that is compatible with
    /// OpenAI's, such as `https://api.openai.com/v1`; they are sent to
    /// /chat/completions there. The same on all nodes. Not set: api/llm is refused.
    #[config(deserialize_with = values::base_url)]
    pub llm_url: Option<String>,

    /// The service's API key, sent to it as a bearer token unless a message forwards an
    /// Authorization of its own. Messages, logs and callbacks don't show it.
    pub llm_api_key: Option<Secret>,

    // How much a request and its message may hold.
    /// Largest body of a message. 1KiB to 1GiB.
    #[config(default = "10MiB", validate(max_message_size.is_within(KIB, GIB), "allowed: 1KiB to 1GiB"))]
    pub max_message_size: ByteSize,

    /// Largest body of a batch request, and the most that the messages of one request
    /// may hold together. 1KiB to 4GiB, not below max_message_size.
    #[config(default = "100MiB", validate(max_batch_size.is_within(KIB, 4 * GIB), "allowed: 1KiB to 4GiB"))]
    pub max_batch_size: ByteSize,

    /// How much of a destination's response is kept and given to callbacks; the rest
    /// is discarded. 0 to 1GiB.
    #[config(default = "10MiB", validate(max_response_size.is_within(0, GIB), "allowed: 0 to 1GiB"))]
    pub max_response_size: ByteSize,

    /// Size of a workflow run's log from which on an endpoint that can ask for it (the
    /// TypeScript SDK) gets its deliveries without it. 0 to 1GiB.
    #[config(default = "3MiB", validate(max_pushed_log_size.is_within(0, GIB), "allowed: 0 to 1GiB"))]
    pub max_pushed_log_size: ByteSize,

    /// Request bodies above 64 KiB in memory at once, all callers together; whoever
    /// exceeds it waits, and after 10 s gets 503. Not below max_batch_size.
    #[config(
        default = "256MiB",
        validate(max_inflight_request_bytes.is_within(KIB, 1024 * GIB), "allowed: 1KiB to 1024GiB")
    )]
    pub max_inflight_request_bytes: ByteSize,

    /// Answers above 8 KiB in memory at once, all callers together; whoever exceeds it
    /// waits, and after 10 s gets 503. One that is larger than this is alone.
    /// 1MiB to 1024GiB.
    #[config(
        default = "64MiB",
        validate(max_inflight_response_bytes.is_within(1024 * KIB, 1024 * GIB), "allowed: 1MiB to 1024GiB")
    )]
    pub max_inflight_response_bytes: ByteSize,

    // What a message may ask for.
    /// Retries of a message that doesn't say how many. 0 to 1000, not above
    /// max_retries, which lowers the default.
    #[config(default = 3, validate(*default_retries <= 1000, "allowed: 0 to 1000"))]
    pub default_retries: u32,

    /// Most retries that a message may ask for. Not set: no limit.
    pub max_retries: Option<u32>,

    /// Longest delay that a message may ask for, at least 1s. Not set: no limit.
    #[config(validate(max_delay.is_within(1, u64::MAX), "allowed: 1s and more"))]
    pub max_delay: Option<TimeSpan>,

    /// Most schedules that may exist. Not set: no limit.
    pub max_schedules: Option<u32>,

    /// Longest flow-control key, in bytes. 1 to 1024.
    #[config(default = 512, validate((1..=1024).contains(max_flow_control_key), "allowed: 1 to 1024"))]
    pub max_flow_control_key: usize,

    /// Most queues. Not set: no limit.
    pub max_queues: Option<u32>,

    /// Highest parallelism of a queue. Not set: no limit.
    pub max_queue_parallelism: Option<u32>,

    /// Time for one attempt, from connecting to the last byte of the response; also
    /// the default. 1s to 24h.
    #[config(default = "2h", validate(max_timeout.is_within(1, DAY), "allowed: 1s to 24h"))]
    pub max_timeout: TimeSpan,

    /// Time to reach a destination, TLS included. 100ms to 5m.
    #[config(
        default = "10s",
        validate(connect_timeout.is_within_ms(100, 300_000), "allowed: 100ms to 5m")
    )]
    pub connect_timeout: TimeSpan,

    /// How long a deduplication id is remembered. 1s to 90d.
    #[config(default = "10m", validate(dedup_window.is_within(1, 90 * DAY), "allowed: 1s to 90d"))]
    pub dedup_window: TimeSpan,

    /// Longest period of a flow-control rate that a message may ask for. 1s to 3650d.
    #[config(
        default = "7d",
        validate(max_flow_control_period.is_within(1, 3650 * DAY), "allowed: 1s to 3650d")
    )]
    pub max_flow_control_period: TimeSpan,

    /// Messages that may be published in a day (UTC), on all servers that share the
    /// database; beyond, 429. Servers reserve a part of them at a time, so some may stay
    /// unused. At least 1. Not set: no limit.
    #[config(validate(*max_messages_per_day >= 1, "allowed: 1 and more"))]
    pub max_messages_per_day: Option<u64>,
    /// Most URL groups there may be. Not set: no limit.
    pub max_url_groups: Option<u32>,

    /// Most endpoints that a URL group may have. 1 to 1000.
    #[config(default = 100, validate((1..=1000).contains(max_endpoints_per_group), "allowed: 1 to 1000"))]
    pub max_endpoints_per_group: usize,

    // How many callers at once, and how slow they may be.
    /// Requests in a second to this server, other than those that publish; beyond, 429.
    /// At least 1. Not set: no limit.
    #[config(validate(*max_requests_per_second >= 1, "allowed: 1 and more"))]
    pub max_requests_per_second: Option<u64>,

    /// Client connections open at once. When all are taken, those close that have been
    /// idle for more than 5 s, and until then only /healthz and /readyz are answered to
    /// others. Fewer if the limit on open files doesn't allow that many: `homing` says so
    /// at its start. 1 to 1000000.
    #[config(default = 10_000, validate((1..=1_000_000).contains(max_connections), "allowed: 1 to 1000000"))]
    pub max_connections: usize,

    /// How long a connection without a request stays open; longer than the proxy
    /// in front keeps its own. 1s to 24h.
    #[config(default = "75s", validate(idle_timeout.is_within(1, DAY), "allowed: 1s to 24h"))]
    pub idle_timeout: TimeSpan,

    /// How long a client may keep the server waiting in the middle of something: in this
    /// time 16 KiB of a request's body must arrive, and 16 KiB of an answer be taken, or
    /// the rest. 1s to 1h.
    #[config(default = "20s", validate(stall_timeout.is_within(1, 3600), "allowed: 1s to 1h"))]
    pub stall_timeout: TimeSpan,

    /// Time for the body of a request to arrive. 1s to 24h.
    #[config(default = "5m", validate(body_timeout.is_within(1, DAY), "allowed: 1s to 24h"))]
    pub body_timeout: TimeSpan,

    // How much is delivered at once.
    /// Attempts that run at once, each a socket and some memory. Destinations that don't
    /// answer keep theirs until `max_timeout`; the last eighth is for origins that have
    /// answered lately. 1 to 100000; not above `prefetch`, which lowers the default.
    #[config(default = 8192, validate((1..=100_000).contains(concurrency), "allowed: 1 to 100000"))]
    pub concurrency: usize,

    /// Attempts at once to one origin (scheme, host, port), so that a slow one can't
    /// take all. 1 to `concurrency`.
    #[config(default = 128, validate((1..=100_000).contains(concurrency_per_origin), "allowed: 1 to 100000"))]
    pub concurrency_per_origin: usize,

    /// Deliveries that this server holds, waiting or running. From `concurrency` to
    /// 1000000.
    #[config(default = 8192, validate((1..=1_000_000).contains(prefetch), "allowed: 1 to 1000000"))]
    pub prefetch: usize,

    /// Memory for the bodies of those deliveries. 64KiB to 1024GiB, not below
    /// max_message_size.
    #[config(
        default = "64MiB",
        validate(prefetch_bytes.is_within(64 * KIB, 1024 * GIB), "allowed: 64KiB to 1024GiB")
    )]
    pub prefetch_bytes: ByteSize,

    /// Time that attempts get to end when the server is told to stop; below the 10s
    /// after which Docker kills it. 0s to 1h.
    #[config(default = "9s", validate(shutdown_grace.is_within(0, 3600), "allowed: 0s to 1h"))]
    pub shutdown_grace: TimeSpan,
}

/// Characters that a random token should have at least: 96 bits in base64.
const MIN_SECRET: usize = 16;
/// Seconds in a day.
const DAY: u64 = 24 * 60 * 60;
const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;

impl Default for Config {
    /// All defaults, as if nothing was set anywhere.
    fn default() -> Self {
        let defaults = <Self as confique::Config>::Layer::default_values();
        Self::from_layer(defaults).expect("every required setting has a default")
    }
}

impl Config {
    /// The address policy of `egress`, `egress_allow` and `egress_deny`. It doesn't fail for a config from [`load`].
    pub fn egress_policy(&self) -> Result<Policy, PolicyError> {
        Policy::new(self.egress, &self.egress_allow, &self.egress_deny)
    }

    /// `trusted_proxies`, read; the entry that is neither an address nor a network in the error. It doesn't fail for a
    /// config from [`load`].
    pub fn trusted_networks(&self) -> Result<Vec<IpNet>, String> {
        let read = |entry: &String| {
            let address = entry.parse::<IpAddr>().map(IpNet::from).ok();
            entry.parse::<IpNet>().ok().or(address).ok_or_else(|| {
                format!("`{entry}` is neither an address nor a network; allowed: 10.0.0.5, 172.16.0.0/12, fd00::/8")
            })
        };
        self.trusted_proxies.iter().map(read).collect()
    }

    /// This server's name: `node_name`, else host name and the port of `listen`.
    pub fn node_name(&self) -> String {
        self.node_name.clone().unwrap_or_else(|| {
            let host = rustix::system::uname();
            format!("{}:{}", host.nodename().to_string_lossy(), self.listen.port())
        })
    }

    /// Names of the tokens and signing keys that are short enough to be guessed.
    pub fn weak_secrets(&self) -> impl Iterator<Item = &'static str> {
        let read_only = self.read_only_tokens.iter().map(|token| ("read_only_tokens", token));
        let others = [
            ("token", &self.token),
            ("current_signing_key", &self.current_signing_key),
            ("next_signing_key", &self.next_signing_key),
        ];
        let others = others.into_iter().filter_map(|(name, secret)| Some((name, secret.as_ref()?)));
        others.chain(read_only).filter(|(_, secret)| secret.expose().len() < MIN_SECRET).map(|(name, _)| name)
    }

    /// Where messages to api/llm go.
    pub fn llm_endpoint(&self) -> Option<String> {
        self.llm_url.as_ref().map(|base| format!("{base}/chat/completions"))
    }

    /// `listen` as an address that a client on this machine can connect to: loopback in place of "any address".
    pub fn local_addr(&self) -> SocketAddr {
        let mut addr = self.listen;
        if addr.ip().is_unspecified() {
            let is_v4 = addr.is_ipv4();
            addr.set_ip(if is_v4 { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
        }
        addr
    }
}

#[cfg(test)]
mod tests;
