//! What engines call and what they read back, as it was recorded of them: needs root and busybox (static).

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod bundle;
mod program;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use bundle::Bundle;
use serde_json::{Value, json};

/// The calls of containerd's shim, dockerd, conmon and podman, as they were recorded.
#[test]
fn engines_calls_are_taken_as_they_make_them() {
    let bundle = Bundle::new("engines", "exec sleep 1000");
    let path = |name: &str| bundle.path().join(name).to_str().unwrap().to_owned();
    let log = path("log.json");
    let call = |words: &[&str]| {
        let mut all = vec![
            "--debug",
            "--log",
            &log,
            "--log-format",
            "json",
            "--systemd-cgroup=false",
            "--rootless=false",
        ];
        all.extend(words);
        let out = fs::File::create(bundle.path().join("out")).unwrap();
        let mut command = bundle.command(&all);
        command
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out);
        let status = command.status().unwrap();
        (status.code().unwrap(), bundle.out())
    };
    let pid = path("pid");
    let bundle_path = bundle.path().to_str().unwrap();
    let done = (0, String::new());
    assert_eq!(
        call(&[
            "create",
            "--bundle",
            bundle_path,
            "--pid-file",
            &pid,
            "--no-pivot",
            "--no-new-keyring",
            "c"
        ]),
        done
    );
    assert_eq!(call(&["start", "c"]), done);
    let process = path("process.json");
    let whole =
        json!({ "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["/bin/sleep", "1000"], "env": [] });
    fs::write(&process, whole.to_string()).unwrap();
    let exec_pid = path("exec.pid");
    assert_eq!(
        call(&[
            "exec",
            "--process",
            &process,
            "--detach",
            "--pid-file",
            &exec_pid,
            "c"
        ]),
        done
    );
    let (code, pids) = call(&["ps", "--format", "json", "c"]);
    let pids: Vec<i32> = serde_json::from_str(&pids).unwrap();
    assert_eq!((code, pids.len()), (0, 2));
    for file in [&pid, &exec_pid] {
        assert!(pids.contains(&fs::read_to_string(file).unwrap().parse().unwrap()));
    }
    let resources = path("resources.json");
    fs::write(&resources, json!({ "pids": { "limit": 40 } }).to_string()).unwrap();
    assert_eq!(call(&["update", &format!("--resources={resources}"), "c"]), done);
    let mut update = bundle.command(&["update", "--resources", "-", "c"]);
    let mut update = update.stdin(Stdio::piped()).spawn().unwrap();
    update
        .stdin
        .take()
        .unwrap()
        .write_all(br#"{"pids":{"limit":41}}"#)
        .unwrap();
    assert!(update.wait().unwrap().success());
    assert_eq!(call(&["pause", "c"]), done);
    assert_eq!(call(&["resume", "c"]), done);
    assert_eq!(call(&["events", "--stats", "c"]).0, 0);
    let mut events = bundle.command(&["events", "--interval=50ms", "c"]);
    let mut events = events.stdout(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 1];
    events.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"{");
    events.kill().unwrap();
    events.wait().unwrap();
    assert_eq!(call(&["list", "--format=json"]).0, 0);
    assert_eq!(call(&["kill", "c", "18"]), done);
    assert_eq!(call(&["kill", "--all", "c", "9"]), done);
    bundle.wait_status("stopped");
    let (code, _) = call(&["kill", "c", "15"]);
    assert_eq!(code, 1);
    let text = fs::read_to_string(&log).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let last = lines.iter().rfind(|line| line["level"] == "error").unwrap();
    assert!(
        last["msg"].as_str().unwrap().contains("container not running"),
        "{last}"
    );
    assert!(lines.iter().any(|line| line["level"] == "debug"));
    assert_eq!(call(&["delete", "c"]), done);
    assert_eq!(call(&["delete", "--force", "c"]), done);
    let (code, said) = call(&["state", "c"]);
    assert!(code == 1 && said.contains("does not exist"), "{said}");
    let (code, said) = call(&[
        "checkpoint",
        "--image-path",
        "x",
        "--work-path",
        "y",
        "--leave-running",
        "c",
    ]);
    assert!(code == 1 && said.contains("not supported"), "{said}");
}

/// conmon and the shim, for `exec -t`: the terminal's master comes over the socket before the command returns.
#[test]
fn a_detached_exec_gets_its_terminal_over_the_console_socket() {
    let bundle = Bundle::new("engine-tty", "exec sleep 1000");
    bundle.create(&["create", "c"]);
    bundle.succeed(&["start", "c"]);
    let path = |name: &str| bundle.path().join(name).to_str().unwrap().to_owned();
    let (process, pid, socket) = (path("process.json"), path("pid"), path("console"));
    let script = "test -t 0 && test -t 1 && stty size; exec sleep 1000";
    let whole = json!({
        "terminal": true,
        "consoleSize": { "height": 12, "width": 34 },
        "user": { "uid": 0, "gid": 0 },
        "cwd": "/",
        "args": ["/bin/sh", "-c", script],
        "env": ["PATH=/bin"],
    });
    fs::write(&process, whole.to_string()).unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    for (order, tty) in [("shim", false), ("conmon", true)] {
        let mut words = match order {
            "shim" => vec![
                "exec",
                "--process",
                &process,
                "--console-socket",
                &socket,
                "--detach",
            ],
            _ => vec!["exec", "--pid-file", &pid, "--process", &process, "--detach"],
        };
        match tty {
            true => words.extend(["--tty", "--console-socket", &socket, "c"]),
            false => words.extend(["--pid-file", &pid, "c"]),
        }
        bundle.create(&words);
        let (stream, _) = listener.accept().unwrap();
        let mut name = [0; 64];
        let (_, mut fds) = sys::socket::recv_fds(stream.as_fd(), &mut name).unwrap();
        let mut master = fs::File::from(fds.pop().unwrap());
        let mut size = [0; 7];
        master.read_exact(&mut size).unwrap();
        assert_eq!(&size, b"12 34\r\n", "{order}");
        let running: Vec<i32> = serde_json::from_str(&bundle.succeed(&["ps", "-f", "json", "c"])).unwrap();
        let told = fs::read_to_string(&pid).unwrap().parse().unwrap();
        assert!(running.contains(&told), "{order}: {told} not in {running:?}");
        fs::remove_file(&pid).unwrap();
    }
}

#[test]
fn engines_read_back_the_fields_and_words_that_they_look_for() {
    let bundle = Bundle::new("engine-reads", "exec sleep 1000");
    bundle.change(|config| config["annotations"] = json!({ "of.an.engine": "x" }));
    let state = || -> Value { serde_json::from_str(&bundle.succeed(&["state", "c"])).unwrap() };
    bundle.create(&["create", "c"]);
    bundle.succeed(&["start", "c"]);
    bundle.wait_status("running");
    // go-runc's Container, and what runc prints beside it.
    let running = state();
    let path = bundle.path().canonicalize().unwrap();
    assert_eq!(running["ociVersion"], "1.2.1");
    assert_eq!(running["id"], "c");
    assert!(running["pid"].as_u64().unwrap() > 1);
    assert_eq!(running["bundle"], json!(path));
    assert_eq!(running["rootfs"], json!(path.join("rootfs")));
    assert_eq!(running["annotations"], json!({ "of.an.engine": "x" }));
    assert!(running["owner"].is_string());
    let created: jiff::Timestamp = running["created"].as_str().unwrap().parse().unwrap();
    assert!(created <= jiff::Timestamp::now());
    let list: Value = serde_json::from_str(&bundle.succeed(&["list", "--format=json"])).unwrap();
    for field in ["ociVersion", "id", "pid", "status", "bundle", "rootfs", "created"] {
        assert_eq!(list[0][field], running[field], "{field}");
    }
    // CRI-O's way of a signal to all.
    bundle.succeed(&["kill", "-a", "c", "9"]);
    bundle.wait_status("stopped");
    assert_eq!(state()["pid"], 0);
    // CRI-O takes a container for gone by one of these words on standard error, whichever call it was.
    for call in [
        &["kill", "c", "15"][..],
        &["pause", "c"],
        &["exec", "c", "/bin/true"],
        &["ps", "c"],
    ] {
        let output = bundle.call(call);
        let said = String::from_utf8(output.stderr).unwrap();
        let gone = ["no such process", "container not running", "invalid process"];
        assert!(
            output.status.success() || gone.iter().any(|words| said.contains(words)),
            "{call:?}: {said}"
        );
    }
    // The shim shows the last line of level error that the log holds.
    let log = bundle.path().join("log.json");
    let words = [
        "--log",
        log.to_str().unwrap(),
        "--log-format",
        "json",
        "--debug",
        "start",
        "c",
    ];
    assert_eq!(bundle.call(&words).status.code(), Some(1));
    let text = fs::read_to_string(&log).unwrap();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["level"], "error");
    assert!(last["msg"].as_str().unwrap().contains("stopped"), "{last}");
    last["time"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    bundle.succeed(&["delete", "c"]);
    // go-runc takes a fourth line for an error, and each of these by its first word.
    let version = bundle.succeed(&["--version"]);
    let lines: Vec<&str> = version.lines().collect();
    assert_eq!(lines.len(), 3, "{version}");
    assert!(lines[0].starts_with("bulkhead-runtime version "), "{version}");
    assert!(
        lines[1].starts_with("commit: ") && lines[2] == "spec: 1.2.1",
        "{version}"
    );
}

#[test]
fn checkpoints_are_refused_in_each_engines_words() {
    let bundle = Bundle::new("engine-criu", "exec sleep 1000");
    bundle.create(&["create", "c"]);
    bundle.succeed(&["start", "c"]);
    let images = ["--image-path", "x", "--work-path", "y"];
    for (verb, flags) in [
        ("checkpoint", &["--file-locks", "--leave-running"][..]),
        ("checkpoint", &["--leave-running=true"]),
        ("restore", &["--bundle", ".", "--pid-file", "pid", "--detach"]),
    ] {
        let said = bundle.fail(&[&[verb][..], &images, flags, &["c"]].concat());
        assert!(said.contains("not supported"), "{said}");
    }
    assert_eq!(bundle.status(), "running");
}

#[test]
fn features_tell_what_containerd_asks_for() {
    let bundle = Bundle::new("engine-features", "true");
    let features: Value = serde_json::from_str(&bundle.succeed(&["features"])).unwrap();
    for field in ["/ociVersionMin", "/ociVersionMax"] {
        assert!(features.pointer(field).unwrap().is_string(), "{field}");
    }
    for field in [
        "/hooks",
        "/mountOptions",
        "/linux/namespaces",
        "/linux/capabilities",
        "/linux/seccomp/actions",
        "/linux/seccomp/operators",
        "/linux/seccomp/archs",
        "/linux/seccomp/knownFlags",
        "/linux/seccomp/supportedFlags",
    ] {
        assert!(
            !features.pointer(field).unwrap().as_array().unwrap().is_empty(),
            "{field}"
        );
    }
    for field in [
        "/linux/cgroup/v1",
        "/linux/cgroup/v2",
        "/linux/cgroup/systemd",
        "/linux/cgroup/systemdUser",
        "/linux/cgroup/rdma",
        "/linux/seccomp/enabled",
        "/linux/apparmor/enabled",
        "/linux/selinux/enabled",
        "/linux/intelRdt/enabled",
        "/linux/mountExtensions/idmap/enabled",
        "/linux/netDevices/enabled",
    ] {
        assert!(features.pointer(field).unwrap().is_boolean(), "{field}");
    }
    assert!(features["annotations"].is_object());
    assert!(features["potentiallyUnsafeConfigAnnotations"].is_array());
}
