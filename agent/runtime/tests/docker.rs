//! Debian's dockerd with our runtime: needs root, docker.io and busybox (static). There is no network to set up.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod engine;
mod program;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Output;

use engine::{Daemon, GLUTTON, SERVICE, mask, outcome, runtime, wait_for};
use serde_json::{Value, json};

/// Debian's client; another may stand before it in the path.
const CLIENT: &str = "/usr/bin/docker";

struct Docker(Daemon);

impl Docker {
    /// None, and the reason on standard error, where docker.io is not installed. `flags` and what comes before them are
    /// for the daemon.
    fn new(test: &str, before: &str, flags: &str) -> Option<Docker> {
        if !engine::installed(test, &["dockerd", "containerd", "docker", "nsenter", "setpriv"]) {
            return None;
        }
        let temp = engine::directory();
        let archive = engine::archive(temp.path());
        let at = |name: &str| temp.path().join(name);
        let config = json!({
            "runtimes": { "bulkhead": { "path": runtime() } },
            "default-runtime": "bulkhead",
            "hosts": [format!("unix://{}", at("socket").display())],
            "data-root": at("data"),
            "exec-root": at("exec"),
            "pidfile": at("pid"),
            "deprecated-key-path": at("key.json"),
            "storage-driver": "vfs",
            "bridge": "none",
            "iptables": false,
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
        });
        fs::write(at("daemon.json"), config.to_string()).unwrap();
        let script = format!("{before} dockerd --config-file daemon.json {flags}");
        let docker = Docker(Daemon::new(test, temp, &script));
        docker.0.wait_ready(|| docker.call(&["version"]));
        docker.succeed(&["import", archive.to_str().unwrap(), "hello:1"]);
        Some(docker)
    }

    fn call(&self, words: &[&str]) -> Output {
        let host = format!("unix://{}", self.0.path("socket").display());
        let mut command = self.0.client(CLIENT);
        command.arg("--host").arg(host).args(words).output().unwrap()
    }

    #[track_caller]
    fn succeed(&self, words: &[&str]) -> String {
        let output = self.call(words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// `docker run` with these flags: exit code and output.
    fn run(&self, flags: &[&str], program: &[&str]) -> (i32, String) {
        let parent = self.0.cgroup.to_str().unwrap();
        let mut words = vec!["run", "--network", "none", "--cgroup-parent", parent];
        words.extend(flags);
        words.push("hello:1");
        words.extend(program);
        outcome(self.call(&words))
    }

    #[track_caller]
    fn says(&self, flags: &[&str], script: &str, expected: &str) {
        let mut all = vec!["--rm"];
        all.extend(flags);
        let said = self.run(&all, &["sh", "-c", script]);
        assert_eq!(said, (0, expected.to_owned()), "{flags:?} {script:?}");
    }

    /// A container that goes on.
    #[track_caller]
    fn background(&self, name: &str, flags: &[&str]) {
        let mut all = vec!["--detach", "--name", name];
        all.extend(flags);
        let (code, text) = self.run(&all, &["sh", "-c", SERVICE]);
        assert_eq!(code, 0, "{text}");
        wait_for("the program speaks", || {
            self.succeed(&["logs", name]) == "started\n"
        });
    }

    fn inspect(&self, name: &str, field: &str) -> String {
        self.succeed(&["inspect", "--format", field, name])
            .trim()
            .to_owned()
    }
}

#[test]
fn docker_runs_its_containers_with_our_runtime() {
    let Some(docker) = Docker::new("docker_runs_its_containers_with_our_runtime", "", "") else {
        return;
    };
    docker.says(&[], "echo hello", "hello\n");
    assert_eq!(docker.run(&["--rm"], &["sh", "-c", "exit 7"]).0, 7);
    // dockerd finds these codes by the words of the error.
    for (program, code) in [
        ("/no/such", 127),
        ("nosuch", 127),
        ("/etc", 126),
        ("/etc/passwd", 126),
    ] {
        let said = docker.run(&["--rm"], &[program]);
        assert_eq!(said.0, code, "{program}: {}", said.1);
    }
    let flags = [
        "--user",
        "user",
        "--hostname",
        "h",
        "--env",
        "A=b",
        "--workdir",
        "/tmp",
    ];
    docker.says(&flags, "id -u; hostname; echo $A; pwd", "1000\nh\nb\n/tmp\n");
    let volume = docker.0.path("volume");
    fs::create_dir(&volume).unwrap();
    let bind = format!("{}:/v", volume.display());
    docker.says(&["-v", &bind], "echo written > /v/file", "");
    assert_eq!(fs::read_to_string(volume.join("file")).unwrap(), "written\n");
    let read_only = format!("{bind}:ro");
    assert_ne!(
        docker.run(&["--rm", "-v", &read_only], &["touch", "/v/file"]).0,
        0
    );
    docker.succeed(&["volume", "create", "named"]);
    docker.says(&["-v", "named:/v"], "echo kept > /v/file", "");
    docker.says(&["-v", "named:/v"], "cat /v/file", "kept\n");
    docker.says(
        &["--tmpfs", "/t:size=64k"],
        "grep -c ' /t tmpfs' /proc/mounts",
        "1\n",
    );
    assert_ne!(docker.run(&["--rm", "--read-only"], &["touch", "/x"]).0, 0);
    let effective = |flags: &[&str]| {
        let mut all = vec!["--rm"];
        all.extend(flags);
        let (code, text) = docker.run(&all, &["grep", "CapEff", "/proc/self/status"]);
        assert_eq!(code, 0, "{text}");
        mask(&text)
    };
    assert_ne!(effective(&[]) & 1, 0);
    assert_eq!(effective(&["--cap-drop", "CHOWN"]) & 1, 0);
    assert_eq!(effective(&["--cap-drop", "ALL"]), 0);
    assert_eq!(effective(&["--cap-drop", "ALL", "--cap-add", "NET_RAW"]), 1 << 13);
    let limits = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max \
                  /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || \
                  { cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.max; }";
    let flags = ["--rm", "--memory", "64m", "--pids-limit", "50", "--cpus", "0.5"];
    let (code, text) = docker.run(&flags, &["sh", "-c", limits]);
    assert!(
        code == 0 && text.starts_with("67108864\n50\n50000"),
        "{code} {text}"
    );
    docker.says(
        &["--tty"],
        "test -t 0 && test -t 1 && echo terminal",
        "terminal\r\n",
    );
    docker.says(
        &[],
        "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status",
        "NoNewPrivs:\t0\nSeccomp:\t2\n",
    );
    let hard = [
        "--security-opt",
        "no-new-privileges",
        "--security-opt",
        "seccomp=unconfined",
    ];
    docker.says(
        &hard,
        "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status",
        "NoNewPrivs:\t1\nSeccomp:\t0\n",
    );
    // With dockerd's own first process, and joined to the PID namespace of another.
    docker.says(&["--init"], "grep -c init /proc/1/cmdline", "1\n");
    docker.background("first", &[]);
    docker.says(
        &["--pid", "container:first"],
        "grep -l started /proc/1/cmdline",
        "/proc/1/cmdline\n",
    );
}

#[test]
fn docker_sees_through_the_life_of_a_container() {
    let Some(docker) = Docker::new("docker_sees_through_the_life_of_a_container", "", "") else {
        return;
    };
    docker.background("life", &["--memory", "64m", "--memory-swap", "64m"]);
    assert_eq!(docker.inspect("life", "{{.State.Status}}"), "running");
    assert_eq!(docker.succeed(&["exec", "life", "echo", "in"]), "in\n");
    let exec = |words: &[&str]| {
        let mut all = vec!["exec"];
        all.extend(words);
        outcome(docker.call(&all))
    };
    let script = "id -u; echo $A; exit 9";
    let other = exec(&["--user", "user", "--env", "A=b", "life", "sh", "-c", script]);
    assert_eq!(other, (9, "1000\nb\n".to_owned()));
    for (program, words) in engine::NOT_EXECUTED {
        // An exec's code is 126 with this dockerd whatever the words are.
        let (code, text) = exec(&["life", program]);
        assert!(code == 126 && text.contains(words), "{program}: {code} {text}");
    }
    let terminal = exec(&["--tty", "life", "sh", "-c", "test -t 1 && echo terminal"]);
    assert_eq!(terminal, (0, "terminal\r\n".to_owned()));
    assert_eq!(exec(&["--detach", "life", "touch", "/detached"]).0, 0);
    wait_for("a detached exec", || exec(&["life", "ls", "/detached"]).0 == 0);
    docker.succeed(&["pause", "life"]);
    assert_eq!(docker.inspect("life", "{{.State.Status}}"), "paused");
    docker.succeed(&["unpause", "life"]);
    assert_eq!(docker.inspect("life", "{{.State.Status}}"), "running");
    let top = docker.succeed(&["top", "life", "-o", "pid,comm"]);
    assert!(top.contains("sh"), "{top}");
    docker.succeed(&[
        "update",
        "--memory",
        "48m",
        "--memory-swap",
        "48m",
        "--pids-limit",
        "40",
        "life",
    ]);
    let limits = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max 2>/dev/null || \
                  cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max";
    assert_eq!(exec(&["life", "sh", "-c", limits]).1, "50331648\n40\n");
    let stats: Value =
        serde_json::from_str(&docker.succeed(&["stats", "--no-stream", "--format", "{{json .}}", "life"]))
            .unwrap();
    assert!(
        stats["MemUsage"].as_str().unwrap().ends_with("/ 48MiB"),
        "{stats}"
    );
    docker.succeed(&["stop", "--time", "30", "life"]);
    assert_eq!(docker.inspect("life", "{{.State.ExitCode}}"), "5");
    docker.succeed(&["start", "life"]);
    docker.succeed(&["restart", "--time", "30", "life"]);
    docker.succeed(&["kill", "--signal", "KILL", "life"]);
    assert_eq!(docker.succeed(&["wait", "life"]), "137\n");
    let flags = ["--name", "hungry", "--memory", "16m", "--memory-swap", "16m"];
    let (code, text) = docker.run(&flags, &["sh", "-c", GLUTTON]);
    assert_eq!(code, 137, "{text}");
    assert_eq!(docker.inspect("hungry", "{{.State.OOMKilled}}"), "true");
    // Up to the next full second, or what came in this one is left out.
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let until = (now + 1).to_string();
    let window = ["events", "--since", "0", "--until", &until];
    let events = docker.succeed(&[&window[..], &["--format", "{{.Action}}"]].concat());
    for action in [
        "create", "start", "pause", "unpause", "update", "die", "kill", "oom",
    ] {
        assert!(
            events.lines().any(|line| line == action),
            "{action} not in {events}"
        );
    }
    docker.succeed(&["rm", "life", "hungry"]);
    assert_eq!(docker.succeed(&["ps", "--all", "--quiet"]), "");
}

#[test]
fn docker_maps_the_ids_of_its_containers() {
    // Its own list of subordinate ids, for a user that every Debian has.
    let before = "echo daemon:700000:65536 > subid && \
                  for file in /etc/subuid /etc/subgid; do test -e $file || : >$file; done && \
                  mount --bind subid /etc/subuid && mount --bind subid /etc/subgid &&";
    let test = "docker_maps_the_ids_of_its_containers";
    let Some(docker) = Docker::new(test, before, "--userns-remap daemon") else {
        return;
    };
    docker.says(
        &[],
        "id -u; grep -c 700000 /proc/self/uid_map; touch /x",
        "0\n1\n",
    );
    let volume = docker.0.path("volume");
    fs::create_dir(&volume).unwrap();
    std::os::unix::fs::chown(&volume, Some(700_000), Some(700_000)).unwrap();
    let bind = format!("{}:/v", volume.display());
    docker.says(&["-v", &bind, "--user", "root"], "touch /v/file", "");
    assert_eq!(fs::metadata(volume.join("file")).unwrap().uid(), 700_000);
    docker.background("mapped", &[]);
    assert_eq!(docker.succeed(&["exec", "mapped", "id", "-u"]), "0\n");
    docker.succeed(&["stop", "--time", "30", "mapped"]);
    assert_eq!(docker.inspect("mapped", "{{.State.ExitCode}}"), "5");
}
