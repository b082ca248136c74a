//! Calls a check with every input of its corpus.

#![allow(
    unreachable_pub,
    reason = "a module of tests and of the fuzzers' library, which exports it"
)]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Fewer are a corpus that was lost on the way.
const INPUTS_MIN: usize = 5;

/// Panics where the corpus is missing or next to empty, and names every input that the check fails with.
pub fn replay(corpora: &str, target: &str, check: impl Fn(&[u8])) {
    let corpus = Path::new(corpora).join(target);
    let entries = fs::read_dir(&corpus)
        .unwrap_or_else(|error| panic!("{}: {error}; it is part of the repository", corpus.display()));
    let mut inputs: Vec<_> = entries
        .map(|entry| entry.expect("a directory can be listed").path())
        .collect();
    inputs.sort();
    assert!(
        inputs.len() >= INPUTS_MIN,
        "{} has {} inputs of {INPUTS_MIN} at least",
        corpus.display(),
        inputs.len()
    );
    let failed: Vec<_> = inputs
        .iter()
        .filter(|input| {
            let bytes = fs::read(input).expect("an input can be read");
            catch_unwind(AssertUnwindSafe(|| check(&bytes))).is_err()
        })
        .collect();
    assert!(failed.is_empty(), "fails with {failed:?}");
}
