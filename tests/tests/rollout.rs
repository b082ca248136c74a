//! A Deployment changes: new revision, back, larger, smaller.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use tests::cluster::{is_ready, text};
use tests::{Cluster, can_run, wait_for};

const MINUTE: Duration = Duration::from_secs(60);

fn manifest(greeting: &str) -> String {
    let path = tests::machine::root().join("deploy/examples/hello.yaml");
    let text = std::fs::read_to_string(path).expect("the example");
    text.replace("Hello from", greeting)
}

fn template_hashes(pods: &[Value]) -> BTreeSet<String> {
    pods.iter()
        .map(|pod| text(pod, "/metadata/labels/pod-template-hash"))
        .collect()
}

#[test]
fn a_rollout_replaces_pods_and_undo_brings_them_back() {
    if !can_run(
        "a_rollout_replaces_pods_and_undo_brings_them_back",
        &["ip", "nft"],
    ) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    cluster.apply(&manifest("One"));
    let first = template_hashes(&cluster.all_ready("app=hello", 2, MINUTE));
    cluster.apply(&manifest("Two"));
    cluster.ok(&["rollout", "status", "deployment/hello", "--timeout", "60s"]);
    let second = template_hashes(&cluster.all_ready("app=hello", 2, MINUTE));
    assert!(first.is_disjoint(&second), "{first:?} {second:?}");
    // A workload stands for one of its pods.
    let name = cluster.ok(&["exec", "deploy/hello", "--", "hostname"]);
    let pods = cluster.list("pods", "app=hello");
    assert!(
        pods.iter().any(|pod| text(pod, "/metadata/name") == name.trim()),
        "{name}"
    );
    cluster.ok(&["logs", "deployment/hello"]);
    let history = cluster.ok(&["rollout", "history", "deployment/hello"]);
    assert!(history.contains('1') && history.contains('2'), "{history}");
    cluster.ok(&["rollout", "undo", "deployment/hello"]);
    wait_for("the first revision again", MINUTE, || {
        let pods = cluster.list("pods", "app=hello");
        let back = pods.len() == 2 && pods.iter().all(is_ready) && template_hashes(&pods) == first;
        back.then_some(())
    });
}

#[test]
fn a_rollout_that_cannot_start_leaves_the_old_pods_serving() {
    if !can_run(
        "a_rollout_that_cannot_start_leaves_the_old_pods_serving",
        &["ip", "nft"],
    ) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    cluster.apply(&manifest("One"));
    cluster.all_ready("app=hello", 2, MINUTE);
    cluster.apply(&manifest("One").replace("hello:1", "127.0.0.1:1/absent:1"));
    wait_for("a pod of the broken revision", MINUTE, || {
        (cluster.list("pods", "app=hello").len() > 2).then_some(())
    });
    let serving = cluster
        .list("pods", "app=hello")
        .iter()
        .filter(|pod| is_ready(pod))
        .count();
    // maxUnavailable of 25 % of two is none.
    assert_eq!(serving, 2);
    let status = cluster.ctl(&["rollout", "status", "deployment/hello", "--timeout", "2s"]);
    assert_eq!(status.code, 4, "{}{}", status.stdout, status.stderr);
}

#[test]
fn scale_goes_up_and_down() {
    if !can_run("scale_goes_up_and_down", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up(1, 2);
    cluster.apply(&manifest("Hello from"));
    cluster.all_ready("app=hello", 2, MINUTE);
    cluster.ok(&["scale", "deployment/hello", "--replicas", "6"]);
    let pods = cluster.all_ready("app=hello", 6, MINUTE);
    let nodes: BTreeSet<String> = pods.iter().map(|pod| text(pod, "/spec/nodeName")).collect();
    assert_eq!(nodes.len(), 2);
    cluster.ok(&["scale", "deployment/hello", "--replicas", "0"]);
    wait_for("no pods", MINUTE, || {
        cluster.list("pods", "app=hello").is_empty().then_some(())
    });
    cluster.ok(&["scale", "deployment/hello", "--replicas", "1"]);
    cluster.all_ready("app=hello", 1, MINUTE);
}

#[test]
fn a_drained_node_has_no_pods() {
    if !can_run("a_drained_node_has_no_pods", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up(1, 2);
    cluster.apply(&manifest("Hello from"));
    cluster.all_ready("app=hello", 2, MINUTE);
    cluster.ok(&["drain", "node-1"]);
    wait_for("all pods on the other node", MINUTE, || {
        let pods = cluster.list("pods", "app=hello");
        let moved = pods.len() == 2
            && pods
                .iter()
                .all(|pod| is_ready(pod) && text(pod, "/spec/nodeName") == "node-2");
        moved.then_some(())
    });
    cluster.ok(&["uncordon", "node-1"]);
}

#[test]
fn what_fits_nowhere_says_why() {
    if !can_run("what_fits_nowhere_says_why", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    cluster.apply(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: huge\nspec:\n  containers:\n    - name: main\n      \
         image: hello:1\n      resources:\n        requests: {memory: 900Ti}\n",
    );
    wait_for("the reason", MINUTE, || {
        let why = cluster.ctl(&["why", "pod/huge"]);
        let said = format!("{}{}", why.stdout, why.stderr);
        said.contains("memory").then_some(())
    });
    assert_eq!(text(&cluster.get("pod/huge"), "/status/phase"), "Pending");
}
