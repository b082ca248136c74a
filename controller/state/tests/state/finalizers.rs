//! Finalizers: what is to go stays until everybody has done his part.

use model::object::{from, meta, meta_mut};
use proto::state::v1::command_reply::Reply;
use proto::state::v1::operation::Operation as Op;
use proto::state::v1::{Apply, DeleteOp};
use proto::v1::Object;
use state::plan::{Lease, World, commands};
use state::{Happened, SCHEMA_LEVEL, State, invariant};

use crate::simulation::Cluster;
use crate::support::*;

fn kept(mut object: Object, finalizers: &[&str]) -> Object {
    meta_mut(&mut object).finalizers = finalizers.iter().map(|name| (*name).to_owned()).collect();
    object
}

fn foreground(kind: &str, name: &str) -> Op {
    Op::Delete(DeleteOp {
        key: Some(key(kind, name)),
        propagation: "Foreground".to_owned(),
        ..Default::default()
    })
}

fn newest() -> State {
    let mut state = cluster();
    raise(&mut state, SCHEMA_LEVEL);
    state
}

fn finalizers(state: &State, kind: &str, name: &str) -> Vec<String> {
    meta(&get(state, kind, name)).finalizers.clone()
}

fn is_there(state: &State, kind: &str, name: &str) -> bool {
    state.get(&key(kind, name)).is_some()
}

#[test]
fn an_object_goes_with_its_last_finalizer() {
    let mut state = newest();
    let names = ["example.com/a", "example.com/b"];
    run(&mut state, 1, vec![put(kept(config("a", "1"), &names))]);
    run(&mut state, 2000, vec![delete("ConfigMap", "a")]);
    settle(&mut state);
    assert_eq!(
        meta(&get(&state, "ConfigMap", "a")).deletion_timestamp,
        Some(time(2000))
    );
    let revision = state.revision();
    run(&mut state, 3000, vec![delete("ConfigMap", "a")]);
    assert_eq!(state.revision(), revision, "asked twice is no change");
    let more = kept(config("a", "1"), &["example.com/a", "example.com/c"]);
    let (reason, message) = refused(&state.apply(&transaction(4, vec![put(more)])));
    assert_eq!(reason, "Forbidden");
    assert!(message.contains("example.com/c"), "{message}");
    run(
        &mut state,
        5,
        vec![put(kept(config("a", "2"), &["example.com/b"]))],
    );
    settle(&mut state);
    assert_eq!(finalizers(&state, "ConfigMap", "a"), ["example.com/b"]);
    let last = Op::Apply(Apply {
        object: Some(config("a", "3")),
        manager: "ctl".to_owned(),
        said: Some(config("a", "3")),
    });
    let outcome = state.apply(&transaction(6, vec![last]));
    let happened: Vec<Happened> = outcome.changes.iter().map(|change| change.happened).collect();
    assert_eq!(happened, [Happened::Modified, Happened::Deleted]);
    // The answer shows what it was at last.
    let Some(Reply::Applied(answer)) = &outcome.reply.reply else {
        panic!("{:?}", outcome.reply);
    };
    assert_eq!(answer.objects.len(), 1);
    assert_eq!(meta(&answer.objects[0]).name, "a");
    assert!(!is_there(&state, "ConfigMap", "a"));
    invariant::check(&state).unwrap();
}

#[test]
fn finalizers_of_what_stays_come_and_go() {
    let mut state = newest();
    for names in [&["example.com/a"][..], &["example.com/b", "example.com/a"], &[]] {
        run(&mut state, 1, vec![put(kept(config("a", "1"), names))]);
        assert_eq!(finalizers(&state, "ConfigMap", "a"), names);
    }
}

#[test]
fn in_the_background_what_it_owns_goes_after_it() {
    let mut state = newest();
    let owner = kept(config("a", "1"), &["example.com/a"]);
    run(&mut state, 1, vec![put(owner), put(owned("b", "a"))]);
    run(&mut state, 2, vec![delete("ConfigMap", "a")]);
    settle(&mut state);
    assert!(is_there(&state, "ConfigMap", "b"));
    run(&mut state, 3, vec![put(config("a", "1"))]);
    settle(&mut state);
    assert!(!is_there(&state, "ConfigMap", "b"));
}

#[test]
fn in_the_foreground_it_goes_after_what_it_owns_and_its_finalizers() {
    let mut state = newest();
    let owner = kept(config("a", "1"), &["example.com/a"]);
    let child = kept(owned("b", "a"), &["example.com/b"]);
    run(&mut state, 1, vec![put(owner), put(child)]);
    run(&mut state, 2, vec![foreground("ConfigMap", "a")]);
    settle(&mut state);
    let both = ["example.com/a", "foregroundDeletion"];
    assert_eq!(finalizers(&state, "ConfigMap", "a"), both);
    assert!(meta(&get(&state, "ConfigMap", "b")).deletion_timestamp.is_some());
    // Its own first: it still waits for what it owns.
    run(
        &mut state,
        3,
        vec![put(kept(config("a", "1"), &["foregroundDeletion"]))],
    );
    settle(&mut state);
    assert!(is_there(&state, "ConfigMap", "a"));
    run(&mut state, 4, vec![put(owned("b", "a"))]);
    assert!(!is_there(&state, "ConfigMap", "b"));
    settle(&mut state);
    assert!(!is_there(&state, "ConfigMap", "a"));
}

/// As with Kubernetes: asked again in the background, it no longer waits for what it owns.
#[test]
fn a_deletion_in_the_foreground_becomes_one_in_the_background() {
    let mut state = newest();
    let child = kept(owned("b", "a"), &["example.com/b"]);
    run(&mut state, 1, vec![put(config("a", "1")), put(child)]);
    run(&mut state, 2, vec![foreground("ConfigMap", "a")]);
    settle(&mut state);
    assert_eq!(finalizers(&state, "ConfigMap", "a"), ["foregroundDeletion"]);
    run(&mut state, 3, vec![delete("ConfigMap", "a")]);
    assert!(!is_there(&state, "ConfigMap", "a"));
    assert!(is_there(&state, "ConfigMap", "b"));
}

/// Members of level 4 do not know the finalizer of a deletion in the foreground.
#[test]
fn below_level_5_the_foreground_is_a_mark_alone() {
    let mut state = cluster();
    let child = pod("q");
    let mut child = from(child);
    meta_mut(&mut child).owner_references = meta(&owned("x", "a")).owner_references.clone();
    applied(&state.apply(&join(0, "n1")));
    run(&mut state, 1, vec![put(config("a", "1")), put(child)]);
    run(&mut state, 2, vec![bind("q", "n1")]);
    run(&mut state, 3, vec![foreground("ConfigMap", "a")]);
    settle(&mut state);
    assert!(finalizers(&state, "ConfigMap", "a").is_empty());
    // One that was marked before the level rose is still what it was.
    raise(&mut state, SCHEMA_LEVEL);
    applied(&state.apply(&gone(4, "q", "n1")));
    settle(&mut state);
    assert!(!is_there(&state, "ConfigMap", "a"));
}

#[test]
fn a_namespace_waits_for_its_finalizers_when_it_is_empty() {
    let mut state = newest();
    let mut inside = kept(config("a", "1"), &["example.com/a"]);
    meta_mut(&mut inside).namespace = "prod".to_owned();
    let mut free = inside.clone();
    meta_mut(&mut free).finalizers.clear();
    let around = kept(namespace("prod"), &["example.com/ns"]);
    run(&mut state, 1, vec![put(around), put(inside)]);
    run(&mut state, 2, vec![delete("Namespace", "prod")]);
    settle(&mut state);
    run(&mut state, 3, vec![put(free)]);
    settle(&mut state);
    assert!(is_there(&state, "Namespace", "prod"));
    run(&mut state, 4, vec![put(namespace("prod"))]);
    assert!(!is_there(&state, "Namespace", "prod"));
}

#[test]
fn a_pod_ends_on_its_node_and_stays_for_its_finalizers() {
    let mut state = cluster();
    applied(&state.apply(&join(0, "n1")));
    let named = |name: &str| kept(from(pod(name)), &["example.com/a"]);
    run(&mut state, 1, vec![put(named("bound")), put(named("free"))]);
    run(&mut state, 2, vec![bind("bound", "n1")]);
    raise(&mut state, SCHEMA_LEVEL);
    run(&mut state, 3, vec![delete("Pod", "bound"), delete("Pod", "free")]);
    let refusal = refused(&state.apply(&transaction(4, vec![bind("free", "n1")])));
    assert_eq!(refusal.0, "Conflict");
    run(&mut state, 5, vec![put(from(pod("free")))]);
    assert!(!is_there(&state, "Pod", "free"));
    // Its containers are still to end: taking the finalizer out does not forget them.
    let mut other = state.clone();
    run(&mut other, 6, vec![put(from(pod("bound")))]);
    assert!(is_there(&other, "Pod", "bound"));
    applied(&other.apply(&gone(7, "bound", "n1")));
    assert!(!is_there(&other, "Pod", "bound"));
    for _ in 0..2 {
        applied(&state.apply(&gone(7, "bound", "n1")));
        settle(&mut state);
        let ended = get_pod(&state, "bound");
        assert_eq!(ended.status.unwrap().phase, "Failed");
    }
    run(&mut state, 8, vec![put(from(pod("bound")))]);
    assert!(!is_there(&state, "Pod", "bound"));
}

#[test]
fn pods_of_a_lost_node_are_replaced_and_stay_for_their_finalizers() {
    let mut cluster = Cluster::new(&["n1", "n2"]);
    raise(&mut cluster.state, SCHEMA_LEVEL);
    let mut web = deployment("web", 2, "web:1");
    let template = web.spec.as_mut().unwrap().template.as_mut().unwrap();
    template.metadata.get_or_insert_default().finalizers = vec!["example.com/a".to_owned()];
    cluster.put(from(web));
    cluster.settle(|_| {});
    assert_eq!(cluster.counts(), (2, 2));
    cluster.silence("n1");
    cluster.settle(|_| {});
    let ready_on_n2 = |cluster: &Cluster| {
        let pods = cluster.pods();
        let there = |pod: &&proto::v1::Pod| {
            let meta = pod.metadata.as_ref().unwrap();
            pod.spec.as_ref().unwrap().node_name == "n2" && meta.deletion_timestamp.is_none()
        };
        pods.iter().filter(there).count()
    };
    assert_eq!(ready_on_n2(&cluster), 2);
    assert_eq!(cluster.pods().len(), 3, "the lost one is kept");
    // Neither the node's return nor its deletion changes that, and nothing is written for it again and again.
    cluster.wake("n1");
    cluster.settle(|_| {});
    let command = transaction(cluster.now, vec![delete("Node", "n1")]);
    assert!(cluster.apply(&command));
    cluster.settle(|_| {});
    let revision = cluster.state.revision();
    let world = World {
        leases: [("n2".to_owned(), Lease::Live)].into(),
    };
    assert_eq!(commands(&cluster.state, cluster.now, &world), []);
    assert_eq!(cluster.state.revision(), revision);
    assert_eq!(cluster.pods().len(), 3);
    let lost = cluster
        .pods()
        .into_iter()
        .find(|pod| pod.metadata.as_ref().unwrap().deletion_timestamp.is_some());
    let mut lost = from(lost.unwrap());
    meta_mut(&mut lost).finalizers.clear();
    cluster.put(lost);
    assert_eq!(cluster.pods().len(), 2);
}
