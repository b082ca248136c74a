//! A pod that asks not to run twice never does, whatever becomes of its node.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::cluster::{is_ready, text};
use tests::{Cluster, can_run, kernel, wait_for};

/// How long an end, a replacement or a return may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A file in a directory that all nodes of the machine share: whoever runs adds a line with the name of its run to it, again
/// and again.
struct Shared(PathBuf);

impl Shared {
    fn new(cluster: &Cluster) -> Self {
        let path = cluster.directory().join("shared");
        fs::create_dir(&path).expect("a directory");
        fs::write(path.join("beats"), "").expect("a file");
        // Each pod has users of its own.
        fs::set_permissions(path.join("beats"), fs::Permissions::from_mode(0o666)).expect("its mode");
        Self(path)
    }

    /// The runs, in the order of their lines: each once, if no two ran at the same time.
    fn runs(&self) -> Vec<String> {
        let text = fs::read_to_string(self.0.join("beats")).expect("the file");
        let mut runs: Vec<String> = text.lines().map(str::to_owned).collect();
        runs.dedup();
        runs
    }

    fn nobody_ran_beside_another(&self) {
        let runs = self.runs();
        assert!(are_apart(&runs), "two ran at the same time: {runs:?}");
    }
}

fn are_apart(runs: &[String]) -> bool {
    let each: BTreeSet<&String> = runs.iter().collect();
    each.len() == runs.len()
}

#[test]
fn two_that_run_at_the_same_time_are_seen() {
    let runs = |names: &[&str]| -> Vec<String> { names.iter().map(|&name| name.to_owned()).collect() };
    assert!(are_apart(&runs(&["a", "b", "c"])));
    assert!(!are_apart(&runs(&["a", "b", "a"])));
}

/// A template whose program says that it runs. It does not listen to SIGTERM.
fn template(shared: &Path) -> String {
    format!(
        "labels: {{app: only}}\n      annotations: {{bulkhead.io/at-most-once: \"true\"}}\n    spec:\n      \
         terminationGracePeriodSeconds: 2\n      containers:\n        - name: main\n          image: hello:1\n          \
         command: [sh, -c]\n          args:\n            - |\n              \
         run=$(cat /proc/sys/kernel/random/uuid)\n              \
         while echo $run >>/shared/beats; do sleep 0.05; done\n          \
         volumeMounts: [{{name: shared, mountPath: /shared}}]\n      \
         volumes: [{{name: shared, hostPath: {{path: {}, type: Directory}}}}]\n",
        shared.display()
    )
}

fn deployment(shared: &Path) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: only\nspec:\n  replicas: 1\n  \
         strategy: {{type: Recreate}}\n  selector:\n    matchLabels: {{app: only}}\n  template:\n    metadata:\n      {}",
        template(shared)
    )
}

/// The way between a node and the controllers.
fn way(cluster: &Cluster, node: &str, state: &str) {
    let number = node.trim_start_matches("node-");
    let port = format!("bhb-{}-{number}", cluster.name);
    let set = Command::new("ip").args(["link", "set", &port, state]).status();
    assert!(set.expect("ip").success(), "{port} {state}");
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("it runs");
}

/// The one pod, ready.
fn one(cluster: &Cluster) -> (Value, i32) {
    let pod = cluster.all_ready("app=only", 1, PATIENCE).remove(0);
    let processes = cluster.first_processes(&pod);
    assert_eq!(processes.len(), 1, "{processes:?}");
    (pod, processes[0])
}

fn node_of(pod: &Value) -> String {
    text(pod, "/spec/nodeName")
}

/// Its node is hurt: its container ends by itself, and only then another one begins elsewhere.
fn another_follows(cluster: &Cluster, shared: &Shared, what: &str, hurt: impl FnOnce(&str)) -> String {
    println!("{what}");
    let (first, process) = one(cluster);
    let (node, begun) = (node_of(&first), shared.runs().len());
    hurt(&node);
    wait_for(&format!("{what}: the end of the container"), PATIENCE, || {
        (!kernel::runs(process)).then_some(())
    });
    let second = wait_for(&format!("{what}: another pod elsewhere"), PATIENCE, || {
        let pods = cluster.list("pods", "app=only");
        assert!(pods.len() <= 1, "{what}: one at a time");
        pods.into_iter().find(|pod| is_ready(pod) && node_of(pod) != node)
    });
    assert_ne!(text(&second, "/metadata/uid"), text(&first, "/metadata/uid"));
    assert!(shared.runs().len() > begun, "the other one runs");
    shared.nobody_ran_beside_another();
    node
}

fn all_nodes_ready(cluster: &Cluster) {
    wait_for("all nodes ready", PATIENCE, || {
        let nodes: Value = serde_json::from_str(&cluster.ok(&["get", "nodes", "-o", "json"])).ok()?;
        nodes["items"].as_array()?.iter().all(is_ready).then_some(())
    });
}

#[test]
fn one_that_must_not_run_twice_ends_by_itself_and_is_followed_only_then() {
    if !can_run(
        "one_that_must_not_run_twice_ends_by_itself_and_is_followed_only_then",
        &["ip", "nft"],
    ) {
        return;
    }
    let cluster = Cluster::up(1, 2);
    let shared = Shared::new(&cluster);
    cluster.apply(&deployment(&shared.0));

    let node = another_follows(&cluster, &shared, "the node is cut off", |node| {
        way(&cluster, node, "down");
    });
    way(&cluster, &node, "up");
    all_nodes_ready(&cluster);

    another_follows(&cluster, &shared, "its agent is killed", |node| {
        cluster.kill(node)
    });
    cluster.bring_up();
    all_nodes_ready(&cluster);

    let mut agent = 0;
    another_follows(&cluster, &shared, "its agent is stopped", |node| {
        agent = cluster.process(node).pid;
        signal(agent, Signal::SIGSTOP);
    });
    signal(agent, Signal::SIGCONT);
    all_nodes_ready(&cluster);

    println!("its machine starts again");
    let (_, process) = one(&cluster);
    let begun = shared.runs().len();
    cluster.kill_node(&node_of(&one(&cluster).0));
    cluster.bring_up();
    wait_for("a new container", PATIENCE, || {
        (shared.runs().len() > begun).then_some(())
    });
    let (_, after) = one(&cluster);
    assert_ne!(after, process);
    shared.nobody_ran_beside_another();

    println!("it is deleted by force while nobody hears of its node");
    let name = text(&one(&cluster).0, "/metadata/name");
    another_follows(&cluster, &shared, "deleted by force", |node| {
        signal(cluster.process(node).pid, Signal::SIGKILL);
        cluster.ok(&["delete", "pod", &name, "--force", "--no-wait"]);
    });
    cluster.bring_up();
    all_nodes_ready(&cluster);
    one(&cluster);
    shared.nobody_ran_beside_another();
}

#[test]
fn one_that_nobody_replaces_starts_again_where_it_was_once_its_node_is_confirmed() {
    if !can_run(
        "one_that_nobody_replaces_starts_again_where_it_was_once_its_node_is_confirmed",
        &["ip", "nft"],
    ) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    let pod = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: alone\n  \
               annotations: {bulkhead.io/at-most-once: \"true\"}\nspec:\n  terminationGracePeriodSeconds: 60\n  \
               containers:\n    - name: main\n      image: hello:1\n      command: [sh, -c]\n      \
               args: [\"trap 'exit 0' TERM; while :; do sleep 0.1; done\"]\n";
    cluster.apply(pod);
    let first = cluster.first_processes(&cluster.ready("alone"));
    let agent = cluster.process("node-1").pid;
    signal(agent, Signal::SIGSTOP);
    // It ends well, long before its grace is over.
    wait_for("its end", PATIENCE, || (!kernel::runs(first[0])).then_some(()));
    signal(agent, Signal::SIGCONT);
    let again = wait_for("it again", PATIENCE, || {
        let pod = cluster.get("pod/alone");
        let restarts = pod
            .pointer("/status/containerStatuses/0/restartCount")?
            .as_i64()?;
        (restarts == 1 && is_ready(&pod)).then_some(pod)
    });
    let ended = "/status/containerStatuses/0/lastState/terminated";
    assert_eq!(text(&again, &format!("{ended}/reason")), "Fenced", "{again:#}");
    assert_eq!(
        again.pointer(&format!("{ended}/exitCode")),
        Some(&Value::from(143))
    );
    wait_for("its event", PATIENCE, || {
        cluster
            .ok(&["events"])
            .contains("so it was ended: the pod must not run twice")
            .then_some(())
    });
    let changed = cluster.ctl(&["annotate", "pod/alone", "bulkhead.io/at-most-once-"]);
    assert!(
        changed.code == 1 && changed.stderr.contains("cannot change in a pod"),
        "{changed:?}"
    );
}
