//! Pods that must not run twice: what may follow one, and when.

use std::collections::BTreeSet;

use model::at_most_once::{ANNOTATION, ASKED};
use model::object::from;
use proptest::prelude::*;
use proto::state::v1::operation::Operation as Op;
use proto::state::v1::{CreatePods, DeleteOp, NewPod, Scale};
use proto::v1::int_or_string::Value;
use proto::v1::{Deployment, DeploymentStrategy, IntOrString, ObjectMeta, Pod, RollingUpdateDeployment};
use state::plan;

use crate::simulation::{Cluster, LEASE_MS};
use crate::support::*;

/// Grace period of the pods here, in seconds.
const GRACE_S: i32 = 4;
/// From the end of the lease until a pod has ended for certain: the grace period, a quarter of it, and the margin.
const ENDED_MS: i64 = 5000 + plan::FENCE_MARGIN_MS;

fn ask(meta: &mut ObjectMeta) {
    meta.annotations.insert(ANNOTATION.to_owned(), ASKED.to_owned());
}

/// A Deployment of pods that ask not to run twice; no surge means one after the other, in place of all old ones first.
fn fenced(name: &str, replicas: i32, image: &str, surge: Option<i32>) -> Deployment {
    let mut deployment = deployment(name, replicas, image);
    let spec = deployment.spec.as_mut().unwrap();
    let template = spec.template.as_mut().unwrap();
    ask(template.metadata.as_mut().unwrap());
    template.spec.as_mut().unwrap().termination_grace_period_seconds = Some(GRACE_S);
    let number = |number| {
        Some(IntOrString {
            value: Some(Value::Number(number)),
        })
    };
    spec.strategy = Some(match surge {
        None => DeploymentStrategy {
            r#type: "Recreate".to_owned(),
            rolling_update: None,
        },
        Some(surge) => DeploymentStrategy {
            r#type: "RollingUpdate".to_owned(),
            rolling_update: Some(RollingUpdateDeployment {
                max_surge: number(surge),
                max_unavailable: number(1),
            }),
        },
    });
    deployment
}

fn bare(name: &str, node: &str) -> Pod {
    let mut pod = pod(name);
    ask(pod.metadata.as_mut().unwrap());
    let spec = pod.spec.as_mut().unwrap();
    spec.termination_grace_period_seconds = Some(GRACE_S);
    spec.node_name = node.to_owned();
    pod
}

fn node_of(pod: &Pod) -> String {
    pod.spec.as_ref().unwrap().node_name.clone()
}

fn name_of(pod: &Pod) -> String {
    pod.metadata.as_ref().unwrap().name.clone()
}

/// Three nodes, and one pod of a Deployment.
fn one() -> (Cluster, Pod) {
    let mut cluster = Cluster::new(&["n1", "n2", "n3"]);
    cluster.put(from(fenced("only", 1, "only:1", None)));
    cluster.settle(|_| {});
    let pods = cluster.pods();
    assert_eq!((pods.len(), cluster.counts()), (1, (1, 1)));
    let pod = pods.into_iter().next().unwrap();
    (cluster, pod)
}

/// Steps until the pod is gone, and when that is.
fn gone_at(cluster: &mut Cluster, pod: &Pod) -> i64 {
    for _ in 0..400 {
        let pods = cluster.pods();
        assert!(pods.len() <= 1, "one more before the first is gone: {pods:?}");
        if !pods.iter().any(|there| name_of(there) == name_of(pod)) {
            return cluster.now;
        }
        cluster.step();
    }
    panic!("the pod never goes");
}

#[test]
fn one_on_a_lost_node_is_followed_only_once_it_has_ended_for_certain() {
    let (mut cluster, first) = one();
    let silent = cluster.now;
    cluster.silence(&node_of(&first));
    let gone = gone_at(&mut cluster, &first);
    assert!(gone >= silent + LEASE_MS + ENDED_MS, "after {} ms", gone - silent);
    assert!(
        gone <= silent + LEASE_MS + ENDED_MS + 2000,
        "after {} ms",
        gone - silent
    );
    cluster.settle(|cluster| assert!(cluster.pods().len() <= 1));
    let second = cluster.pods().remove(0);
    assert_ne!(node_of(&second), node_of(&first));
    assert_eq!(cluster.counts(), (1, 1));
}

#[test]
fn one_whose_node_comes_back_in_time_stays() {
    let (mut cluster, first) = one();
    cluster.silence(&node_of(&first));
    let silent = cluster.now;
    while cluster.now < silent + LEASE_MS + ENDED_MS - 1000 {
        cluster.step();
    }
    cluster.wake(&node_of(&first));
    cluster.settle(|cluster| assert_eq!(cluster.pods().len(), 1));
    assert_eq!(name_of(&cluster.pods()[0]), name_of(&first));
    assert_eq!(cluster.counts(), (1, 1));
}

#[test]
fn a_replacement_that_comes_after_the_node_was_called_ready_does_nothing() {
    let (mut cluster, first) = one();
    let node = node_of(&first);
    cluster.silence(&node);
    let silent = cluster.now;
    while cluster.now < silent + LEASE_MS + ENDED_MS - 1000 {
        cluster.step();
    }
    assert!(!cluster.state.is_heard(&node), "it is granted no lease");
    cluster.now += 1500;
    let late = plan::commands(&cluster.state, cluster.now, &cluster.world());
    let mut there = cluster.state.clone();
    assert!(late.iter().any(|command| there.apply(command).applied()));
    assert!(
        there.get(&key("Pod", &name_of(&first))).is_none(),
        "it would go now"
    );
    cluster.wake(&node);
    for command in plan::commands(&cluster.state, cluster.now, &cluster.world()) {
        cluster.apply(&command);
    }
    assert!(cluster.state.is_heard(&node));
    for command in &late {
        cluster.apply(command);
    }
    assert!(cluster.state.get(&key("Pod", &name_of(&first))).is_some());
}

#[test]
fn one_that_was_deleted_by_force_goes_no_sooner_than_it_has_ended() {
    let (mut cluster, first) = one();
    cluster.silence(&node_of(&first));
    let silent = cluster.now;
    let force = Op::Delete(DeleteOp {
        key: Some(key("Pod", &name_of(&first))),
        grace_period_seconds: Some(0),
        ..Default::default()
    });
    assert!(cluster.apply(&transaction(cluster.now, vec![force])));
    let grace = cluster.pods()[0]
        .metadata
        .as_ref()
        .unwrap()
        .deletion_grace_period_seconds;
    assert_eq!(grace, Some(0), "a node that hears of it kills it at once");
    let gone = gone_at(&mut cluster, &first);
    assert!(gone >= silent + LEASE_MS + ENDED_MS, "after {} ms", gone - silent);
}

#[test]
fn one_that_was_deleted_goes_also_while_nothing_is_replaced() {
    let mut cluster = Cluster::new(&["n1", "n2", "n3"]);
    cluster.put(from(bare("bare", "n1")));
    cluster.settle(|_| {});
    for node in ["n1", "n2", "n3"] {
        cluster.silence(node);
    }
    for _ in 0..100 {
        cluster.step();
    }
    assert!(
        cluster.state.get(&key("Pod", "bare")).is_some(),
        "a bare one stays"
    );
    assert!(cluster.apply(&transaction(cluster.now, vec![delete("Pod", "bare")])));
    cluster.step();
    assert!(
        cluster.state.get(&key("Pod", "bare")).is_none(),
        "it ended long ago"
    );
}

#[test]
fn one_on_a_deleted_node_keeps_the_nodes_name_until_it_has_ended() {
    let (mut cluster, first) = one();
    let node = node_of(&first);
    let silent = cluster.now;
    cluster.silence(&node);
    assert!(cluster.apply(&transaction(cluster.now, vec![delete("Node", &node)])));
    cluster.step();
    let (reason, message) = refused(&cluster.state.apply(&join(cluster.now, &node)));
    assert_eq!(reason, "Conflict");
    assert!(message.contains("may still run there"), "{message}");
    assert!(!cluster.state.is_heard(&node));
    assert_eq!(
        cluster.state.may_still_run_on(&node).unwrap().name,
        name_of(&first)
    );
    let gone = gone_at(&mut cluster, &first);
    assert!(gone >= silent + LEASE_MS + ENDED_MS, "after {} ms", gone - silent);
    assert_eq!(cluster.state.may_still_run_on(&node), None);
    let again = join(cluster.now, &node);
    assert!(cluster.apply(&again));
}

#[test]
fn a_rollout_without_surge_never_has_more_pods_than_replicas() {
    for end_ms in [0, 3000] {
        let mut cluster = Cluster::new(&["n1", "n2"]);
        cluster.end_ms = end_ms;
        cluster.put(from(fenced("three", 3, "i:1", Some(0))));
        cluster.settle(|_| {});
        for image in ["i:2", "i:1", "i:3"] {
            cluster.put(from(fenced("three", 3, image, Some(0))));
            // The next one comes before the last is through.
            for _ in 0..7 {
                cluster.step();
                assert!(cluster.pods().len() <= 3, "{image}");
            }
        }
        cluster.settle(|cluster| assert!(cluster.pods().len() <= 3));
        assert_eq!(cluster.counts(), (3, 3));
        assert_eq!(cluster.images(), BTreeSet::from(["i:3".to_owned()]));
    }
}

#[test]
fn what_a_leader_of_before_creates_late_is_refused() {
    let (mut cluster, _) = one();
    let sets = cluster.state.list(model::Kind::ReplicaSet, None, None);
    let set = sets.into_iter().next().unwrap();
    let owner = model::object::meta(&set);
    let create = |name: &str| {
        Op::CreatePods(CreatePods {
            owner: Some(model::object::key(&set)),
            uid: owner.uid.clone(),
            pods: vec![NewPod {
                name: name.to_owned(),
                uid: uid(name),
            }],
        })
    };
    let (reason, message) = refused(&cluster.state.apply(&transaction(1, vec![create("late")])));
    assert_eq!(reason, "Conflict");
    assert!(message.contains("is to have 1 pods and has 1"), "{message}");
    // Nor while the pod ends.
    cluster.end_ms = 60_000;
    let name = name_of(&cluster.pods()[0]);
    assert!(cluster.apply(&transaction(cluster.now, vec![delete("Pod", &name)])));
    for _ in 0..20 {
        cluster.step();
    }
    assert_eq!(cluster.pods().len(), 1);
    refused(&cluster.state.apply(&transaction(1, vec![create("late")])));
}

/// What happens to a cluster.
#[derive(Clone, Debug)]
enum Event {
    Silence(usize),
    Wake(usize),
    Delete { force: bool },
    Image(usize),
    Replicas(i32),
    DeleteNode(usize),
    Join(usize),
    Steps(usize),
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => (0..4_usize).prop_map(Event::Silence),
        2 => (0..4_usize).prop_map(Event::Wake),
        2 => any::<bool>().prop_map(|force| Event::Delete { force }),
        1 => (0..2_usize).prop_map(Event::Image),
        1 => (0..2).prop_map(Event::Replicas),
        1 => (0..4_usize).prop_map(Event::DeleteNode),
        1 => (0..4_usize).prop_map(Event::Join),
        6 => (1..60_usize).prop_map(Event::Steps),
    ]
}

const NODES: [&str; 4] = ["n1", "n2", "n3", "n4"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// Each pod that was bound goes when its node says so, or when the node was silent for lease and grace period; and
    /// there never is a second one.
    #[test]
    fn one_is_followed_only_by_word_of_its_node_or_by_time(
        events in prop::collection::vec(any_event(), 1..25),
        end_ms in prop::sample::select(vec![0_i64, 2500]),
        surge in prop::sample::select(vec![None, Some(0)]),
    ) {
        let mut cluster = Cluster::new(&NODES);
        cluster.end_ms = end_ms;
        cluster.put(from(fenced("only", 1, "only:0", surge)));
        let mut silent = std::collections::BTreeMap::new();
        let check = |cluster: &mut Cluster, silent: &std::collections::BTreeMap<&str, i64>| {
            let before = cluster.pods();
            assert!(before.len() <= 1, "{before:?}");
            cluster.step();
            let left: Vec<String> = cluster.pods().iter().map(name_of).collect();
            for pod in before.iter().filter(|pod| !left.contains(&name_of(pod))) {
                let node = node_of(pod);
                if let Some(since) = silent.get(&*node) {
                    assert!(cluster.now >= since + LEASE_MS + ENDED_MS, "{node} is silent since {since}: {pod:?}");
                }
            }
        };
        for event in &events {
            match event {
                Event::Silence(node) => {
                    silent.entry(NODES[*node]).or_insert_with(|| {
                        cluster.silence(NODES[*node]);
                        cluster.now
                    });
                }
                Event::Wake(node) => {
                    // A deleted node's agent stays away until its machine joins.
                    if cluster.state.contains(&key("Node", NODES[*node])) {
                        silent.remove(NODES[*node]);
                        cluster.wake(NODES[*node]);
                    }
                }
                Event::Delete { force } => {
                    if let Some(pod) = cluster.pods().first() {
                        let delete = Op::Delete(DeleteOp {
                            key: Some(key("Pod", &name_of(pod))),
                            grace_period_seconds: force.then_some(0),
                            ..Default::default()
                        });
                        prop_assert!(cluster.apply(&transaction(cluster.now, vec![delete])));
                    }
                }
                Event::Image(image) => {
                    cluster.put(from(fenced("only", 1, &format!("only:{image}"), surge)));
                }
                Event::Replicas(replicas) => {
                    let scale = Op::Scale(Scale {
                        key: Some(key("Deployment", "only")),
                        uid: uid("only"),
                        replicas: *replicas,
                    });
                    prop_assert!(cluster.apply(&transaction(cluster.now, vec![scale])));
                }
                Event::DeleteNode(node) => {
                    let name = NODES[*node];
                    if cluster.apply(&transaction(cluster.now, vec![delete("Node", name)])) {
                        silent.entry(name).or_insert(cluster.now);
                        cluster.silence(name);
                    }
                }
                Event::Join(node) => {
                    let name = NODES[*node];
                    let new = !cluster.state.contains(&key("Node", name));
                    if new && cluster.apply(&join(cluster.now, name)) {
                        prop_assert!(
                            !cluster.pods().iter().any(|pod| node_of(pod) == name),
                            "another machine takes over a pod"
                        );
                    }
                }
                Event::Steps(count) => {
                    for _ in 0..*count {
                        check(&mut cluster, &silent);
                    }
                }
            }
        }
        for node in NODES {
            if !cluster.state.contains(&key("Node", node)) {
                while !cluster.apply(&join(cluster.now, node)) {
                    check(&mut cluster, &silent);
                }
            }
            silent.remove(node);
            cluster.wake(node);
        }
        cluster.put(from(fenced("only", 1, "only:0", surge)));
        let scale = Op::Scale(Scale { key: Some(key("Deployment", "only")), uid: uid("only"), replicas: 1 });
        prop_assert!(cluster.apply(&transaction(cluster.now, vec![scale])));
        cluster.settle(|cluster| assert!(cluster.pods().len() <= 1));
        prop_assert_eq!(cluster.counts(), (1, 1));
    }
}
