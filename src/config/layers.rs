//! Flag beats environment beats file beats default.
//!
//! Each layer is taken value by value, so that an error can name the setting and where the bad value came from.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use confique::{Config as _, Layer as _};
use serde::Deserialize;
use serde::de::value::{Error as TextError, MapDeserializer, SeqDeserializer};
use serde::de::{Deserializer, Error as _, IntoDeserializer, Visitor};

use super::values::hide_url_secrets;
use super::{Config, DEV_CURRENT_SIGNING_KEY, DEV_NEXT_SIGNING_KEY, DEV_TOKEN, DatabaseUrl, Secret};
use crate::domain::destination::validate_url;

type Layer = <Config as confique::Config>::Layer;

/// What the variables of settings start with.
const PREFIX: &str = "HOMING_";
/// The variable that names the file, as `--config` does.
const FILE_VARIABLE: &str = "HOMING_CONFIG";
/// The file that is read when none is named, if it exists.
const DEFAULT_FILE: &str = "config.toml";
/// Settings whose values must not appear in an error.
const SECRETS: [&str; 6] =
    ["token", "read_only_tokens", "current_signing_key", "next_signing_key", "database_url", "llm_api_key"];

/// Where settings are read from. [`Sources::of_process`] for the program; tests make their own.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Settings given as flags, by the setting's name (`database_url`, not `--database-url`).
    pub flags: Vec<(&'static str, String)>,
    /// The environment's variables, others than ours included.
    pub environment: Vec<(OsString, OsString)>,
    /// The file given by `--config`. It must exist.
    pub file: Option<PathBuf>,
    /// Read `config.toml` of the working directory if neither `--config` nor the environment names a file.
    pub look_for_file: bool,
}

impl Sources {
    /// The process's environment and `./config.toml`, with what the command line gave.
    pub fn of_process(flags: Vec<(&'static str, String)>, file: Option<PathBuf>) -> Self {
        Self { flags, environment: std::env::vars_os().collect(), file, look_for_file: true }
    }
}

/// Where a setting's value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nothing set it.
    Default,
    /// It follows from development mode.
    Dev,
    /// The TOML file of that path.
    File(PathBuf),
    /// The environment variable of that name.
    Environment(String),
    /// The command line, as `--flag`.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Dev => f.write_str("development mode"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(variable) => write!(f, "environment {variable}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// Why the settings can't be used. The text names the setting, its origin and what is allowed, and no secret.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The TOML file can't be read.
    #[error("can't read the config file {}", path.display())]
    ReadFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file isn't TOML.
    #[error("{}, line {line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the TOML parser says; never the line itself, which may hold a secret.
        message: String,
    },
    /// A key of the file or a variable with our prefix that is no setting.
    #[error("{origin}: unknown setting `{name}`{}", suggest(nearest.as_ref()))]
    Unknown {
        /// The key or variable.
        name: String,
        /// The layer.
        origin: Origin,
        /// The most similar name that exists there.
        nearest: Option<String>,
    },
    /// A variable and its `_FILE` twin are both set.
    #[error("both {variable} and {variable}_FILE are set; set one of them")]
    Both {
        /// The variable without `_FILE`.
        variable: String,
    },
    /// The file that a `_FILE` variable names can't be read.
    #[error("can't read the file {} that {variable} names", path.display())]
    ReadValue {
        /// The variable, `_FILE` included.
        variable: String,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A variable or the file it names isn't UTF-8.
    #[error("{origin} is not UTF-8")]
    NotUtf8 {
        /// The layer.
        origin: Origin,
    },
    /// A value that its setting doesn't accept.
    #[error("{name} ({origin}): {reason}")]
    Invalid {
        /// The setting.
        name: &'static str,
        /// The layer.
        origin: Origin,
        /// What was wrong, and what is allowed.
        reason: String,
    },
    /// The process may not have enough files open for a server of any size.
    #[error(
        "the limit on open files is {limit}, and a server with these settings needs {least} at least; raise it (ulimit -n)"
    )]
    OpenFiles {
        /// What is allowed.
        limit: u64,
        /// What is needed.
        least: u64,
    },
}

fn suggest(nearest: Option<&String>) -> String {
    nearest.map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}

/// A checked configuration and where its values came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings in effect.
    pub config: Config,
    /// The origin of each setting that isn't a default.
    pub(super) origins: BTreeMap<&'static str, Origin>,
}

/// Reads all layers, merges and checks them.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let mut merge = Merge { layer: Layer::empty(), origins: BTreeMap::new() };
    for (name, value) in &sources.flags {
        let flag = Origin::Flag(format!("--{}", name.replace('_', "-")));
        merge.add_text(name, value, flag)?;
    }
    let environment = Environment::read(&sources.environment)?;
    for (name, value, origin) in environment.values {
        merge.add_text(name, &value, origin)?;
    }
    let file = sources.file.clone().or(environment.file);
    if let Some(path) = &file {
        merge.add_file(path)?;
    } else if sources.look_for_file && Path::new(DEFAULT_FILE).exists() {
        merge.add_file(Path::new(DEFAULT_FILE))?;
    }
    merge.finish()
}

/// The layers merged so far, the strongest first.
struct Merge {
    layer: Layer,
    origins: BTreeMap<&'static str, Origin>,
}

impl Merge {
    /// Adds a value written as text, unless a stronger layer has set it. It is checked all the same.
    fn add_text(&mut self, name: &'static str, text: &str, origin: Origin) -> Result<(), ConfigError> {
        let entry = MapDeserializer::new(std::iter::once((name, Text(text))));
        let value = Layer::deserialize(entry).map_err(|e: TextError| describe(name, &e.to_string(), text));
        self.add(name, value, origin)
    }

    fn add_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::ReadFile { path: path.to_owned(), source })?;
        let table: toml::Table = toml::from_str(&text).map_err(|e| ConfigError::Syntax {
            path: path.to_owned(),
            line: e
                .span()
                .map_or(1, |span| text.bytes().take(span.start).filter(|b| *b == b'\n').count() + 1),
            message: e.message().to_owned(),
        })?;
        for (key, value) in table {
            let origin = Origin::File(path.to_owned());
            let Some(name) = setting_names().find(|name| *name == key) else {
                let nearest = nearest_setting(&key).map(str::to_owned);
                return Err(ConfigError::Unknown { name: key, origin, nearest });
            };
            let written = value.to_string();
            let entry = toml::Table::from_iter([(key, value)]);
            let value = Layer::deserialize(entry).map_err(|e| describe(name, e.message(), &written));
            self.add(name, value, origin)?;
        }
        Ok(())
    }

    fn add(
        &mut self,
        name: &'static str,
        value: Result<Layer, String>,
        origin: Origin,
    ) -> Result<(), ConfigError> {
        match value {
            Ok(value) => {
                let layer = std::mem::replace(&mut self.layer, Layer::empty());
                self.layer = layer.with_fallback(value);
                self.origins.entry(name).or_insert(origin);
                Ok(())
            }
            Err(reason) => Err(ConfigError::Invalid { name, origin, reason: hide_url_secrets(&reason) }),
        }
    }

    /// Fills in the defaults, those that follow from other settings included, and checks the whole.
    fn finish(mut self) -> Result<Loaded, ConfigError> {
        let layer = self.layer.with_fallback(Layer::default_values());
        let mut config = Config::from_layer(layer).expect("every required setting has a default");
        if !self.origins.contains_key("database_url") {
            config.database_url = DatabaseUrl::Sqlite(config.data_dir.join("homing.db"));
            if let Some(origin) = self.origins.get("data_dir").cloned() {
                self.origins.insert("database_url", origin);
            }
        }
        if config.dev {
            fill_in_dev(&mut config, &mut self.origins);
        }
        // Whoever lowers a limit need not know the defaults.
        if let Some(max) = config.max_retries
            && config.default_retries > max
            && let Some(origin) = self.origins.get("max_retries").cloned()
            && !self.origins.contains_key("default_retries")
        {
            config.default_retries = max;
            self.origins.insert("default_retries", origin);
        }
        if config.concurrency > config.prefetch
            && let Some(origin) = self.origins.get("prefetch").cloned()
            && !self.origins.contains_key("concurrency")
        {
            config.concurrency = config.prefetch;
            self.origins.insert("concurrency", origin);
        }
        let loaded = Loaded { config, origins: self.origins };
        loaded.check()?;
        Ok(loaded)
    }
}

/// Sets the well-known token and keys where nothing else is set. The keys go together.
fn fill_in_dev(config: &mut Config, origins: &mut BTreeMap<&'static str, Origin>) {
    if config.token.is_none() {
        config.token = Some(Secret::new(DEV_TOKEN));
        origins.insert("token", Origin::Dev);
    }
    if config.current_signing_key.is_none() && config.next_signing_key.is_none() {
        config.current_signing_key = Some(Secret::new(DEV_CURRENT_SIGNING_KEY));
        config.next_signing_key = Some(Secret::new(DEV_NEXT_SIGNING_KEY));
        origins.insert("current_signing_key", Origin::Dev);
        origins.insert("next_signing_key", Origin::Dev);
    }
}

impl Loaded {
    /// Where the value of that setting came from.
    pub fn origin(&self, name: &str) -> &Origin {
        self.origins.get(name).unwrap_or(&Origin::Default)
    }

    /// What no single setting can say.
    fn check(&self) -> Result<(), ConfigError> {
        let c = &self.config;
        self.ordered(("concurrency_per_origin", c.concurrency_per_origin), ("concurrency", c.concurrency))?;
        self.ordered(("concurrency", c.concurrency), ("prefetch", c.prefetch))?;
        self.ordered(("max_message_size", c.max_message_size), ("max_batch_size", c.max_batch_size))?;
        self.ordered(("max_message_size", c.max_message_size), ("prefetch_bytes", c.prefetch_bytes))?;
        self.ordered(
            ("max_batch_size", c.max_batch_size),
            ("max_inflight_request_bytes", c.max_inflight_request_bytes),
        )?;
        if let Some(max) = c.max_retries {
            self.ordered(("default_retries", c.default_retries), ("max_retries", max))?;
        }
        match (&c.current_signing_key, &c.next_signing_key) {
            (Some(_), None) => {
                return Err(
                    self.invalid("current_signing_key", "next_signing_key is missing; set both or none")
                );
            }
            (None, Some(_)) => {
                return Err(
                    self.invalid("next_signing_key", "current_signing_key is missing; set both or none")
                );
            }
            _ => {}
        }
        if c.dev && *self.origin("token") != Origin::Dev {
            let reason = format!(
                "development mode has a token of its own, and token is set too ({}); unset one of them",
                self.origin("token")
            );
            return Err(self.invalid("dev", reason));
        }
        if let Some(token) = &c.token
            && c.read_only_tokens.iter().any(|other| other.expose() == token.expose())
        {
            let reason = format!(
                "one of them is also the token that may write ({}); they must differ",
                self.origin("token")
            );
            return Err(self.invalid("read_only_tokens", reason));
        }
        if c.dev && !c.dev_force && !c.listen.ip().to_canonical().is_loopback() {
            let reason = format!(
                "development mode has a token that everybody knows, and {} can be reached by others; \
                 listen on 127.0.0.1, or set dev_force (--dev-force) if only you can reach it",
                c.listen
            );
            return Err(self.invalid("dev", reason));
        }
        match &c.llm_endpoint() {
            Some(url) => {
                validate_url(url).map_err(|error| self.invalid("llm_url", error.to_string()))?;
            }
            None if c.llm_api_key.is_some() => {
                return Err(self.invalid("llm_api_key", "llm_url is missing; set both, or llm_url alone"));
            }
            None => {}
        }
        c.egress_policy().map_err(|e| self.invalid(e.setting, e.to_string()))?;
        c.trusted_networks().map_err(|reason| self.invalid("trusted_proxies", reason))?;
        Ok(())
    }

    /// Checks that a setting isn't above another one.
    fn ordered<T: PartialOrd + fmt::Display>(
        &self,
        (small, small_value): (&'static str, T),
        (large, large_value): (&'static str, T),
    ) -> Result<(), ConfigError> {
        if small_value <= large_value {
            return Ok(());
        }
        let large_origin = self.origin(large);
        let reason = format!("{small_value} is above {large}, which is {large_value} ({large_origin})");
        Err(self.invalid(small, reason))
    }

    fn invalid(&self, name: &'static str, reason: impl Into<String>) -> ConfigError {
        let reason = hide_url_secrets(&reason.into());
        ConfigError::Invalid { name, origin: self.origin(name).clone(), reason }
    }
}

/// What is wrong with a value, by what its parser said. A secret's value is not shown, nor are a parser's words that
/// could hold it; our own, which start with "allowed", can't.
fn describe(name: &str, reason: &str, value: &str) -> String {
    let reason = reason.strip_prefix("validation failed: ").unwrap_or(reason).trim_end();
    let ours = reason.starts_with("allowed: ");
    match (SECRETS.contains(&name), ours) {
        (true, true) => format!("can't be used; {reason}"),
        (true, false) if name == "read_only_tokens" => "can't be used; allowed: a list of strings".to_owned(),
        (true, false) => "can't be used; allowed: a string".to_owned(),
        (false, true) => format!("{value} can't be used; {reason}"),
        (false, false) => reason.to_owned(),
    }
}

/// The names of all settings, in the struct's order.
pub(super) fn setting_names() -> impl Iterator<Item = &'static str> {
    Config::META.fields.iter().map(|field| field.name)
}

/// The setting that was probably meant: the most similar one, by its letters or by its words.
fn nearest_setting(name: &str) -> Option<&'static str> {
    // What others call it.
    let name = match name {
        "port" | "host" | "address" | "bind" => "listen",
        "db" | "db_url" => "database_url",
        "api_token" => "token",
        name => name,
    };
    let words: Vec<&str> = name.split(['_', '-']).collect();
    let similarity = |setting: &'static str| {
        let last_words = setting.match_indices('_').map(|(i, _)| &setting[i + 1..]);
        let by_end = last_words.map(|words| 0.95 * strsim::jaro_winkler(name, words));
        let by_letters = by_end.fold(strsim::jaro_winkler(name, setting), f64::max);
        // The same words in another order, or some more of them, still say what is meant.
        let theirs: Vec<&str> = setting.split('_').collect();
        let common = words.iter().filter(|word| theirs.contains(word)).count();
        let by_words = 2.0 * f64::from(u32::try_from(common).unwrap_or(0))
            / f64::from(u32::try_from(words.len() + theirs.len()).unwrap_or(u32::MAX));
        by_letters.max(by_words + 0.1)
    };
    setting_names()
        .map(|setting| (similarity(setting), setting))
        .filter(|(similarity, _)| *similarity > 0.75)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, setting)| setting)
}

/// Our variables, read and told apart.
#[derive(Default)]
struct Environment {
    values: Vec<(&'static str, String, Origin)>,
    file: Option<PathBuf>,
}

impl Environment {
    fn read(variables: &[(OsString, OsString)]) -> Result<Self, ConfigError> {
        // An empty variable is how compose files and shells say "not set".
        let ours: BTreeMap<&str, &OsString> = variables
            .iter()
            .filter_map(|(name, value)| Some((name.to_str()?, value)))
            .filter(|(name, value)| name.starts_with(PREFIX) && !value.is_empty())
            .filter(|(name, value)| !is_service_link(name, &value.to_string_lossy()))
            .collect();
        let mut environment = Self::default();
        for (&variable, &value) in &ours {
            if variable == FILE_VARIABLE {
                environment.file = Some(value.into());
                continue;
            }
            if let Some(name) = setting_of(variable) {
                let origin = Origin::Environment(variable.to_owned());
                let text = value.to_str().ok_or_else(|| ConfigError::NotUtf8 { origin: origin.clone() })?;
                environment.values.push((name, text.to_owned(), origin));
                continue;
            }
            let plain = variable.strip_suffix("_FILE").and_then(|plain| Some((plain, setting_of(plain)?)));
            let Some((plain, name)) = plain else {
                let origin = Origin::Environment(variable.to_owned());
                let name = variable[PREFIX.len()..].to_ascii_lowercase();
                let nearest = nearest_setting(name.trim_end_matches("_file")).map(variable_of);
                return Err(ConfigError::Unknown { name: variable.to_owned(), origin, nearest });
            };
            if ours.contains_key(plain) {
                return Err(ConfigError::Both { variable: plain.to_owned() });
            }
            environment.values.push(read_value_file(variable, name, Path::new(value))?);
        }
        Ok(environment)
    }
}

/// The content of the file that a `_FILE` variable names, without the newline that editors leave at its end.
fn read_value_file(
    variable: &str,
    name: &'static str,
    path: &Path,
) -> Result<(&'static str, String, Origin), ConfigError> {
    let origin = Origin::Environment(variable.to_owned());
    let bytes = std::fs::read(path).map_err(|source| ConfigError::ReadValue {
        variable: variable.to_owned(),
        path: path.to_owned(),
        source,
    })?;
    let text = String::from_utf8(bytes).map_err(|_| ConfigError::NotUtf8 { origin: origin.clone() })?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    Ok((name, text.to_owned(), origin))
}

fn variable_of(setting: &str) -> String {
    format!("{PREFIX}{}", setting.to_ascii_uppercase())
}

fn setting_of(variable: &str) -> Option<&'static str> {
    setting_names().find(|name| variable_of(name) == variable)
}

/// True for a variable that Kubernetes makes in every pod beside a service named `homing` or `homing-…`.
fn is_service_link(variable: &str, value: &str) -> bool {
    variable.ends_with("_SERVICE_HOST")
        || variable.contains("_SERVICE_PORT")
        || (variable.contains("_PORT_") && (variable.contains("_TCP") || variable.contains("_UDP")))
        || (variable.ends_with("_PORT") && (value.starts_with("tcp://") || value.starts_with("udp://")))
}

/// A value written as text, read as whatever its setting wants.
#[derive(Clone, Copy)]
struct Text<'a>(&'a str);

impl IntoDeserializer<'_> for Text<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// A method that parses the text as one of Rust's number types.
macro_rules! parse_number {
    ($($method:ident => $visit:ident: $type:ty,)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TextError> {
            let number: $type = self.0.trim().parse().map_err(|e| {
                TextError::custom(format_args!("`{}` is not a number that fits ({e})", self.0))
            })?;
            visitor.$visit(number)
        }
    )*};
}

impl<'de> Deserializer<'de> for Text<'_> {
    type Error = TextError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TextError> {
        visitor.visit_str(self.0)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TextError> {
        match self.0.trim() {
            "true" | "1" => visitor.visit_bool(true),
            "false" | "0" => visitor.visit_bool(false),
            other => Err(TextError::custom(format_args!("`{other}` is not allowed; allowed: true or false"))),
        }
    }

    parse_number! {
        deserialize_u16 => visit_u16: u16,
        deserialize_u32 => visit_u32: u32,
        deserialize_u64 => visit_u64: u64,
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TextError> {
        visitor.visit_some(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TextError> {
        let items = self.0.split(',').map(str::trim).filter(|item| !item.is_empty());
        visitor.visit_seq(SeqDeserializer::new(items.map(Text)))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TextError> {
        visitor.visit_enum(self.0.into_deserializer())
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, TextError> {
        visitor.visit_newtype_struct(self)
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple tuple_struct map
        struct identifier ignored_any
    }
}
