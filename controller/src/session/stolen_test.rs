//! What the certificate of one node opens: nothing of another.

use model::object;
use proto::v1::{PodStatus, Secret};
use rpc::v1::agent_message::Message as Up;
use rpc::v1::{PodReport, PodReports};

use super::cluster_test::{Agent, cluster, find_pod, meta, spec};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_node_certificate_reads_and_writes_nothing_of_another_node() {
    let (ca, controllers) = cluster(1).await;
    let controller = &controllers[0];
    let secret = Secret {
        metadata: meta("db"),
        data: [("password".to_owned(), b"hunter2".to_vec())].into(),
        ..Default::default()
    };
    controller.put(object::from(secret)).await;
    let on = |name: &str, node: &str, secret: &str| {
        let mut spec = spec().unwrap();
        node.clone_into(&mut spec.node_name);
        if !secret.is_empty() {
            spec.volumes = vec![proto::v1::Volume {
                name: "v".to_owned(),
                secret: Some(proto::v1::SecretVolumeSource {
                    secret_name: secret.to_owned(),
                    ..Default::default()
                }),
                ..Default::default()
            }];
        }
        object::from(proto::v1::Pod {
            metadata: meta(name),
            spec: Some(spec),
            ..Default::default()
        })
    };
    let (mut owner, ..) = Agent::begin(&ca, controller, "n1").await;
    // The certificate of n2 is in other hands.
    let (mut thief, _, first) = Agent::begin(&ca, controller, "n2").await;
    assert!(first.secrets.is_empty());
    controller.put(on("victim", "n1", "db")).await;
    controller.put(on("own", "n2", "")).await;
    let shown = loop {
        let desired = owner.desired().await;
        if !desired.secrets.is_empty() {
            break desired.secrets;
        }
    };
    assert_eq!(shown.len(), 1, "who runs the pod is told its secret");
    // Up to the pod of its own the thief is told of no secret, and of no other pod.
    loop {
        let desired = thief.desired().await;
        assert!(desired.secrets.is_empty(), "{desired:?}");
        let names: Vec<_> = desired
            .pods
            .iter()
            .map(|pod| pod.metadata.as_ref().unwrap().name.clone())
            .collect();
        assert!(!names.contains(&"victim".to_owned()), "{names:?}");
        if names.contains(&"own".to_owned()) {
            break;
        }
    }

    let state = controller.node.stale();
    let uid = |name: &str| find_pod(&state, name).unwrap().metadata.unwrap().uid;
    let report = |name: &str, phase: &str| PodReport {
        uid: uid(name),
        status: Some(PodStatus {
            phase: phase.to_owned(),
            ..Default::default()
        }),
        gone: false,
    };
    // In one message: once the status of its own pod is there, that of the other would be.
    let pods = vec![report("victim", "Failed"), report("own", "Running")];
    thief.say(Up::Pods(PodReports { pods })).await;
    let phase = |state: &state::State, name: &str| find_pod(state, name).unwrap().status.unwrap().phase;
    controller
        .until("the thief's own pod runs", |state| {
            (phase(state, "own") == "Running").then_some(())
        })
        .await;
    assert_eq!(phase(&controller.node.stale(), "victim"), "Pending");
}
