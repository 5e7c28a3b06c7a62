//! Arguments, configuration, logging and exit codes; the server is in the library.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use homing::config::{self, Config, ConfigError, LogFormat, LogLevel, Sources};
use homing::logging::{self, Lines};
use homing::store::StoreError;
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `EX_CONFIG` of sysexits.h: restarting won't help, so systemd can be told not to.
const EXIT_CONFIG: u8 = 78;

/// How long `healthcheck` waits for the answer.
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// Self-hosted HTTP message queue, wire-compatible with `QStash`.
#[derive(Debug, Parser)]
#[command(name = "homing", version)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server; this is what happens without a command.
    Serve,
    /// Print the settings in effect and where each comes from.
    Config {
        /// Print a config file with every setting, its documentation and its default instead.
        #[arg(long)]
        example: bool,
    },
    /// Bring the database's schema up to date and exit.
    Migrate,
    /// Ask the server on this machine whether it is alive; exit with 0 if it is, with 1 if not.
    Healthcheck,
}

/// The common settings. All others are in the config file or the environment.
#[derive(Debug, Args)]
struct Settings {
    /// Config file; else the one that `HOMING_CONFIG` names, else ./config.toml if it exists.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,

    /// Address and port to listen on.
    #[arg(long, value_name = "ADDRESS:PORT", global = true)]
    listen: Option<String>,

    /// `sqlite://PATH` or `postgres://USER:PASSWORD@HOST/DATABASE`.
    #[arg(long, value_name = "URL", global = true)]
    database_url: Option<String>,

    /// API token. Others on this machine can see it here; prefer `HOMING_TOKEN_FILE`.
    #[arg(long, value_name = "TOKEN", global = true)]
    token: Option<String>,

    /// What clients call this server when it is behind a proxy.
    #[arg(long, value_name = "URL", global = true)]
    public_url: Option<String>,

    /// Use the local development token and signing keys, which everybody knows.
    #[arg(long, global = true)]
    dev: bool,

    /// Allow --dev on an address that others can reach.
    #[arg(long, global = true)]
    dev_force: bool,

    /// error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", global = true)]
    log_level: Option<String>,

    /// Where messages may go: private (networks too) or public (addresses only).
    #[arg(long, value_name = "MODE", global = true)]
    egress: Option<String>,
}

impl Settings {
    fn into_sources(self) -> Sources {
        let switch = |on: bool| on.then(|| "true".to_owned());
        let flags = [
            ("listen", self.listen),
            ("database_url", self.database_url),
            ("token", self.token),
            ("public_url", self.public_url),
            ("dev", switch(self.dev)),
            ("dev_force", switch(self.dev_force)),
            ("log_level", self.log_level),
            ("egress", self.egress),
        ];
        let given = flags.into_iter().filter_map(|(name, value)| Some((name, value?)));
        Sources::of_process(given.collect(), self.config)
    }
}

fn main() -> ExitCode {
    // Where the kernel lets programs ask for huge pages the allocator does, and an idle server takes 11 MiB more. Where it
    // can't be refused it takes these, nothing else.
    let _huge = rustix::thread::disable_transparent_huge_pages(true).is_err();
    let Cli { command, settings } = Cli::parse();
    let command = command.unwrap_or(Command::Serve);
    let healthcheck = matches!(command, Command::Healthcheck);
    // Without a thread for them there are no lines; the exit code has to do.
    let Ok(stderr) = Lines::to(io::stderr()) else { return ExitCode::FAILURE };
    let result = run(&command, settings, &stderr);
    if let Err(error) = &result {
        stderr.add(format!("homing: {error:#}\n").as_bytes());
    }
    stderr.flush();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Docker knows 0 and 1 of a health check, and reserves the rest.
            let unusable =
                matches!(error.downcast_ref(), Some(StoreError::Open { .. } | StoreError::Locked { .. }));
            if (error.is::<ConfigError>() || unusable) && !healthcheck {
                ExitCode::from(EXIT_CONFIG)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn run(command: &Command, settings: Settings, stderr: &Lines) -> anyhow::Result<()> {
    if let Command::Config { example: true } = command {
        return say(&config::example_toml());
    }
    let loaded = config::load(&settings.into_sources())?;
    match command {
        Command::Config { .. } => say(&loaded.effective_toml()),
        Command::Healthcheck => say(&block_on(healthcheck(&loaded.config))?),
        Command::Serve => {
            start_logging(&loaded.config, stderr)?;
            block_on(homing::server::run(loaded.config))
        }
        Command::Migrate => {
            start_logging(&loaded.config, stderr)?;
            block_on(homing::server::migrate(loaded.config))
        }
    }
}

fn block_on<T>(task: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("can't start the runtime's threads")?;
    let result = runtime.block_on(task);
    // A look-up of a host name that hangs must not keep the process.
    runtime.shutdown_background();
    result
}

/// Logs to stderr, as much as `RUST_LOG` says or else `log_level`.
fn start_logging(config: &Config, stderr: &Lines) -> anyhow::Result<()> {
    let directives = match std::env::var("RUST_LOG") {
        Ok(directives) if !directives.is_empty() => directives,
        _ => match config.log_level {
            // The libraries' inner life would bury ours; sqlx tells of every slow statement.
            LogLevel::Debug => "info,homing=debug,sqlx=warn".to_owned(),
            LogLevel::Info => "info,sqlx=warn".to_owned(),
            level => level.as_str().to_owned(),
        },
    };
    let filter = EnvFilter::try_new(&directives).with_context(|| format!("RUST_LOG is `{directives}`"))?;
    // A line that can't be written must not become another one, by a macro that panics when it can't be written either.
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr.clone())
        .log_internal_errors(false);
    match config.log_format {
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    logging::log_panics(stderr.clone());
    Ok(())
}

/// Asks the server of this configuration whether it is alive.
async fn healthcheck(config: &Config) -> anyhow::Result<String> {
    let url = format!("http://{}/healthz", config.local_addr());
    let client = reqwest::Client::builder().no_proxy().timeout(HEALTHCHECK_TIMEOUT).build()?;
    let response = client.get(&url).send().await.context("not healthy")?;
    let status = response.status();
    anyhow::ensure!(status.is_success(), "not healthy: {url} answers {status}");
    Ok(format!("healthy: {url} answers {status}\n"))
}

/// Writes to stdout, which may be closed before all is written (`homing config | head`).
fn say(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e).context("can't write to stdout"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_stand_before_or_after_the_command() {
        <Cli as clap::CommandFactory>::command().debug_assert();
        for arguments in [["homing", "--dev", "serve"], ["homing", "serve", "--dev"]] {
            let cli = Cli::try_parse_from(arguments).unwrap();
            assert!(cli.settings.dev && matches!(cli.command, Some(Command::Serve)));
        }
    }

    /// `load` takes the flags by name; a name that is no setting would be ignored.
    #[test]
    fn every_flag_is_a_setting() {
        let all = [
            "homing",
            "--listen=127.0.0.1:1",
            "--database-url=sqlite://x",
            "--public-url=http://x",
            "--log-level=warn",
            "--egress=public",
        ];
        for more in [&["--token=x"][..], &["--dev", "--dev-force"]] {
            check_flags(all.iter().chain(more));
        }
    }

    #[track_caller]
    fn check_flags<'a>(arguments: impl Iterator<Item = &'a &'static str>) {
        let sources = Cli::try_parse_from(arguments).unwrap().settings.into_sources();
        let names: Vec<_> = sources.flags.iter().map(|(name, _)| *name).collect();
        let loaded = config::load(&Sources { flags: sources.flags, ..Sources::default() }).unwrap();
        let text = loaded.effective_toml();
        for name in names {
            assert!(
                text.lines()
                    .any(|line| line.starts_with(&format!("{name} = ")) && line.contains("# flag --"))
            );
        }
    }
}
