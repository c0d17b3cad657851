//! Putting the configuration together from its sources.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::{Config, ConfigError, StoreUrl};

/// Where configuration comes from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// A TOML file.
    pub file: Option<std::path::PathBuf>,
    /// The environment.
    pub environment: Vec<(String, String)>,
    /// `name=value`, from flags.
    pub flags: Vec<(String, String)>,
}

/// Prefix of variables that are ours.
const PREFIX: &str = "MUSTER_";
/// Variables that are ours but not configuration.
const OTHER_VARIABLES: [&str; 4] =
    ["MUSTER_ADMIN_TOKEN", "MUSTER_CLUSTER_SECRET", "MUSTER_CONFIG", "MUSTER_URL"];

/// Reads and checks the configuration.
///
/// # Errors
/// A source cannot be read, or names something unknown, or gives a value that cannot be used.
pub fn load(sources: &Sources) -> Result<Config, ConfigError> {
    let file = match &sources.file {
        Some(path) => {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(path)
                .map_err(|error| ConfigError(format!("cannot read {name}: {error}")))?;
            Some((name, text))
        }
        None => None,
    };
    let file = file.as_ref().map(|(name, text)| (name.as_str(), text.as_str()));
    combine(file, &sources.environment, &sources.flags)
}

/// The same from a file that was read, by its name and its text.
///
/// # Errors
/// As [`load`].
pub fn combine(
    file: Option<(&str, &str)>,
    environment: &[(String, String)],
    flags: &[(String, String)],
) -> Result<Config, ConfigError> {
    let mut table: Table = match file {
        Some((name, text)) => {
            text.parse().map_err(|error| ConfigError(format!("{name}: {}", place_of(&error, text))))?
        }
        None => Table::new(),
    };
    let names = known_names()?;
    for (variable, text) in environment {
        if !variable.starts_with(PREFIX) || OTHER_VARIABLES.contains(&variable.as_str()) {
            continue;
        }
        let path = names.get(variable).ok_or_else(|| ConfigError(format!("{variable}: unknown variable")))?;
        set(&mut table, path, value_of(text));
    }
    for (name, text) in flags {
        let path: Vec<String> = name.split('.').map(str::to_owned).collect();
        if !names.values().any(|known| *known == path) {
            return Err(ConfigError(format!("{name}: unknown setting")));
        }
        set(&mut table, &path, value_of(text));
    }
    let config: Config = Value::Table(table).try_into().map_err(|error| ConfigError(format!("{error}")))?;
    config.check()?;
    Ok(config)
}

/// What is wrong with a file, and where; the line itself may hold a secret.
fn place_of(error: &toml::de::Error, text: &str) -> String {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    format!("line {}: {}", before.matches('\n').count() + 1, error.message())
}

/// Every setting by the name of its variable: `http.listen` is `MUSTER_HTTP_LISTEN`.
fn known_names() -> Result<BTreeMap<String, Vec<String>>, ConfigError> {
    // Options that are absent do not show in TOML, so they are given a value first.
    let mut all = Config::default();
    all.http.tls_certificate = Some(std::path::PathBuf::new());
    all.http.tls_key = Some(std::path::PathBuf::new());
    all.http.metrics_listen = Some(String::new());
    all.store.url = StoreUrl::parse("postgres://").ok();
    all.store.tls_ca = Some(std::path::PathBuf::new());
    all.cluster = all.cluster.with_every_setting();
    let table = Table::try_from(all).map_err(|error| ConfigError(error.to_string()))?;
    let mut names = BTreeMap::new();
    for (section, settings) in table {
        let Value::Table(settings) = settings else { continue };
        for setting in settings.keys() {
            let variable = format!("{PREFIX}{section}_{setting}").to_uppercase();
            names.insert(variable, vec![section.clone(), setting.clone()]);
        }
    }
    Ok(names)
}

/// Every setting by its name in the file, such as `http.listen`.
#[cfg(test)]
pub(crate) fn setting_names() -> Result<Vec<String>, ConfigError> {
    Ok(known_names()?.into_values().map(|path| path.join(".")).collect())
}

/// A TOML value where the text is one, otherwise the text.
fn value_of(text: &str) -> Value {
    let parsed: Result<Table, _> = format!("value = {text}").parse();
    match parsed {
        Ok(mut table) if table.len() == 1 => {
            table.remove("value").unwrap_or_else(|| Value::String(text.to_owned()))
        }
        _ => Value::String(text.to_owned()),
    }
}

fn set(table: &mut Table, path: &[String], value: Value) {
    let Some((first, rest)) = path.split_first() else { return };
    if rest.is_empty() {
        table.insert(first.clone(), value);
        return;
    }
    let inner = table.entry(first.clone()).or_insert_with(|| Value::Table(Table::new()));
    if let Value::Table(inner) = inner {
        set(inner, rest, value);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn later_sources_win() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(
            file,
            "[http]\nlisten = \"127.0.0.1:1\"\n[stream]\nack = \"memory\"\n[limits]\nmessage_bytes_max = 2048"
        )
        .unwrap();
        let sources = Sources {
            file: Some(file.path().to_owned()),
            environment: vec![
                pair("MUSTER_HTTP_LISTEN", "127.0.0.1:2"),
                pair("MUSTER_HTTP_ORIGINS", "[\"https://a.example\"]"),
                pair("MUSTER_LIMITS_JOINS_PER_AGENT", "{tokens = 5, period_ms = 1000, burst = 9}"),
                pair("MUSTER_ADMIN_TOKEN", "op_x"),
                pair("PATH", "/bin"),
            ],
            flags: vec![
                pair("http.listen", "127.0.0.1:3"),
                pair("http.tls_key", "/k"),
                pair("http.tls_certificate", "/c"),
            ],
        };
        let config = load(&sources).unwrap();
        assert_eq!(config.http.listen, "127.0.0.1:3");
        assert_eq!(config.http.origins, ["https://a.example"]);
        assert_eq!(config.limits.message_bytes_max, 2_048);
        assert_eq!(config.limits.joins_per_agent.burst, 9);
        assert_eq!(config.stream.acknowledge, muster_actors::settings::Acknowledge::Memory);
    }

    #[test]
    fn the_example_for_production_is_taken() {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/muster.toml");
        let config = load(&Sources { file: Some(file), ..Sources::default() }).unwrap();
        assert_eq!((config.http.listen.as_str(), config.drain.unready_ms), ("0.0.0.0:4000", 5_000));
    }

    #[test]
    fn the_password_of_the_database_is_taken_from_everywhere_and_shown_nowhere() {
        let url = "postgres://me:geheim@db/muster";
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "[store]\nurl = \"{url}\"").unwrap();
        let sources = [
            Sources { file: Some(file.path().to_owned()), ..Sources::default() },
            Sources { environment: vec![pair("MUSTER_STORE_URL", url)], ..Sources::default() },
            Sources { flags: vec![pair("store.url", url)], ..Sources::default() },
        ];
        for sources in sources {
            let config = load(&sources).unwrap();
            assert_eq!(config.store.url.as_ref().unwrap().reveal(), url);
            let shown = toml::to_string_pretty(&config).unwrap();
            assert!(shown.contains("postgres://me:***@db/muster") && !shown.contains("geheim"), "{shown}");
            assert!(!format!("{config:?}").contains("geheim"));
        }
        let mut broken = tempfile::NamedTempFile::new().unwrap();
        writeln!(broken, "[store]\nurl = {url}").unwrap();
        for sources in [
            Sources { file: Some(broken.path().to_owned()), ..Sources::default() },
            Sources { flags: vec![pair("store.url", "mysql://me:geheim@db")], ..Sources::default() },
        ] {
            let error = load(&sources).unwrap_err();
            assert!(!error.0.contains("geheim"), "{error}");
        }
    }

    #[test]
    fn what_nobody_knows_is_an_error_everywhere() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "[http]\nlissten = \"x\"").unwrap();
        let cases = [
            (Sources { file: Some(file.path().to_owned()), ..Sources::default() }, "lissten"),
            (
                Sources { environment: vec![pair("MUSTER_HTTP_LISSTEN", "x")], ..Sources::default() },
                "MUSTER_HTTP_LISSTEN",
            ),
            (Sources { flags: vec![pair("http.lissten", "x")], ..Sources::default() }, "http.lissten"),
            (
                Sources { flags: vec![pair("limits.message_bytes_max", "-1")], ..Sources::default() },
                "message_bytes_max",
            ),
            (
                Sources { flags: vec![pair("limits.message_bytes_max", "1")], ..Sources::default() },
                "at least",
            ),
            (
                Sources { flags: vec![pair("limits.socket_idle_timeout_ms", "0")], ..Sources::default() },
                "at least",
            ),
            (
                Sources {
                    flags: vec![pair("limits.connections_max", "9223372036854775807")],
                    ..Sources::default()
                },
                "at most",
            ),
            (
                Sources { flags: vec![pair("accounts.session_ttl_ms", "-5")], ..Sources::default() },
                "session_ttl_ms",
            ),
            (
                Sources {
                    flags: vec![pair("limits.chunks_per_stream", "{tokens=0,period_ms=0,burst=0}")],
                    ..Sources::default()
                },
                "chunks_per_stream",
            ),
            (Sources { flags: vec![pair("http.origins", "[\"x\"]")], ..Sources::default() }, "http.origins"),
            (
                Sources { flags: vec![pair("http.trusted_proxies", "[\"x\"]")], ..Sources::default() },
                "trusted_proxies",
            ),
            (Sources { flags: vec![pair("http.tls_key", "/k")], ..Sources::default() }, "tls_certificate"),
            (Sources { file: Some("/nowhere.toml".into()), ..Sources::default() }, "/nowhere.toml"),
        ];
        for (sources, part) in cases {
            let error = load(&sources).unwrap_err();
            assert!(error.0.contains(part), "{error} lacks {part}");
        }
        assert_eq!(load(&Sources::default()), Ok(Config::default()));
    }
}
