//! Processes and their streams on the OCI command line: needs root and busybox (static).

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod bundle;
mod program;

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

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
    let (_, mut fds) = sys::socket::recv_fds(socket.as_fd(), &mut name).unwrap();
    let mut master = fs::File::from(fds.pop().unwrap());
    bundle.succeed(&["start", "c"]);
    let mut size = [0; 7];
    master.read_exact(&mut size).unwrap();
    assert_eq!(&size, b"11 22\r\n");
    // In the foreground without a socket we carry the bytes ourselves; lines end as the caller's own terminal ends them.
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
        (Some(4), &b"terminal\n"[..]),
        "{output:?}"
    );
}

#[test]
fn who_asks_is_sent_the_processs_descriptor() {
    let bundle = Bundle::new("pidfd", "exec sleep 1000");
    let path = bundle.path().join("pidfd");
    let listener = UnixListener::bind(&path).unwrap();
    let path = path.to_str().unwrap();
    let sent = || {
        let (socket, _) = listener.accept().unwrap();
        let (_, mut fds) = sys::socket::recv_fds(socket.as_fd(), &mut [0; 64]).unwrap();
        let pidfd = fds.pop().unwrap();
        let told = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
        let pid = told.lines().find_map(|line| line.strip_prefix("Pid:"));
        pid.unwrap().trim().to_owned()
    };
    bundle.create(&["run", "--detach", "--pidfd-socket", path, "c"]);
    let state: Value = serde_json::from_str(&bundle.succeed(&["state", "c"])).unwrap();
    assert_eq!(sent(), state["pid"].to_string());
    let file = bundle.path().join("pid");
    let exec = [
        "exec",
        "--detach",
        "--pid-file",
        file.to_str().unwrap(),
        "--pidfd-socket",
        path,
        "c",
    ];
    bundle.create(&[&exec[..], &["sleep", "1000"]].concat());
    assert_eq!(sent(), fs::read_to_string(file).unwrap());
    let nobody = bundle.fail(&["exec", "--pidfd-socket", "/nowhere", "c", "true"]);
    assert!(nobody.contains("/nowhere"), "{nobody}");
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
            bundle::runtime(),
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
