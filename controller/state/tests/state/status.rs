//! Status of pods and nodes.

use model::object::from;
use proto::state::v1::SetStatus;
use proto::state::v1::operation::Operation as Op;
use proto::v1::{Node, NodeStatus, Object, Pod, PodStatus};

use state::{Began, Change, Outcome};

use crate::support::*;

#[test]
fn the_same_report_twice_is_one_change() {
    let mut state = cluster_with_bound_pod("p");
    applied(&state.apply(&report(3000, "p", "n1", running(true))));
    let revision = state.revision();
    let outcome = state.apply(&report(9000, "p", "n1", running(true)));
    assert_eq!((state.revision(), outcome.changes.len()), (revision, 0));
}

#[test]
fn a_node_hears_of_what_it_is_to_do_not_of_its_own_reports() {
    let mut state = cluster_with_bound_pod("p");
    let told = state.revision();
    assert_eq!(state.pods_changed_on("n1", told).count(), 0);
    applied(&state.apply(&report(3000, "p", "n1", running(true))));
    assert_eq!(state.pods_changed_on("n1", told).count(), 0);
    run(&mut state, 4000, vec![delete("Pod", "p")]);
    assert_eq!(state.pods_changed_on("n1", told).count(), 1);
    assert_eq!(
        state.pod_versions_on("n1").collect::<Vec<_>>(),
        [(uid("p").as_str(), state.revision())]
    );
}

#[test]
fn only_the_node_that_has_a_pod_speaks_for_it() {
    let mut state = cluster_with_bound_pod("p");
    let revision = state.revision();
    applied(&state.apply(&report(3000, "p", "n2", running(true))));
    applied(&state.apply(&report(3000, "unknown", "n1", running(true))));
    assert_eq!(state.revision(), revision);
}

#[test]
fn a_transition_keeps_its_time_until_the_next() {
    let mut state = cluster_with_bound_pod("p");
    applied(&state.apply(&report(3000, "p", "n1", running(true))));
    let mut later = running(true);
    later.message = "more to say".to_owned();
    applied(&state.apply(&report(4000, "p", "n1", later)));
    assert_eq!(ready(&get_pod(&state, "p")), ("True".to_owned(), 3));
    applied(&state.apply(&report(5000, "p", "n1", running(false))));
    assert_eq!(ready(&get_pod(&state, "p")), ("False".to_owned(), 5));
}

fn ready(pod: &Pod) -> (String, i64) {
    let conditions = &pod.status.as_ref().unwrap().conditions;
    let ready = conditions
        .iter()
        .find(|condition| condition.r#type == "Ready")
        .unwrap();
    (
        ready.status.clone(),
        ready.last_transition_time.as_ref().unwrap().seconds,
    )
}

#[test]
fn a_report_leaves_the_schedulers_word_alone() {
    let mut state = cluster_with_bound_pod("p");
    applied(&state.apply(&report(3000, "p", "n1", running(true))));
    let status = get_pod(&state, "p").status.unwrap();
    assert!(
        status
            .conditions
            .iter()
            .any(|condition| condition.r#type == "PodScheduled")
    );
    assert_eq!(status.qos_class, "BestEffort");
}

#[test]
fn a_finished_pod_does_not_come_back_to_life() {
    let mut state = cluster_with_bound_pod("p");
    let failed = PodStatus {
        phase: "Failed".to_owned(),
        ..Default::default()
    };
    applied(&state.apply(&report(3000, "p", "n1", failed)));
    applied(&state.apply(&report(4000, "p", "n1", running(true))));
    assert_eq!(get_pod(&state, "p").status.unwrap().phase, "Failed");
}

#[test]
fn an_oversized_or_senseless_status_is_left_out() {
    let mut state = cluster_with_bound_pod("p");
    let revision = state.revision();
    let large = PodStatus {
        message: "x".repeat(state::STATUS_BYTES_MAX),
        ..running(true)
    };
    applied(&state.apply(&report(3000, "p", "n1", large)));
    assert_eq!(state.revision(), revision);
    let odd = PodStatus {
        phase: "Dancing".to_owned(),
        ..Default::default()
    };
    applied(&state.apply(&report(3000, "p", "n1", odd)));
    assert_eq!(get_pod(&state, "p").status.unwrap().phase, "Pending");
}

#[test]
fn a_nodes_report_leaves_its_readiness_to_the_leader() {
    let mut state = cluster();
    applied(&state.apply(&join(0, "n1")));
    let ready = Node {
        metadata: Some(proto::v1::ObjectMeta {
            namespace: String::new(),
            ..meta("n1")
        }),
        status: Some(NodeStatus {
            conditions: vec![condition("Ready", "True")],
            ..Default::default()
        }),
        ..Default::default()
    };
    run(&mut state, 1, vec![set(from(ready))]);
    applied(&state.apply(&node_status(2, "n1", &[("cpu", "4")])));
    let node = state.nodes().next().unwrap();
    let status = node.status.as_ref().unwrap();
    assert_eq!(status.conditions[0].status, "True");
    assert_eq!(status.allocatable["cpu"].text, "4");
}

#[test]
fn conditions_of_a_pod_are_set_one_by_one() {
    let mut state = cluster_with_bound_pod("p");
    applied(&state.apply(&report(3000, "p", "n1", running(true))));
    let lost = Pod {
        metadata: Some(meta("p")),
        status: Some(PodStatus {
            conditions: vec![condition("Ready", "False")],
            ..Default::default()
        }),
        ..Default::default()
    };
    run(&mut state, 4000, vec![set(from(lost))]);
    let pod = get_pod(&state, "p");
    assert_eq!(ready(&pod), ("False".to_owned(), 4));
    assert_eq!(pod.status.unwrap().phase, "Running");
}

fn set(object: Object) -> Op {
    Op::SetStatus(SetStatus {
        object: Some(object),
        ..Default::default()
    })
}

#[test]
fn a_pod_begins_once_to_run_and_tells_how_long_it_took() {
    let mut state = cluster();
    applied(&state.apply(&join(0, "n1")));
    run(&mut state, 1_500, vec![put(from(pod("p")))]);
    run(&mut state, 2_250, vec![bind("p", "n1")]);
    let began =
        |outcome: &Outcome| -> Vec<Began> { outcome.changes.iter().filter_map(Change::began).collect() };
    let first = state.apply(&report(3_000, "p", "n1", running(false)));
    let expected = Began {
        namespace: "default".to_owned(),
        name: "p".to_owned(),
        uid: uid("p"),
        node: "n1".to_owned(),
        created_ms: 1_500,
        scheduled_ms: 2_250,
    };
    assert_eq!(began(&first), [expected]);
    assert_eq!(began(&state.apply(&report(4_000, "p", "n1", running(true)))), []);
    assert_eq!(began(&state.apply(&report(5_000, "p", "n1", running(false)))), []);
}
