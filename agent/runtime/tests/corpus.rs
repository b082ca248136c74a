//! The corpora of the fuzzers, replayed: what `tests/fuzz` found once is found here ever after.

#![allow(clippy::unwrap_used)] // a test that fails

mod filter;
#[path = "../../../tests/fuzz/checks/replay.rs"]
mod replay;
#[path = "../../../tests/fuzz/checks/runtime.rs"]
mod runtime_checks;

use replay::replay;

const CORPORA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fuzz/corpus");

#[test]
fn configurations_are_read_the_same_again() {
    replay(CORPORA, "config", runtime_checks::config);
}

#[test]
fn profiles_become_programs_that_answer_as_they_say() {
    replay(CORPORA, "seccomp", runtime_checks::seccomp);
}

#[test]
fn mount_options_are_sorted_the_same_again() {
    replay(CORPORA, "options", runtime_checks::options);
}

#[test]
fn states_are_read_the_same_again() {
    replay(CORPORA, "state", runtime_checks::state);
}

#[test]
#[should_panic(expected = "part of the repository")]
fn a_corpus_that_is_missing_fails() {
    replay(CORPORA, "nothing", |_| {});
}

#[test]
#[should_panic(expected = "inputs of")]
fn a_corpus_that_is_empty_fails() {
    let empty = tempfile::tempdir().unwrap();
    std::fs::create_dir(empty.path().join("config")).unwrap();
    replay(empty.path().to_str().unwrap(), "config", |_| {});
}
