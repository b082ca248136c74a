//! The commands of the OCI command line beyond create and start: needs root and busybox (static).

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod bundle;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
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
fn exec_takes_user_groups_directory_environment_and_capabilities() {
    let bundle = started("exec");
    let exec = |flags: &[&str], script: &str| {
        let mut words = vec!["exec"];
        words.extend(flags);
        words.extend(["c", "/bin/sh", "-c", script]);
        bundle.succeed(&words)
    };
    let out = exec(
        &[
            "--user",
            "7:8",
            "--additional-gids",
            "9",
            "-g",
            "10",
            "--cwd",
            "/tmp",
            "-e",
            "A=b",
            "--env",
            "C=d",
        ],
        "id -u; id -g; id -G; pwd; echo $A$C",
    );
    assert_eq!(out, "7\n8\n8 9 10\n/tmp\nbd\n");
    let mask = |set: &str, flags: &[&str]| {
        let out = exec(flags, &format!("grep {set}: /proc/self/status"));
        u64::from_str_radix(out.split_whitespace().last().unwrap(), 16).unwrap()
    };
    let raw = 1 << 13;
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(mask(set, &[]) & raw, 0);
        assert_eq!(mask(set, &["--cap", "CAP_NET_RAW"]) & raw, raw);
    }
    // CVE-2022-29162.
    assert_eq!(mask("CapInh", &["--cap", "CAP_NET_RAW"]), 0);
    let process = bundle.path().join("process.json");
    let config: Value =
        serde_json::from_slice(&fs::read(bundle.path().join("config.json")).unwrap()).unwrap();
    let mut whole = config["process"].clone();
    whole["args"] = json!(["/bin/sh", "-c", "grep NoNewPrivs /proc/self/status"]);
    whole["noNewPrivileges"] = json!(false);
    fs::write(&process, whole.to_string()).unwrap();
    let out = bundle.succeed(&["exec", "--process", process.to_str().unwrap(), "c"]);
    assert_eq!(out, "NoNewPrivs:\t0\n");
    assert!(exec(&["--no-new-privs"], "grep NoNewPrivs /proc/self/status").ends_with("1\n"));
    for (program, code) in [("/no/such", 127), ("nosuch", 127), ("/etc", 126)] {
        assert_eq!(
            bundle.call(&["exec", "c", program]).status.code(),
            Some(code),
            "{program}"
        );
    }
    for bad in [
        &["exec", "c"][..],
        &["exec", "--cap", "CAP_X", "c", "true"],
        &["exec", "--user", "root", "c", "true"],
        &["exec", "--tty", "--detach", "c", "true"],
        &["exec", "--cgroup", "no-such", "c", "/bin/true"],
    ] {
        assert_eq!(bundle.call(bad).status.code(), Some(255), "{bad:?}");
    }
    let killed = bundle.call(&["exec", "c", "/bin/sh", "-c", "kill -9 $$"]);
    assert_eq!(killed.status.code(), Some(128 + 9));
}

#[test]
fn detached_exec_writes_its_pid_and_goes_on() {
    let bundle = started("detach");
    let status = bundle
        .command(&[
            "exec",
            "--detach",
            "--pid-file",
            "exec.pid",
            "c",
            "/bin/sleep",
            "1000",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let pid = fs::read_to_string(bundle.path().join("exec.pid")).unwrap();
    let pids: Vec<i32> = serde_json::from_str(&bundle.succeed(&["ps", "-f", "json", "c"])).unwrap();
    assert!(
        pids.len() == 2 && pids.contains(&pid.parse().unwrap()),
        "{pids:?} {pid}"
    );
    let table = bundle.succeed(&["ps", "c"]);
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(bundle.succeed(&["ps", "c", "-o", "pid,comm"]).contains("sleep"));
    // Every process of the container gets it.
    bundle.succeed(&["kill", "--all", "c", "KILL"]);
    bundle.wait_status("stopped");
    assert_eq!(bundle.succeed(&["ps", "--format", "json", "c"]).trim(), "[]");
    assert!(
        bundle
            .fail(&["exec", "c", "true"])
            .contains("container not running")
    );
    assert!(bundle.fail(&["pause", "c"]).contains("container not running"));
    assert!(
        bundle
            .fail(&["update", "--pids-limit", "5", "c"])
            .contains("container not running")
    );
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
fn a_terminal_comes_over_the_console_socket_or_to_the_caller() {
    let bundle = Bundle::new("terminal", "test -t 0 && test -t 1 && stty size; exec sleep 1000");
    bundle.change(|config| {
        config["process"]["terminal"] = json!(true);
        config["process"]["consoleSize"] = json!({ "height": 11, "width": 22 });
    });
    assert!(bundle.fail(&["create", "c"]).contains("cannot allocate tty"));
    let path = bundle.path().join("console");
    let listener = UnixListener::bind(&path).unwrap();
    bundle.create(&["create", "--console-socket", path.to_str().unwrap(), "c"]);
    let (socket, _) = listener.accept().unwrap();
    let mut name = [0; 64];
    let (_, mut fds) = sys::socket::recv_fds(std::os::fd::AsFd::as_fd(&socket), &mut name).unwrap();
    let mut master = fs::File::from(fds.pop().unwrap());
    bundle.succeed(&["start", "c"]);
    let mut size = [0; 7];
    master.read_exact(&mut size).unwrap();
    assert_eq!(&size, b"11 22\r\n");
    // In the foreground without a socket we carry the bytes ourselves.
    let output = bundle.call(&[
        "exec",
        "--tty",
        "c",
        "/bin/sh",
        "-c",
        "test -t 1 && echo terminal; exit 4",
    ]);
    assert_eq!(
        (output.status.code(), output.stdout.as_slice()),
        (Some(4), &b"terminal\r\n"[..]),
        "{output:?}"
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

/// Between create and start the first process is still the runtime (CVE-2016-9962, CVE-2019-5736, CVE-2024-21626).
#[test]
fn what_runs_in_a_created_container_sees_nothing_of_the_runtime() {
    let bundle = Bundle::new("created", "true");
    bundle.create(&["create", "c"]);
    let look = "for f in /proc/1/fd/* /proc/1/exe /proc/1/root /proc/1/cwd; do readlink $f && echo seen; done; echo done";
    assert_eq!(bundle.succeed(&["exec", "c", "/bin/sh", "-c", look]), "done\n");
    // Not even who may trace it finds a file of the host's: its streams and the FIFO are all.
    let mut looker = json!({ "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["/bin/sh", "-c", "ls /proc/1/fd | wc -l"] });
    let capabilities = json!(["CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "CAP_DAC_OVERRIDE"]);
    looker["capabilities"] =
        json!({ "bounding": capabilities, "effective": capabilities, "permitted": capabilities });
    let process = bundle.path().join("process.json");
    fs::write(&process, looker.to_string()).unwrap();
    let count = bundle.succeed(&["exec", "--process", process.to_str().unwrap(), "c"]);
    assert_eq!(count, "4\n");
}

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
    assert_eq!(call(&["pause", "c"]), done);
    assert_eq!(call(&["resume", "c"]), done);
    assert_eq!(call(&["events", "--stats", "c"]).0, 0);
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

#[test]
fn descriptors_are_passed_as_told_and_no_others() {
    let bundle = Bundle::new(
        "fds",
        "ls /proc/self/fd | wc -l; cat <&3; echo $LISTEN_FDS $LISTEN_PID",
    );
    let (file, other) = (bundle.path().join("passed"), bundle.path().join("other"));
    fs::write(&file, "content\n").unwrap();
    fs::write(&other, "secret").unwrap();
    let state = bundle.path().join("state");
    let run = |before: &str, flags: &str| {
        // The shell opens 3 and 4; only as many as told go on.
        let script = format!(
            "exec 3<{} 4<{}; {before} exec {} --root {} run {flags} c",
            file.display(),
            other.display(),
            env!("CARGO_BIN_EXE_bulkhead-runtime"),
            state.display()
        );
        let output = Command::new("sh")
            .args(["-c", &script])
            .current_dir(bundle.path())
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    assert_eq!(
        run("", "--preserve-fds 1"),
        (Some(0), "5\ncontent\n\n".to_owned())
    );
    let activated = run("export LISTEN_FDS=1 LISTEN_PID=$$;", "");
    // exec keeps the shell's number, so that they are for the runtime.
    assert_eq!(activated, (Some(0), "5\ncontent\n1 1\n".to_owned()));
    assert!(run("", "").1.starts_with("4\n"), "none unless told");
}
