//! The house rules that no compiler checks: sizes, layers, leftovers, and documents that follow the code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on ends")]
#![allow(clippy::disallowed_methods, reason = "tests read the environment")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use muster_tests::requirements::SECTIONS;
use muster_tests::root;

/// Lines of a file without its tests.
const FILE_LINES_MAX: usize = 500;

fn files(folders: &[&str], endings: &[&str]) -> Vec<(String, String)> {
    let root = root();
    let mut found = Vec::new();
    let mut pending: Vec<PathBuf> = folders.iter().map(|folder| root.join(folder)).collect();
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            // The fuzzer's corpora are anything at all.
            if !["node_modules", "target", ".git", "corpus", "artifacts"].contains(&name.as_str()) {
                pending.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
            continue;
        }
        let relative = path.strip_prefix(&root).unwrap().display().to_string();
        if endings.iter().any(|ending| relative.ends_with(ending)) {
            found.push((relative, std::fs::read_to_string(&path).unwrap_or_default()));
        }
    }
    found.sort();
    assert!(!found.is_empty());
    found
}

fn sources() -> Vec<(String, String)> {
    files(&["protocol/src", "actors/src", "node/src", "tests/fuzzing/src"], &[".rs"])
}

fn none(what: &str, problems: &[String]) {
    assert!(problems.is_empty(), "{what}:\n  {}", problems.join("\n  "));
}

/// A file without the tests at its end.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests").next().unwrap()
}

#[test]
fn files_are_of_readable_size_and_say_what_they_are() {
    let mut problems = Vec::new();
    for (path, text) in sources() {
        let lines = without_tests(&text).lines().count();
        let is_test = path.contains("/conformance/") || path.ends_with("/tests.rs");
        if lines > FILE_LINES_MAX && !is_test {
            problems.push(format!("{path} has {lines} lines"));
        }
        if !text.starts_with("//!") {
            problems.push(format!("{path} does not begin with what it is"));
        }
    }
    none("files", &problems);
}

/// R171: one file reads the clocks; everywhere else time is an argument, which a test can choose.
#[test]
fn time_is_an_argument() {
    let clocks = ["SystemTime::now", "Instant::now", "Timestamp::now", "Zoned::now"];
    let mut problems = Vec::new();
    for (path, text) in sources() {
        let reads = clocks.iter().any(|clock| without_tests(&text).contains(clock));
        if reads && path != "node/src/system_clock.rs" {
            problems.push(format!("{path} reads a clock"));
        }
    }
    none("clocks", &problems);
}

#[test]
fn nothing_is_left_over() {
    // Put together, so that this file does not find itself.
    let leftovers: Vec<String> = [
        ("TO", "DO"),
        ("FIX", "ME"),
        ("XX", "X"),
        ("HA", "CK"),
        ("for ", "now"),
        ("db", "g!("),
        ("place", "holder"),
    ]
    .iter()
    .map(|(a, b)| format!("{a}{b}"))
    .collect();
    let mut problems = Vec::new();
    for (path, text) in files(
        &["protocol", "actors", "node", "tests", "scripts", "deploy", ".ci"],
        &[".rs", ".mjs", ".sql", ".toml", "test", "run", "fuzz"],
    ) {
        for (number, line) in text.lines().enumerate() {
            if leftovers.iter().any(|leftover| line.contains(leftover.as_str())) {
                problems.push(format!("{path}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    none("leftovers", &problems);
}

fn dependencies(package: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--package",
            package,
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn layers_know_only_what_is_below_them() {
    let below = [
        (
            "muster-protocol",
            vec!["tokio", "ractor", "hyper", "axum", "rusqlite", "redis", "tokio-postgres", "muster-actors"],
        ),
        (
            "muster-actors",
            vec!["hyper", "axum", "rusqlite", "redis", "tokio-postgres", "fastwebsockets", "rmcp", "muster"],
        ),
    ];
    let mut problems = Vec::new();
    for (package, forbidden) in below {
        let known = dependencies(package);
        problems.extend(
            forbidden
                .iter()
                .filter(|name| known.contains(**name))
                .map(|name| format!("{package} knows {name}")),
        );
    }
    none("layers", &problems);
}

/// Who may name which library inside `node`.
#[test]
fn each_library_has_its_place() {
    let places = [
        ("hyper", "node/src/http/"),
        ("rusqlite", "node/src/store/"),
        ("tokio_postgres", "node/src/store/"),
        ("deadpool_postgres", "node/src/store/"),
        ("rmcp", "node/src/mcp/"),
        ("fastwebsockets", "node/src/http/"),
    ];
    let mut problems = Vec::new();
    for (path, text) in files(&["node/src"], &[".rs"]) {
        for (library, place) in places {
            let named = [format!("use {library}::"), format!("{library}::"), format!("use {library};")];
            let uses = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            let uses = uses.filter(|line| named.iter().any(|name| line.contains(name.as_str())));
            // hyper_util is hyper's too; the name of one is the beginning of the other's.
            if uses.count() > 0 && !path.starts_with(place) {
                problems.push(format!("{path} names {library}, which belongs in {place}"));
            }
        }
    }
    none("places", &problems);
}

#[test]
fn metrics_are_named_in_one_file_per_crate() {
    let mut problems = Vec::new();
    for (path, text) in sources() {
        if text.contains(".register(\"") && !path.ends_with("metric_definitions.rs") {
            problems.push(format!("{path} registers a metric"));
        }
    }
    none("metrics", &problems);
}

#[test]
fn the_project_stands_alone() {
    let foreign: Vec<String> = [("/wor", "k/"), ("/ro", "ot/"), (".libr", "ary"), ("../sha", "red")]
        .iter()
        .map(|(a, b)| format!("{a}{b}"))
        .collect();
    let mut problems = Vec::new();
    let endings = [
        ".rs", ".mjs", ".md", ".toml", ".sql", ".json", ".yaml", ".yml", "test", "run", "bench", "chaos",
        "fuzz",
    ];
    for (path, text) in files(&["."], &endings) {
        if path.ends_with("package-lock.json") {
            continue;
        }
        for name in &foreign {
            if text.contains(name.as_str()) {
                problems.push(format!("{path} names {name}"));
            }
        }
    }
    none("what lies outside", &problems);
}

/// A block that is not closed turns the rest of a document into code.
#[test]
fn blocks_of_code_are_closed_and_links_lead_somewhere() {
    let root = root();
    let mut problems = Vec::new();
    for (path, text) in files(&["."], &[".md"]) {
        let mut opened = None;
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_start();
            let Some(after) = line.strip_prefix("```") else {
                // Text that begins a paragraph or heading inside of a block is one that was meant to stand behind it.
                if let (Some(at), true) = (opened, line.starts_with("## ")) {
                    problems.push(format!("{path}:{}: a heading inside the block of line {at}", number + 1));
                }
                continue;
            };
            match opened {
                None => opened = Some(number + 1),
                Some(_) if after.trim().is_empty() => opened = None,
                Some(at) => problems.push(format!("{path}:{}: the block of line {at} is open", number + 1)),
            }
        }
        problems.extend(opened.map(|at| format!("{path}:{at}: the block is not closed")));
        let folder = root.join(&path).parent().unwrap().to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap();
            let is_file =
                !target.is_empty() && !target.contains(':') && !target.contains(char::is_whitespace);
            if is_file && !folder.join(target).exists() {
                problems.push(format!("{path}: {link} leads nowhere"));
            }
        }
    }
    none("documents", &problems);
}

/// Two types of one name would take each other's place in the OpenAPI document.
#[test]
fn every_type_has_a_schema_name_of_its_own() {
    let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, text) in sources() {
        let lines: Vec<&str> = without_tests(&text).lines().map(str::trim).collect();
        for (at, line) in lines.iter().enumerate() {
            if !(line.starts_with("#[derive(") && line.contains("ToSchema")) {
                continue;
            }
            let after = lines[at..].iter();
            let declared = after
                .clone()
                .position(|line| line.starts_with("pub struct ") || line.starts_with("pub enum "));
            let declared = declared.unwrap_or_else(|| panic!("{path}:{}: derives of nothing", at + 1));
            let given = after.clone().take(declared).find_map(|line| line.strip_prefix("#[schema(as = "));
            let name = given.and_then(|rest| rest.split([')', ',']).next()).unwrap_or_else(|| {
                let declared = lines[at + declared].split(' ').nth(2).unwrap();
                declared.split(['<', '(', ';']).next().unwrap()
            });
            names.entry(name.to_owned()).or_default().push(path.clone());
        }
    }
    assert!(names.len() > 100, "{}", names.len());
    let twice = names.iter().filter(|(_, paths)| paths.len() > 1);
    let problems: Vec<String> = twice.map(|(name, paths)| format!("{name}: {}", paths.join(", "))).collect();
    none("types of one name in the OpenAPI document", &problems);
}

/// Where the tests of each requirement are, by the numbers in their titles.
fn tests_by_requirement() -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut add = |path: &str, title: &str, name: &str| {
        for word in title.split([' ', ':', ',']).take_while(|word| !word.is_empty()) {
            let Some(digits) = word.strip_prefix('R') else { break };
            if digits.parse::<u32>().is_err() {
                break;
            }
            found.entry(word.to_owned()).or_default().push(format!("`{path}`: {name}"));
        }
    };
    for (path, text) in files(&["tests/clients"], &[".test.mjs"]) {
        for line in text.lines().map(str::trim_start) {
            let title = ["test(\"", "it(\"", "test(`"].iter().find_map(|start| line.strip_prefix(start));
            if let Some(title) = title.and_then(|rest| rest.split(['"', '`']).next()) {
                add(&path, title, title);
            }
        }
    }
    // In Rust the numbers stand in the comment above the test.
    for (path, text) in files(&["protocol/src", "actors/src", "node/src", "tests/suites"], &[".rs"]) {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (at, line) in lines.iter().enumerate() {
            let Some(comment) = line.strip_prefix("/// R") else { continue };
            let title = format!("R{comment}");
            let after = lines[at..].iter().take(8);
            let name = after
                .filter_map(|line| line.split_once("fn "))
                .map(|(_, rest)| rest.split('(').next().unwrap())
                .next();
            let is_test = lines[at..]
                .iter()
                .take(6)
                .any(|line| line.contains("test]") || line.starts_with("#[tokio::test"));
            if let (Some(name), true) = (name, is_test) {
                add(&path, &title, name);
            }
        }
    }
    found
}

/// `UPDATE_DOCS=1` writes it anew.
#[test]
fn every_requirement_has_a_test_and_the_table_says_which() {
    let tests = tests_by_requirement();
    let mut table = String::from(
        "# Requirements and their tests\n\nWritten from the titles of the tests (`UPDATE_DOCS=1 cargo nextest run -p muster-tests \
         requirement`); a test compares it, and fails when a requirement has no test. Numbers that are absent (R145 to R165: \
         the protocols of realtime channels and of agents with state) belong to parts that are not built yet.\n",
    );
    let mut missing = Vec::new();
    for (section, requirements) in SECTIONS {
        write!(table, "\n## {section}\n\n").unwrap();
        for (number, text) in *requirements {
            writeln!(table, "* **{number}** {text}").unwrap();
            let Some(tests) = tests.get(*number) else {
                missing.push(format!("{number} {text}"));
                continue;
            };
            for test in tests {
                writeln!(table, "  * {test}").unwrap();
            }
        }
    }
    let path = root().join("docs/requirements.md");
    if std::env::var("UPDATE_DOCS").is_ok() {
        std::fs::write(&path, &table).unwrap();
    }
    none("requirements without a test", &missing);
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(written == table, "docs/requirements.md is out of date: run with UPDATE_DOCS=1");
}

#[test]
fn the_expected_files_are_there() {
    for name in [
        "README.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "deny.toml",
        "rust-toolchain.toml",
        "scripts/test",
        ".ci/run",
    ] {
        assert!(Path::new(&root()).join(name).exists(), "{name} is missing");
    }
}
