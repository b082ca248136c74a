//! Many writes at once through repeated snapshots and purges: the library's issue 2116 is a panic of its core when a
//! purge overtakes an apply.

use std::time::Duration;

use prost::Message;
use proto::state::v1::Command;

use super::Node;
use super::cluster_test::{Cluster, applied, write};
use super::node::{At, Refusal};
use crate::store::os::OsDir;

/// Writers at a time, and writes of each.
const WRITERS: usize = 64;
const WRITES: usize = 100;
/// A snapshot after so many entries: some sixty in this test.
const SNAPSHOT_ENTRIES: u64 = 100;

/// Commits a command as an entry of its own, wherever the leader is.
async fn entry(nodes: &[Node<OsDir>], command: &Command) {
    loop {
        for node in nodes {
            match node.propose_here(vec![command.encode_to_vec()]).await {
                Ok(At::Leader(_)) => return,
                Ok(At::Other(_)) | Err(Refusal::Unknown(_)) => {}
                Err(cause) => panic!("{cause:?}"),
            }
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_through_repeated_snapshots_and_purges() {
    let (_cluster, nodes) = Cluster::three(SNAPSHOT_ENTRIES).await;
    let writers = (0..WRITERS).map(|writer| {
        let nodes: Vec<Node<OsDir>> = nodes.iter().map(|member| member.node.clone()).collect();
        tokio::spawn(async move {
            for i in 0..WRITES {
                // Few different ones: what is tested is the log, not the state.
                let mut command = write(&format!("t{}", i % 10));
                command.request_id = format!("{writer}-{i}");
                entry(&nodes, &command).await;
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        tokio::time::timeout(Duration::from_secs(60), writer)
            .await
            .expect("writes go on")
            .unwrap();
    }
    applied(nodes[0].node.propose(write("last")).await.unwrap());
    let state = nodes[0].node.read().await.unwrap();
    for node in &nodes {
        assert_eq!(node.node.read().await.unwrap().revision(), state.revision());
        assert!(node.node.progress().applied_index >= (WRITERS * WRITES) as u64);
    }
}
