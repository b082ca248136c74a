//! Deleting: grace, cascades, namespaces.

use model::object::{from, meta, meta_mut};
use proto::state::v1::operation::Operation as Op;
use proto::state::v1::{DeleteOp, Remove};

use crate::support::*;

fn delete_with(kind: &str, name: &str, propagation: &str, grace: Option<i32>) -> Op {
    let delete = DeleteOp {
        key: Some(key(kind, name)),
        propagation: propagation.to_owned(),
        grace_period_seconds: grace,
        ..Default::default()
    };
    Op::Delete(delete)
}

#[test]
fn a_pod_that_no_node_has_goes_at_once() {
    let mut state = cluster();
    run(&mut state, 1, vec![put(from(pod("p")))]);
    run(&mut state, 2, vec![delete("Pod", "p")]);
    assert!(state.get(&key("Pod", "p")).is_none());
}

#[test]
fn a_bound_pod_gets_its_grace_and_goes_when_its_node_says_so() {
    let mut state = cluster_with_bound_pod("p");
    run(&mut state, 5000, vec![delete("Pod", "p")]);
    let ending = get_pod(&state, "p").metadata.unwrap();
    assert_eq!(ending.deletion_timestamp, Some(time(5000)));
    assert_eq!(ending.deletion_grace_period_seconds, Some(30));
    let revision = state.revision();
    run(&mut state, 6000, vec![delete("Pod", "p")]);
    assert_eq!(state.revision(), revision, "asked twice is no change");
    run(&mut state, 6000, vec![delete_with("Pod", "p", "", Some(5))]);
    let shorter = get_pod(&state, "p").metadata.unwrap();
    assert_eq!(shorter.deletion_grace_period_seconds, Some(5));
    assert_eq!(shorter.deletion_timestamp, Some(time(5000)));
    applied(&state.apply(&gone(7000, "p", "n2")));
    assert!(state.get(&key("Pod", "p")).is_some(), "another node has no say");
    applied(&state.apply(&gone(7000, "p", "n1")));
    assert!(state.get(&key("Pod", "p")).is_none());
}

#[test]
fn a_pod_that_is_not_being_deleted_stays_when_its_node_says_gone() {
    let mut state = cluster_with_bound_pod("p");
    applied(&state.apply(&gone(3000, "p", "n1")));
    assert!(state.get(&key("Pod", "p")).is_some());
}

#[test]
fn grace_zero_and_finished_pods_go_at_once() {
    let mut state = cluster_with_bound_pod("p");
    run(&mut state, 3000, vec![delete_with("Pod", "p", "", Some(0))]);
    assert!(state.get(&key("Pod", "p")).is_none());

    let mut state = cluster_with_bound_pod("p");
    let mut status = running(false);
    status.phase = "Succeeded".to_owned();
    applied(&state.apply(&report(3000, "p", "n1", status)));
    run(&mut state, 4000, vec![delete("Pod", "p")]);
    assert!(state.get(&key("Pod", "p")).is_none());
}

#[test]
fn the_uid_of_a_delete_must_be_the_objects() {
    let mut state = cluster();
    run(&mut state, 1, vec![put(config("a", "1"))]);
    let other = DeleteOp {
        key: Some(key("ConfigMap", "a")),
        uid: "other".to_owned(),
        ..Default::default()
    };
    assert_eq!(
        refused(&state.apply(&transaction(2, vec![Op::Delete(other)]))).0,
        "Conflict"
    );
    let unknown = delete_with("ConfigMap", "a", "Sideways", None);
    assert_eq!(refused(&state.apply(&transaction(2, vec![unknown]))).0, "Invalid");
}

#[test]
fn what_an_owner_leaves_behind_is_collected() {
    let mut state = cluster();
    run(
        &mut state,
        1,
        vec![put(config("a", "1")), put(owned("b", "a")), put(owned("c", "b"))],
    );
    run(&mut state, 2, vec![delete("ConfigMap", "a")]);
    assert!(state.get(&key("ConfigMap", "b")).is_some());
    settle(&mut state);
    assert_eq!(state.count(model::Kind::ConfigMap), 0);
}

#[test]
fn an_object_whose_owner_never_was_is_collected() {
    let mut state = cluster();
    run(&mut state, 1, vec![put(owned("b", "nobody"))]);
    settle(&mut state);
    assert!(state.get(&key("ConfigMap", "b")).is_none());
}

#[test]
fn one_living_owner_is_enough() {
    let mut state = cluster();
    let mut object = owned("c", "a");
    let other = meta(&owned("x", "b")).owner_references.clone();
    meta_mut(&mut object).owner_references.extend(other);
    run(
        &mut state,
        1,
        vec![put(config("a", "1")), put(config("b", "1")), put(object)],
    );
    run(&mut state, 2, vec![delete("ConfigMap", "a")]);
    settle(&mut state);
    assert!(state.get(&key("ConfigMap", "c")).is_some());
    run(&mut state, 3, vec![delete("ConfigMap", "b")]);
    settle(&mut state);
    assert!(state.get(&key("ConfigMap", "c")).is_none());
}

#[test]
fn in_the_foreground_the_owner_goes_last() {
    let mut state = cluster_with_bound_pod("p");
    let mut child = pod("q");
    child.metadata.as_mut().unwrap().owner_references = meta(&owned("x", "a")).owner_references.clone();
    run(&mut state, 1, vec![put(config("a", "1")), put(from(child))]);
    run(&mut state, 2, vec![bind("q", "n1")]);
    run(
        &mut state,
        3,
        vec![delete_with("ConfigMap", "a", "Foreground", None)],
    );
    settle(&mut state);
    assert!(meta(&get(&state, "ConfigMap", "a")).deletion_timestamp.is_some());
    assert!(meta(&get(&state, "Pod", "q")).deletion_timestamp.is_some());
    applied(&state.apply(&gone(4, "q", "n1")));
    settle(&mut state);
    assert!(state.get(&key("ConfigMap", "a")).is_none());
}

#[test]
fn orphans_stay_without_their_owner() {
    let mut state = cluster();
    run(&mut state, 1, vec![put(config("a", "1")), put(owned("b", "a"))]);
    run(&mut state, 2, vec![delete_with("ConfigMap", "a", "Orphan", None)]);
    settle(&mut state);
    assert!(meta(&get(&state, "ConfigMap", "b")).owner_references.is_empty());
}

#[test]
fn a_namespace_takes_everything_with_it() {
    let mut state = cluster();
    applied(&state.apply(&join(0, "n1")));
    let mut inside = pod("p");
    inside.metadata.as_mut().unwrap().namespace = "prod".to_owned();
    let mut data = config("a", "1");
    meta_mut(&mut data).namespace = "prod".to_owned();
    run(
        &mut state,
        1,
        vec![
            put(namespace("prod")),
            put(from(inside)),
            put(data),
            put(config("b", "1")),
        ],
    );
    let mut placed = bind("p", "n1");
    if let Op::Bind(bind) = &mut placed {
        bind.pod.as_mut().unwrap().namespace = "prod".to_owned();
    }
    run(&mut state, 2, vec![placed]);
    run(&mut state, 3, vec![delete("Namespace", "prod")]);
    settle(&mut state);
    assert!(
        state.get(&key("Namespace", "prod")).is_some(),
        "its pod still ends"
    );
    let remove = Remove {
        key: Some(key("Namespace", "prod")),
        ..Default::default()
    };
    assert_eq!(
        refused(&state.apply(&transaction(4, vec![Op::Remove(remove)]))).0,
        "Conflict"
    );
    applied(&state.apply(&gone(5, "p", "n1")));
    settle(&mut state);
    assert!(state.get(&key("Namespace", "prod")).is_none());
    assert!(
        state.get(&key("ConfigMap", "b")).is_some(),
        "other namespaces are left alone"
    );
}

#[test]
fn the_default_namespace_stays() {
    let mut state = cluster();
    assert_eq!(
        refused(&state.apply(&transaction(1, vec![delete("Namespace", "default")]))).0,
        "Forbidden"
    );
}
