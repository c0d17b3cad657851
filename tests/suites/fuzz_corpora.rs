//! Every file of the fuzzer's corpora holds, in the ordinary tests too: what was written by hand, what the fuzzer kept
//! because it reached new code, and what once broke something. And some bytes around them, at random.
#![allow(clippy::disallowed_methods, reason = "tests read the environment")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on ends")]

use std::collections::BTreeSet;
use std::path::PathBuf;

use muster_fuzzing::TARGETS;
use muster_tests::root;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

/// Files of one corpus at most, and their bytes: it is cloned by everybody.
const FILES_MAX: usize = 200;
const BYTES_MAX: usize = 200 * 1024;
/// Random inputs of one target, unless `PROPTEST_CASES` says otherwise.
const CASES: u32 = 200;

/// The files of a target, by name.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder: PathBuf = root().join("tests/fuzz/corpus").join(target);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|_| panic!("{target} has no corpus"));
    let mut files: Vec<(String, Vec<u8>)> = entries
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn corpora_hold() {
    let mut broken = Vec::new();
    for (target, run) in TARGETS {
        for (name, bytes) in corpus(target) {
            if std::panic::catch_unwind(|| run(&bytes)).is_err() {
                broken.push(format!("{target}/{name}"));
            }
        }
    }
    assert!(broken.is_empty(), "files that break what must hold: {broken:?}");
}

#[test]
fn corpora_are_there_and_small() {
    for (target, _) in TARGETS {
        let files = corpus(target);
        let bytes: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(
            files.len() <= FILES_MAX && bytes <= BYTES_MAX,
            "{target}: {} files, {bytes} bytes",
            files.len()
        );
        // What the fuzzer keeps is named by a hash: something must have been thought of as well.
        let by_hand = files.iter().filter(|(name, _)| name.contains('_') || name.len() < 40).count();
        assert!(by_hand >= 10, "{target} has {by_hand} seeds with a name");
        assert!(files.iter().any(|(_, bytes)| bytes.len() > 16), "{target} has no message");
    }
}

/// A target is in the list, has a binary and a corpus, and there is none of these without the others.
#[test]
fn corpora_binaries_and_targets_are_the_same() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let manifest = std::fs::read_to_string(root().join("tests/fuzz/Cargo.toml")).unwrap();
    let binaries: BTreeSet<String> = manifest
        .split("[[bin]]")
        .skip(1)
        .map(|section| section.split('"').nth(1).unwrap().to_owned())
        .collect();
    let folders = std::fs::read_dir(root().join("tests/fuzz/corpus")).unwrap();
    let folders: BTreeSet<String> =
        folders.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    assert_eq!(targets, binaries);
    assert_eq!(targets, folders);
    for target in &targets {
        let binary = root().join(format!("tests/fuzz/fuzz_targets/{target}.rs"));
        let text = std::fs::read_to_string(binary).unwrap();
        assert!(text.contains(&format!("muster_fuzzing::{target}(")), "{target} runs itself");
    }
}

/// A file of the corpus with a part replaced, or bytes of nobody.
#[test]
fn corpora_hold_with_random_changes() {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES);
    for (target, run) in TARGETS {
        let files: Vec<Vec<u8>> = corpus(target).into_iter().map(|(_, bytes)| bytes).collect();
        let input = (
            any::<prop::sample::Index>(),
            any::<prop::sample::Index>(),
            0_usize..4,
            prop::collection::vec(any::<u8>(), 0..8),
            prop::collection::vec(any::<u8>(), 0..64),
        );
        let config = ProptestConfig {
            cases,
            failure_persistence: None,
            max_shrink_iters: 100,
            ..ProptestConfig::default()
        };
        let mut runner = TestRunner::new(config);
        let outcome = runner.run(&input, |(file, at, cut, new, alone)| {
            run(&alone);
            let mut bytes = files[file.index(files.len())].clone();
            let from = at.index(bytes.len() + 1);
            let to = bytes.len().min(from + cut);
            bytes.splice(from..to, new);
            run(&bytes);
            Ok(())
        });
        assert!(outcome.is_ok(), "{target}: {outcome:?}");
    }
}
