//! The OCI command line, called as engines call it: needs root and busybox (static).

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod bundle;
mod program;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bundle::Bundle;
use oci_spec::runtime::Spec;
use runtime::cgroup::{Cgroup, Layout};

#[test]
fn a_container_goes_through_its_life() {
    let bundle = Bundle::new("life", "echo hello; exec sleep 1000");
    // Flags after the id as well as before.
    bundle.create(&[
        "create",
        "c",
        "--bundle",
        bundle.path().to_str().unwrap(),
        "--pid-file",
        "pid",
    ]);
    assert_eq!(bundle.status(), "created");
    assert_eq!(bundle.out(), "");
    let pid = fs::read_to_string(bundle.path().join("pid")).unwrap();
    let state: serde_json::Value = serde_json::from_str(&bundle.succeed(&["state", "c"])).unwrap();
    assert_eq!(state["pid"].to_string(), pid);
    assert_eq!(state["id"], "c");
    assert!(!bundle.call(&["create", "c"]).status.success(), "the id is taken");
    bundle.succeed(&["start", "c"]);
    bundle.wait_status("running");
    assert!(!bundle.call(&["start", "c"]).status.success());
    assert!(!bundle.call(&["delete", "c"]).status.success());
    let begin = Instant::now();
    while bundle.out() != "hello\n" {
        assert!(begin.elapsed() < Duration::from_secs(30), "{}", bundle.out());
    }
    assert_eq!(
        bundle.succeed(&["ps", "--format", "json", "c"]).trim(),
        format!("[{pid}]")
    );
    assert!(bundle.succeed(&["list"]).contains("running"));
    let exec = bundle.call(&["exec", "--env", "A=b", "c", "/bin/sh", "-c", "echo $A; exit 9"]);
    assert_eq!(
        (exec.status.code(), exec.stdout.as_slice()),
        (Some(9), &b"b\n"[..]),
        "{exec:?}"
    );
    bundle.succeed(&["pause", "c"]);
    assert_eq!(bundle.status(), "paused");
    bundle.succeed(&["resume", "c"]);
    assert_eq!(bundle.status(), "running");
    bundle.succeed(&["kill", "c", "KILL"]);
    bundle.wait_status("stopped");
    assert!(!bundle.call(&["kill", "c", "9"]).status.success());
    bundle.succeed(&["delete", "c"]);
    assert!(!bundle.call(&["state", "c"]).status.success());
    assert_eq!(fs::read_dir(bundle.path().join("state")).unwrap().count(), 0);
}

#[test]
fn run_waits_gives_the_exit_code_and_leaves_nothing() {
    let bundle = Bundle::new("run", "echo out; exit 6");
    let output = bundle.call(&["run", "c"]);
    assert_eq!(
        (output.status.code(), output.stdout.as_slice()),
        (Some(6), &b"out\n"[..]),
        "{output:?}"
    );
    assert!(!bundle.call(&["state", "c"]).status.success());
}

#[test]
fn failures_are_told_in_the_words_that_engines_look_for_and_leave_nothing() {
    let bundle = Bundle::new("words", "true");
    let log = bundle.path().join("log.json");
    for (program, words) in [
        ("no-such-program", "executable file not found in $PATH"),
        ("/no/such", "no such file or directory"),
        ("/etc", "permission denied"),
    ] {
        let mut spec: Spec =
            serde_json::from_slice(&fs::read(bundle.path().join("config.json")).unwrap()).unwrap();
        let mut process = spec.process().clone().unwrap();
        process.set_args(Some(vec![program.into()]));
        spec.set_process(Some(process));
        bundle.write(&spec);
        let output = bundle.call(&[
            "--log",
            log.to_str().unwrap(),
            "--log-format",
            "json",
            "create",
            "c",
        ]);
        assert_eq!(output.status.code(), Some(1));
        let text = fs::read_to_string(&log).unwrap();
        let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(last["level"], "error");
        assert!(last["msg"].as_str().unwrap().contains(words), "{last}");
        assert_eq!(fs::read_dir(bundle.path().join("state")).unwrap().count(), 0);
    }
}

#[test]
fn version_has_three_lines_and_bad_use_is_refused() {
    let bundle = Bundle::new("version", "true");
    assert_eq!(bundle.succeed(&["--version"]).lines().count(), 3);
    let features: serde_json::Value = serde_json::from_str(&bundle.succeed(&["features"])).unwrap();
    assert!(features["linux"]["namespaces"].as_array().unwrap().len() >= 7);
    for arguments in [
        &["state", "../x"][..],
        &["state"],
        &["update", "c"],
        &["checkpoint", "c"],
        &["start", "c", "d"],
        &["events", "c"],
        &["create", "--frobnicate", "c"],
        &["create", "--console-socket", "x", "c"],
        &[],
    ] {
        assert_eq!(bundle.call(arguments).status.code(), Some(1), "{arguments:?}");
    }
    assert_eq!(bundle.call(&["frobnicate", "c"]).status.code(), Some(3));
    assert_eq!(bundle.call(&["exec", "c", "true"]).status.code(), Some(255));
    let made = tempfile::tempdir().unwrap();
    bundle.succeed(&["spec", "--bundle", made.path().to_str().unwrap()]);
    let spec: Spec = serde_json::from_slice(&fs::read(made.path().join("config.json")).unwrap()).unwrap();
    assert!(spec.process().is_some());
}

#[test]
fn the_page_names_tests_that_exist() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(here.join("../../docs/oci.md")).unwrap();
    let mut sources = String::new();
    let mut directories = vec![here.join("src"), here.join("tests")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|name| name == "rs") {
                sources.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }
    let rows = page
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains("`, `") || line.ends_with("` |"));
    let names: Vec<&str> = rows
        .filter_map(|row| row.trim_end_matches(" |").rsplit_once("| "))
        .flat_map(|(_, last)| last.split(", "))
        .filter_map(|name| name.strip_prefix('`')?.strip_suffix('`'))
        .collect();
    assert!(names.len() > 40, "{names:?}");
    let table = page.split("| section | MUST |").nth(1).unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let counts = rows.map(|row| row.split('|').nth(2).unwrap().trim().parse::<u32>().unwrap_or(0));
    let total: u32 = counts.sum();
    assert!(page.contains(&format!(": {total} times")), "{total} in the rows");
    for name in names {
        assert!(
            sources.contains(&format!("fn {name}(")),
            "no test is called {name}"
        );
    }
}

/// Whatever a create was at when it was killed, what it made is found and removed.
#[test]
fn a_create_killed_at_any_point_leaves_nothing_that_force_does_not_remove() {
    let bundle = Bundle::new("killed-create", "exec sleep 1000");
    let group = Cgroup::open(&Layout::detect().unwrap(), &bundle.cgroup.join("c")).unwrap();
    for point in 0..30 {
        let mut create = bundle
            .command(&["create", "c"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(point) {
            std::hint::spin_loop();
        }
        create.kill().unwrap();
        create.wait().unwrap();
        bundle.succeed(&["delete", "--force", "c"]);
        assert!(!group.exists(), "killed after {point} ms");
        let state = fs::read_dir(bundle.path().join("state"));
        assert_eq!(state.map_or(0, Iterator::count), 0, "killed after {point} ms");
    }
}
