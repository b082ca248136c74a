//! Many pods come and go; the machine is as before.

use std::time::Duration;

use tests::{Cluster, can_run, kernel, wait_for};

/// Counts of what pods are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Counts {
    processes: usize,
    mounts: usize,
    cgroups: usize,
    interfaces: usize,
    descriptors: usize,
    files: usize,
}

fn counts(cluster: &Cluster) -> Counts {
    let traces = cluster.traces();
    let of = |kind: &str| traces.0.iter().filter(|trace| trace.starts_with(kind)).count();
    let agent = cluster.process("node-1");
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", agent.pid))
        .expect("the agent")
        .count();
    // The node's interfaces are in its own network, which its agent is in.
    let interfaces = std::fs::read_to_string(format!("/proc/{}/net/dev", agent.pid)).expect("the agent");
    let run = format!("/run/bulkhead/{}", cluster.name);
    Counts {
        processes: of("process"),
        mounts: of("mount"),
        cgroups: of("cgroup"),
        interfaces: interfaces.lines().count(),
        descriptors,
        files: files_below(run.as_ref()),
    }
}

/// Whether something of a pod is still on the node.
fn has_pods(cluster: &Cluster) -> bool {
    let agent = cluster.process("node-1").pid;
    let interfaces = std::fs::read_to_string(format!("/proc/{agent}/net/dev")).expect("the agent");
    let traces = cluster.traces();
    interfaces.contains("bh-")
        || traces
            .0
            .iter()
            .any(|trace| trace.contains("/pod-") || trace.contains("bulkhead-runtime monitor"))
}

fn files_below(directory: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            let below = entry.file_type().is_ok_and(|kind| kind.is_dir());
            1 + if below { files_below(&entry.path()) } else { 0 }
        })
        .sum()
}

fn deployment(replicas: u32) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: many\nspec:\n  replicas: {replicas}\n  \
         selector:\n    matchLabels: {{app: many}}\n  template:\n    metadata:\n      labels: {{app: many}}\n    \
         spec:\n      terminationGracePeriodSeconds: 0\n      containers:\n        - name: main\n          \
         image: hello:1\n          command: [sleep, \"3600\"]\n"
    )
}

#[test]
fn two_hundred_pods_in_ten_rounds_leave_every_count_as_it_was() {
    if !can_run(
        "two_hundred_pods_in_ten_rounds_leave_every_count_as_it_was",
        &["ip", "nft"],
    ) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    let mut before = None;
    for round in 0..=10 {
        // The first round is not one of the ten: it opens connections and unpacks the image, which stay.
        let replicas = if round == 0 { 2 } else { 20 };
        cluster.apply(&deployment(replicas));
        cluster.all_ready("app=many", replicas as usize, Duration::from_secs(120));
        cluster.ok(&[
            "delete",
            "deployment/many",
            "--cascade",
            "foreground",
            "--timeout",
            "2m",
        ]);
        wait_for("no pods", Duration::from_secs(120), || {
            cluster.list("pods", "app=many").is_empty().then_some(())
        });
        // Without a grace period a pod is gone from the API at once; its node removes it meanwhile.
        wait_for("nothing of a pod on the node", Duration::from_secs(60), || {
            (!has_pods(&cluster)).then_some(())
        });
        if before.is_none() {
            before = Some(counts(&cluster));
        }
    }
    let before = before.expect("a first round");
    // Descriptors of closed calls go when their peer's last frame is read: a moment after the pods are gone.
    let mut last = None;
    let same = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_for("the counts from before", Duration::from_secs(20), || {
            let now = counts(&cluster);
            let same = now == before;
            last = Some(now);
            same.then_some(())
        });
    }));
    assert!(same.is_ok(), "before {before:?}, after {last:?}");
    assert!(kernel::runs(cluster.process("node-1").pid));
}
