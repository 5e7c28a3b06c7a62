use std::ffi::OsString;
use std::fs;
use std::time::Duration;

use tempfile::TempDir;

use super::*;

/// Sources of these variables and nothing else.
fn environment(variables: &[(&str, &str)]) -> Sources {
    let environment =
        variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect();
    Sources { environment, ..Sources::default() }
}

fn with_file(mut sources: Sources, dir: &TempDir, text: &str) -> Sources {
    let path = dir.path().join("homing.toml");
    fs::write(&path, text).unwrap();
    sources.file = Some(path);
    sources
}

#[track_caller]
fn check_refused(sources: &Sources, expected: &[&str]) {
    let error = load(sources).map(|loaded| loaded.config).unwrap_err();
    let text = format!("{:#}", anyhow::Error::from(error));
    for part in expected {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

#[test]
fn the_example_file_is_what_the_struct_says() {
    let file = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config.example.toml")).unwrap();
    assert!(
        file == example_toml(),
        "stale; write it anew: cargo run -- config --example > config.example.toml"
    );
}

#[test]
fn the_example_file_with_its_defaults_uncommented_is_the_default() {
    let dir = TempDir::new().unwrap();
    let is_value = |line: &&str| line.starts_with('#') && !line.starts_with("# ") && !line.ends_with('=');
    let example = example_toml();
    let values: Vec<&str> = example.lines().filter(is_value).map(|line| &line[1..]).collect();
    let loaded = load(&with_file(Sources::default(), &dir, &values.join("\n"))).unwrap();
    let shown = |config: &Config| toml::to_string(config).unwrap();
    assert_eq!(shown(&loaded.config), shown(&Config::default()));
}

#[test]
fn nothing_set_is_the_default() {
    let config = load(&Sources::default()).unwrap().config;
    assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.database_url, DatabaseUrl::Sqlite("data/homing.db".into()));
    assert!(config.token.is_none());
    assert_eq!(config.max_timeout.get(), Duration::from_hours(2));
    assert!(config.node_name().ends_with(":8080"));
}

#[test]
fn flag_beats_environment_beats_file() {
    let dir = TempDir::new().unwrap();
    let variables = environment(&[("HOMING_LISTEN", "127.0.0.1:2"), ("HOMING_MAX_RETRIES", "20")]);
    let file = "listen = '127.0.0.1:3'\nmax_retries = 30\ndefault_retries = 4\negress_allow = ['10.0.0.0/8']";
    let mut sources = with_file(variables, &dir, file);
    sources.flags.push(("listen", "127.0.0.1:1".to_owned()));
    let loaded = load(&sources).unwrap();
    assert_eq!(loaded.config.listen.port(), 1);
    assert_eq!(loaded.config.max_retries, Some(20));
    assert_eq!(loaded.config.default_retries, 4);
    assert_eq!(loaded.config.egress_allow, ["10.0.0.0/8"]);

    let text = loaded.effective_toml();
    assert!(text.contains("listen = \"127.0.0.1:1\" # flag --listen\n"), "{text}");
    assert!(text.contains("max_retries = 20 # environment HOMING_MAX_RETRIES\n"), "{text}");
    assert!(text.contains("default_retries = 4 # file "), "{text}");
    assert!(text.contains("# public_url is not set\n"), "{text}");
    toml::from_str::<toml::Table>(&text).unwrap();
}

#[test]
fn the_environment_names_the_file() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.toml");
    fs::write(&path, "writers = 3").unwrap();
    let sources = environment(&[("HOMING_CONFIG", path.to_str().unwrap())]);
    assert_eq!(load(&sources).unwrap().config.writers, 3);
}

#[test]
fn every_kind_of_value_can_be_a_variable() {
    let config = load(&environment(&[
        ("HOMING_CONCURRENCY", "700"),
        ("HOMING_DEFAULT_RETRIES", "0"),
        ("HOMING_MAX_DELAY", "90d"),
        ("HOMING_MAX_MESSAGE_SIZE", "1MiB"),
        ("HOMING_EGRESS", "public"),
        ("HOMING_EGRESS_DENY", "example.com, 8.8.8.8,"),
        ("HOMING_READ_ONLY_TOKENS", "one,two"),
        ("HOMING_DEV", "true"),
        ("HOMING_LOG_FORMAT", "json"),
        ("HOMING_EXTRA_CA_FILE", "/etc/ca.pem"),
        ("HOMING_PUBLIC_URL", "https://queue.example.com/base/"),
        ("HOMING_DATA_DIR", "/srv"),
        ("HOMING_NODE_NAME", "a"),
        ("HOMING_TOKEN", ""),
        ("UNRELATED", "x"),
    ]))
    .unwrap()
    .config;
    assert_eq!((config.concurrency, config.default_retries), (700, 0));
    assert_eq!(config.max_delay.map(|delay| delay.get().as_secs()), Some(90 * DAY));
    assert_eq!(config.max_message_size.get(), 1 << 20);
    assert_eq!(config.egress, Mode::Public);
    assert_eq!(config.egress_deny, ["example.com", "8.8.8.8"]);
    assert_eq!(config.read_only_tokens.iter().map(Secret::expose).collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(config.log_format, LogFormat::Json);
    assert_eq!(config.public_url.as_deref(), Some("https://queue.example.com/base"));
    assert_eq!(config.database_url, DatabaseUrl::Sqlite("/srv/homing.db".into()));
    assert_eq!(config.node_name(), "a");
    assert_eq!(config.token.unwrap().expose(), DEV_TOKEN);
}

#[test]
fn a_value_can_stand_in_a_file() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("token");
    let path_text = path.to_str().unwrap();
    for content in ["s3cret", "s3cret\n", "s3cret\r\n"] {
        fs::write(&path, content).unwrap();
        let loaded = load(&environment(&[("HOMING_TOKEN_FILE", path_text)])).unwrap();
        assert_eq!(loaded.config.token.as_ref().unwrap().expose(), "s3cret");
        assert_eq!(loaded.origin("token").to_string(), "environment HOMING_TOKEN_FILE");
    }
    fs::write(&path, "s3cret\n\n").unwrap();
    check_refused(
        &environment(&[("HOMING_TOKEN_FILE", path_text)]),
        &["token", "HOMING_TOKEN_FILE", "allowed"],
    );
    check_refused(
        &environment(&[("HOMING_TOKEN_FILE", path_text), ("HOMING_TOKEN", "x")]),
        &["both HOMING_TOKEN and HOMING_TOKEN_FILE"],
    );
    check_refused(
        &environment(&[("HOMING_TOKEN_FILE", "/does/not/exist")]),
        &["HOMING_TOKEN_FILE", "No such file"],
    );
}

/// A setting that ends in `_FILE` itself is not mistaken for a file's name.
#[test]
fn extra_ca_file_is_a_setting() {
    let sources = environment(&[("HOMING_EXTRA_CA_FILE", "/does/not/exist")]);
    assert_eq!(load(&sources).unwrap().config.extra_ca_file, Some("/does/not/exist".into()));
}

#[test]
fn unknown_names_are_refused_with_the_nearest() {
    let dir = TempDir::new().unwrap();
    check_refused(
        &environment(&[("HOMING_MAX_RETRYS", "3")]),
        &["`HOMING_MAX_RETRYS`", "mean `HOMING_MAX_RETRIES`"],
    );
    check_refused(&environment(&[("HOMING_RETRIES", "3")]), &["_RETRIES`?"]);
    check_refused(&environment(&[("HOMING_TOKN_FILE", "3")]), &["mean `HOMING_TOKEN`"]);
    for (far, meant) in [
        ("HOMING_PORT", "LISTEN"),
        ("HOMING_DB_URL", "DATABASE_URL"),
        ("HOMING_DATABASE", "DATABASE_URL"),
        ("HOMING_API_TOKEN", "TOKEN"),
        ("HOMING_MAX_CONCURRENCY", "CONCURRENCY"),
        ("HOMING_RETRIES_MAX", "MAX_RETRIES"),
        ("HOMING_LOGLEVEL", "LOG_LEVEL"),
        ("HOMING_MESSAGE_MAX_SIZE", "MAX_MESSAGE_SIZE"),
        ("HOMING_SIGNING_KEY_CURRENT", "CURRENT_SIGNING_KEY"),
    ] {
        check_refused(&environment(&[(far, "3")]), &[&format!("mean `HOMING_{meant}`")]);
    }
    check_refused(&environment(&[("HOMING_ZZZ", "3")]), &["unknown setting `HOMING_ZZZ`"]);
    check_refused(
        &with_file(Sources::default(), &dir, "max-retries = 3"),
        &["homing.toml", "unknown setting `max-retries`; did you mean `max_retries`?"],
    );
    check_refused(
        &with_file(Sources::default(), &dir, "[egress]\nmode = 'public'"),
        &["egress", "homing.toml"],
    );
}

#[test]
fn variables_that_kubernetes_makes_are_ignored() {
    let sources = environment(&[
        ("HOMING_SERVICE_HOST", "10.0.0.1"),
        ("HOMING_SERVICE_PORT", "8080"),
        ("HOMING_SERVICE_PORT_HTTP", "8080"),
        ("HOMING_PORT", "tcp://10.0.0.1:8080"),
        ("HOMING_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("HOMING_POSTGRES_PORT_5432_TCP", "tcp://10.0.0.1:5432"),
    ]);
    assert!(load(&sources).is_ok());
    check_refused(&environment(&[("HOMING_PORT", "8080")]), &["unknown setting `HOMING_PORT`"]);
}

#[test]
fn bad_values_are_refused_with_setting_layer_and_what_is_allowed() {
    #[track_caller]
    fn check(setting: &str, value: &str, expected: &[&str]) {
        let variable = format!("HOMING_{}", setting.to_ascii_uppercase());
        let mut all = vec![setting, variable.as_str()];
        all.extend(expected);
        check_refused(&environment(&[(&variable, value)]), &all);
    }
    check("listen", "localhost", &["localhost", "like 127.0.0.1:8080"]);
    check("concurrency", "0", &["0 can't be used; allowed: 1 to 100000"]);
    check("concurrency", "many", &["`many` is not a number"]);
    check("concurrency", "9000", &["9000 is above prefetch, which is 8192 (default)"]);
    check("concurrency_per_origin", "9000", &["9000 is above concurrency, which is 8192 (default)"]);
    check("max_message_size", "200MiB", &["200MiB is above max_batch_size, which is 100MiB"]);
    check("max_message_size", "ten", &["`ten` is not a size", "10MiB"]);
    check("max_batch_size", "1GiB", &["max_inflight_request_bytes"]);
    check("max_timeout", "soon", &["`soon` is not a duration", "30s"]);
    check("dedup_window", "91d", &["91d can't be used; allowed: 1s to 90d"]);
    check("egress", "all", &["`all`", "`private` or `public`"]);
    check("egress_allow", "10.0.0.1/8", &["`10.0.0.1/8`", "10.0.0.0/8"]);
    check("egress_deny", "http://example.com", &["`http://example.com`", "allowed: an address"]);
    check("dev", "yes", &["`yes`", "allowed: true or false"]);
    check("log_level", "loud", &["`loud`", "`error`, `warn`, `info`, `debug`, `trace`"]);
    check("public_url", "queue.example.com", &["allowed: http://"]);
    check("public_url", "https://user@x/", &["allowed: http://"]);
    check(
        "llm_url",
        "https://key@api.example/v1",
        &["https://<hidden>@api.example/v1 can't be used", "allowed: http://"],
    );
    check(
        "database_url",
        "postgres://db/x?sslpasswd=1",
        &["can't be used; allowed: the parameters", "not `sslpasswd`"],
    );
    check("llm_url", "https://api.example:0/v1", &["invalid port"]);
    check("llm_api_key", "key", &["llm_url is missing"]);
    check("max_endpoints_per_group", "0", &["allowed: 1 to 1000"]);
    check("current_signing_key", "sig_x", &["next_signing_key", "both or none"]);
    check("next_signing_key", "sig_x", &["current_signing_key", "both or none"]);
}

#[test]
fn the_language_model_is_behind_its_base_url() {
    for base in ["https://api.example/v1", "https://api.example/v1/"] {
        let config = load(&environment(&[("HOMING_LLM_URL", base)])).unwrap().config;
        assert_eq!(config.llm_endpoint().as_deref(), Some("https://api.example/v1/chat/completions"));
    }
    assert_eq!(Config::default().llm_endpoint(), None);
}

#[test]
fn a_lower_limit_lowers_the_default() {
    let config = load(&environment(&[("HOMING_MAX_RETRIES", "1")])).unwrap().config;
    assert_eq!((config.max_retries, config.default_retries), (Some(1), 1));
    check_refused(
        &environment(&[("HOMING_MAX_RETRIES", "1"), ("HOMING_DEFAULT_RETRIES", "2")]),
        &["default_retries", "above max_retries"],
    );
}

#[test]
fn tokens_that_contradict_each_other_are_refused() {
    check_refused(
        &environment(&[("HOMING_DEV", "true"), ("HOMING_TOKEN", "XYZZY")]),
        &["dev", "HOMING_TOKEN", "unset one"],
    );
    check_refused(
        &environment(&[("HOMING_READ_ONLY_TOKENS", "a,XYZZY"), ("HOMING_TOKEN", "XYZZY")]),
        &["read_only_tokens", "HOMING_TOKEN", "must differ"],
    );
    let dev = [("HOMING_DEV", "true"), ("HOMING_READ_ONLY_TOKENS", DEV_TOKEN)];
    check_refused(&environment(&dev), &["read_only_tokens"]);
}

#[test]
fn development_mode_stays_at_home() {
    let dev = |listen, force| {
        load(&environment(&[("HOMING_DEV", "true"), ("HOMING_LISTEN", listen), ("HOMING_DEV_FORCE", force)]))
    };
    for listen in ["127.0.0.1:8080", "127.8.8.8:80", "[::1]:8080", "[::ffff:127.0.0.1]:8080"] {
        assert!(dev(listen, "").is_ok(), "{listen}");
    }
    for listen in ["0.0.0.0:8080", "192.168.1.2:8080", "[::]:8080"] {
        assert!(dev(listen, "").is_err(), "{listen}");
        assert!(dev(listen, "true").is_ok(), "{listen}");
    }
    let config = dev("127.0.0.1:8080", "").unwrap().config;
    assert_eq!(config.current_signing_key.unwrap().expose(), DEV_CURRENT_SIGNING_KEY);
    assert_eq!(config.egress, Mode::Private);
}

/// Secrets and the database's password show up neither in errors nor in what is printed.
#[test]
fn secrets_are_never_shown() {
    let dir = TempDir::new().unwrap();
    let sources = environment(&[
        ("HOMING_TOKEN", "XYZZY"),
        ("HOMING_READ_ONLY_TOKENS", "XYZZY1,XYZZY2"),
        ("HOMING_CURRENT_SIGNING_KEY", "XYZZY"),
        ("HOMING_NEXT_SIGNING_KEY", "XYZZY"),
        ("HOMING_DATABASE_URL", "postgres://me:XYZZY@db/x"),
        ("HOMING_LLM_URL", "https://api.example/v1/"),
        ("HOMING_LLM_API_KEY", "XYZZY"),
    ]);
    let loaded = load(&sources).unwrap();
    let text = loaded.effective_toml();
    assert!(!text.contains("XYZZY") && !format!("{loaded:?}").contains("XYZZY"), "{text}");
    assert!(text.contains("token = \"<hidden>\" # environment HOMING_TOKEN\n"), "{text}");
    assert!(text.contains("read_only_tokens = [\"<hidden>\", \"<hidden>\"]"), "{text}");

    for bad in [
        "llm_url = 'http://user:736251@host/x'",
        "llm_url = 'http://736251@host/x'",
        "llm_url = 'user:736251@host/x'",
        "llm_url = 'https://host/v1?key=736251'",
        "llm_url = 'https://host/v1#736251'",
        "llm_url = 'http://user:73@6251:736251@host:0/x'",
        "llm_url = ['http://user:736251@host/x']",
        "public_url = 'https://user:736251@host'",
        "public_url = 'https://host?key=736251'",
        "egress_allow = ['http://user:736251@host']",
        "egress_deny = ['a.example', 'https://host/?key=736251']",
        "trusted_proxies = ['user:736251@10.0.0.1']",
        "listen = 'http://user:736251@host'",
        "egress = 'http://user:736251@host'",
        "max_timeout = 'http://user:736251@host'",
        "concurrency = 'http://user:736251@host'",
        "database_url = 'postgres://me@db/x?sslpassword=736251'",
        "database_url = 'postgres://me:a?736251@db/x'",
        "database_url = 'sqlite://x.db?key=736251'",
        "token = 736251",
        "token = ['736251']",
        "token = '736251 '",
        "token = 736251 x",
        "token = '736251",
        "read_only_tokens = '736251'",
        "read_only_tokens = [736251]",
        "current_signing_key = 736251",
        "current_signing_key = '736251'",
        "llm_api_key = '736251'",
        "llm_api_key = '736251 '",
        "database_url = 'mysql://me:736251@db'",
        "database_url = ['736251']",
    ] {
        let error = load(&with_file(Sources::default(), &dir, bad)).map(|loaded| loaded.config).unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(!text.contains("736251"), "{bad}: {text}");
    }
}

#[test]
fn an_address_that_stands_for_all_is_asked_by_loopback() {
    let local = |listen: &str| {
        Config { listen: listen.parse().unwrap(), ..Config::default() }.local_addr().to_string()
    };
    assert_eq!(local("0.0.0.0:1"), "127.0.0.1:1");
    assert_eq!(local("[::]:1"), "[::1]:1");
    assert_eq!(local("10.0.0.1:1"), "10.0.0.1:1");
}
