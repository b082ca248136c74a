//! The first command of README.md, twice, and what it leaves after `ctl dev down`.

use std::fs::File;
use std::process::{Command, Output};

use nix::sched::CloneFlags;
use tests::leaks::Traces;
use tests::{can_run, machine};

/// The cluster that `ctl dev` makes when nobody names one.
const NAME: &str = "dev";

/// As from a person's shell: what cargo says to its tests would make build scripts run, and most of the build, again.
fn quickstart(home: &std::path::Path) -> Output {
    let by_cargo = |name: &str| {
        (name.starts_with("CARGO") && !["CARGO_HOME", "CARGO_TARGET_DIR"].contains(&name))
            || name.contains("NEXTEST")
    };
    Command::new(machine::root().join("deploy/quickstart"))
        .env_clear()
        .envs(std::env::vars().filter(|(name, _)| !by_cargo(name)))
        .env("BULKHEAD_CONFIG", home.join("config.yaml"))
        .output()
        .expect("deploy/quickstart")
}

#[test]
fn quickstart_ends_with_the_example_running_and_runs_again() {
    if !can_run(
        "quickstart_ends_with_the_example_running_and_runs_again",
        &["ip", "nft", "curl", "cargo"],
    ) {
        return;
    }
    let home = tempfile::tempdir().expect("a directory");
    let outside = File::open("/proc/thread-self/ns/net").expect("own network namespace");
    nix::sched::unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.expect("ip").success());
    let before = Traces::of(NAME);
    if before.0.iter().any(|trace| trace.starts_with("directory")) {
        machine::skip(
            "quickstart_ends_with_the_example_running_and_runs_again",
            "a cluster `dev` is up on this machine",
        );
        return;
    }
    let runs = [quickstart(home.path()), quickstart(home.path())];
    let down = Command::new(machine::binaries().join("ctl"))
        .args(["dev", "down"])
        .env("BULKHEAD_CONFIG", home.path().join("config.yaml"))
        .output()
        .expect("ctl");
    let after = Traces::of(NAME);
    nix::sched::setns(&outside, CloneFlags::CLONE_NEWNET).expect("the network before");
    for run in &runs {
        let said = String::from_utf8_lossy(&run.stdout);
        assert!(
            run.status.success(),
            "{said}{}",
            String::from_utf8_lossy(&run.stderr)
        );
        for word in [
            "hello-",
            "Running",
            "Hello from hello-",
            "user namespace",
            "seccomp",
        ] {
            assert!(said.contains(word), "no {word} in\n{said}");
        }
    }
    assert!(down.status.success(), "{down:?}");
    let left: Vec<&String> = after.0.difference(&before.0).collect();
    assert!(left.is_empty(), "left behind: {left:#?}");
}
