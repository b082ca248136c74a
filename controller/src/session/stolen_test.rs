//! What the certificate of one node opens: nothing of another.

use std::collections::BTreeMap;

use model::object;
use proto::v1::{PodStatus, Secret, ServiceAccount};
use rpc::v1::agent_message::Message as Up;
use rpc::v1::{PodReport, PodReports, PodTokenRequest};
use tonic::Code;

use super::cluster_test::{Agent, client, cluster, find_pod, meta, spec};
use crate::security::unix_now;

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_has_tokens_for_its_own_pods_that_ask_for_one_and_no_others() {
    let (ca, controllers) = cluster(1).await;
    let controller = &controllers[0];
    let account = |name: &str, automount| {
        object::from(ServiceAccount {
            metadata: meta(name),
            automount_service_account_token: automount,
            ..Default::default()
        })
    };
    controller.put(account("quiet", None)).await;
    controller.put(account("eager", Some(true))).await;
    let pod = |name: &str, node: &str, account: &str, automount| {
        let mut spec = spec().unwrap();
        node.clone_into(&mut spec.node_name);
        account.clone_into(&mut spec.service_account_name);
        spec.automount_service_account_token = automount;
        object::from(proto::v1::Pod {
            metadata: meta(name),
            spec: Some(spec),
            ..Default::default()
        })
    };
    let (mut agent, ..) = Agent::begin(&ca, controller, "n1").await;
    for (name, node, account, automount) in [
        ("silent", "n1", "quiet", None),
        ("asking", "n1", "quiet", Some(true)),
        ("by-account", "n1", "eager", None),
        ("declining", "n1", "eager", Some(false)),
        ("elsewhere", "n2", "eager", Some(true)),
    ] {
        controller.put(pod(name, node, account, automount)).await;
    }
    let mut told = BTreeMap::new();
    while told.len() < 4 {
        for pod in agent.desired().await.pods {
            let automount = pod.spec.unwrap().automount_service_account_token;
            told.insert(pod.metadata.unwrap().name, automount);
        }
    }
    // What is decided stands in what the node is told.
    let expected = [
        ("asking", Some(true)),
        ("by-account", Some(true)),
        ("declining", Some(false)),
        ("silent", None),
    ];
    assert_eq!(
        told,
        expected
            .map(|(name, automount)| (name.to_owned(), automount))
            .into()
    );
    let uid = |name: &str| {
        let pod = find_pod(&controller.node.stale(), name);
        pod.unwrap().metadata.unwrap().uid
    };
    let mut n1 = client(&ca, controller, "n1");
    let mut ask = async |uid: String| n1.pod_token(PodTokenRequest { pod_uid: uid }).await;
    for name in ["asking", "by-account"] {
        let answer = ask(uid(name)).await.unwrap().into_inner();
        assert_eq!(answer.life_seconds, 3600);
        let claims = ca.account_key().open(answer.token.as_bytes()).unwrap();
        claims.check(&controller.node.stale(), unix_now()).unwrap();
    }
    for (uid, code) in [
        (uid("silent"), Code::PermissionDenied),
        (uid("declining"), Code::PermissionDenied),
        // One answer for both.
        (uid("elsewhere"), Code::NotFound),
        ("absent".to_owned(), Code::NotFound),
        (String::new(), Code::NotFound),
    ] {
        assert_eq!(ask(uid.clone()).await.unwrap_err().code(), code, "{uid}");
    }
    controller.delete("ServiceAccount", "eager").await;
    let refused = ask(uid("by-account")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    controller.delete("ServiceAccount", "quiet").await;
    let refused = ask(uid("asking")).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(
        refused.message().contains("serviceaccount \"quiet\" not found"),
        "{refused}"
    );
}
