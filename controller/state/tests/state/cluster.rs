//! Deployments over a simulated cluster.

use std::collections::BTreeSet;

use model::object::{from, meta};
use proptest::prelude::*;
use proto::state::v1::operation::Operation as Op;
use proto::state::v1::{DeleteOp, Scale};
use proto::v1::int_or_string::Value;
use proto::v1::object::Object as Any;
use proto::v1::{
    Condition, Deployment, DeploymentStrategy, IntOrString, Object, Pod, PodStatus, ReplicaSet,
    RollingUpdateDeployment,
};

use state::plan::{Lease, World};

use crate::simulation::Cluster;
use crate::support::*;

fn rolling(name: &str, replicas: i32, image: &str, surge: i32, unavailable: i32) -> Deployment {
    let number = |number| {
        Some(IntOrString {
            value: Some(Value::Number(number)),
        })
    };
    let mut deployment = deployment(name, replicas, image);
    deployment.spec.as_mut().unwrap().strategy = Some(DeploymentStrategy {
        r#type: "RollingUpdate".to_owned(),
        rolling_update: Some(RollingUpdateDeployment {
            max_surge: number(surge),
            max_unavailable: number(unavailable),
        }),
    });
    deployment
}

fn get_deployment(cluster: &Cluster, name: &str) -> Deployment {
    match get(&cluster.state, "Deployment", name).object {
        Some(Any::Deployment(deployment)) => deployment,
        other => panic!("{other:?}"),
    }
}

fn progressing(cluster: &Cluster, name: &str) -> Condition {
    let status = get_deployment(cluster, name).status.unwrap();
    status
        .conditions
        .into_iter()
        .find(|condition| condition.r#type == "Progressing")
        .unwrap()
}

fn revisions(cluster: &Cluster) -> Vec<ReplicaSet> {
    let sets = cluster.state.list(model::Kind::ReplicaSet, None, None);
    sets.filter_map(|set| match set.object {
        Some(Any::ReplicaSet(set)) => Some(set),
        _ => None,
    })
    .collect()
}

fn scale(cluster: &mut Cluster, name: &str, replicas: i32) {
    let scale = Scale {
        key: Some(key("Deployment", name)),
        replicas,
        ..Default::default()
    };
    let command = transaction(cluster.now, vec![Op::Scale(scale)]);
    assert!(cluster.apply(&command));
}

#[test]
fn a_deployment_runs_spread_over_the_nodes_and_says_so() {
    let mut cluster = Cluster::new(&["n1", "n2", "n3"]);
    cluster.put(from(deployment("web", 6, "web:1")));
    cluster.settle(|_| {});
    assert_eq!(cluster.counts(), (6, 6));
    assert!(
        cluster.spread().values().all(|count| *count == 2),
        "{:?}",
        cluster.spread()
    );
    let status = get_deployment(&cluster, "web").status.unwrap();
    let counts = (
        status.replicas,
        status.updated_replicas,
        status.ready_replicas,
        status.available_replicas,
    );
    assert_eq!(
        (counts, status.unavailable_replicas, status.observed_generation),
        ((6, 6, 6, 6), 0, 1)
    );
    let reasons: Vec<&str> = status
        .conditions
        .iter()
        .map(|condition| condition.reason.as_str())
        .collect();
    assert_eq!(reasons, ["MinimumReplicasAvailable", "NewReplicaSetAvailable"]);
    let marked = meta(&get(&cluster.state, "Deployment", "web"))
        .annotations
        .clone();
    assert_eq!(marked["deployment.kubernetes.io/revision"], "1");
    let revision = cluster.state.revision();
    for _ in 0..10 {
        cluster.step();
    }
    assert_eq!(
        cluster.state.revision(),
        revision,
        "a cluster at rest writes nothing"
    );
}

#[test]
fn applying_the_same_manifest_again_changes_nothing() {
    let mut cluster = Cluster::new(&["n1"]);
    cluster.put(from(deployment("web", 2, "web:1")));
    cluster.settle(|_| {});
    let revision = cluster.state.revision();
    cluster.put(from(deployment("web", 2, "web:1")));
    cluster.settle(|_| {});
    assert_eq!(cluster.state.revision(), revision);
}

#[test]
fn scaling_up_and_down_ends_at_the_number() {
    let mut cluster = Cluster::new(&["n1", "n2"]);
    cluster.put(from(deployment("web", 3, "web:1")));
    for replicas in [3, 7, 2, 0, 1] {
        scale(&mut cluster, "web", replicas);
        cluster.settle(|_| {});
        let count = usize::try_from(replicas).unwrap();
        assert_eq!(cluster.counts(), (count, count));
    }
    assert_eq!(revisions(&cluster).len(), 1);
}

#[test]
fn a_deployment_takes_everything_with_it() {
    let mut cluster = Cluster::new(&["n1"]);
    cluster.put(from(deployment("web", 3, "web:1")));
    cluster.settle(|_| {});
    for propagation in ["Foreground", "Background"] {
        let delete = DeleteOp {
            key: Some(key("Deployment", "web")),
            propagation: propagation.to_owned(),
            ..Default::default()
        };
        let command = transaction(cluster.now, vec![Op::Delete(delete)]);
        assert!(cluster.apply(&command));
        cluster.settle(|_| {});
        assert_eq!((cluster.pods().len(), revisions(&cluster).len()), (0, 0));
        assert!(cluster.state.get(&key("Deployment", "web")).is_none());
        cluster.put(from(deployment("web", 3, "web:1")));
        cluster.settle(|_| {});
        assert_eq!(cluster.counts(), (3, 3));
    }
}

#[test]
fn orphaned_revisions_are_adopted_again() {
    let mut cluster = Cluster::new(&["n1"]);
    cluster.put(from(deployment("web", 2, "web:1")));
    cluster.settle(|_| {});
    let uids = |cluster: &Cluster| -> Vec<String> {
        cluster
            .pods()
            .iter()
            .map(|pod| pod.metadata.as_ref().unwrap().uid.clone())
            .collect()
    };
    let before = uids(&cluster);
    let delete = DeleteOp {
        key: Some(key("Deployment", "web")),
        propagation: "Orphan".to_owned(),
        ..Default::default()
    };
    let command = transaction(cluster.now, vec![Op::Delete(delete)]);
    assert!(cluster.apply(&command));
    cluster.settle(|_| {});
    assert_eq!(uids(&cluster), before);
    let mut again = deployment("web", 2, "web:1");
    again.metadata.as_mut().unwrap().uid = "second".to_owned();
    cluster.put(from(again));
    cluster.settle(|_| {});
    assert_eq!(uids(&cluster), before);
    assert_eq!(
        revisions(&cluster)[0].metadata.as_ref().unwrap().owner_references[0].uid,
        "second"
    );
}

#[test]
fn a_template_that_comes_back_is_the_newest_revision() {
    let mut cluster = Cluster::new(&["n1"]);
    for image in ["web:1", "web:2", "web:1"] {
        cluster.put(from(deployment("web", 2, image)));
        cluster.settle(|_| {});
        assert_eq!(cluster.images().into_iter().collect::<Vec<_>>(), [image]);
    }
    let marked = meta(&get(&cluster.state, "Deployment", "web"))
        .annotations
        .clone();
    assert_eq!(marked["deployment.kubernetes.io/revision"], "3");
    assert_eq!(revisions(&cluster).len(), 2, "it is the same ReplicaSet");
}

#[test]
fn old_revisions_are_forgotten_beyond_the_limit() {
    let mut cluster = Cluster::new(&["n1"]);
    for number in 0..6 {
        let mut deployment = deployment("web", 1, &format!("web:{number}"));
        deployment.spec.as_mut().unwrap().revision_history_limit = Some(2);
        cluster.put(from(deployment));
        cluster.settle(|_| {});
    }
    assert_eq!(revisions(&cluster).len(), 3);
}

#[test]
fn a_rollout_that_gets_nowhere_says_so_and_keeps_the_old_pods() {
    let mut cluster = Cluster::new(&["n1"]);
    cluster.put(from(rolling("web", 4, "web:1", 1, 1)));
    cluster.settle(|_| {});
    cluster.broken.insert("web:2".to_owned());
    let mut next = rolling("web", 4, "web:2", 1, 1);
    next.spec.as_mut().unwrap().progress_deadline_seconds = Some(60);
    cluster.put(from(next));
    cluster.settle(|_| {});
    assert_eq!(cluster.counts().1, 3);
    cluster.now += 61_000;
    cluster.settle(|_| {});
    assert_eq!(progressing(&cluster, "web").reason, "ProgressDeadlineExceeded");
    assert_eq!(cluster.counts().1, 3);
    cluster.put(from(rolling("web", 4, "web:1", 1, 1)));
    cluster.settle(|_| {});
    assert_eq!(cluster.counts(), (4, 4));
    assert_eq!(progressing(&cluster, "web").reason, "NewReplicaSetAvailable");
}

#[test]
fn recreate_never_runs_two_revisions_at_once() {
    let mut cluster = Cluster::new(&["n1", "n2"]);
    let recreate = |image: &str| {
        let mut deployment = deployment("web", 3, image);
        deployment.spec.as_mut().unwrap().strategy = Some(DeploymentStrategy {
            r#type: "Recreate".to_owned(),
            rolling_update: None,
        });
        from(deployment)
    };
    cluster.put(recreate("web:1"));
    cluster.settle(|_| {});
    cluster.put(recreate("web:2"));
    cluster.settle(|cluster| assert!(cluster.images().len() <= 1));
    assert_eq!(cluster.counts(), (3, 3));
    assert!(cluster.images().contains("web:2"));
}

#[test]
fn a_paused_deployment_is_scaled_but_not_rolled_out() {
    let mut cluster = Cluster::new(&["n1"]);
    cluster.put(from(deployment("web", 3, "web:1")));
    cluster.settle(|_| {});
    let paused = |paused| {
        let mut deployment = deployment("web", 5, "web:2");
        deployment.spec.as_mut().unwrap().paused = paused;
        from(deployment)
    };
    cluster.put(paused(true));
    cluster.settle(|_| {});
    assert_eq!(cluster.counts(), (5, 5));
    assert!(!cluster.images().contains("web:2"));
    assert_eq!(progressing(&cluster, "web").reason, "DeploymentPaused");
    cluster.put(paused(false));
    cluster.settle(|_| {});
    assert_eq!(cluster.images().into_iter().collect::<Vec<_>>(), ["web:2"]);
    assert_eq!(progressing(&cluster, "web").reason, "NewReplicaSetAvailable");
}

#[test]
fn pods_must_be_ready_for_a_while_to_count() {
    let mut cluster = Cluster::new(&["n1"]);
    let mut deployment = rolling("web", 2, "web:1", 1, 0);
    deployment.spec.as_mut().unwrap().min_ready_seconds = 10;
    cluster.put(from(deployment));
    let start = cluster.now;
    while get_deployment(&cluster, "web")
        .status
        .unwrap_or_default()
        .available_replicas
        < 2
    {
        cluster.step();
        assert!(cluster.now < start + 60_000);
    }
    assert!(cluster.now >= start + 11_000);
}

#[test]
fn the_pods_of_a_lost_node_run_elsewhere_and_it_may_come_back() {
    let mut cluster = Cluster::new(&["n1", "n2", "n3"]);
    cluster.put(from(deployment("web", 6, "web:1")));
    let mut bare = pod("bare");
    bare.spec.as_mut().unwrap().node_name = "n1".to_owned();
    cluster.put(from(bare));
    cluster.settle(|_| {});
    cluster.silence("n1");
    let start = cluster.now;
    while cluster.counts().1 < 6 || cluster.spread().get("n1") != Some(&1) {
        cluster.step();
        assert!(cluster.now <= start + 10_000, "{:?}", cluster.spread());
    }
    cluster.settle(|_| {});
    assert_eq!(cluster.counts(), (7, 6), "the bare pod stays and is not ready");
    assert_eq!(
        ready_of(&cluster, "n1"),
        ("Unknown".to_owned(), "NodeStatusUnknown".to_owned())
    );
    let bare = get_pod(&cluster.state, "bare").status.unwrap();
    assert!(
        bare.conditions
            .iter()
            .any(|condition| condition.reason == "NodeLost")
    );
    cluster.wake("n1");
    cluster.settle(|_| {});
    assert_eq!(ready_of(&cluster, "n1").0, "True");
    assert_eq!(cluster.counts(), (7, 7));
}

fn ready_of(cluster: &Cluster, node: &str) -> (String, String) {
    let ready = condition_of(cluster, node, "Ready").unwrap();
    (ready.status, ready.reason)
}

fn condition_of(cluster: &Cluster, node: &str, kind: &str) -> Option<Condition> {
    let node = cluster
        .state
        .nodes()
        .find(|there| there.metadata.as_ref().unwrap().name == node)
        .unwrap();
    node.status
        .as_ref()
        .unwrap()
        .conditions
        .iter()
        .find(|condition| condition.r#type == kind)
        .cloned()
}

#[test]
fn losing_most_nodes_at_once_moves_nothing_and_says_so() {
    let mut cluster = Cluster::new(&["n1", "n2", "n3"]);
    cluster.put(from(deployment("web", 6, "web:1")));
    cluster.settle(|_| {});
    let before = cluster.spread();
    cluster.silence("n1");
    cluster.silence("n2");
    cluster.settle(|_| {});
    assert_eq!(cluster.spread(), before);
    let paused = condition_of(&cluster, "n1", "ReplacementPaused").unwrap();
    assert!(paused.message.starts_with("2 of 3 nodes"), "{}", paused.message);
    cluster.wake("n2");
    cluster.settle(|_| {});
    assert!(condition_of(&cluster, "n1", "ReplacementPaused").is_none());
    assert_eq!(cluster.counts(), (6, 6));
    assert_eq!(cluster.spread().get("n1"), None);
}

#[test]
fn nodes_that_were_lost_one_by_one_are_not_a_mass_loss_for_a_new_leader() {
    let mut cluster = Cluster::new(&["n1", "n2", "n3", "n4"]);
    cluster.put(from(deployment("web", 4, "web:1")));
    cluster.settle(|_| {});
    for node in ["n1", "n2", "n3"] {
        cluster.now += 120_000;
        cluster.silence(node);
        cluster.settle(|_| {});
    }
    assert_eq!(
        cluster.spread().into_iter().collect::<Vec<_>>(),
        [("n4".to_owned(), 4)]
    );
    let lease = |node: &str| match node {
        "n4" => Lease::Live,
        _ => Lease::Lost {
            since: cluster.now,
            past_ms: 0,
        },
    };
    let leases = ["n1", "n2", "n3", "n4"].map(|node| (node.to_owned(), lease(node)));
    let commands = state::plan::commands(
        &cluster.state,
        cluster.now,
        &World {
            leases: leases.into(),
        },
    );
    assert_eq!(commands, []);
}

#[test]
fn pods_of_a_deleted_node_go() {
    let mut cluster = Cluster::new(&["n1", "n2"]);
    cluster.put(from(deployment("web", 4, "web:1")));
    cluster.settle(|_| {});
    let command = transaction(cluster.now, vec![delete("Node", "n1")]);
    assert!(cluster.apply(&command));
    cluster.settle(|_| {});
    assert_eq!(
        cluster.spread().into_iter().collect::<Vec<_>>(),
        [("n2".to_owned(), 4)]
    );
}

#[test]
fn a_pod_that_was_deleted_on_a_lost_node_goes_without_it() {
    let mut cluster = Cluster::new(&["n1", "n2", "n3"]);
    let mut bare = pod("bare");
    bare.spec.as_mut().unwrap().node_name = "n1".to_owned();
    cluster.put(from(bare));
    cluster.settle(|_| {});
    cluster.silence("n1");
    let command = transaction(cluster.now, vec![delete("Pod", "bare")]);
    assert!(cluster.apply(&command));
    cluster.settle(|_| {});
    assert!(cluster.state.get(&key("Pod", "bare")).is_none());
}

#[test]
fn pods_that_fail_for_good_are_replaced_ever_more_slowly_and_few_are_kept() {
    let mut cluster = Cluster::new(&["n1"]);
    cluster.put(from(deployment("web", 1, "web:1")));
    let mut seen = BTreeSet::new();
    for _ in 0..240 {
        cluster.step();
        let bound: Vec<Pod> = cluster.state.pods_on("n1").collect();
        assert!(bound.len() <= 7, "{} pods are kept", bound.len());
        for pod in bound {
            let failed = PodStatus {
                phase: "Failed".to_owned(),
                ..Default::default()
            };
            let uid = pod.metadata.unwrap().uid;
            let command = report_by_uid(cluster.now, &uid, "n1", Some(failed), false);
            cluster.apply(&command);
            seen.insert(uid);
        }
    }
    assert!(
        (4..=20).contains(&seen.len()),
        "{} pods in two minutes",
        seen.len()
    );
}

#[test]
fn many_pods_come_in_batches() {
    let mut cluster = Cluster::new(&[]);
    cluster.put(from(deployment("web", 1200, "web:1")));
    cluster.step();
    cluster.step();
    assert_eq!(cluster.pods().len(), 1200);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_rollout_stays_within_its_bounds(
        replicas in 1_i32..9,
        surge in 0_i32..4,
        unavailable in 0_i32..4,
        start_ms in prop::sample::select(vec![0_i64, 500, 2500]),
        rounds in 1_usize..4,
    ) {
        let mut cluster = Cluster::new(&["n1", "n2", "n3"]);
        cluster.start_ms = start_ms;
        cluster.put(from(rolling("web", replicas, "web:0", surge, unavailable)));
        cluster.settle(|_| {});
        let most = usize::try_from(replicas + surge).unwrap();
        let missing = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
        let least = usize::try_from((replicas - missing).max(0)).unwrap();
        let within = |cluster: &Cluster| {
            let (active, ready) = cluster.counts();
            assert!(active <= most, "{active} pods, at most {most} are allowed");
            assert!(ready >= least, "{ready} pods are ready, at least {least} have to be");
        };
        for round in 1..=rounds {
            cluster.put(from(rolling("web", replicas, &format!("web:{round}"), surge, unavailable)));
            // The next template comes while the rollout is under way.
            for _ in 0..3 {
                cluster.step();
                within(&cluster);
            }
        }
        cluster.settle(within);
        let wanted = usize::try_from(replicas).unwrap();
        prop_assert_eq!(cluster.counts(), (wanted, wanted));
        prop_assert_eq!(cluster.images().into_iter().collect::<Vec<_>>(), vec![format!("web:{rounds}")]);
    }
}

#[test]
fn objects_survive_the_simulation_as_bytes() {
    let mut cluster = Cluster::new(&["n1"]);
    cluster.put(from(deployment("web", 3, "web:1")));
    cluster.settle(|_| {});
    let copy = state::State::decode(cluster.state.encode()).unwrap();
    state::invariant::check(&copy).unwrap();
    assert_eq!(bytes(&copy), bytes(&cluster.state));
    let objects = |state: &state::State| -> Vec<Object> {
        model::Kind::ALL
            .into_iter()
            .flat_map(|kind| state.list(kind, None, None).collect::<Vec<_>>())
            .collect()
    };
    assert_eq!(objects(&copy), objects(&cluster.state));
}
