//! The commands of the OCI command line beyond create and start: needs root and busybox (static).

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod bundle;
mod program;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use bundle::Bundle;
use serde_json::{Value, json};

fn started(name: &str) -> Bundle {
    let bundle = Bundle::new(name, "exec sleep 1000");
    bundle.create(&["create", "c"]);
    bundle.succeed(&["start", "c"]);
    bundle.wait_status("running");
    bundle
}

#[test]
fn pause_stops_all_and_lets_no_exec_in() {
    let bundle = started("pause");
    bundle.succeed(&["pause", "c"]);
    assert_eq!(bundle.status(), "paused");
    let said = bundle.fail(&["exec", "c", "/bin/true"]);
    assert!(said.contains("cannot exec in a paused container"), "{said}");
    assert!(!bundle.call(&["delete", "c"]).status.success());
    assert!(!bundle.call(&["pause", "c"]).status.success());
    bundle.succeed(&["resume", "c"]);
    assert!(bundle.fail(&["resume", "c"]).contains("container not paused"));
    bundle.succeed(&["exec", "c", "/bin/true"]);
    // A paused one can be deleted by force.
    bundle.succeed(&["pause", "c"]);
    bundle.succeed(&["delete", "--force", "c"]);
    bundle.succeed(&["delete", "--force", "c"]);
    assert!(bundle.fail(&["delete", "c"]).contains("does not exist"));
}

#[test]
fn update_changes_limits_from_flags_and_json_and_stats_show_them() {
    let bundle = started("update");
    let stats = || -> Value {
        let event: Value = serde_json::from_str(&bundle.succeed(&["events", "--stats", "c"])).unwrap();
        assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!("c")));
        event["data"].clone()
    };
    bundle.succeed(&[
        "update",
        "--memory",
        "64M",
        "--pids-limit",
        "20",
        "--cpu-quota",
        "20000",
        "c",
    ]);
    let data = stats();
    assert_eq!(data["memory"]["usage"]["limit"], 64 << 20);
    assert_eq!(data["pids"], json!({ "current": 1, "limit": 20 }));
    assert!(data["cpu"]["usage"]["total"].as_u64().unwrap() > 0);
    assert!(data["memory"]["usage"]["usage"].as_u64().unwrap() > 0);
    assert!(data["memory"]["raw"].as_object().unwrap().len() > 10);
    for field in ["cpu", "cpuset", "memory", "pids", "blkio", "hugetlb", "intel_rdt"] {
        assert!(data[field].is_object(), "{field}");
    }
    let mut update = bundle
        .command(&["update", "--resources", "-", "c"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let resources = json!({ "pids": { "limit": 30 }, "cpu": { "shares": 512 } });
    update
        .stdin
        .take()
        .unwrap()
        .write_all(resources.to_string().as_bytes())
        .unwrap();
    assert!(update.wait().unwrap().success());
    let data = stats();
    assert_eq!(
        (&data["pids"]["limit"], &data["memory"]["usage"]["limit"]),
        (&json!(30), &json!(64 << 20))
    );
    for bad in [
        &["update", "--memory", "x", "c"][..],
        &["update", "--resources", "/no/such", "c"],
        &["update", "--l3-cache-schema", "x", "c"],
    ] {
        assert_eq!(bundle.call(bad).status.code(), Some(1), "{bad:?}");
    }
    // What holds now is in the record.
    let state = fs::read(bundle.path().join("state/c/state.json")).unwrap();
    let state: Value = serde_json::from_slice(&state).unwrap();
    let kept = &state["config"]["linux"]["resources"];
    assert_eq!(
        (&kept["pids"]["limit"], &kept["memory"]["limit"]),
        (&json!(30), &json!(64 << 20))
    );
}

#[test]
fn events_go_on_until_the_container_ends() {
    let bundle = started("events");
    let mut events = bundle
        .command(&["events", "--interval", "10ms", "c"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(events.stdout.take().unwrap());
    let mut first = String::new();
    output.read_line(&mut first).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&first).unwrap()["type"], "stats");
    bundle.succeed(&["kill", "c", "KILL"]);
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert!(events.wait().unwrap().success());
    assert!(
        bundle
            .fail(&["events", "--stats", "c"])
            .contains("is not running")
    );
    assert_eq!(
        bundle.call(&["events", "--interval", "0s", "c"]).status.code(),
        Some(1)
    );
}

#[test]
fn signals_to_a_foreground_run_are_the_containers() {
    let bundle = Bundle::new(
        "signals",
        "trap 'echo got; exit 3' TERM; echo ready; while :; do sleep 0.01; done",
    );
    let mut run = bundle
        .command(&["run", "c"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = run.stdout.take().unwrap();
    let mut ready = [0; 6];
    output.read_exact(&mut ready).unwrap();
    sys::process::kill(run.id() as i32, nix::libc::SIGTERM).unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(3));
    assert_eq!(rest, "got\n");
}

#[test]
fn lists_are_tables_json_and_ids() {
    let bundle = started("list");
    let table = bundle.succeed(&["list"]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(
        lines[0].starts_with("ID          PID         STATUS      BUNDLE"),
        "{table}"
    );
    assert!(
        lines[1].starts_with("c ") && lines[1].ends_with("root"),
        "{table}"
    );
    let json: Value = serde_json::from_str(&bundle.succeed(&["list", "-f", "json"])).unwrap();
    for field in [
        "ociVersion",
        "id",
        "pid",
        "status",
        "bundle",
        "rootfs",
        "created",
        "owner",
    ] {
        assert!(!json[0][field].is_null(), "{field} in {json}");
    }
    assert_eq!(bundle.succeed(&["list", "-q"]), "c\n");
    // One that is damaged does not hide the others.
    fs::create_dir(bundle.path().join("state/bad")).unwrap();
    fs::write(bundle.path().join("state/bad/state.json"), "{").unwrap();
    assert_eq!(bundle.succeed(&["list", "-q"]), "c\n");
    fs::remove_dir_all(bundle.path().join("state/bad")).unwrap();
}

#[test]
fn what_a_killed_create_left_is_deleted_by_force() {
    let bundle = started("killed");
    // As the record is before the cgroup is made, with a process in the group that no record names.
    let path = bundle.path().join("state/c/state.json");
    let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let pid = record["pid"].as_i64().unwrap();
    record["pid"] = json!(0);
    record["creating"] = json!(true);
    fs::write(&path, record.to_string()).unwrap();
    bundle.succeed(&["delete", "--force", "c"]);
    assert!(!fs::exists(format!("/proc/{pid}/ns/mnt")).unwrap());
    bundle.fail(&["state", "c"]);
    // Killed before it had anything to record.
    fs::create_dir(bundle.path().join("state/c")).unwrap();
    bundle.fail(&["create", "c"]);
    bundle.succeed(&["delete", "--force", "c"]);
    bundle.create(&["create", "c"]);
}

/// crun's flag.
#[test]
fn containers_are_deleted_by_a_pattern_of_their_ids() {
    let bundle = Bundle::new("regex", "exec sleep 1000");
    let place = bundle.cgroup.clone();
    for id in ["web-1", "web-2", "db", "made"] {
        bundle.change(|config| config["linux"]["cgroupsPath"] = place.join(id).to_str().into());
        bundle.create(&["create", id]);
        if id != "made" {
            bundle.succeed(&["start", id]);
        }
    }
    let refused = bundle.fail(&["delete", "--regex", "("]);
    assert!(refused.contains("--regex"), "{refused}");
    // Those that run stay without force, and do not keep the others.
    let refused = bundle.fail(&["delete", "--regex", "^web-1|made"]);
    assert!(refused.contains("web-1 that is not stopped"), "{refused}");
    assert_eq!(bundle.succeed(&["list", "--quiet"]), "db\nweb-1\nweb-2\n");
    bundle.succeed(&["delete", "--force", "--regex", "web-*"]);
    assert_eq!(bundle.succeed(&["list", "--quiet"]), "db\n");
    bundle.succeed(&["delete", "--regex", "nothing"]);
    bundle.succeed(&["delete", "--force", "--regex", ""]);
    assert_eq!(bundle.succeed(&["list", "--quiet"]), "");
}

#[test]
fn features_and_spec_are_whole() {
    let bundle = Bundle::new("features", "true");
    let features: Value = serde_json::from_str(&bundle.succeed(&["features"])).unwrap();
    assert_eq!(features["hooks"].as_array().unwrap().len(), 6);
    for option in ["ro", "rro", "rbind", "idmap", "ridmap", "tmpcopyup", "rslave"] {
        assert!(
            features["mountOptions"]
                .as_array()
                .unwrap()
                .contains(&json!(option)),
            "{option}"
        );
    }
    let linux = &features["linux"];
    assert_eq!(linux["namespaces"].as_array().unwrap().len(), 8);
    assert_eq!(linux["capabilities"].as_array().unwrap().len(), 41);
    for enabled in ["seccomp", "apparmor", "selinux", "intelRdt"] {
        assert!(linux[enabled]["enabled"].is_boolean(), "{enabled}");
    }
    assert_eq!(linux["mountExtensions"]["idmap"]["enabled"], true);
    // The configuration that `spec` writes runs.
    fs::remove_file(bundle.path().join("config.json")).unwrap();
    bundle.succeed(&["spec"]);
    bundle.fail(&["spec"]);
    bundle.change(|config| {
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(["/bin/echo", "hello"]);
        config["linux"]["cgroupsPath"] = json!(bundle.cgroup.join("spec"));
    });
    assert_eq!(bundle.run(0), "hello\n");
}

#[test]
fn commands_at_once_on_one_container_are_one_after_the_other() {
    let bundle = Bundle::new("serial", "exec sleep 1000");
    let at_once = |arguments: &[&str]| -> usize {
        let children: Vec<_> = (0..4)
            .map(|_| {
                bundle
                    .command(arguments)
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap()
            })
            .collect();
        let ended = children
            .into_iter()
            .map(|mut child| child.wait().unwrap().success());
        ended.filter(|good| *good).count()
    };
    assert_eq!(at_once(&["create", "c"]), 1);
    assert_eq!(at_once(&["start", "c"]), 1);
    bundle.wait_status("running");
    assert_eq!(at_once(&["pause", "c"]), 1);
    assert_eq!(at_once(&["resume", "c"]), 1);
    bundle.succeed(&["kill", "c", "KILL"]);
    bundle.wait_status("stopped");
    assert_eq!(at_once(&["delete", "c"]), 1);
    assert_eq!(fs::read_dir(bundle.path().join("state")).unwrap().count(), 0);
}

#[test]
fn sigkill_ends_all_where_no_pid_namespace_does() {
    let bundle = Bundle::new("hostpid", "sleep 1000 & exec sleep 1000");
    bundle.change(|config| {
        let list = config["linux"]["namespaces"].as_array_mut().unwrap();
        list.retain(|one| one["type"] != "pid");
    });
    bundle.create(&["create", "c"]);
    bundle.succeed(&["start", "c"]);
    let pids = || -> Vec<i32> { serde_json::from_str(&bundle.succeed(&["ps", "-f", "json", "c"])).unwrap() };
    let begin = Instant::now();
    while pids().len() != 2 {
        assert!(begin.elapsed() < Duration::from_secs(30));
    }
    bundle.succeed(&["kill", "c", "KILL"]);
    bundle.wait_status("stopped");
    while !pids().is_empty() {
        assert!(begin.elapsed() < Duration::from_secs(30));
    }
}
