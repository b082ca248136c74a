//! Debian's containerd with our runtime, by way of `ctr`: needs root, containerd and busybox (static).

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod engine;
mod program;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Output, Stdio};

use engine::{Daemon, GLUTTON, SERVICE, grpc, mask, outcome, runtime, wait_for};
use runtime::cgroup::{Cgroup, Layout};
use serde_json::{Value, json};

const IMAGE: &str = "docker.io/library/hello:1";

struct Containerd(Daemon);

impl Containerd {
    /// None, and the reason on standard error, where containerd is not installed.
    fn new(test: &str) -> Option<Containerd> {
        if !engine::installed(test, &["containerd", "ctr", "nsenter", "setpriv"]) {
            return None;
        }
        let temp = engine::directory();
        let archive = image(temp.path());
        let at = |name: &str| temp.path().join(name);
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
            at("root"),
            at("state"),
            at("socket"),
            at("socket.ttrpc"),
        );
        fs::write(at("config.toml"), config).unwrap();
        let daemon = Daemon::new(test, temp, "containerd --config config.toml");
        let containerd = Containerd(daemon);
        containerd.0.wait_ready(|| containerd.call(&["version"]));
        containerd.succeed(&["images", "import", archive.to_str().unwrap()]);
        Some(containerd)
    }

    fn command(&self, words: &[&str]) -> std::process::Command {
        let mut command = self.0.client("ctr");
        command.arg("--address").arg(self.0.path("socket")).args(words);
        command
    }

    fn call(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    #[track_caller]
    fn succeed(&self, words: &[&str]) -> String {
        let output = self.call(words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// ctr takes a terminal for a container only from one of its own: `script` gives it one. Its complaints of being too
    /// late to resize the container's come over the same.
    #[track_caller]
    fn on_a_terminal(&self, words: &[&str]) {
        let program = "sh -c 'test -t 0 && test -t 1 && echo terminal; exit 4'";
        let socket = self.0.path("socket");
        let line = format!("ctr --address {} {} {program}", socket.display(), words.join(" "));
        let mut script = self.0.client("script");
        let (code, text) = outcome(script.args(["-qec", &line, "/dev/null"]).output().unwrap());
        assert!(code == 4 && text.contains("terminal\r"), "{code} {text}");
    }

    /// `ctr run` with these flags: exit code and output.
    fn run(&self, flags: &[&str], name: &str, program: &[&str]) -> (i32, String) {
        let cgroup = self.0.cgroup.join(name);
        let state = self.0.path("oci");
        let mut words = vec![
            "run",
            "--runc-binary",
            runtime(),
            "--runc-root",
            state.to_str().unwrap(),
        ];
        words.extend(["--cgroup", cgroup.to_str().unwrap()]);
        words.extend(flags);
        words.extend([IMAGE, name]);
        words.extend(program);
        outcome(self.call(&words))
    }

    #[track_caller]
    fn says(&self, flags: &[&str], script: &str, expected: &str) {
        let mut all = vec!["--rm"];
        all.extend(flags);
        let said = self.run(&all, "says", &["sh", "-c", script]);
        assert_eq!(said, (0, expected.to_owned()), "{flags:?} {script:?}");
    }

    /// A container that goes on, with its output in a file.
    #[track_caller]
    fn background(&self, name: &str, flags: &[&str]) {
        let log = format!("file://{}", self.0.path(name).display());
        let mut all = vec!["--detach", "--log-uri", &log];
        all.extend(flags);
        let (code, text) = self.run(&all, name, &["sh", "-c", SERVICE]);
        assert_eq!(code, 0, "{text}");
        wait_for("the program speaks", || self.logs(name) == "started\n");
    }

    /// What a container's cgroup says in one of these files, v1's or v2's.
    fn limit(&self, name: &str, controller: &str, files: [&str; 2]) -> String {
        let cgroup = Cgroup::open(&Layout::detect().unwrap(), &self.0.cgroup.join(name)).unwrap();
        let directory = cgroup.controller(controller).unwrap();
        let text = files
            .iter()
            .find_map(|file| fs::read_to_string(directory.join(file)).ok());
        text.unwrap().trim().to_owned()
    }

    fn logs(&self, name: &str) -> String {
        fs::read_to_string(self.0.path(name)).unwrap_or_default()
    }

    /// STATUS of `ctr tasks list`.
    fn status(&self, name: &str) -> String {
        let table = self.succeed(&["tasks", "list"]);
        let mut rows = table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        let row = rows.find(|row| row.first() == Some(&name)).unwrap_or_default();
        row.get(2).map(|word| (*word).to_owned()).unwrap_or_default()
    }
}

/// An archive as `docker save` writes it.
fn image(directory: &Path) -> std::path::PathBuf {
    let layer = engine::archive(directory);
    let sum = std::process::Command::new("sha256sum")
        .arg(&layer)
        .output()
        .unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap();
    let digest = format!("sha256:{}", sum.split_whitespace().next().unwrap());
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [digest] },
    });
    fs::write(directory.join("image.json"), config.to_string()).unwrap();
    let manifest = json!([{ "Config": "image.json", "RepoTags": ["hello:1"], "Layers": ["image.tar"] }]);
    fs::write(directory.join("manifest.json"), manifest.to_string()).unwrap();
    let files = ["manifest.json", "image.json", "image.tar"].map(Path::new);
    engine::pack(directory, &files, directory.join("archive.tar"))
}

#[test]
fn containerd_runs_its_containers_with_our_runtime() {
    let Some(ctr) = Containerd::new("containerd_runs_its_containers_with_our_runtime") else {
        return;
    };
    ctr.says(&[], "echo hello", "hello\n");
    assert_eq!(ctr.run(&["--rm"], "code", &["sh", "-c", "exit 7"]).0, 7);
    for (program, words) in engine::NOT_EXECUTED {
        // ctr has no exit code of its own for these; the shim's message is what it and others look at.
        let (code, text) = ctr.run(&["--rm"], "none", &[program]);
        assert!(code == 1 && text.contains(words), "{program}: {code} {text}");
    }
    ctr.says(&["--env", "A=b", "--cwd", "/tmp"], "echo $A; pwd", "b\n/tmp\n");
    let volume = ctr.0.path("volume");
    fs::create_dir(&volume).unwrap();
    let mount = |options: &str| {
        format!(
            "type=bind,src={},dst=/v,options=rbind:{options}",
            volume.display()
        )
    };
    ctr.says(&["--mount", &mount("rw")], "echo written > /v/file", "");
    assert_eq!(fs::read_to_string(volume.join("file")).unwrap(), "written\n");
    let touch = ["touch", "/v/file"];
    assert_ne!(
        ctr.run(&["--rm", "--mount", &mount("ro")], "volume-ro", &touch).0,
        0
    );
    assert_ne!(
        ctr.run(&["--rm", "--read-only"], "root-ro", &["touch", "/x"]).0,
        0
    );
    let effective = |flags: &[&str]| {
        let mut all = vec!["--rm"];
        all.extend(flags);
        let (code, text) = ctr.run(&all, "caps", &["grep", "CapEff", "/proc/self/status"]);
        assert_eq!(code, 0, "{text}");
        mask(&text)
    };
    assert_ne!(effective(&[]) & 1, 0);
    assert_eq!(effective(&["--cap-drop", "CAP_CHOWN"]) & 1, 0);
    assert_ne!(effective(&["--cap-add", "CAP_SYS_ADMIN"]) & 1 << 21, 0);
    ctr.background("limits", &["--memory-limit", "67108864", "--cpus", "0.5"]);
    assert_eq!(
        ctr.limit("limits", "memory", ["memory.limit_in_bytes", "memory.max"]),
        "67108864"
    );
    assert!(
        ctr.limit("limits", "cpu", ["cpu.cfs_quota_us", "cpu.max"])
            .starts_with("50000")
    );
    ctr.succeed(&["tasks", "kill", "--signal", "KILL", "limits"]);
    let users = ["--uidmap", "0:700000:65536", "--gidmap", "0:700000:65536"];
    ctr.says(
        &users,
        "id -u; grep -c 700000 /proc/self/uid_map; touch /x",
        "0\n1\n",
    );
    let state = ctr.0.path("oci");
    let flags = [
        "--rm",
        "--tty",
        "--runc-binary",
        runtime(),
        "--runc-root",
        state.to_str().unwrap(),
    ];
    let cgroup = ctr.0.cgroup.join("terminal");
    let words = [
        &["run"][..],
        &flags,
        &["--cgroup", cgroup.to_str().unwrap(), IMAGE, "terminal"],
    ]
    .concat();
    ctr.on_a_terminal(&words);
    ctr.says(&["--seccomp"], "grep Seccomp: /proc/self/status", "Seccomp:\t2\n");
}

#[test]
fn containerd_sees_through_the_life_of_a_container() {
    let Some(ctr) = Containerd::new("containerd_sees_through_the_life_of_a_container") else {
        return;
    };
    let mut events = ctr.command(&["events"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(events.stdout.take().unwrap()).lines();
    ctr.background("life", &[]);
    assert_eq!(ctr.status("life"), "RUNNING");
    let exec = |id: &str, words: &[&str]| {
        let mut all = vec!["tasks", "exec", "--exec-id", id];
        all.extend(words);
        outcome(ctr.call(&all))
    };
    assert_eq!(exec("a", &["life", "echo", "in"]), (0, "in\n".to_owned()));
    let script = "id -u; pwd; exit 9";
    let other = exec(
        "b",
        &["--user", "1000", "--cwd", "/tmp", "life", "sh", "-c", script],
    );
    assert_eq!(other, (9, "1000\n/tmp\n".to_owned()));
    let words = ["tasks", "exec", "--exec-id", "c", "--tty", "life"];
    ctr.on_a_terminal(&words);
    let (code, text) = exec("d", &["life", "/no/such"]);
    assert!(
        code == 1 && text.contains("no such file or directory"),
        "{code} {text}"
    );
    assert_eq!(exec("e", &["--detach", "life", "touch", "/detached"]).0, 0);
    wait_for("a detached exec", || {
        exec("f", &["life", "ls", "/detached"]).0 == 0
    });
    ctr.succeed(&["tasks", "pause", "life"]);
    assert_eq!(ctr.status("life"), "PAUSED");
    ctr.succeed(&["tasks", "resume", "life"]);
    assert_eq!(ctr.status("life"), "RUNNING");
    let processes = ctr.succeed(&["tasks", "ps", "life"]);
    assert!(processes.lines().count() >= 2, "{processes}");
    let metrics: Value =
        serde_json::from_str(&ctr.succeed(&["tasks", "metrics", "--format", "json", "life"])).unwrap();
    assert!(metrics["pids"]["current"].as_u64().unwrap() >= 1, "{metrics}");
    assert_eq!(ctr.logs("life"), "started\n");
    ctr.succeed(&["tasks", "kill", "--signal", "TERM", "life"]);
    wait_for("the end", || ctr.status("life") == "STOPPED");
    let (_, text) = outcome(ctr.call(&["tasks", "delete", "life"]));
    assert!(text.contains("non-zero exit code 5"), "{text}");
    ctr.succeed(&["containers", "delete", "life"]);
    ctr.background("killed", &[]);
    ctr.succeed(&["tasks", "kill", "--all", "--signal", "KILL", "killed"]);
    wait_for("the end", || ctr.status("killed") == "STOPPED");
    let (_, text) = outcome(ctr.call(&["tasks", "delete", "killed"]));
    assert!(text.contains("non-zero exit code 137"), "{text}");
    let hungry = ctr.run(&["--memory-limit", "16777216"], "hungry", &["sh", "-c", GLUTTON]);
    assert_eq!(hungry.0, 137, "{}", hungry.1);
    let mut wanted = vec![
        "/tasks/oom",
        "/tasks/paused",
        "/tasks/exec-started",
        "/tasks/create",
    ];
    let mut seen = String::new();
    while !wanted.is_empty() {
        let line = told
            .next()
            .unwrap_or_else(|| panic!("{wanted:?} not in {seen}"))
            .unwrap();
        wanted.retain(|topic| !line.contains(topic));
        seen.push_str(&line);
        seen.push('\n');
    }
    events.kill().unwrap();
    events.wait().unwrap();
    // Nothing of them is left in our own state.
    assert_eq!(fs::read_dir(ctr.0.path("oci/default")).unwrap().count(), 0);
}

/// A limit that `ctr run` has no flag for, and changed ones, for which it has no command: as kubelet changes them.
#[test]
fn containerd_sets_limits_of_a_specification_and_changes_them() {
    let Some(ctr) = Containerd::new("containerd_sets_limits_of_a_specification_and_changes_them") else {
        return;
    };
    let mut spec: Value = serde_json::from_str(&ctr.succeed(&["oci", "spec"])).unwrap();
    let cgroup = ctr.0.cgroup.join("limits");
    spec["root"]["path"] = json!(ctr.0.path("image"));
    spec["process"]["args"] = json!(["/bin/sh", "-c", SERVICE]);
    spec["process"]["env"] = json!(["PATH=/bin"]);
    spec["linux"]["cgroupsPath"] = json!(cgroup);
    spec["linux"]["resources"]["pids"] = json!({ "limit": 33 });
    // A limit that this root may not raise is another test's matter.
    spec["process"]["rlimits"] = json!([]);
    fs::write(ctr.0.path("spec.json"), spec.to_string()).unwrap();
    let (state, config) = (ctr.0.path("oci"), ctr.0.path("spec.json"));
    let log = format!("file://{}", ctr.0.path("limits").display());
    let flags = ["run", "--detach", "--log-uri", &log, "--runc-binary", runtime()];
    let more = [
        "--runc-root",
        state.to_str().unwrap(),
        "--config",
        config.to_str().unwrap(),
        "limits",
    ];
    ctr.succeed(&[&flags[..], &more].concat());
    wait_for("the program speaks", || ctr.logs("limits") == "started\n");
    let pids = || ctr.limit("limits", "pids", ["pids.max", "pids.max"]);
    assert_eq!(pids(), "33");
    let resources = json!({ "pids": { "limit": 44 }, "memory": { "limit": 64 << 20 } });
    let kind = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
    let any = [
        grpc::field(1, kind.as_bytes()),
        grpc::field(2, resources.to_string().as_bytes()),
    ];
    let request = [grpc::field(1, b"limits"), grpc::field(2, &any.concat())].concat();
    let method = "/containerd.services.tasks.v1.Tasks/Update";
    grpc::call(&ctr.0.path("socket"), method, &request).unwrap();
    assert_eq!(pids(), "44");
    let memory = ["memory.limit_in_bytes", "memory.max"];
    assert_eq!(ctr.limit("limits", "memory", memory), (64 << 20).to_string());
    assert_eq!(ctr.status("limits"), "RUNNING");
    ctr.succeed(&["tasks", "kill", "--signal", "KILL", "limits"]);
    wait_for("the end", || ctr.status("limits") == "STOPPED");
    ctr.succeed(&["tasks", "delete", "--force", "limits"]);
}
