//! `docs/configuration.md`: every setting with what it means, from the comments beside it; its default, from the code; and
//! its bounds, by trying what the code refuses.

use std::fmt::Write;

use toml::{Table, Value};

use crate::config::{Config, combine};

/// Where the settings stand.
const SOURCES: &[&str] = &[
    include_str!("../config/mod.rs"),
    include_str!("../config/cluster.rs"),
    include_str!("../../../actors/src/settings.rs"),
    include_str!("../../../protocol/src/alerts.rs"),
    include_str!("../../../protocol/src/limits.rs"),
    include_str!("../../../protocol/src/negotiation.rs"),
    include_str!("../../../protocol/src/webhook.rs"),
];

/// Above it a bound is that of the machine, and says nothing.
const BOUND_MAX: u64 = 1 << 53;

/// A field of a struct as its source has it.
struct Field {
    name: String,
    kind: String,
    meaning: String,
}

fn fields(structure: &str) -> Vec<Field> {
    let head = format!("pub struct {structure} {{\n");
    let Some((_, body)) = SOURCES.iter().find_map(|source| source.split_once(head.as_str())) else {
        return Vec::new();
    };
    let body = body.split("\n}").next().unwrap_or_default();
    let mut found = Vec::new();
    let (mut meaning, mut renamed) = (String::new(), None);
    for line in body.lines().map(str::trim) {
        if let Some(comment) = line.strip_prefix("///") {
            meaning.push_str(comment);
        } else if let Some(name) = line.strip_prefix("#[serde(rename = \"") {
            renamed = name.split('"').next().map(str::to_owned);
        } else if let Some((name, kind)) = line.strip_prefix("pub ").and_then(|field| field.split_once(':')) {
            let kind = kind.trim().trim_end_matches(',').rsplit("::").next().unwrap_or_default().to_owned();
            let name = renamed.take().unwrap_or_else(|| name.to_owned());
            found.push(Field { name, kind, meaning: std::mem::take(&mut meaning).trim().to_owned() });
        }
    }
    found
}

/// What each setting means, by its whole name, in the order of the sections and of the settings in them.
fn meanings() -> Vec<(Field, Vec<Field>)> {
    let sections = fields("Config").into_iter();
    sections
        .map(|section| (fields(&section.kind), section))
        .map(|(inner, section)| (section, inner))
        .collect()
}

/// What the check says of a value, if it refuses it.
fn refused(name: &str, value: u64) -> Option<String> {
    let error = combine(None, &[], &[(name.to_owned(), value.to_string())]).err()?;
    let problem = error.0.strip_prefix(name)?.strip_prefix(": ")?;
    let bound = problem.split(", ").next()?;
    let is_bound = ["at least ", "at most ", "from "].iter().any(|start| bound.starts_with(start));
    is_bound.then(|| bound.split(" of each").next().unwrap_or_default().to_owned())
}

fn bounds(name: &str, default: Option<&Value>) -> String {
    if !matches!(default, Some(Value::Integer(_))) {
        return String::new();
    }
    let least = refused(name, 0);
    // The largest that each type of number takes, so that it is the check that refuses it.
    let largest = [BOUND_MAX, u64::from(u32::MAX), u64::from(u16::MAX)];
    let most = largest.into_iter().find_map(|value| refused(name, value));
    let most = most.filter(|bound| least.as_ref() != Some(bound));
    [least, most].into_iter().flatten().map(|bound| format!("; {bound}")).collect()
}

fn shown(default: Option<&Value>) -> String {
    match default {
        None => "absent".to_owned(),
        // In one line, as `--set` takes it.
        Some(Value::Table(fields)) if !fields.is_empty() => {
            let fields: Vec<String> =
                fields.iter().map(|(name, value)| format!("{name} = {value}")).collect();
            format!("`{{ {} }}`", fields.join(", "))
        }
        Some(value) => format!("`{value}`"),
    }
}

/// Every setting with its default, as a list and as a configuration file.
pub fn reference() -> String {
    let defaults = Table::try_from(Config::default()).unwrap_or_default();
    let mut out = String::from(
        "# Configuration\n\nWritten from the code's own settings by `muster docs`; a test compares them.\n\n\
         A file given by `--config` or `MUSTER_CONFIG`, then variables (`[http] listen` is `MUSTER_HTTP_LISTEN`), then \
         flags (`--set http.listen=…`), each over the one before. Unknown names are errors. `muster config` prints what \
         comes out. Two secrets are no settings and come from the environment alone: `MUSTER_ADMIN_TOKEN`, the operator's token, \
         and `MUSTER_CLUSTER_SECRET`, with which nodes know each other over Redis.\n\n\
         Names say their units: `_ms` milliseconds, `_bytes` bytes, `_chars` characters, `_max` the most there may be. A rate \
         is a bucket: `burst` tokens at most, of which `tokens` come back in `period_ms`; what finds none is refused and told \
         when to come again.\n",
    );
    for (section, settings) in meanings() {
        // Writing into a String cannot fail.
        let _infallible = write!(out, "\n## `[{}]`\n\n{}\n\n", section.name, section.meaning);
        let given = defaults.get(&section.name).and_then(Value::as_table);
        for setting in settings {
            let name = format!("{}.{}", section.name, setting.name);
            let default = given.and_then(|given| given.get(&setting.name));
            let (shown, bounds) = (shown(default), bounds(&name, default));
            let _infallible = writeln!(out, "* **`{name}`** ({shown}{bounds}): {}", setting.meaning);
        }
    }
    let file = toml::to_string_pretty(&Config::default()).unwrap_or_default();
    let _infallible = write!(out, "\n## The defaults as a file\n\n```toml\n{file}```\n");
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::setting_names;

    /// Settings that the code knows, and those that the document explains: a difference is a mistake in one of them.
    fn known_and_explained() -> (Vec<String>, BTreeMap<String, String>) {
        let known = setting_names().unwrap_or_default();
        let explained = meanings().into_iter().flat_map(|(section, settings)| {
            settings
                .into_iter()
                .map(move |setting| (format!("{}.{}", section.name, setting.name), setting.meaning))
        });
        (known, explained.collect())
    }

    /// R169: no setting is without its sentence, and none is explained that there is not.
    #[test]
    fn every_setting_is_explained() {
        let (known, explained) = known_and_explained();
        assert!(known.len() > 120, "{}", known.len());
        for name in &known {
            let meaning = explained.get(name).map(String::as_str).unwrap_or_default();
            assert!(meaning.len() > 12 && meaning.ends_with('.'), "{name}: {meaning:?}");
        }
        // Tables that are empty by default have no names of their own.
        let unknown: Vec<&String> = explained.keys().filter(|name| !known.contains(name)).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
        let text = reference();
        assert!(!text.contains(".rs"), "a user has no sources");
        assert!(!text.contains("[`"), "links lead nowhere there");
    }

    /// R169: bounds are what the check refuses.
    #[test]
    fn bounds_are_those_of_the_check() {
        let text = reference();
        for line in [
            "* **`limits.page_items_max`** (`100`; at least 1): ",
            "* **`ledger.platform_fee_bps`** (`0`; at most 10000): ",
            "* **`negotiation.rounds_max`** (`10`; from 2 to 100): ",
            "* **`limits.joins_per_agent`** (`{ burst = 30, period_ms = 60000, tokens = 30 }`): ",
            "* **`http.tls_key`** (absent): ",
            "* **`stream.ack`** (`\"durable\"`): ",
        ] {
            let starts = text.lines().filter(|found| found.starts_with(line));
            assert_eq!(starts.count(), 1, "{line}");
        }
    }
}
