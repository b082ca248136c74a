//! What a member does when its disk is damaged or full.

use std::time::Duration;

use super::cluster_test::{Cluster, applied, has, large_write, open_dirs, write};
use super::log::{LogError, WriteBy};
use super::*;
use crate::store::sim::{Fault, SimDir};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_log_keeps_the_member_from_starting() {
    let mut cluster = Cluster::new(1000);
    let first = cluster.start(1).await;
    first.node.initialize(cluster.member(1)).await.unwrap();
    for i in 0..10 {
        applied(first.node.propose(write(&format!("t{i}"))).await.unwrap());
    }
    first.kill().await;
    let file = cluster.tmp.path().join("1/log/00000000000000000001.log");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[200] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let (log, snapshots) = open_dirs(&cluster.tmp.path().join("1")).await;
    let client = rpc::tls::client_config(cluster.ca.certificate(), None).unwrap();
    let refused = Node::start(cluster.config(1), log, snapshots, client).await;
    let Err(StartError::Log(cause @ LogError::Damaged { .. })) = refused else {
        panic!("it started")
    };
    assert!(
        cause.to_string().contains("00000000000000000001.log, byte"),
        "{cause}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_ends_consensus_and_the_next_start_has_what_was_acknowledged() {
    let cluster = Cluster::new(1000);
    let config = || NodeConfig {
        segment_bytes: 7 << 20,
        write_by: WriteBy::Caller,
        ..cluster.config(1)
    };
    let client = || rpc::tls::client_config(cluster.ca.certificate(), None).unwrap();
    let log = SimDir::new(Fault::Quota(15 << 20), 1);
    let snapshots = SimDir::new(Fault::None, 2);
    let node = Node::start(config(), log.clone(), snapshots.clone(), client())
        .await
        .unwrap();
    node.initialize(Member::default()).await.unwrap();
    let mut acknowledged = Vec::new();
    let full = loop {
        let id = format!("t{}", acknowledged.len());
        match node.propose(large_write(&id, 900_000)).await {
            Ok(reply) => applied(reply),
            Err(cause) => break cause,
        }
        acknowledged.push(id);
    };
    assert!(matches!(full, ProposeError::Stopped { .. }), "{full}");
    assert!(acknowledged.len() >= 10, "{}", acknowledged.len());
    let cause = tokio::time::timeout(Duration::from_secs(20), node.ended())
        .await
        .expect("it ends");
    assert!(cause.contains("failed to write"), "{cause}");
    node.shutdown().await;

    let (log, snapshots) = (log.after_crash(Fault::None), snapshots.after_crash(Fault::None));
    let node = Node::start(config(), log, snapshots, client()).await.unwrap();
    let state = node.read().await.unwrap();
    assert!(acknowledged.iter().all(|id| has(&state, id)));
    node.shutdown().await;
}
