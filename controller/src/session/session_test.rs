//! A session's stories: from a placed pod to a removed one, from a node that joins to one that is deleted.

use model::object;
use proto::v1::{Deployment, DeploymentSpec, LabelSelector, ObjectMeta, PodStatus, PodTemplateSpec};
use rcgen::{CertificateParams, KeyPair};
use rpc::v1::agent_message::Message as Up;
use rpc::v1::controller_message::Message as Down;
use rpc::v1::node_client::NodeClient;
use rpc::v1::{Heartbeat, HeldPod, RenewRequest};
use tonic::Code;

use super::cluster_test::{Agent, client, cluster, find_pod, meta, pod, spec};
use crate::security::ca::Subject;
use crate::security::identity::{Authenticated, Identity};
use crate::security::unix_now;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_placed_told_reported_deleted_and_gone() {
    let (ca, controllers) = cluster(1).await;
    let controller = &controllers[0];
    let (mut agent, welcome, first) = Agent::begin(&ca, controller, "n1").await;
    assert_eq!((welcome.heartbeat_ms, welcome.lease_ms), (2000, 6000));
    assert_eq!(welcome.endpoints, [controller.api.as_str()]);
    assert!(welcome.pod_cidr.starts_with("10.244.") && welcome.cluster_pod_cidr == "10.244.0.0/16");
    assert!(first.uids.is_empty());
    agent.say(Up::Heartbeat(Heartbeat { sequence: 7 })).await;
    loop {
        if let Down::Heartbeat(reply) = agent.next().await {
            assert_eq!((reply.sequence, reply.granted), (7, true));
            break;
        }
    }
    controller.put(pod("web")).await;
    let told = agent.pod().await;
    let meta = told.metadata.clone().unwrap();
    assert_eq!(
        (meta.name.as_str(), told.spec.unwrap().node_name.as_str()),
        ("web", "n1")
    );

    let running = PodStatus {
        phase: "Running".to_owned(),
        pod_ip: "10.244.0.2".to_owned(),
        ..Default::default()
    };
    agent.report(&meta.uid, Some(running), false).await;
    agent.report("somebody else's", None, true).await;
    controller
        .until("the status arrives", |state| {
            let status = find_pod(state, "web")?.status?;
            (status.phase == "Running" && status.pod_ip == "10.244.0.2").then_some(())
        })
        .await;

    controller.delete("Pod", "web").await;
    let told = agent.pod().await;
    assert!(told.metadata.unwrap().deletion_timestamp.is_some());
    agent.report(&meta.uid, None, true).await;
    controller
        .until("the pod goes", |state| {
            find_pod(state, "web").is_none().then_some(())
        })
        .await;
    assert_eq!(agent.desired().await.removed, [meta.uid]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_becomes_placed_pods_and_a_new_session_hears_only_the_difference() {
    let (ca, controllers) = cluster(1).await;
    let controller = &controllers[0];
    let (mut agent, _, _) = Agent::begin(&ca, controller, "n1").await;
    let labels: std::collections::BTreeMap<String, String> = [("app".to_owned(), "web".to_owned())].into();
    controller
        .put(object::from(Deployment {
            metadata: meta("web"),
            spec: Some(DeploymentSpec {
                replicas: Some(3),
                selector: Some(LabelSelector {
                    match_labels: labels.clone(),
                    ..Default::default()
                }),
                template: Some(PodTemplateSpec {
                    metadata: Some(ObjectMeta {
                        labels,
                        ..Default::default()
                    }),
                    spec: spec(),
                }),
                ..Default::default()
            }),
            ..Default::default()
        }))
        .await;
    let mut held = Vec::new();
    let mut revision = 0;
    while held.len() < 3 {
        let desired = agent.desired().await;
        revision = desired.revision;
        held.extend(desired.pods.into_iter().map(|pod| {
            let meta = pod.metadata.unwrap();
            HeldPod {
                uid: meta.uid,
                resource_version: meta.resource_version,
            }
        }));
    }
    let mut again = Agent::hello(client(&ca, controller, "n1"), held, revision).await;
    let difference = again.desired().await;
    assert!(difference.complete);
    assert_eq!((difference.uids.len(), difference.pods.len()), (3, 0));
    // The older session was replaced.
    let end = loop {
        match agent.try_next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ends with a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), Code::Aborted);
    // One that knows more than this cluster belongs to another one.
    let mut ahead = Agent::hello(client(&ca, controller, "n2"), Vec::new(), u64::MAX).await;
    assert_eq!(ahead.try_next().await.unwrap_err().code(), Code::Unavailable);
    let unknown = Agent::hello(client(&ca, controller, "n9"), Vec::new(), 0)
        .await
        .try_next()
        .await;
    assert_eq!(unknown.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_deleted_loses_its_session_and_its_certificate() {
    let (ca, controllers) = cluster(1).await;
    let controller = &controllers[0];
    let (mut agent, _, first) = Agent::begin(&ca, controller, "n1").await;
    assert!(first.peers.is_empty(), "n2 has no address yet");
    let (_other, _, _) = Agent::begin(&ca, controller, "n2").await;
    let peers = loop {
        let desired = agent.desired().await;
        if desired.peers_changed && !desired.peers.is_empty() {
            break desired.peers;
        }
    };
    assert_eq!(
        (peers[0].name.as_str(), peers[0].address.as_str()),
        ("n2", "127.0.0.1")
    );

    let pair = KeyPair::generate().unwrap();
    let csr = CertificateParams::default()
        .serialize_request(&pair)
        .unwrap()
        .der()
        .to_vec();
    let renewed = agent
        .client
        .renew(RenewRequest { csr: csr.clone() })
        .await
        .unwrap()
        .into_inner();
    let leaf = rpc::tls::certificates(&renewed.certificate, "")
        .unwrap()
        .remove(0);
    let identity = Authenticated::from_certificate(&leaf).unwrap().identity;
    assert_eq!(identity, Identity::Node("n1".to_owned()));

    controller.delete("Node", "n1").await;
    let end = loop {
        match agent.try_next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ends with a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), Code::FailedPrecondition);
    let refused = agent.client.renew(RenewRequest { csr }).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_nodes_are_let_in() {
    let (ca, controllers) = cluster(1).await;
    let admin = Subject::Admin {
        name: "admin".to_owned(),
    };
    let issued = ca.issue(&admin, unix_now()).unwrap();
    let identity = (issued.certificate.as_str(), issued.key.as_str());
    for identity in [Some(identity), None] {
        let channel = rpc::tls::channel(
            std::slice::from_ref(&controllers[0].api),
            ca.certificate(),
            identity,
        )
        .unwrap();
        let mut client = NodeClient::new(channel);
        let refusals = [
            client
                .session(tokio_stream::empty())
                .await
                .map(|_| ())
                .unwrap_err(),
            client.carry(tokio_stream::empty()).await.map(|_| ()).unwrap_err(),
            client
                .renew(RenewRequest::default())
                .await
                .map(|_| ())
                .unwrap_err(),
        ];
        assert!(
            refusals
                .iter()
                .all(|status| status.code() == Code::PermissionDenied),
            "{refusals:?}"
        );
    }
}
