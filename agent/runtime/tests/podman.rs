//! Debian's podman with our runtime: needs root, podman, conmon and busybox (static). All of its state is a directory of
//! the test's own, its cgroups lie below one of the test's own, and there is no network to set up.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod engine;
mod program;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use engine::{SERVICE, mask, outcome, runtime, wait_for};
use serde_json::Value;
use tempfile::TempDir;

struct Podman {
    temp: TempDir,
    cgroup: PathBuf,
}

impl Podman {
    /// None, and a skip, where podman is not installed.
    fn new(test: &str) -> Option<Podman> {
        if !engine::installed(test, &["podman", "conmon"]) {
            return None;
        }
        let (temp, cgroup) = (engine::directory(), engine::cgroup(test));
        let podman = Podman { temp, cgroup };
        let containers = format!(
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n[engine]\nlock_type = \"file\"\n\
             runtime = \"bulkhead\"\n[engine.runtimes]\nbulkhead = [\"{}\"]\n",
            runtime()
        );
        fs::write(podman.path("containers.conf"), containers).unwrap();
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\nrunroot = \"{}\"\ngraphroot = \"{}\"\n",
            podman.path("run").display(),
            podman.path("root").display()
        );
        fs::write(podman.path("storage.conf"), storage).unwrap();
        let archive = engine::archive(podman.temp.path());
        podman.succeed(&["import", archive.to_str().unwrap(), "hello:1"]);
        Some(podman)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    fn call(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let at = |name: &str| self.path(name);
        let mut command = Command::new("podman");
        command
            .env("CONTAINERS_CONF", at("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", at("storage.conf"))
            .env("HOME", self.temp.path())
            .env("TMPDIR", self.temp.path())
            .arg("--root")
            .arg(at("root"))
            .arg("--runroot")
            .arg(at("run"))
            .arg("--tmpdir")
            .arg(at("tmp"))
            .args(["--cgroup-manager", "cgroupfs", "--events-backend", "file"])
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.call(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// `podman run` with these flags: exit code and output.
    fn run(&self, flags: &[&str], program: &[&str]) -> (i32, String) {
        let parent = self.cgroup.to_str().unwrap();
        let mut words = vec!["run", "--network", "none", "--cgroup-parent", parent];
        words.extend(flags);
        words.push("hello:1");
        words.extend(program);
        outcome(self.call(&words))
    }

    #[track_caller]
    fn says(&self, flags: &[&str], program: &[&str], expected: &str) {
        let mut all = vec!["--rm"];
        all.extend(flags);
        assert_eq!(
            self.run(&all, program),
            (0, expected.to_owned()),
            "{flags:?} {program:?}"
        );
    }

    fn inspect(&self, name: &str, field: &str) -> String {
        self.succeed(&["inspect", "--format", field, name])
            .trim()
            .to_owned()
    }

    /// A container that goes on, in the background.
    #[track_caller]
    fn background(&self, name: &str, flags: &[&str]) {
        let mut all = vec!["-d", "--name", name];
        all.extend(flags);
        let (code, text) = self.run(&all, &["sh", "-c", SERVICE]);
        assert_eq!(code, 0, "{text}");
        wait_for("the program speaks", || {
            self.succeed(&["logs", name]).contains("started")
        });
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let removed = self.call(&["rm", "--all", "--force", "--time", "0"]);
        // conmon is in there too, and ends with its container.
        let gone = engine::remove(&self.cgroup);
        if !std::thread::panicking() {
            assert!(removed.status.success(), "{removed:?}");
            gone.unwrap();
        }
    }
}

#[test]
fn podman_runs_its_containers_with_our_runtime() {
    let Some(podman) = Podman::new("podman_runs_its_containers_with_our_runtime") else {
        return;
    };
    podman.says(&[], &["echo", "hello"], "hello\n");
    assert_eq!(podman.run(&["--rm"], &["sh", "-c", "exit 7"]).0, 7);
    let (code, text) = podman.run(&["--rm"], &["/no/such"]);
    assert_eq!(code, 127, "{text}");
    let (code, text) = podman.run(&["--rm"], &["/etc"]);
    assert_eq!(code, 126, "{text}");
    podman.says(
        &["--user", "user", "--hostname", "h"],
        &["sh", "-c", "id -u; hostname"],
        "1000\nh\n",
    );
    podman.says(
        &["--env", "A=b", "--workdir", "/tmp"],
        &["sh", "-c", "echo $A; pwd"],
        "b\n/tmp\n",
    );
    let volume = podman.path("volume");
    fs::create_dir(&volume).unwrap();
    // `z`: where SELinux is on the volume gets a label that containers may write to.
    let bind = format!("{}:/v:z", volume.display());
    podman.says(&["-v", &bind], &["sh", "-c", "echo written > /v/file"], "");
    assert_eq!(fs::read_to_string(volume.join("file")).unwrap(), "written\n");
    let (code, _) = podman.run(&["--rm", "-v", &format!("{bind},ro")], &["touch", "/v/file"]);
    assert_ne!(code, 0);
    podman.says(
        &["--tmpfs", "/t:size=64k"],
        &["sh", "-c", "grep -c ' /t tmpfs' /proc/mounts"],
        "1\n",
    );
    assert_ne!(podman.run(&["--rm", "--read-only"], &["touch", "/x"]).0, 0);
    let effective = |flags: &[&str]| {
        let mut all = vec!["--rm"];
        all.extend(flags);
        let (code, text) = podman.run(&all, &["grep", "CapEff", "/proc/self/status"]);
        assert_eq!(code, 0, "{text}");
        mask(&text)
    };
    assert_ne!(effective(&[]) & 1, 0);
    assert_eq!(effective(&["--cap-drop", "CHOWN"]) & 1, 0);
    assert_eq!(effective(&["--cap-drop", "ALL"]), 0);
    assert_eq!(effective(&["--cap-drop", "ALL", "--cap-add", "NET_RAW"]), 1 << 13);
    let limits = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max \
                  /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || \
                  { cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max; }";
    let (code, text) = podman.run(
        &["--rm", "--memory", "64m", "--pids-limit", "50", "--cpus", "0.5"],
        &["sh", "-c", limits],
    );
    assert_eq!(code, 0, "{text}");
    assert!(text.starts_with("67108864\n50\n"), "{text}");
    let users = ["--uidmap", "0:700000:65536", "--gidmap", "0:700000:65536"];
    podman.says(
        &users,
        &["sh", "-c", "id -u; grep -c 700000 /proc/self/uid_map; touch /x"],
        "0\n1\n",
    );
    // Joins the namespaces of another by path.
    podman.background("first", &[]);
    podman.says(
        &["--pid", "container:first"],
        &["sh", "-c", "grep -l started /proc/1/cmdline"],
        "/proc/1/cmdline\n",
    );
}

#[test]
fn podman_tells_a_service_manager_that_a_program_is_ready() {
    let Some(podman) = Podman::new("podman_tells_a_service_manager_that_a_program_is_ready") else {
        return;
    };
    let path = podman.path("manager");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    // syslog(3) sends a datagram for each message.
    let script = "ln -sf $NOTIFY_SOCKET /dev/log; logger 'x\nREADY=1'; exec sleep 1000";
    let parent = podman.cgroup.to_str().unwrap();
    let run = podman
        .command(&[
            "run",
            "-d",
            "--sdnotify",
            "container",
            "--network",
            "none",
            "--cgroup-parent",
            parent,
            // No policy lets a container's domain send to ours, whatever program we are.
            "--security-opt",
            "label=disable",
        ])
        .args(["hello:1", "sh", "-c", script])
        .env("NOTIFY_SOCKET", &path)
        .output()
        .unwrap();
    assert!(run.status.success(), "{run:?}");
    let mut told = Vec::new();
    while !told.iter().any(|word: &String| word.contains("READY=1")) {
        let mut bytes = [0; 256];
        let count = manager.recv(&mut bytes).unwrap();
        told.push(String::from_utf8(bytes[..count].to_vec()).unwrap());
    }
}

#[test]
fn podman_sees_through_the_life_of_a_container() {
    let Some(podman) = Podman::new("podman_sees_through_the_life_of_a_container") else {
        return;
    };
    podman.background("life", &["--memory", "64m"]);
    assert_eq!(podman.succeed(&["logs", "life"]), "started\n");
    assert_eq!(podman.inspect("life", "{{.State.Status}}"), "running");
    assert_eq!(podman.succeed(&["exec", "life", "echo", "in"]), "in\n");
    let exec = podman.call(&[
        "exec",
        "--user",
        "user",
        "--env",
        "A=b",
        "life",
        "sh",
        "-c",
        "id -u; echo $A; exit 9",
    ]);
    assert_eq!(
        (exec.status.code(), exec.stdout.as_slice()),
        (Some(9), &b"1000\nb\n"[..]),
        "{exec:?}"
    );
    assert_eq!(
        podman.call(&["exec", "life", "/no/such"]).status.code(),
        Some(127)
    );
    assert!(
        podman
            .succeed(&["exec", "-t", "life", "sh", "-c", "test -t 1 && echo terminal"])
            .contains("terminal")
    );
    podman.succeed(&["exec", "-d", "life", "touch", "/detached"]);
    wait_for("a detached exec", || {
        podman.call(&["exec", "life", "ls", "/detached"]).status.success()
    });
    podman.succeed(&["pause", "life"]);
    assert_eq!(podman.inspect("life", "{{.State.Status}}"), "paused");
    podman.succeed(&["unpause", "life"]);
    assert_eq!(podman.inspect("life", "{{.State.Status}}"), "running");
    let stats: Value =
        serde_json::from_str(&podman.succeed(&["stats", "--no-stream", "--format", "json", "life"])).unwrap();
    assert_eq!(stats[0]["name"], "life", "{stats}");
    let top = podman.succeed(&["top", "life", "pid", "comm"]);
    assert!(top.contains("sh"), "{top}");
    podman.succeed(&["stop", "--time", "30", "life"]);
    assert_eq!(podman.inspect("life", "{{.State.ExitCode}}"), "5");
    podman.succeed(&["start", "life"]);
    podman.succeed(&["kill", "--signal", "KILL", "life"]);
    podman.succeed(&["wait", "life"]);
    assert_eq!(podman.inspect("life", "{{.State.ExitCode}}"), "137");
    podman.succeed(&["rm", "life"]);
    let left = Path::new("/proc/self/mountinfo");
    let mounts = fs::read_to_string(left).unwrap();
    assert!(
        !mounts.contains(&format!("{}/root/vfs/dir", podman.temp.path().display())),
        "{mounts}"
    );
}
