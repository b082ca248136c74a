//! What the machine has, and waiting.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often a condition is looked at; most come true by other processes, which tell nobody.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The clone that the tests were built from.
pub fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().expect("the workspace").to_owned()
}

/// Where the built binaries stand side by side: `BULKHEAD_BIN`, else where `deploy/build` puts them.
pub fn binaries() -> PathBuf {
    let directory = std::env::var_os("BULKHEAD_BIN").map_or_else(|| root().join("target/bin"), PathBuf::from);
    assert!(
        directory.join("ctl").is_file(),
        "no binaries in {}; build them with deploy/build",
        directory.display()
    );
    directory
}

/// Whether `test` can run here: as root, with these programs. Where it cannot, says why and counts as skipped.
pub fn can_run(test: &str, programs: &[&str]) -> bool {
    if !nix::unistd::geteuid().is_root() {
        return skip(test, "needs root");
    }
    match programs.iter().find(|program| which(program).is_none()) {
        Some(program) => skip(test, &format!("needs the program {program}")),
        None => true,
    }
}

/// Says that `test` does not run, and why; false, for `return`.
pub fn skip(test: &str, reason: &str) -> bool {
    let line = format!("skipped: {test}: {reason}");
    println!("{line}");
    if let Some(path) = std::env::var_os("BULKHEAD_SKIPS") {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options
            .create(true)
            .append(true)
            .open(path)
            .expect("the list of skips");
        writeln!(file, "{line}").expect("the list of skips");
    }
    false
}

/// The path of a program, as a shell finds it.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// Looks until `condition` gives a value, which is returned; panics when that takes longer than `limit`.
#[track_caller]
pub fn wait_for<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(
            Instant::now() < end,
            "{what} did not come true within {} s",
            limit.as_secs()
        );
        std::thread::sleep(LOOK_EVERY);
    }
}
