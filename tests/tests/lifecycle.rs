//! A cluster comes up, stays itself when it is brought up again, and goes without a trace.

use std::collections::BTreeSet;

use tests::leaks::Traces;
use tests::{Cluster, can_run};

#[test]
fn up_and_down_leave_nothing() {
    if !can_run("up_and_down_leave_nothing", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up(1, 2);
    cluster.apply_example("web.yaml");
    cluster.ok(&["rollout", "status", "deployment/web", "--timeout", "60s"]);
    let name = cluster.name.clone();
    let during = cluster.traces();
    for kind in ["process", "mount", "cgroup", "interface", "directory"] {
        let seen = during.0.iter().any(|trace| trace.starts_with(kind));
        assert!(
            seen,
            "the search finds no {kind} of a running cluster, so it proves nothing"
        );
    }
    cluster.ok(&["dev", "down", "--name", &name]);
    let left: BTreeSet<String> = Traces::of(&name)
        .0
        .difference(&cluster.traces_before().0)
        .cloned()
        .collect();
    assert!(left.is_empty(), "left behind: {left:#?}");
}

#[test]
fn a_second_up_changes_nothing() {
    if !can_run("a_second_up_changes_nothing", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    let ids = |cluster: &Cluster| -> Vec<i32> {
        let processes = cluster.processes();
        processes.into_iter().map(|process| process.pid).collect()
    };
    let before = ids(&cluster);
    cluster.bring_up();
    assert_eq!(ids(&cluster), before);
}
