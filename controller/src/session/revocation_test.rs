//! What becomes of those whose certificates are revoked, over real TLS and at a member that only hears of it.

use std::time::Duration;

use rpc::v1::api_client::ApiClient;
use rpc::v1::{
    ListRequest, ListRevocationsRequest, RenewRequest, RevokeCertificatesRequest, WatchRequest, WhoAmIRequest,
};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::cluster_test::{Agent, Controller, client, cluster, pod};
use crate::security::ca::{Authority, Subject};
use crate::security::identity::Identity;
use crate::security::revoked::issuing_time;
use crate::security::unix_now;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn connect(ca: &Authority, controller: &Controller, name: &str, issued: u64) -> ApiClient<Channel> {
    let subject = Subject::Admin {
        name: name.to_owned(),
    };
    let issued = ca.issue(&subject, issued).unwrap();
    let identity = (issued.certificate.as_str(), issued.key.as_str());
    let endpoints = [controller.api.clone()];
    ApiClient::new(rpc::tls::channel(&endpoints, ca.certificate(), Some(identity)).unwrap())
}

async fn revoke(api: &mut ApiClient<Channel>, identity: &str) -> Result<(), Status> {
    let request = RevokeCertificatesRequest {
        identity: identity.to_owned(),
    };
    api.revoke_certificates(request).await.map(|_| ())
}

fn refused(status: &Status) -> bool {
    status.code() == Code::Unauthenticated && status.message().contains("were revoked")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_issued_before_is_refused_everywhere_and_what_is_open_is_cut() {
    let (ca, controllers) = cluster(2).await;
    let now = unix_now();
    let mut root = connect(&ca, &controllers[0], "root", now);
    let mut ann = connect(&ca, &controllers[1], "ann", now);
    let mut other = connect(&ca, &controllers[1], "other", now);
    let watch = WatchRequest {
        kind: "Pod".to_owned(),
        ..Default::default()
    };
    let mut hers = ann.watch(watch.clone()).await.unwrap().into_inner();
    let mut others = other.watch(watch).await.unwrap().into_inner();
    let (mut agent, ..) = Agent::begin(&ca, &controllers[1], "n1").await;

    for identity in ["ann", "system:node:n1"] {
        revoke(&mut root, identity).await.unwrap();
    }
    // Cut, whatever had come before.
    let cut = async { while let Ok(Some(_)) = hers.message().await {} };
    tokio::time::timeout(PATIENCE, cut)
        .await
        .expect("her watch is cut");
    while let Ok(Some(_)) = agent.try_next().await {}
    let list = || ListRequest {
        kind: "Pod".to_owned(),
        ..Default::default()
    };
    assert!(refused(&ann.list(list()).await.unwrap_err()));
    assert!(refused(&ann.who_am_i(WhoAmIRequest {}).await.unwrap_err()));
    let renewed = client(&ca, &controllers[1], "n1")
        .renew(RenewRequest { csr: Vec::new() })
        .await;
    assert!(refused(&renewed.unwrap_err()));
    // Those of others are as before.
    other.list(list()).await.unwrap();
    controllers[0].put(pod("later")).await;
    let seen = async { while others.message().await.unwrap().unwrap().r#type != "ADDED" {} };
    tokio::time::timeout(PATIENCE, seen)
        .await
        .expect("a watch of somebody else goes on");

    // What is issued from now on is good.
    let state = controllers[0].node.stale();
    let later = issuing_time(&state, "ann", unix_now());
    let mut again = connect(&ca, &controllers[1], "ann", later);
    again.list(list()).await.unwrap();
    let node = Identity::Node("n1".to_owned()).to_string();
    assert!(issuing_time(&state, &node, now) > now);
    let listed = root.list_revocations(ListRevocationsRequest {}).await.unwrap();
    let names = listed
        .into_inner()
        .revocations
        .into_iter()
        .map(|one| one.identity);
    assert_eq!(names.collect::<Vec<_>>(), ["ann", "system:node:n1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_locks_themselves_or_a_controller_out() {
    let (ca, controllers) = cluster(1).await;
    let mut root = connect(&ca, &controllers[0], "root", unix_now());
    for (identity, code) in [
        ("root", Code::PermissionDenied),
        ("system:member:1", Code::InvalidArgument),
        ("system:node:", Code::InvalidArgument),
        ("system:node:N1", Code::InvalidArgument),
        ("system:serviceaccount:default", Code::InvalidArgument),
        ("system:serviceaccount::robot", Code::InvalidArgument),
        ("system:serviceaccount:default:Robot", Code::InvalidArgument),
        ("system:serviceaccounts", Code::InvalidArgument),
        ("system:anonymous", Code::InvalidArgument),
        ("", Code::InvalidArgument),
        ("an\nn", Code::InvalidArgument),
    ] {
        let status = revoke(&mut root, identity).await.unwrap_err();
        assert_eq!(status.code(), code, "{identity}: {status}");
    }
    root.who_am_i(WhoAmIRequest {}).await.unwrap();
}
