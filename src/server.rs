//! The composition root: opens the store, starts engine and API, and drains them on stop.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::api::auth::{Role, Tokens, sha256};
use crate::api::{self, Api, headers};
use crate::chance::Chance;
use crate::clock::Clock;
use crate::config::{self, Config, DatabaseUrl, Secret};
use crate::descriptors;
use crate::domain::time::Timestamp;
use crate::egress::client::{self, Client};
use crate::engine::keys::{self, Keys};
use crate::engine::{self, Engine, LlmAccess, World};
use crate::listener::{self, Listener};
use crate::operations::{self, Operations};
use crate::store::sql::{self, SqlStore};
use crate::store::url_groups::UrlGroupLimits;
use crate::store::{Retention, SigningKeyPair, Store, StoredKeys};
use crate::tasks::Tasks;

/// How long what is written to stdout may take.
const STDOUT: Duration = Duration::from_secs(1);

/// Runs the server until it is told to stop by SIGTERM or SIGINT; a second signal ends it at once.
pub async fn run(config: Config) -> anyhow::Result<()> {
    // From here on a signal is ours, also while starting.
    let mut signals = Signals::new()?;
    let config = descriptors::prepare(config)?;
    let Running { engine, listener, store } = tokio::select! {
        biased;
        running = start(&config) => running?,
        () = signals.next() => return Ok(()),
    };
    let failure = engine.failure();
    let failed = tokio::select! {
        biased;
        () = signals.next() => false,
        () = failure.wait() => true,
    };
    tracing::info!("stopping: finishing what is in flight");
    let drain = async {
        engine.drain().await;
        listener.stop().await;
        engine.stop(config.shutdown_grace.get()).await;
        store.close().await;
    };
    tokio::select! {
        biased;
        () = drain => tracing::info!("stopped"),
        () = signals.next() => {
            tracing::warn!("stopped at once by a second signal; what was in flight will be repeated");
        }
    }
    anyhow::ensure!(!failed, "a task of the server failed; the log has the cause");
    Ok(())
}

/// The parts of a started server.
struct Running {
    engine: Arc<Engine>,
    listener: Listener,
    store: Arc<dyn Store>,
}

async fn start(config: &Config) -> anyhow::Result<Running> {
    for setting in config.weak_secrets() {
        tracing::warn!(
            setting,
            "a token or key is so short that it could be guessed; `openssl rand -hex 32` makes one"
        );
    }
    let policy = Arc::new(config.egress_policy()?);
    let (clock, chance) = (Clock::system(), Chance::system());
    let store = open(config, &clock).await?;
    store.migrate().await?;
    let store: Arc<dyn Store> = Arc::new(store);
    // Before a token is made: one that is made and then not shown would be lost.
    let socket = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("can't listen on {}", config.listen))?;
    let address = socket.local_addr()?;
    let keys = signing_keys(config, &*store, clock.now(), &chance).await?;
    let (tokens, token) = tokens(config, &*store, clock.now(), &chance).await?;
    let client = Client::new(&client::Settings {
        policy: Arc::clone(&policy),
        connect_timeout: config.connect_timeout.get(),
        idle_per_origin: config.concurrency_per_origin,
        max_response: config.max_response_size.get(),
        max_response_memory: config.prefetch_bytes.get(),
        extra_ca: config.extra_ca_file.as_deref(),
        failure: &store.failure(),
    })?;
    let settings = engine_settings(config, address)?;
    let tasks = Tasks::new(store.failure());
    let world = World { clock, chance, destinations: Arc::new(client), tasks, observer: None };
    let engine = Arc::new(Engine::start(settings, Arc::clone(&store), keys, world).await?);
    let operations = Operations::new(operations_settings(config), policy, Arc::clone(&engine));
    let api = Api::new(api_settings(config)?, tokens, Arc::new(operations));
    let settings = listener::Settings {
        max_connections: config.max_connections,
        idle_timeout: config.idle_timeout.get(),
        body_timeout: config.body_timeout.get(),
        stall_timeout: config.stall_timeout.get(),
    };
    let listener = Listener::start(socket, Arc::new(api), settings, &engine.failure());
    announce(config, address, token.as_deref()).await?;
    Ok(Running { engine, listener, store })
}

/// Brings the database's schema up to date and returns.
pub async fn migrate(config: Config) -> anyhow::Result<()> {
    let store = open(&config, &Clock::system()).await?;
    store.migrate().await?;
    store.close().await;
    print(format!("{} is up to date.\n", config.database_url)).await;
    Ok(())
}

/// How often the database is tried at the start, each time for 5 s: it may be starting itself, on a machine that is busy with
/// both.
const OPENED: u32 = 4;

async fn open(config: &Config, clock: &Clock) -> anyhow::Result<SqlStore> {
    let hot = u32::try_from(engine::hot_connections(config.writers)).unwrap_or(u32::MAX);
    let options = sql::Options {
        database: match &config.database_url {
            DatabaseUrl::Sqlite(path) => sql::Database::Sqlite(path.clone()),
            DatabaseUrl::Postgres(url) => sql::Database::Postgres(url.clone()),
        },
        connections: config.postgres_connections,
        hot_connections: hot,
        max_queues: config.max_queues,
    };
    let mut tries = 1;
    loop {
        match SqlStore::connect(&options, clock.clone()).await {
            Err(error) if error.is_transient() && tries < OPENED => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the database does not answer yet; trying again"
                );
                tries += 1;
            }
            opened => {
                return opened.with_context(|| format!("can't open the database {}", config.database_url));
            }
        }
    }
}

/// The signing keys: the configured ones, or what rotations have made of them since; without configured ones the stored
/// ones, made at the first start. Development's keys, which everybody knows, don't outlive development.
async fn signing_keys(
    config: &Config,
    store: &dyn Store,
    now: Timestamp,
    chance: &Chance,
) -> anyhow::Result<Keys> {
    let hash = |pair: &SigningKeyPair| sha256(&format!("{} {}", pair.current, pair.next));
    let configured =
        config.current_signing_key.as_ref().zip(config.next_signing_key.as_ref()).map(|(current, next)| {
            let pair =
                SigningKeyPair { current: current.expose().to_owned(), next: next.expose().to_owned() };
            StoredKeys { configured: Some(hash(&pair)), pair }
        });
    let wanted = configured.clone().unwrap_or_else(|| keys::fresh_pair(chance));
    let stored = store.signing_keys(&wanted, now).await?;
    let dev = SigningKeyPair {
        current: config::DEV_CURRENT_SIGNING_KEY.to_owned(),
        next: config::DEV_NEXT_SIGNING_KEY.to_owned(),
    };
    let replace = match &configured {
        Some(configured) => stored.configured != configured.configured,
        None => stored.configured == Some(hash(&dev)),
    };
    if !replace {
        return Ok(Keys::new(stored.pair));
    }
    tracing::warn!("the stored signing keys are replaced: receivers must learn of the new ones");
    store.set_signing_keys(&wanted, now).await?;
    Ok(Keys::new(wanted.pair))
}

/// The accepted tokens, and the one to show: the one that was made now, or development's.
async fn tokens(
    config: &Config,
    store: &dyn Store,
    now: Timestamp,
    chance: &Chance,
) -> anyhow::Result<(Tokens, Option<String>)> {
    let mut tokens = Tokens::default();
    for token in &config.read_only_tokens {
        tokens.add(sha256(token.expose()), Role::ReadOnly);
    }
    if let Some(token) = &config.token {
        tokens.add(sha256(token.expose()), Role::ReadWrite);
        return Ok((tokens, config.dev.then(|| token.expose().to_owned())));
    }
    let fresh = fresh_token(chance);
    let (known, stored) = store.tokens(&sha256(&fresh), now).await?;
    for hash in known {
        tokens.add(hash, Role::ReadWrite);
    }
    Ok((tokens, stored.then_some(fresh)))
}

/// A token in upstream's shape, from which an SDK reads the user's id.
fn fresh_token(chance: &Chance) -> String {
    let password = Secret::new(keys::fresh(chance).trim_start_matches("sig_"));
    let user = format!("homing-{:08x}", chance.random::<u32>());
    STANDARD.encode(format!(r#"{{"UserID":"{user}","Password":"{}"}}"#, password.expose()))
}

fn engine_settings(config: &Config, address: SocketAddr) -> anyhow::Result<engine::Settings> {
    let sqlite = matches!(config.database_url, DatabaseUrl::Sqlite(_));
    let mut named = config.clone();
    named.listen = address;
    Ok(engine::Settings {
        node_name: named.node_name(),
        concurrency: config.concurrency,
        concurrency_per_origin: config.concurrency_per_origin,
        prefetch: config.prefetch,
        prefetch_bytes: config.prefetch_bytes.get(),
        writers: if sqlite { 1 } else { config.writers },
        max_timeout: config.max_timeout.get(),
        max_response: config.max_response_size.get(),
        lazy_log_bytes: config.max_pushed_log_size.get(),
        llm: llm_access(config)?,
        retention: Retention { log: config.log_retention.get(), dead_letters: config.dlq_retention.get() },
    })
}

/// Whom the API key of the language model is for.
fn llm_access(config: &Config) -> anyhow::Result<Option<LlmAccess>> {
    let Some((url, key)) = config.llm_endpoint().zip(config.llm_api_key.as_ref()) else { return Ok(None) };
    let mut authorization = HeaderValue::try_from(format!("Bearer {}", key.expose()))?;
    authorization.set_sensitive(true);
    Ok(Some(LlmAccess { url, authorization }))
}

fn api_settings(config: &Config) -> anyhow::Result<api::Settings> {
    Ok(api::Settings {
        headers: headers::Limits {
            default_retries: config.default_retries,
            max_retries: config.max_retries,
            max_delay: config.max_delay.map(crate::config::TimeSpan::get),
            max_flow_control_key: config.max_flow_control_key,
            max_flow_control_period: config.max_flow_control_period.get(),
        },
        max_message: config.max_message_size.get(),
        max_batch: config.max_batch_size.get(),
        body_timeout: config.body_timeout.get(),
        stall_timeout: config.stall_timeout.get(),
        max_answer_memory: config.max_inflight_response_bytes.get(),
        trusted_proxies: config.trusted_networks().map_err(anyhow::Error::msg)?,
        max_requests_per_second: config.max_requests_per_second,
        public_url: config.public_url.clone(),
    })
}

fn operations_settings(config: &Config) -> operations::Settings {
    operations::Settings {
        max_batch: config.max_batch_size.get(),
        max_request_memory: config.max_inflight_request_bytes.get(),
        deduplication_window: config.dedup_window.get(),
        max_schedules: config.max_schedules,
        max_messages_per_day: config.max_messages_per_day,
        llm_url: config.llm_endpoint(),
        url_groups: UrlGroupLimits {
            groups: config.max_url_groups,
            endpoints: config.max_endpoints_per_group,
        },
        max_queues: config.max_queues,
        max_queue_parallelism: config.max_queue_parallelism,
        max_flow_control_key: config.max_flow_control_key,
    }
}

/// Tells on stdout where the server is, where its data is, and, at the first start, how to use it.
async fn announce(config: &Config, address: SocketAddr, token: Option<&str>) -> anyhow::Result<()> {
    let mut local = config.clone();
    local.listen = address;
    let url = config.public_url.clone().unwrap_or_else(|| format!("http://{}", local.local_addr()));
    let mut text = format!("Homing {} is listening on http://{address}\n", env!("CARGO_PKG_VERSION"));
    let data = match &config.database_url {
        DatabaseUrl::Sqlite(path) => match std::path::absolute(path) {
            Ok(path) => path.display().to_string(),
            Err(_) => path.display().to_string(),
        },
        url @ DatabaseUrl::Postgres(_) => url.to_string(),
    };
    writeln!(text, "Its data is in {data}")?;
    match token {
        Some(token) => {
            let kept = if config.dev {
                "development mode: everybody knows this token"
            } else {
                "shown only now; only its hash is kept"
            };
            write!(
                text,
                "\n  QSTASH_URL={url}\n  QSTASH_TOKEN={token}   ({kept})\n\nTry it:\n\n  curl -X POST -H 'Authorization: Bearer {token}' \\\n    -H 'Content-Type: application/json' -d '{{\"hello\":\"world\"}}' \\\n    {url}/v2/publish/https://example.com\n\n"
            )?;
        }
        None if config.token.is_none() => {
            text.push_str("Its token was shown at the first start; HOMING_TOKEN sets one of your own.\n");
        }
        None => {}
    }
    print(text).await;
    Ok(())
}

/// Writes to stdout, whose reader may be gone or not reading: neither keeps the server from its work.
async fn print(text: String) {
    let write = tokio::task::spawn_blocking(move || {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    });
    let error = match tokio::time::timeout(STDOUT, write).await {
        Ok(Ok(Ok(()))) => return,
        Ok(Ok(Err(error))) => error.to_string(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "nobody reads it".to_owned(),
    };
    tracing::warn!(
        error,
        "what belongs on standard output could not be written; if the first token was there, HOMING_TOKEN sets another"
    );
}

/// The signals that stop the server.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
