//! A cluster of the built binaries for one test.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::leaks::{self, Traces};
use crate::{kernel, machine, wait_for};

/// Lines of each log that a failure shows.
const LOG_LINES: usize = 60;

/// No command takes this long; the longest is a deletion that waits for its pods.
const CTL_SECONDS_MAX: &str = "180";

static COUNT: AtomicU32 = AtomicU32::new(0);

/// How a run of `ctl` ended.
#[derive(Debug)]
pub struct Output {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// The answer.
    pub stdout: String,
    /// Everything else.
    pub stderr: String,
}

/// One process of the cluster, as `ctl dev status -o json` has it.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct Process {
    /// controller-1, node-1, ...
    pub name: String,
    /// controller or agent
    pub role: String,
    /// Its id.
    pub pid: i32,
    /// What it was started as.
    pub command: Vec<String>,
}

/// Controllers and nodes that live as long as this value.
pub struct Cluster {
    /// Its name: of the context, the bridge, the cgroup and the directories.
    pub name: String,
    controllers: u32,
    nodes: u32,
    arguments: Vec<String>,
    directory: tempfile::TempDir,
    /// The network namespace of the thread before.
    outside: OwnedFd,
    before: Traces,
}

impl Cluster {
    /// Brings a cluster up and puts the image `hello:1` on its nodes.
    pub fn up(controllers: u32, nodes: u32) -> Self {
        let cluster = Self::up_with(controllers, nodes, &[]);
        cluster.import_hello();
        cluster
    }

    /// Brings a cluster up with more arguments of `ctl dev up`.
    pub fn up_with(controllers: u32, nodes: u32, arguments: &[&str]) -> Self {
        // Two letters of a count: one process may have several clusters in turn.
        let count = COUNT.fetch_add(1, Ordering::Relaxed) % 1296;
        let name = format!("{}{}", base36(std::process::id()), base36(count));
        let outside = File::open("/proc/thread-self/ns/net").expect("own network namespace");
        nix::sched::unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (run as root)");
        let status = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status()
            .expect("ip");
        assert!(status.success(), "loopback: {status}");
        let cluster = Self {
            before: Traces::of(&name),
            name,
            controllers,
            nodes,
            arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
            directory: tempfile::tempdir().expect("a directory"),
            outside: outside.into(),
        };
        cluster.bring_up();
        cluster
    }

    /// `ctl dev up`: at first the cluster, later whatever has ended.
    #[track_caller]
    pub fn bring_up(&self) {
        let output = self.try_bring_up();
        assert_eq!(output.code, 0, "ctl dev up\n{}{}", output.stdout, output.stderr);
    }

    /// As [`Cluster::bring_up`], where it may fail.
    pub fn try_bring_up(&self) -> Output {
        let (controllers, nodes) = (self.controllers.to_string(), self.nodes.to_string());
        let binaries = machine::binaries().display().to_string();
        let mut words = vec!["dev", "up", "--name", &self.name, "--bin-dir", &binaries];
        words.extend([
            "--controllers",
            &controllers,
            "--nodes",
            &nodes,
            "--timeout",
            "120",
        ]);
        words.extend(self.arguments.iter().map(String::as_str));
        self.ctl(&words)
    }

    /// A directory for the test's files, removed at the end.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A command of the built `ctl` with this cluster's context.
    pub fn command(&self, words: &[&str]) -> Command {
        // A call that never ends is a failure with its logs, not a run of the tests that hangs.
        let mut command = Command::new("timeout");
        command
            .args(["--foreground", "--kill-after", "5", CTL_SECONDS_MAX])
            .arg(machine::binaries().join("ctl"))
            .args(words)
            .env("BULKHEAD_CONFIG", self.directory().join("config.yaml"))
            .env("HOME", self.directory())
            .current_dir(self.directory())
            .stdin(Stdio::null());
        command
    }

    /// Runs `ctl` to its end.
    pub fn ctl(&self, words: &[&str]) -> Output {
        run(&mut self.command(words))
    }

    /// Likewise as somebody else, with a configuration of the test's directory.
    pub fn ctl_as(&self, config: impl AsRef<Path>, words: &[&str]) -> Output {
        let config = self.directory().join(config);
        run(self.command(words).env("BULKHEAD_CONFIG", config))
    }

    /// Runs `ctl`, which must succeed, and returns its answer.
    #[track_caller]
    pub fn ok(&self, words: &[&str]) -> String {
        let output = self.ctl(words);
        assert_eq!(
            output.code,
            0,
            "ctl {}\n{}{}",
            words.join(" "),
            output.stdout,
            output.stderr
        );
        output.stdout
    }

    /// Writes a manifest as `name` and returns its path.
    pub fn manifest(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory().join(name);
        let mut file = File::create(&path).expect("a manifest");
        file.write_all(text.as_bytes()).expect("a manifest");
        path
    }

    /// Applies a manifest given as text.
    #[track_caller]
    pub fn apply(&self, text: &str) -> String {
        let path = self.manifest("manifest.yaml", text);
        self.ok(&["apply", "-f", &path.display().to_string()])
    }

    /// Applies one of `deploy/examples`.
    #[track_caller]
    pub fn apply_example(&self, name: &str) -> String {
        let path = machine::root().join("deploy/examples").join(name);
        self.ok(&["apply", "-f", &path.display().to_string()])
    }

    /// Puts the examples' image on every node.
    #[track_caller]
    pub fn import_hello(&self) {
        let image = self.directory().join("hello-image");
        let script = machine::root().join("deploy/hello-image");
        let status = Command::new(script)
            .arg(&image)
            .status()
            .expect("deploy/hello-image");
        assert!(status.success(), "deploy/hello-image: {status}");
        self.ok(&["image", "import", &image.display().to_string(), "hello:1"]);
    }

    /// An object as JSON; null when it is not there.
    pub fn get(&self, target: &str) -> Value {
        let output = self.ctl(&["get", target, "-o", "json"]);
        if output.code != 0 {
            return Value::Null;
        }
        serde_json::from_str(&output.stdout).expect("JSON")
    }

    /// All objects of a kind with these labels.
    #[track_caller]
    pub fn list(&self, kind: &str, selector: &str) -> Vec<Value> {
        let text = self.ok(&["get", kind, "-l", selector, "-o", "json"]);
        let list: Value = serde_json::from_str(&text).expect("JSON");
        match &list["items"] {
            Value::Array(items) => items.clone(),
            _ if list["kind"].is_string() => vec![list],
            other => panic!("no list: {other}"),
        }
    }

    /// Waits until a pod is ready and returns it.
    #[track_caller]
    pub fn ready(&self, pod: &str) -> Value {
        wait_for(&format!("{pod} ready"), Duration::from_secs(60), || {
            let pod = self.get(&format!("pod/{pod}"));
            is_ready(&pod).then_some(pod)
        })
    }

    /// Waits until exactly `count` pods have these labels, all of them ready and none about to go.
    #[track_caller]
    pub fn all_ready(&self, selector: &str, count: usize, limit: Duration) -> Vec<Value> {
        wait_for(&format!("{count} ready pods {selector}"), limit, || {
            let pods = self.list("pods", selector);
            let whole = pods.len() == count && pods.iter().all(is_ready);
            whole.then_some(pods)
        })
    }

    /// Controllers and agents.
    #[track_caller]
    pub fn processes(&self) -> Vec<Process> {
        let text = self.ok(&["dev", "status", "--name", &self.name, "-o", "json"]);
        let mut status: Value = serde_json::from_str(&text).expect("JSON");
        serde_json::from_value(status["processes"].take()).expect("processes")
    }

    /// The process of this name.
    #[track_caller]
    pub fn process(&self, name: &str) -> Process {
        let all = self.processes();
        let found = all.into_iter().find(|process| process.name == name);
        found.unwrap_or_else(|| panic!("no process {name}"))
    }

    /// SIGKILL to a process of this cluster, and waits until it is gone.
    #[track_caller]
    pub fn kill(&self, name: &str) {
        kill_and_wait(self.process(name).pid);
    }

    /// Ends a node as a power cut would: its agent, its monitors, its containers.
    #[track_caller]
    pub fn kill_node(&self, name: &str) {
        kill_and_wait(self.process(name).pid);
        let run = format!("{}/{name}", leaks::directories(&self.name)[0]);
        for pid in kernel::processes() {
            let line = kernel::command_line(pid);
            if line.iter().any(|word| word.contains(&run)) && kernel::runs(pid) {
                kill_and_wait(pid);
            }
        }
        for pid in self.members(&format!("/bulkhead-{}/{name}", self.name)) {
            kill_and_wait(pid);
        }
    }

    /// The controller that leads.
    #[track_caller]
    pub fn leader(&self) -> String {
        wait_for("a leader", Duration::from_secs(10), || {
            let text = self.ctl(&["cluster", "members"]).stdout;
            let line = text
                .lines()
                .find(|line| line.split_whitespace().any(|word| word == "leader"))?;
            let name = line
                .split_whitespace()
                .find(|word| word.starts_with("controller-"))?;
            Some(name.to_owned())
        })
    }

    /// Processes in a cgroup and below it, in whatever hierarchy holds it.
    pub fn members(&self, group: &str) -> Vec<i32> {
        let Some(directory) = kernel::group("pids", group) else {
            return Vec::new();
        };
        kernel::groups_below(&directory)
            .iter()
            .flat_map(|below| kernel::members(below))
            .collect()
    }

    /// The directory of a pod's cgroup in the hierarchy of `controller`.
    #[track_caller]
    pub fn pod_group(&self, pod: &Value, controller: &str) -> PathBuf {
        let uid = pod["metadata"]["uid"].as_str().expect("a uid");
        let top =
            kernel::group(controller, &format!("/bulkhead-{}", self.name)).expect("the cluster's cgroup");
        let all = kernel::groups_below(&top);
        let found = all.into_iter().find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.contains(uid)
        });
        found.unwrap_or_else(|| panic!("no {controller} cgroup for pod {uid}"))
    }

    /// The directory of a container's cgroup in the hierarchy of `controller`.
    #[track_caller]
    pub fn container_group(&self, pod: &Value, container: &str, controller: &str) -> PathBuf {
        let group = self.pod_group(pod, controller);
        // Each run of a container has a group of its own, with its number.
        let prefix = format!("{container}-");
        let runs = std::fs::read_dir(&group).expect("the pod's cgroup").flatten();
        let found = runs.map(|entry| entry.path()).find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&prefix)
        });
        found.unwrap_or_else(|| panic!("no group {prefix}N in {}", group.display()))
    }

    /// First processes of a pod's containers: those that are number 1 to themselves, in order of their ids.
    pub fn first_processes(&self, pod: &Value) -> Vec<i32> {
        let uid = pod["metadata"]["uid"].as_str().expect("a uid");
        let Some(top) = kernel::group("pids", &format!("/bulkhead-{}", self.name)) else {
            return Vec::new();
        };
        let mut found: Vec<i32> = kernel::groups_below(&top)
            .iter()
            .filter(|path| path.display().to_string().contains(uid))
            .flat_map(|path| kernel::members(path))
            .filter(|pid| {
                let status = kernel::status(*pid);
                let ids: Vec<&str> = status
                    .get("NSpid")
                    .map(|ids| ids.split_whitespace().collect())
                    .unwrap_or_default();
                ids.len() > 1 && ids.last() == Some(&"1")
            })
            .collect();
        found.sort_unstable();
        found
    }

    /// What the cluster has on the machine now.
    pub fn traces(&self) -> Traces {
        Traces::of(&self.name)
    }

    /// What it had before it was there.
    pub fn traces_before(&self) -> &Traces {
        &self.before
    }

    fn print_all(&self) {
        for words in [
            &["get", "pods,deployments,nodes", "-A", "-o", "wide"][..],
            &["events", "-A"],
            &["cluster", "members"],
            &["dev", "status", "--name", &self.name],
        ] {
            let output = self.ctl(words);
            eprintln!("--- ctl {}\n{}{}", words.join(" "), output.stdout, output.stderr);
        }
        let logs = &leaks::directories(&self.name)[2];
        let mut files: Vec<PathBuf> = std::fs::read_dir(logs)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
            .collect();
        files.sort();
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines.len().saturating_sub(LOG_LINES);
            eprintln!("--- {}\n{}", file.display(), lines[tail..].join("\n"));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            self.print_all();
        }
        let down = self.ctl(&["dev", "down", "--name", &self.name]);
        let after = self.traces();
        let back = nix::sched::setns(&self.outside, CloneFlags::CLONE_NEWNET);
        if failed {
            if down.code != 0 {
                eprintln!("--- ctl dev down\n{}", down.stderr);
            }
            return;
        }
        assert_eq!(down.code, 0, "ctl dev down: {}", down.stderr);
        let left: Vec<&String> = after.0.difference(&self.before.0).collect();
        assert!(left.is_empty(), "left behind: {left:#?}");
        back.expect("back to the network before");
    }
}

/// Whether a pod serves: ready, and not about to go.
pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    let ready = conditions.is_some_and(|conditions| {
        conditions
            .iter()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    });
    ready && pod["metadata"]["deletionTimestamp"].is_null()
}

/// A text field of an object, by its JSON pointer; empty when it is not there.
pub fn text(object: &Value, pointer: &str) -> String {
    let value = object.pointer(pointer).and_then(Value::as_str);
    value.unwrap_or_default().to_owned()
}

#[track_caller]
fn run(command: &mut Command) -> Output {
    let output = command.output().expect("ctl");
    Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn kill_and_wait(pid: i32) {
    match kill(Pid::from_raw(pid), Signal::SIGKILL) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
        Err(error) => panic!("kill {pid}: {error}"),
    }
    wait_for("the end of a killed process", Duration::from_secs(10), || {
        (!kernel::runs(pid)).then_some(())
    });
}

/// A number in few of the letters that a cluster's name may have.
fn base36(mut number: u32) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(char::from_digit(number % 36, 36).expect("below 36"));
        number /= 36;
        if number == 0 {
            return digits.into_iter().rev().collect();
        }
    }
}
